"""Plans, acts, limits, slots and faults, without a Prefect server: stages run in threads of the test."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.engine import open_session
from flows.errors import FlowError, Killed, UsageError
from flows.plan import Step, read_needs
from flows.process import Leash, Lines, run_command
from flows.project import Project, update_lock_file
from flows.slots import Pool, gpu_names, take_gpu
from flows.stage import End, Outcome
from tests.flows.project import copy, diamond, environment, make_project, run, state_of, wait_for


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("ENCORE_GPUS", "")
    slots = tmp_path_factory.mktemp("slots")
    monkeypatch.setattr("flows.slots.slot_folder", lambda: slots)
    monkeypatch.chdir(slots)  # and back at the end: flows work in the current folder


def reproduce(
    folder: Path,
    *targets: str,
    jobs: int = 2,
    force: bool = False,
    said: list[str] | None = None,
    cancel: threading.Event | None = None,
    pool: Pool | None = None,
    timeout: float | None = None,
) -> dict[str, Outcome]:
    """What the flow does, in threads instead of task runs."""
    os.chdir(folder)
    log = print if said is None else said.append
    with open_session(list(targets), jobs, log, force, timeout, pool or Pool(cpus=8)) as session:
        if cancel:
            session.project.cancelled = cancel
        session.begin()
    return session.outcomes


def ends(outcomes: dict[str, Outcome]) -> dict[str, End]:
    return {name: outcome.end for name, outcome in outcomes.items()}


def wide() -> dict[str, Any]:
    """Stages whose order of completion is the reverse of their order in the plan."""
    stages: dict[str, Any] = {
        f"s{i}": copy(f"s{i}", ["source.txt"], f"s{i}.txt", before=f"sleep {0.3 * (3 - i):.1f}")
        for i in range(4)
    }
    stages["end"] = copy("end", [f"s{i}.txt" for i in range(4)], "end.txt")
    return stages


def test_same_bytes_as_dvc_repro(tmp_path: Path) -> None:
    """Stages of two files, each with a lock of its own, as every paper's are here."""
    part = diamond()
    stages = wide() | {"d": part.pop("d")}
    targets = [*stages, "part/dvc.yaml:e"]
    ours, theirs = (make_project(tmp_path / name, stages, part=part) for name in ("ours", "theirs"))
    assert set(ends(reproduce(ours, *targets, jobs=4)).values()) == {End.RAN}
    run(["dvc", "repro", "-q", *targets], theirs)
    assert state_of(ours) == state_of(theirs)
    for folder in (ours, theirs):  # and when something changes
        (folder / "source.txt").write_text("changed\n")
    reproduce(ours, *targets)
    run(["dvc", "repro", "-q", *targets], theirs)
    assert state_of(ours) == state_of(theirs)


def test_runs_what_is_out_of_date_and_nothing_else(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "p", diamond())
    reproduce(folder, "d", "e")
    assert set(ends(reproduce(folder, "d", "e")).values()) == {End.UNCHANGED}
    (folder / "c.txt").unlink()  # comes from the run cache; d is looked at again and left alone
    assert ends(reproduce(folder, "d")) == {
        "a": End.UNCHANGED, "b": End.UNCHANGED, "c": End.RESTORED, "d": End.UNCHANGED,
    }  # fmt: skip
    assert set(ends(reproduce(folder, "d", force=True)).values()) == {End.RAN}


def test_plan_says_why(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "p", diamond())
    os.chdir(folder)
    project = Project()
    assert project.plan(["e"]).steps["e"].reason == "it has never run"
    reproduce(folder, "d", "e")
    (folder / "source.txt").write_text("changed\n")
    plan = project.plan(["d", "e"])
    assert plan.steps["a"].reason == "source.txt is modified"
    assert plan.steps["b"].runs
    assert not plan.steps["b"].reason
    with pytest.raises(UsageError, match=r"nothing.*stages: a, b, c, d, e"):
        project.plan(["nothing"])
    project.close()


