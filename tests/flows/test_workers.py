"""Work on workers: two clones beside the flow's own, one DVC remote; a worker that is killed, runs that are cancelled.

Each worker has a host of its own where the kernel makes network namespaces for us (Linux, root, iproute2), else a process.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.flows.conftest import Served
from tests.flows.hosts import Host, host
from tests.flows.papers import CLAIMS
from tests.flows.project import (
    SERVER,
    commit,
    copy,
    environment,
    flows,
    git,
    log_of,
    make_project,
    resumable,
    run,
    start_flows,
    state_of,
    wait_for,
    written,
)

REPORT = "reports/alpha/quick"
SLOW = "echo half > slow.txt; echo $$ > slow.pid; sleep 600"


@contextlib.contextmanager
def worker(clone: Path, api: str, machine: Host | None) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker of the pool `cpu` in this clone, on this host."""
    command = [sys.executable, "-m", "flows", "worker", "cpu", "--limit", "1"]
    if machine is not None:
        command = machine.on(command)
        api = api.replace("127.0.0.1", machine.gateway)
    with (clone / ".worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=clone, env=environment(ENCORE_GPUS="", PREFECT_API_URL=api),
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@dataclass
class Fleet:
    """A project, two clones of it with a worker each, and a clone without; they share a DVC remote."""

    home: Path
    workers: dict[Path, "subprocess.Popen[bytes]"]  # by clone
    machines: int  # on how many hosts of their own
    later: Path
    runs: Path  # a line for each time that the counting stages have run

    def find(self, name: str) -> Path | None:
        """A file in a checkout of a worker."""
        found = (path for clone in self.workers for path in clone.glob(f".encore/worker/*/{name}"))
        return next((path for path in found if written(path)), None)


@pytest.fixture(scope="module")
def fleet(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    count = f"echo x >> {folder}/runs"
    stages = {
        "b": copy("b", ["a.txt"], "b.txt"),
        "c": copy("c", ["source.txt"], "c.txt", count),
        "end": {
            "cmd": "cat b.txt c.txt > end.txt",
            "deps": ["b.txt", "c.txt"],
            "outs": [{"end.txt": {"cache": False}}],
        },
        "slow": {"cmd": SLOW, "deps": ["source.txt"], "outs": ["slow.txt"]},
        "alpha": {
            **copy(
                "alpha",
                ["source.txt"],
                "alpha.model",
                f"{count} && mkdir -p {REPORT} && cp claims.json {REPORT}/",
            ),
            "params": ["alpha.rate"],
            "outs": ["alpha.model", {REPORT: {"cache": False, "persist": True}}],
        },
    }  # DVC's own order is fixed only where a target has half of the stages
    files = {"params.yaml": "alpha: {rate: 1}\n", "claims.json": json.dumps(CLAIMS)}
    home = make_project(folder / "home", stages, files, resumable(count))
    run(["dvc", "remote", "add", "-q", "-d", "shared", str(folder / "remote")], home)
    commit(home, "a remote")
    for name in ("one", "two", "later", "theirs"):
        git(folder, "clone", "-q", str(home), name)
    api = f"{served.prefect}/api"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setitem(SERVER, "PREFECT_API_URL", api)
        port = urlsplit(api).port
        assert port is not None
        machines = [stack.enter_context(host(number, port)) for number in range(2)]
        clones = (folder / "one", folder / "two")
        workers = {
            clone: stack.enter_context(worker(clone, api, machine))
            for clone, machine in zip(clones, machines, strict=True)
        }
        yield Fleet(home, workers, len([m for m in machines if m]), folder / "later", folder / "runs")


def test_workers_need_a_commit_and_a_remote(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_project(
        tmp_path / "p", {"a": copy("a", ["source.txt"], "a.txt")}, {"params.yaml": "x: 1\n"}
    )
    stages, sweep = ["reproduce", "a", "--workers"], ["reproduce", "a", "--workers", "-S", "x=2"]
    refused = flows(folder, *stages, code=2).stderr
    assert refused == "error: --workers: PREFECT_API_URL names no Prefect server, and none is served here\n"
    monkeypatch.setitem(SERVER, "PREFECT_API_URL", f"{served.prefect}/api")
    for arguments in (stages, sweep):
        refused = flows(folder, *arguments, code=2).stderr.splitlines()[-1]
        assert refused.startswith("error: ")
        assert "there is none: `dvc remote add -d`" in refused
    run(["dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote")], folder)
    commit(folder, "a remote")
    (folder / "source.txt").write_text("changed\n")
    for arguments in (stages, sweep):
        assert "commit first: source.txt" in flows(folder, *arguments, code=2).stderr


def test_stages_run_on_workers_of_other_clones_and_outlive_a_killed_worker(fleet: Fleet) -> None:
    """Same bytes as `dvc repro`, though a worker is killed on the way; and nobody computes again what is in the remote."""
    home, later = fleet.home, fleet.later
    flow = start_flows(home, "reproduce", "end", "--workers", "--jobs", "2")
    pid = wait_for(lambda: fleet.find("pid"), "the stage")
    stage = int(pid.read_text())
    (busy,) = (process for clone, process in fleet.workers.items() if pid.is_relative_to(clone))
    networks = {os.readlink(f"/proc/{process.pid}/ns/net") for process in fleet.workers.values()}
    assert len(networks - {os.readlink("/proc/self/ns/net")}) == fleet.machines
    (child,) = (p for p in psutil.Process(busy.pid).children() if "worker" in p.cmdline())
    child.kill()
    wait_for(lambda: not psutil.pid_exists(stage), "the end of the stage")

    def ended() -> bool:
        for clone in fleet.workers:  # whichever worker takes the stage up
            for path in clone.glob(".encore/worker/*/pid"):
                (path.parent / "go").touch()
        return flow.poll() is not None

    wait_for(ended, "the end of the flow")
    assert flow.returncode == 0, log_of(home)
    assert "4 ran" in log_of(home)

    theirs = home.with_name("theirs")
    (theirs / "go").touch()
    run(["dvc", "repro", "-q", "end"], theirs)
    ours, others = state_of(home), state_of(theirs)
    assert {name: others[name] for name in ours} == ours
    computed = written(fleet.runs)

    done = flows(later, "reproduce", "end", "--workers")
    assert done.stdout.splitlines()[-1] == "0 unchanged, 3 restored, 1 ran"
    assert written(fleet.runs) == computed


def test_experiments_run_on_workers(fleet: Fleet) -> None:
    """From a clone: workers push them to the repository that it comes from, and it pulls them from there."""
    home, clone = fleet.home, fleet.home.with_name("sweep")
    git(home.parent, "clone", "-q", str(home), clone.name)
    counted = written(fleet.runs)
    done = flows(clone, "reproduce", "alpha", "-S", "alpha.rate=5,6", "--jobs", "2", "--workers")
    assert "2 experiments" in done.stdout
    assert written(fleet.runs) == counted + "x\nx\n"
    table = written(clone / ".encore/flows/comparison.md").splitlines()
    assert [line.split("|")[2:4] for line in table[2:]] == [[" 5 ", " supported "], [" 6 ", " supported "]]
    names = sorted(line.split("|")[1].strip() for line in table[2:])
    for folder in (clone, home):
        assert sorted(run(["dvc", "exp", "list", "--name-only"], folder).stdout.split()) == names
    assert git(clone, "status", "--porcelain") == ""
    for worker_clone in fleet.workers:
        assert git(worker_clone, "status", "--porcelain") == "?? .worker.log\n"
        assert not [path for path in worker_clone.glob(".encore/worker/*alpha*") if path.is_dir()]
    ran = "\n".join(written(path / ".worker.log") for path in fleet.workers)
    assert ran.count("> dvc exp run") == 2

    run(["dvc", "exp", "apply", "-q", names[0]], clone, code=255)  # DVC says that data are missing,
    run(["dvc", "pull", "-q", "alpha"], clone)  # which are in the remote
    assert written(clone / "alpha.model") == "source\nalpha\n"


@pytest.mark.parametrize("arguments", [["slow"], ["slow", "-S", "alpha.rate=9"]], ids=["stage", "experiment"])
def test_cancelled_work_ends_on_its_worker(fleet: Fleet, arguments: list[str]) -> None:
    """Its process tree has ended when the flow ends; the workspaces are as they were."""
    home = fleet.home
    git(home, "checkout", "-q", ".gitignore")  # where flows before this one have listed their outputs
    before = workspace(home)
    flow = start_flows(home, "reproduce", *arguments, "--workers")
    file = wait_for(lambda: fleet.find("slow.pid"), "the stage")
    number = int(written(file))
    file.unlink()
    stage = [psutil.Process(number), *psutil.Process(number).children(recursive=True)]
    flow.send_signal(signal.SIGINT)
    assert flow.wait() != 0
    wait_for(lambda: not any(process.is_running() for process in stage), "the end of the stage")
    assert workspace(home) == before
    assert "slow.txt" not in written(home / ".dvc/tmp/rwlock")
    for clone in fleet.workers:
        assert git(clone, "status", "--porcelain") == "?? .worker.log\n"
    if arguments == ["slow"]:  # an experiment's checkout is its own, and stays for another try
        assert not (file.parent / "slow.txt").exists()
        assert "slow.txt" not in written(file.parent / ".dvc/tmp/rwlock")


def workspace(folder: Path) -> dict[str, bytes]:
    """Files of the workspace, without the list of outputs that git ignores: DVC makes that when a stage starts."""
    files = state_of(folder).items()
    return {name: content for name, content in files if not name.startswith((".dvc/", ".gitignore"))}
