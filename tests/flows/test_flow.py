"""The command line: flows with Prefect's embedded server, their exit codes and last lines, a stage killed midway."""

import contextlib
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from flows.server import answers
from tests.flows.conftest import Served
from tests.flows.papers import make_papers
from tests.flows.project import (
    SERVER,
    copy,
    diamond,
    flows,
    log_of,
    make_project,
    resumable,
    run,
    start_flows,
    wait_for,
    written,
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "a", "--jobs", "0"], "'0' is not a whole number"),
        (["reproduce", "a", "--timeout", "soon"], "'soon' is not a time"),
        (["reproduce", "nothing", "--dry"], "not found"),
        (["reproduce", "a", "--what"], "unrecognized arguments: --what"),
        (["fly"], "invalid choice: 'fly'"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = make_project(tmp_path / "p", diamond())
    done = flows(folder, *arguments, code=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / ".encore/prefect/prefect.db").exists()


def test_outside_a_project(tmp_path: Path) -> None:
    assert (
        flows(tmp_path, "reproduce", code=2).stderr == "error: this is not the top folder of a DVC project\n"
    )


def test_flow_without_a_server(tmp_path: Path) -> None:
    """With an embedded server, which ends with the flow; then there is nothing to do."""
    folder = make_project(tmp_path / "p", diamond())
    done = flows(folder, "reproduce", "d", "e", "--jobs", "2")
    assert done.stdout == "0 unchanged, 0 restored, 5 ran\n"
    assert "Task run 'd' - > cat b.txt c.txt" in done.stderr  # a task run per stage, with its log
    assert flows(folder, "reproduce", "d", "e").stdout == "everything is up to date (5 stages)\n"
    assert not servers_of(folder)


def servers_of(folder: Path) -> list[int]:
    """Embedded servers of a project that are still there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PREFECT_HOME", "").startswith(str(folder)):
                found.append(process.pid)
    return found


@pytest.fixture
def server(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running Prefect server, for tests that need not start their own."""
    monkeypatch.setitem(SERVER, "PREFECT_API_URL", f"{served.prefect}/api")


@pytest.mark.usefixtures("server")
def test_failure_is_told_on_the_last_line(tmp_path: Path) -> None:
    stages = diamond()
    stages["b"]["cmd"] += " && exit 7"
    folder = make_project(tmp_path / "p", stages)
    failed = flows(folder, "reproduce", "d", "e", code=1)
    assert failed.stderr.splitlines()[-1] == "b failed: exit code 7; not run: d"
    assert "d is not run: b failed" in failed.stderr
    assert (folder / "e.txt").read_text() == "source\ne\n"
    assert (folder / "c.txt").read_text() == "source\na\nc\n"


@pytest.mark.usefixtures("server")
def test_stage_killed_midway_is_tried_again_and_resumes(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "p", resumable())
    flow = start_flows(folder, "reproduce", "a")
    pid = int(wait_for(lambda: written(folder / "pid"), "the stage"))
    (folder / "go").touch()
    os.kill(pid, signal.SIGKILL)
    assert flow.wait() == 0, log_of(folder)
    assert "killed by SIGKILL" in log_of(folder)
    assert (folder / "a.txt").read_text() == "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n"


@pytest.mark.usefixtures("server")
def test_flow_killed_midway_leaves_nothing_running_and_resumes(tmp_path: Path) -> None:
    folder = make_project(tmp_path / "p", resumable() | {"b": copy("b", ["a.txt"], "b.txt")})
    flow = start_flows(folder, "reproduce", "b")
    pid = int(wait_for(lambda: written(folder / "pid"), "the stage"))
    flow.kill()
    flow.wait()
    wait_for(lambda: not psutil.pid_exists(pid), "the end of the stage")
    (folder / "go").touch()
    assert flows(folder, "reproduce", "b").stdout == "0 unchanged, 0 restored, 2 ran\n"
    assert (folder / "b.txt").read_text() == "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\nb\n"


@pytest.mark.usefixtures("server")
def test_interrupted_flow_cleans_up(tmp_path: Path) -> None:
    stages = {
        "a": {"cmd": "echo half > a.txt; echo $$ > pid; sleep 600", "deps": ["source.txt"], "outs": ["a.txt"]}
    }
    folder = make_project(tmp_path / "p", stages)
    flow = start_flows(folder, "reproduce", "a")
    pid = int(wait_for(lambda: written(folder / "pid"), "the stage"))
    flow.send_signal(signal.SIGINT)
    assert flow.wait() != 0
    assert not psutil.pid_exists(pid)
    assert not (folder / "a.txt").exists()
    assert "a.txt" not in (folder / ".dvc/tmp/rwlock").read_text()


@pytest.mark.usefixtures("server")
def test_experiments(tmp_path: Path) -> None:
    """Two values become two DVC experiments with a table; the workspace stays as it is."""
    folder = make_papers(tmp_path / "p")
    before = (folder / "params.yaml").read_text()
    done = flows(folder, "reproduce", "alpha", "-S", "alpha.rate=5,6", "--jobs", "2")
    assert "2 experiments" in done.stdout
    table = (folder / ".encore/flows/comparison.md").read_text().splitlines()
    assert table[0] == "| experiment | alpha.rate | alpha C1 |"
    assert [line.split("|")[2:4] for line in table[2:]] == [[" 5 ", " supported "], [" 6 ", " supported "]]
    assert (folder / "params.yaml").read_text() == before
    assert not (folder / "alpha.model").exists()
    listed = run(["dvc", "exp", "list", "--name-only"], folder).stdout.split()
    assert len(listed) == 2


def test_prefect_server_restarts_midway(served: Served, server: None, tmp_path: Path) -> None:
    """Killed, and started again by `serve`: the flow goes on, and its run is told to be complete."""
    stages = resumable() | {"b": copy("b", ["a.txt"], "b.txt")}
    folder = make_project(tmp_path / "p", stages)
    flow = start_flows(folder, "reproduce", "b")
    wait_for(lambda: written(folder / "pid"), "the stage")
    wait_for(lambda: "Task run 'a'" in log_of(folder), "its task run")
    before = server_of(served)
    assert before
    before.kill()
    wait_for(lambda: server_of(served) not in (None, before), "the next server")
    wait_for(lambda: answers(f"{served.prefect}/api/health"), "its answer")
    (folder / "go").touch()
    assert flow.wait() == 0, log_of(folder)
    assert (folder / "b.txt").read_text() == "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\nb\n"
    name = re.findall(r"Flow run '(\S+)'", log_of(folder))[0]
    found = served.api("POST", "/flow_runs/filter", flow_runs={"name": {"any_": [name]}})
    assert [run["state"]["type"] for run in found] == ["COMPLETED"]


def server_of(served: Served) -> psutil.Process | None:
    """The process of the Prefect server."""
    for process in psutil.Process(served.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "server" in process.cmdline() and "start" in process.cmdline():
                return process
    return None