def test_parameters_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """Nested keys, places in lists, patterns, values that share, whole files; read again when the file has changed."""
    stages: dict[str, Any] = {
        "a": copy("a", ["source.txt"], "a.txt", params=["net", "net.width", "net.dep*", "seeds.1", "same"]),
        "b": copy("b", ["a.txt"], "b.txt", params=["other", {"more.yaml": None}, {"even.yaml": ["x.y"]}]),
    }
    files = {
        "params.yaml": "net: {width: 8, depth: [1, 2]}\nseeds: [3, 4]\nsame: &it {deep: 1}\nother: *it\n",
        "more.yaml": "x: {y: 0.5}\n",
        "even.yaml": "x: {y: true}\n",
    }
    ours, theirs = (make_project(tmp_path / name, stages, files) for name in ("ours", "theirs"))
    os.chdir(ours)
    with contextlib.closing(Project()) as project:
        assert project.plan(["b"]).steps["a"].reason
        for old, new, changed in (("", "", ""), ("4]", "5]", "seeds.1"), ("deep: 1", "deep: 2", "same")):
            for folder in (ours, theirs):
                file = folder / "params.yaml"
                file.write_text(file.read_text().replace(old, new))
            if changed:
                assert project.plan(["a"]).steps["a"].reason == f"params.yaml is changed in {changed}"
            reproduce(ours, "b")
            run(["dvc", "repro", "-q", "b"], theirs)
            assert state_of(ours) == state_of(theirs)


def test_pipeline_files_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept of them is used while their text is the same, and only where it is whole."""
    folder = make_project(tmp_path / "p", diamond())
    reproduce(folder, "d")
    os.chdir(folder)

    def plan() -> list[Step]:
        with contextlib.closing(Project()) as project:
            return project.plan(["d", "d"]).to_run

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed again")

    assert plan() == []
    kept = folder / ".encore/flows/parsed.txt"
    whole = kept.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("dvc.utils.serialize.parse_yaml", refuse)
        assert plan() == []
    kept.write_bytes(whole.replace("{", "", 1).encode() + b"nonsense \xff")
    assert plan() == []
    assert sorted(kept.read_text().splitlines()) == sorted(whole.splitlines())
    text = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(text.replace("echo d >", "echo new >"))
    assert [step.reason for step in plan()] == ["its command changed"]


def test_stages_run_side_by_side_up_to_jobs(tmp_path: Path) -> None:
    # each waits until the other has started: one after the other they would wait forever
    def meet(me: str, other: str) -> str:
        return f"touch {me}.here; until test -e {other}.here; do sleep 0.02; done"

    stages = {
        "a": copy("a", ["source.txt"], "a.txt", before=meet("a", "b")),
        "b": copy("b", ["source.txt"], "b.txt", before=meet("b", "a")),
    }
    folder = make_project(tmp_path / "p", stages)
    assert set(ends(reproduce(folder, "a", "b", jobs=2)).values()) == {End.RAN}


def test_needs_are_respected(tmp_path: Path) -> None:
    alone = "mkdir alone; sleep 0.2; rmdir alone"  # fails when two do it at once
    for needs, pool in (
        ({"cpus": 2}, Pool(cpus=3)),
        ({"memory": "2G"}, Pool(cpus=8, memory=3 * 2**30)),
        ({"gpu": 1}, Pool(cpus=8, find_gpus=lambda: ["only"])),
    ):
        key = next(iter(needs))
        stages = {
            name: copy(name, ["source.txt"], f"{name}.txt", before=alone, meta=needs) for name in ("a", "b")
        }
        folder = make_project(tmp_path / key, stages)
        assert set(ends(reproduce(folder, "a", "b", jobs=4, pool=pool)).values()) == {End.RAN}, key


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"gpu": 2}, "meta.gpu is 2; allowed: 0, 1, optional, shared"),
        ({"cpus": 0}, "meta.cpus is 0"),
        ({"memory": "much"}, "meta.memory is 'much'"),
        ({"timeout": "soon"}, "meta.timeout is 'soon'"),
    ],
)
def test_wrong_meta_is_one_line(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_needs("a", meta)


def test_failure_stops_dependants_only(tmp_path: Path) -> None:
    stages = diamond()
    stages["b"]["cmd"] = "echo half > b.txt; exit 7"
    folder = make_project(tmp_path / "p", stages)
    outcomes = reproduce(folder, "d", "e")
    assert ends(outcomes) == {
        "a": End.RAN, "b": End.FAILED, "c": End.RAN, "d": End.NOT_RUN, "e": End.RAN,
    }  # fmt: skip
    assert outcomes["b"].reason == "exit code 7"
    assert outcomes["d"].reason == "b failed"
    assert not (folder / "b.txt").exists()  # half an output is none
    rwlock = folder / ".dvc/tmp/rwlock"
    assert "b.txt" not in rwlock.read_text()


def test_order_of_the_lock_file(tmp_path: Path) -> None:
    """New entries come in plan order whenever they come; old ones stay where they are."""
    path, order, appended = tmp_path / "dvc.lock", {"a": 0, "b": 1, "c": 2}, set[str]()
    path.write_text("schema: '2.0'\nstages:\n  c:\n    cmd: old\n")
    for name in ("b", "a", "c"):
        update_lock_file(path, {name: {"cmd": name}}, order, appended)
    assert path.read_text() == (
        "schema: '2.0'\nstages:\n  c:\n    cmd: c\n  a:\n    cmd: a\n  b:\n    cmd: b\n"
    )


def test_waits_for_the_dvc_lock_and_says_who(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "p", diamond())
    hold = "import sys, zc.lockfile; lock = zc.lockfile.LockFile(sys.argv[1]); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, ".dvc/tmp/lock"], cwd=folder, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(reproduce, folder, "a", said=said)
        wait_for(lambda: said, "the message")
        assert said[0].startswith(f"waiting for the DVC lock, held by process {holder.pid} (")
        assert not (folder / "a.txt").exists()
        holder.communicate("\n")
        assert ends(future.result()) == {"a": End.RAN}


def test_dvc_repro_beside_a_flow_is_refused_by_dvc(tmp_path: Path) -> None:
    """While a stage runs, its files are in DVC's read-write lock: a second `dvc repro` of it says who is at it."""
    stages = {
        "a": copy("a", ["source.txt"], "a.txt", before="touch on; until test -e go; do sleep 0.02; done")
    }
    folder = make_project(tmp_path / "p", stages)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(reproduce, folder, "a")
        wait_for((folder / "on").exists, "the stage")
        refused = subprocess.run(
            ["dvc", "repro"], cwd=folder, env=environment(), capture_output=True, text=True
        )
        (folder / "go").touch()
        assert ends(future.result()) == {"a": End.RAN}
    assert refused.returncode != 0
    assert f"(PID {os.getpid()})" in refused.stderr


