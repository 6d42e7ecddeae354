"""The warm interpreter: the same output and exit codes as without it, and nothing lives longer than it should."""

import fcntl
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.common.workspace import ROOT, end_processes, environment, processes_in

PROBES = {
    "echo": """
import os, sys
def main():
    print("argv", sys.argv, "cwd", os.getcwd(), "VALUE", os.environ.get("VALUE"), "tty", sys.stdout.isatty())
    print("input", sys.stdin.read())
    print("to error", file=sys.stderr)
""",
    "fails": """
import os, signal, sys
from stages.common.stage.errors import InputError, ParameterError, StageError
def main():
    match sys.argv[1]:
        case "parameter": raise ParameterError("one line")
        case "input": raise InputError("one line")
        case "stage": raise StageError("one line")
        case "exit": sys.exit(5)
        case "exit-none": sys.exit()
        case "exit-text": sys.exit("some text")
        case "bug": raise ZeroDivisionError("a bug")
        case "killed": os.kill(os.getpid(), signal.SIGKILL)
        case "terminated": os.kill(os.getpid(), signal.SIGTERM)
""",
    "hangs": """
import os, signal, sys
from stages.common.stage.jobs import run_jobs
def work(fifo):
    descriptor = os.open(fifo, os.O_WRONLY)
    os.write(descriptor, f"{os.getpid()}\\n".encode())
    signal.pause()
def main():
    os.environ["ENCORE_JOBS"] = "2"
    list(run_jobs(work, [sys.argv[1]] * 2))
""",
    "interrupted": """
import os, signal, sys
def main():
    try:
        os.write(os.open(sys.argv[1], os.O_WRONLY), f"{os.getpid()}\\n".encode())
        signal.pause()
    except KeyboardInterrupt:
        print("cleaning up")
        if sys.argv[2:]: sys.exit(9)
        raise
""",
    "frees": """
import resource, torch
from stages.common.stage.jobs import run_jobs
def step(_):
    blocks = [torch.ones(2_000_000) for _ in range(8)]
def faults(_):
    step(0), step(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): step(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def main():
    for job, count in [(-1, faults(0)), *run_jobs(faults, [0, 1])]:
        print(job, count, flush=True)
""",
    "waits": """
import sys
def main():
    print("ready", flush=True)
    print("got", sys.stdin.readline())
""",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the project's stages with probes beside them, and a private folder for sockets."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    probes = folder / "stages" / "probe"
    probes.mkdir()
    for name, source in PROBES.items():
        (probes / f"{name}.py").write_text(source)
    (folder / "tmp").mkdir()
    yield folder
    end_processes(folder)


def start(checkout: Path, *argv: str, warm: bool = True, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages", *argv],
        cwd=checkout,
        env=environment(
            **{"ENCORE_WARM": "1" if warm else "0", "PYTHONPATH": "", "TMPDIR": str(checkout / "tmp"), **env}
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts the tests in the background makes them ignore it, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def outcome(process: subprocess.Popen[str], text: str = "") -> tuple[int, str, str]:
    out, error = process.communicate(text, timeout=120)
    return process.returncode, out, error


def server_of(checkout: Path) -> psutil.Process:
    """The warm interpreter of the checkout (and not one of the stages that it has forked)."""
    warm = [p for p in processes_in(checkout) if "stages.common.warm" in p.cmdline()]
    (server,) = [p for p in warm if p.parent() not in warm]
    return server


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_output_input_and_environment_are_the_callers(checkout: Path) -> None:
    warm = outcome(start(checkout, "probe.echo", "--a", "b c", VALUE="x"), "typed\n")
    plain = outcome(start(checkout, "probe.echo", "--a", "b c", warm=False, VALUE="x"), "typed\n")
    assert warm == plain
    assert warm[0] == 0
    assert f"argv ['probe.echo', '--a', 'b c'] cwd {checkout} VALUE x tty False" in warm[1]
    assert "input typed\n" in warm[1]
    assert warm[2] == "to error\n"
    # what one caller has set is not there for the next
    assert "VALUE None" in outcome(start(checkout, "probe.echo"))[1]


@pytest.mark.parametrize("warm", [True, False])
def test_memory_that_a_step_frees_is_there_for_the_next(checkout: Path, warm: bool) -> None:
    code, out, error = outcome(start(checkout, "probe.frees", warm=warm))
    assert (code, error) == (0, "")
    pages = 8 * 8_000_000 // resource.getpagesize()  # of one step; ten steps are counted
    counts = [int(line.split()[1]) for line in out.splitlines()]
    assert len(counts) == 3
    assert max(counts) < pages


EXIT_CODES = {"parameter": 2, "input": 3, "stage": 1, "exit": 5, "exit-none": 0, "exit-text": 1, "bug": 1}


@pytest.mark.parametrize("how", EXIT_CODES)
def test_exit_codes_and_errors(how: str, checkout: Path) -> None:
    code, out, error = outcome(start(checkout, "probe.fails", how))
    assert (code, out) == (EXIT_CODES[how], "")
    if how in ("parameter", "input", "stage"):
        assert error == "error: one line\n"
    if how == "exit-text":
        assert error == "some text\n"
    if how == "bug":
        assert error.endswith("ZeroDivisionError: a bug\n")
    if how in ("parameter", "exit-text", "bug"):
        plain = outcome(start(checkout, "probe.fails", how, warm=False))
        assert (code, out, error.splitlines()[-1]) == (*plain[:2], plain[2].splitlines()[-1])


@pytest.mark.parametrize(("how", "number"), [("killed", signal.SIGKILL), ("terminated", signal.SIGTERM)])
def test_a_stage_that_dies_of_a_signal(how: str, number: int, checkout: Path) -> None:
    assert outcome(start(checkout, "probe.fails", how))[0] == 128 + number  # as a shell would say it
    assert outcome(start(checkout, "probe.echo"))[0] == 0  # the interpreter lives on


def read_pids(fifo: Path, count: int) -> tuple[int, list[int]]:
    """Wait for `count` processes to report themselves; the descriptor reads its end when all of them are gone."""
    descriptor = os.open(fifo, os.O_RDONLY)
    content = b""
    while content.count(b"\n") < count:
        content += os.read(descriptor, 100)
    return descriptor, [int(line) for line in content.split()]


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.timeout(60)
def test_a_killed_caller_takes_stage_and_workers_along(warm: bool, checkout: Path, fifo: Path) -> None:
    if warm:
        outcome(start(checkout, "probe.echo"))
        server = server_of(checkout)
    bystander = start(checkout, "probe.waits")
    assert bystander.stdout is not None
    assert bystander.stdout.readline() == "ready\n"
    caller = start(checkout, "probe.hangs", str(fifo), warm=warm)
    descriptor, pids = read_pids(fifo, 2)
    assert len(set(pids)) == 2
    caller.kill()
    assert os.read(descriptor, 1) == b""  # returns when nobody holds the other end any more
    os.close(descriptor)
    outcome(caller)
    assert outcome(bystander, "go\n") == (0, "got go\n\n", "")  # who has nothing to do with it goes on
    if warm:
        outcome(start(checkout, "probe.echo"))
        assert server_of(checkout) == server


@pytest.mark.timeout(60)
def test_a_killed_interpreter_takes_its_stages_along(checkout: Path, fifo: Path) -> None:
    caller = start(checkout, "probe.hangs", str(fifo))
    descriptor, _ = read_pids(fifo, 2)
    server_of(checkout).kill()
    assert os.read(descriptor, 1) == b""
    os.close(descriptor)
    code, _, error = outcome(caller)
    assert code == 137
    assert "ENCORE_WARM=0" in error
    assert outcome(start(checkout, "probe.echo"))[0] == 0  # with a new one


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.timeout(60)
def test_an_interrupt_reaches_the_stage(warm: bool, checkout: Path, fifo: Path) -> None:
    caller = start(checkout, "probe.interrupted", str(fifo), "9", warm=warm)
    descriptor, _ = read_pids(fifo, 1)
    caller.send_signal(signal.SIGINT)
    assert outcome(caller)[:2] == (9, "cleaning up\n")
    os.close(descriptor)
    if not warm:
        return
    caller = start(checkout, "probe.interrupted", str(fifo), warm=warm)
    descriptor, _ = read_pids(fifo, 1)
    caller.send_signal(signal.SIGINT)
    code, out, error = outcome(caller)
    os.close(descriptor)
    assert code == 128 + signal.SIGINT  # as a shell would say it
    assert out == "cleaning up\n"
    assert "KeyboardInterrupt" in error


@pytest.mark.timeout(60)
def test_a_termination_ends_stage_and_workers(checkout: Path, fifo: Path) -> None:
    caller = start(checkout, "probe.hangs", str(fifo))
    descriptor, _ = read_pids(fifo, 2)
    caller.terminate()
    assert os.read(descriptor, 1) == b""
    os.close(descriptor)
    assert outcome(caller)[0] == 128 + signal.SIGTERM


def test_project_code_is_read_anew(checkout: Path) -> None:
    probe = checkout / "stages" / "probe" / "edited.py"
    helper = checkout / "stages" / "common" / "helper.py"
    probe.write_text("from stages.common.helper import VALUE\n\ndef main():\n    print(VALUE)\n")
    helper.write_text("VALUE = 'before'\n")
    assert outcome(start(checkout, "probe.edited"))[1] == "before\n"
    server = server_of(checkout)
    helper.write_text("VALUE = 'after the edit'\n")
    assert outcome(start(checkout, "probe.edited"))[1] == "after the edit\n"
    assert server_of(checkout) == server


def test_without_it_no_interpreter_is_started(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tmp").mkdir()
    assert outcome(start(tmp_path, "chex.prepare", warm=False))[0] == 2  # no params.yaml
    assert os.listdir(tmp_path / "tmp") == []
    assert processes_in(tmp_path) == []


def test_sockets_are_private(checkout: Path) -> None:
    outcome(start(checkout, "probe.echo"))
    folder = checkout / "tmp" / f"encore-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)  # somebody else could have put a socket of theirs there
    try:
        code, out, _ = outcome(start(checkout, "probe.waits"), "go\n")
        server = server_of(checkout)
        assert (code, out) == (0, "ready\ngot go\n\n")
        assert server.num_fds() > 0
    finally:
        folder.chmod(0o700)


def test_a_stage_runs_where_no_socket_can_be(checkout: Path, tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)  # longer than the address of a socket may be
    long.mkdir()
    assert outcome(start(checkout, "probe.waits", TMPDIR=str(long)), "go\n")[:2] == (0, "ready\ngot go\n\n")


def test_stages_side_by_side(checkout: Path) -> None:
    processes = [start(checkout, "probe.waits", str(index)) for index in range(6)]
    for process in reversed(processes):
        assert outcome(process, f"{process.pid}\n") == (0, f"ready\ngot {process.pid}\n\n", "")


SERVE = """
import sys
from stages.common import warm
warm.PRELOAD, warm.IDLE_SECONDS = (), 0.2
warm.serve(sys.argv[1])
"""


def test_the_interpreter_ends_when_idle(checkout: Path, tmp_path: Path) -> None:
    address = tmp_path / "address"
    env = environment(PYTHONPATH=str(checkout))
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(address)], cwd=checkout, env=env)
    began = time.monotonic()
    assert server.wait(timeout=30) == 0
    assert time.monotonic() - began < 20
    assert not address.exists()


@pytest.mark.timeout(60)
def test_a_start_beside_one_that_is_about_to_end(tmp_path: Path) -> None:
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    env = environment(PYTHONPATH="", TMPDIR=str(tmp_path))
    ask = "from stages.common.warm import _address; print(_address())"
    found = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=env, capture_output=True, text=True)
    with Path(found.stdout.strip() + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the one that ends holds it to its last moment
        caller = subprocess.Popen([sys.executable, "-m", "stages", "chex.prepare"], cwd=tmp_path, env=env)
        first: list[psutil.Process] = []
        while not first:
            first = [p for p in psutil.Process(caller.pid).children() if "stages.common.warm" in p.cmdline()]
        while first[0].is_running() and first[0].status() != psutil.STATUS_ZOMBIE:
            os.sched_yield()
    assert caller.wait(timeout=40) == 2
    end_processes(tmp_path)


def test_only_one_interpreter_serves_an_address(checkout: Path, tmp_path: Path) -> None:
    address = tmp_path / "address"
    env = environment(PYTHONPATH=str(checkout))
    patient = SERVE.replace("0.2", "600.0")
    first = subprocess.Popen([sys.executable, "-c", "print('up', flush=True)" + patient, str(address)],
                             cwd=checkout, env=env, stdout=subprocess.PIPE)  # fmt: skip
    try:
        while not address.exists() and first.poll() is None:
            os.sched_yield()
        second = subprocess.run(
            [sys.executable, "-c", patient, str(address)], cwd=checkout, env=env, timeout=30
        )
        assert second.returncode == 0
        assert first.poll() is None
        assert address.exists()
    finally:
        first.kill()
        first.communicate()
