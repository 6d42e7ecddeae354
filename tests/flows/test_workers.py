"""Stages on workers: two clones beside the flow's own, one DVC remote; a worker that is killed."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import Served
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


@contextlib.contextmanager
def worker(clone: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker of the pool `cpu` in this clone."""
    with (clone / ".worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "worker", "cpu", "--limit", "1"],
            cwd=clone, env=environment(ENCORE_GPUS=""), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def test_stages_run_on_workers_of_other_clones(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same bytes as `dvc repro`, though a worker is killed on the way; and nobody computes again what is in the remote."""
    monkeypatch.setitem(SERVER, "PREFECT_API_URL", f"{served.prefect}/api")
    count = f"echo x >> {tmp_path}/runs"
    stages = {
        "b": copy("b", ["a.txt"], "b.txt"),
        "c": copy("c", ["source.txt"], "c.txt", count),
    }
    stages["end"] = {
        "cmd": "cat b.txt c.txt > end.txt",
        "deps": ["b.txt", "c.txt"],
        "outs": [{"end.txt": {"cache": False}}],
    }
    home = make_project(tmp_path / "home", stages, part=resumable(count))
    run(["dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote")], home)
    commit(home, "a remote")
    for name in ("one", "two", "later", "theirs"):
        git(tmp_path, "clone", "-q", str(home), name)
    clones = [tmp_path / "one", tmp_path / "two"]

    with worker(clones[0]) as one, worker(clones[1]) as two:
        flow = start_flows(home, "reproduce", "end", "--workers", "--jobs", "2")

        def place() -> Path | None:
            return next((path for clone in clones for path in clone.glob(".encore/worker/*/pid")), None)

        pid = wait_for(lambda: (path := place()) and written(path), "the stage") and place()
        assert pid
        stage = int(pid.read_text())
        busy = one if pid.is_relative_to(clones[0]) else two
        (child,) = (p for p in psutil.Process(busy.pid).children() if "worker" in p.cmdline())
        child.kill()
        wait_for(lambda: not psutil.pid_exists(stage), "the end of the stage")

        def ended() -> bool:
            for clone in clones:  # whichever worker takes the stage up
                for path in clone.glob(".encore/worker/*/pid"):
                    (path.parent / "go").touch()
            return flow.poll() is not None

        wait_for(ended, "the end of the flow")
        assert flow.returncode == 0, log_of(home)
        assert "4 ran" in log_of(home)

        theirs = tmp_path / "theirs"
        (theirs / "go").touch()
        run(["dvc", "repro", "-q", "end"], theirs)
        ours, others = state_of(home), state_of(theirs)
        assert {name: others[name] for name in ours} == ours
        computed = written(tmp_path / "runs")

        done = flows(tmp_path / "later", "reproduce", "end", "--workers")
        assert done.stdout.splitlines()[-1] == "0 unchanged, 3 restored, 1 ran"
        assert written(tmp_path / "runs") == computed


def test_workers_need_a_commit_and_a_remote(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_project(tmp_path / "p", {"a": copy("a", ["source.txt"], "a.txt")})
    refused = flows(folder, "reproduce", "a", "--workers", code=2).stderr
    assert refused == "error: --workers: PREFECT_API_URL names no Prefect server, and none is served here\n"
    monkeypatch.setitem(SERVER, "PREFECT_API_URL", f"{served.prefect}/api")
    assert "there is none: `dvc remote add -d`" in flows(folder, "reproduce", "a", "--workers", code=2).stderr
    run(["dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote")], folder)
    (folder / "source.txt").write_text("changed\n")
    assert "commit first: source.txt" in flows(folder, "reproduce", "a", "--workers", code=2).stderr