def test_second_flow_waits_and_finds_it_done(tmp_path: Path) -> None:
    stages = {
        "a": copy(
            "a",
            ["source.txt"],
            "a.txt",
            before="echo x >> runs; touch on; until test -e go; do sleep 0.02; done",
        )
    }
    folder = make_project(tmp_path / "p", stages)
    said: list[str] = []
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(reproduce, folder, "a")
        wait_for((folder / "on").exists, "the first flow's stage")
        second = threads.submit(reproduce, folder, "a", said=said)
        wait_for(lambda: said, "the message")
        assert said[0].startswith(f"waiting for process {os.getpid()} (")
        (folder / "go").touch()
        assert ends(first.result()) == {"a": End.RAN}
        assert ends(second.result()) == {"a": End.UNCHANGED}
    assert (folder / "runs").read_text() == "x\n"


def processes_named(marker: str) -> list[psutil.Process]:
    """Live processes with this in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if marker in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def stubborn(tmp_path: Path) -> str:
    """A command with a child in a session of its own, both deaf to SIGTERM."""
    name = f"marker-{tmp_path.name}-{os.getpid()}"
    inner = f"trap '' TERM; touch on; while true; do sleep 0.05; done; : {name}"
    return f"setsid sh -c \"{inner}\" & trap '' TERM; wait; : {name}"


def test_cancel_ends_the_whole_tree_and_cleans_up(tmp_path: Path) -> None:
    stages = {
        "a": {"cmd": f"echo half > a.txt; {stubborn(tmp_path)}", "deps": ["source.txt"], "outs": ["a.txt"]}
    }
    folder = make_project(tmp_path / "p", stages)
    cancel = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(reproduce, folder, "a", cancel=cancel)
        wait_for((folder / "on").exists, "the grandchild")
        assert processes_named(f"marker-{tmp_path.name}-{os.getpid()}")
        cancel.set()
        assert ends(future.result()) == {"a": End.CANCELLED}
    assert processes_named(f"marker-{tmp_path.name}-{os.getpid()}") == []
    assert not (folder / "a.txt").exists()
    assert run(["git", "status", "--porcelain"], folder).stdout.split() == ["M", ".gitignore", "??", "on"]


def test_timeout_ends_the_whole_tree(tmp_path: Path) -> None:
    stages = {
        "a": {"cmd": stubborn(tmp_path), "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"timeout": "1s"}}
    }
    folder = make_project(tmp_path / "p", stages)
    outcome = reproduce(folder, "a")["a"]
    assert outcome == Outcome(End.FAILED, "over its time of 1 s")
    assert processes_named(f"marker-{tmp_path.name}-{os.getpid()}") == []


def test_memory_limit(tmp_path: Path) -> None:
    hog = f"{sys.executable} -c 'import time; held = b\"x\" * 300 * 2**20; time.sleep(600)'"
    stages = {"a": {"cmd": hog, "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"memory": "100M"}}}
    outcome = reproduce(make_project(tmp_path / "p", stages), "a")["a"]
    assert outcome.end is End.FAILED
    assert re.fullmatch(r"over its memory: \d{3} MiB, its meta.memory allows 100 MiB", outcome.reason)


def test_killed_stage_is_worth_another_try(tmp_path: Path) -> None:
    leash = Leash()
    with pytest.raises(Killed, match="killed by SIGKILL"):
        run_command(["sh", "-c", "kill -9 $$"], str(tmp_path), environment(), print, leash, threading.Event())
    leash.close()


def test_stage_dies_with_its_flow(tmp_path: Path) -> None:
    """The leash: `kill -9` of the flow ends the stage's tree, that of sessions of their own included."""
    program = (
        "import sys, threading; from flows.process import *; "
        f"command = ['sh', '-c', {stubborn(tmp_path)!r}]; "
        "run_command(command, '.', dict(os.environ), print, Leash(), threading.Event())"
    )
    flow = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment())
    wait_for((tmp_path / "on").exists, "the grandchild")
    marker = f"marker-{tmp_path.name}-{os.getpid()}"
    assert len(processes_named(marker)) > 1
    flow.kill()
    flow.wait()
    wait_for(lambda: not processes_named(marker), "the end of its stage")


def test_full_disk_is_one_line_and_leaves_the_cache_whole(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        stages = {
            "a": copy("a", ["source.txt"], "a.txt"),
            "big": {"cmd": "head -c 4000000 /dev/zero > big.bin", "deps": ["a.txt"], "outs": ["big.bin"]},
        }
        folder = make_project(small / "p", stages)
        run(["dvc", "config", "cache.type", "copy"], folder)  # a second copy does not fit
        outcomes = reproduce(folder, "big")
        assert ends(outcomes) == {"a": End.RAN, "big": End.FAILED}
        assert "No space left" in outcomes["big"].reason
        (folder / "big.bin").unlink(missing_ok=True)
        lock = (folder / "dvc.lock").read_text()
        assert "a.txt" in lock
        assert "big.bin" not in lock
        (folder / "a.txt").unlink()
        run(["dvc", "checkout", "-q", "a"], folder)
        assert (folder / "a.txt").read_text() == "source\na\n"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_gpu_slots_are_named_never_shared_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCORE_GPUS", "first, second")
    assert gpu_names() == ["first", "second"]
    one, two = take_gpu(gpu_names()), take_gpu(gpu_names())
    assert one
    assert two
    assert (one[0], two[0]) == ("first", "second")
    assert take_gpu(gpu_names()) is None
    assert take_gpu(gpu_names(), shared=True) is None
    os.close(one[1])
    first = take_gpu(gpu_names(), shared=True)
    again = take_gpu(gpu_names(), shared=True)
    assert first
    assert again
    assert first[0] == again[0] == "first"
    assert take_gpu(gpu_names()) is None
    for _, descriptor in (two, first, again):
        os.close(descriptor)


def test_stages_get_gpus_of_their_own(tmp_path: Path) -> None:
    """Four stages, two slots: each sees one, no slot is seen twice at once, stages without need see none."""
    use = "mkdir in-$CUDA_VISIBLE_DEVICES; sleep 0.2; rmdir in-$CUDA_VISIBLE_DEVICES"
    stages = {
        f"s{i}": {
            "cmd": f"{use}; echo $CUDA_VISIBLE_DEVICES > s{i}.txt",
            "deps": ["source.txt"],
            "outs": [f"s{i}.txt"],
            "meta": {"gpu": 1 if i % 2 else "optional"},
        }
        for i in range(4)
    }
    stages["cpu"] = {
        "cmd": "echo [$CUDA_VISIBLE_DEVICES] > cpu.txt",
        "deps": ["source.txt"],
        "outs": ["cpu.txt"],
    }
    folder = make_project(tmp_path / "p", stages)
    outcomes = reproduce(folder, *stages, jobs=5, pool=Pool(cpus=8, find_gpus=lambda: ["x", "y"]))
    assert set(ends(outcomes).values()) == {End.RAN}
    assert {(folder / f"s{i}.txt").read_text() for i in range(4)} == {"x\n", "y\n"}
    assert (folder / "cpu.txt").read_text() == "[]\n"


def test_slot_comes_back_when_its_stage_dies(tmp_path: Path) -> None:
    needs: dict[str, Any] = {"meta": {"gpu": 1}}
    stages = {
        "a": {"cmd": "exit 3", "deps": ["source.txt"], "outs": ["a.txt"], **needs},
        "b": copy("b", ["source.txt"], "b.txt", **needs),
    }
    folder = make_project(tmp_path / "p", stages)
    outcomes = reproduce(folder, "a", "b", pool=Pool(cpus=8, find_gpus=lambda: ["only"]))
    assert ends(outcomes) == {"a": End.FAILED, "b": End.RAN}


def test_waits_for_a_gpu_with_a_message(tmp_path: Path) -> None:
    """None on the machine; then one that another process has; then it is free."""
    folder = make_project(tmp_path / "p", {"a": copy("a", ["source.txt"], "a.txt", meta={"gpu": 1})})
    gpus: list[str] = []
    said: list[str] = []
    held = take_gpu(["late"])
    assert held
    with ThreadPoolExecutor(1) as thread:
        pool = Pool(cpus=8, find_gpus=lambda: list(gpus))
        future = thread.submit(reproduce, folder, "a", said=said, pool=pool)
        wait_for(
            lambda: any("a waits for a GPU: this machine has none" in line for line in said), "the message"
        )
        gpus.append("late")
        wait_for(lambda: any("all of late are taken" in line for line in said), "the second message")
        os.close(held[1])
        assert ends(future.result()) == {"a": End.RAN}


def test_optional_gpu_runs_on_cpu_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command = "test -z $CUDA_VISIBLE_DEVICES && echo none > a.txt"
    stage = {"cmd": command, "deps": ["source.txt"], "outs": ["a.txt"], "meta": {"gpu": "optional"}}
    folder = make_project(tmp_path / "p", {"a": stage})
    assert ends(reproduce(folder, "a")) == {"a": End.RAN}


def test_progress_becomes_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.process.PROGRESS_SECONDS", 0.0)
    said: list[str] = []
    lines = Lines(said.append)
    lines.feed("\r\x1b[2Ktraining ━━━━╸    10/100 0:01:00 loss 0.5".encode())
    lines.feed(b"\r\x1b[2Kdone\r\nplain\n\nlast")
    lines.close()
    assert said == ["training 10/100 0:01:00 loss 0.5", "done", "plain", "last"]
    monkeypatch.setattr("flows.process.PROGRESS_SECONDS", 3600.0)
    said.clear()
    lines = Lines(said.append)
    for step in range(50):
        lines.feed(f"\r\x1b[2Ktraining ━━ {step}/50".encode())
    lines.close()
    assert said == []


def test_stage_sees_a_terminal_on_standard_error(tmp_path: Path) -> None:
    """So that it shows its progress."""
    said: list[str] = []
    leash = Leash()
    command = ["sh", "-c", "test -t 2 && echo yes; test -t 1 || echo no"]
    run_command(command, str(tmp_path), environment(), said.append, leash, threading.Event())
    leash.close()
    assert said == ["yes", "no"]


def test_not_a_project(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    with pytest.raises(FlowError, match="not"):
        Project()


def test_stages_get_their_share_of_the_cores(tmp_path: Path) -> None:
    stage = {
        "cmd": "env | grep ENCORE_JOBS > a.txt",
        "deps": ["source.txt"],
        "outs": ["a.txt"],
        "meta": {"cpus": 3},
    }
    folder = make_project(tmp_path / "p", {"a": stage})
    reproduce(folder, "a")
    assert (folder / "a.txt").read_text() == "ENCORE_JOBS=3\n"
