"""Tracking: whatever the server does, a stage goes on at its speed, and every run arrives once."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

import pytest

import stages.common.stage.tracking as tracking
from stages.common.stage.tracking import SPOOL, RunLog, execution_id, run_key
from tests.common.browser import browser, needs_browser
from tests.common.workspace import end_processes, environment, python, stage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FAST_FAIL = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose spool the test fills by hand."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "DVC_STAGE", "PREFECT__FLOW_RUN_ID", "ENCORE_CALLER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENCORE_EXECUTION", "execution-1")
    yield tmp_path
    end_processes(tmp_path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def hanging_server() -> Iterator[str]:
    """Accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real MLflow server on an sqlite file in `folder`; killed when the block ends."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, OSError):
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.1)  # a server says nowhere else that it is up
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def store(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str, paper: str = "chex") -> "list[Run]":
    found = client(uri).get_experiment_by_name(paper)
    assert found is not None
    return list(client(uri).search_runs([found.experiment_id], order_by=["start_time"]))


def log_run(method: str, data: str, target: float, seed: int, steps: int = 3) -> str:
    """One finished run as a stage logs it; returns its key."""
    key = run_key("chex", "quick", data, method, target, seed)
    params = {"method": method, "data": data, "setting": f"FLOPs {target:g}", "seed": seed}
    with RunLog(
        "chex", f"{method} {data} {target:g} seed {seed}", key, params=params, tags={"scale": "quick"}
    ) as log:
        for step in range(steps):
            log.metrics({"train loss": 1.0 / (step + 1)}, step)
    return key


def sync(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "stages.common.sync", "--patience", "0", **env)


def spooled(folder: Path) -> list[list[dict[str, object]]]:
    """Events of every spool file."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / SPOOL).glob("*.jsonl"))
    ]


def test_a_run_is_spooled(spool: Path) -> None:
    key = log_run("chex", "digits", 0.3, 0)
    ((start, *metrics, end),) = spooled(spool)
    assert start["event"] == "start"
    assert (start["kind"], start["paper"], start["execution"], start["key"]) == (
        "new",
        "chex",
        "execution-1",
        key,
    )
    assert [event["values"] for event in metrics] == [{"train loss": 1.0 / step} for step in (1, 2, 3)]
    assert (end["event"], end["status"]) == ("end", "FINISHED")
    with pytest.raises(ZeroDivisionError), RunLog("chex", "fails", "fails"):
        raise ZeroDivisionError
    assert sorted(str(events[-1]["status"]) for events in spooled(spool)) == ["FAILED", "FINISHED"]


def test_only_the_first_of_several_processes_reports(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    log_run("chex", "digits", 0.3, 0)
    assert not (spool / SPOOL).exists()


def test_names_of_runs_and_executions(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_key("chex", 0.3, {"a": 1, "b": 2}) == run_key("chex", 0.3, {"b": 2, "a": 1})
    assert run_key("chex", 0) != run_key("chex", 1)
    assert execution_id() == "execution-1"
    monkeypatch.delenv("ENCORE_EXECUTION")
    assert execution_id() == execution_id()


def test_everything_arrives_once(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two executions, several cells, amendments, artifacts, a failed and a killed run, in one empty store."""
    network, table = spool / "network.bin", spool / "table.md"
    network.write_bytes(b"weights")
    table.write_text("a table")
    cells = [
        (m, d, t, s) for m in ("chex", "l1") for d in ("digits", "shapes") for t in (0.3, 0.5) for s in (0, 1)
    ]
    keys = {log_run(*cell): cell for cell in cells}
    for key in keys:
        with RunLog("chex", "", key, kind="amend") as log:
            log.metrics({"top1": 90.0, "macs": 1e6})
            log.artifact(network)
    with RunLog("chex", "report", "report", kind="execution", tags={"scale": "quick"}) as log:
        log.artifact(table)
    with pytest.raises(ZeroDivisionError), RunLog("chex", "fails", "fails"):
        raise ZeroDivisionError
    killed = (
        "import os, signal; from stages.common.stage.tracking import RunLog\n"
        "log = RunLog('chex', 'killed', 'killed'); log.metrics({'train loss': 3.0}, 7); log.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert python(spool, "-c", killed, ENCORE_EXECUTION="execution-1").returncode == -signal.SIGKILL
    monkeypatch.setenv("ENCORE_EXECUTION", "execution-2")
    log_run("chex", "digits", 0.3, 2, steps=2500)  # more metrics than one call takes
    assert len(spooled(spool)) == 2 * len(cells) + 4

    result = sync(spool)
    assert result.returncode == 0, result.stdout + result.stderr
    assert spooled(spool) == []
    everything = runs_of(store(spool))
    parents = {r.info.run_id: r for r in everything if "mlflow.parentRunId" not in r.data.tags}
    assert sorted(r.info.run_name for r in parents.values()) == ["chex execution-1", "chex execution-2"]
    assert {r.info.status for r in parents.values()} == {"FINISHED"}
    nested = [r for r in everything if r.info.run_id not in parents]
    assert len(nested) == len(cells) + 3  # an amendment makes no run of its own
    assert all(parents[r.data.tags["mlflow.parentRunId"]] for r in nested)
    by_name = {r.info.run_name: r for r in nested}
    assert len(by_name) == len(nested)
    for key, (method, data, target, seed) in keys.items():
        run = by_name[f"{method} {data} {target:g} seed {seed}"]
        assert run.data.tags["encore.run_key"] == key
        assert run.data.tags["scale"] == "quick"
        assert run.data.params == {
            "method": method,
            "data": data,
            "setting": f"FLOPs {target:g}",
            "seed": str(seed),
        }
        assert run.data.metrics == {"train loss": pytest.approx(1 / 3), "top1": 90.0, "macs": 1e6}
        assert run.info.status == "FINISHED"
    assert by_name["fails"].info.status == "FAILED"
    assert by_name["killed"].info.status == "KILLED"
    assert by_name["killed"].data.metrics == {"train loss": 3.0}
    mlflow = client(store(spool))
    first, last = by_name["chex digits 0.3 seed 0"], by_name["chex digits 0.3 seed 2"]
    history = mlflow.get_metric_history(first.info.run_id, "train loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert len(mlflow.get_metric_history(last.info.run_id, "train loss")) == 2500
    assert [a.path for a in mlflow.list_artifacts(first.info.run_id)] == ["network.bin"]
    (parent,) = [r for r in parents.values() if r.info.run_name == "chex execution-1"]
    assert [a.path for a in mlflow.list_artifacts(parent.info.run_id)] == ["table.md"]

    log_run("chex", "digits", 0.3, 3)  # the same execution goes on
    assert sync(spool).returncode == 0
    assert len(runs_of(store(spool))) == len(everything) + 1
    assert sync(spool).returncode == 0  # nothing is left: nothing is sent again
    assert len(runs_of(store(spool))) == len(everything) + 1


def test_a_crash_between_sending_and_noting_it_sends_nothing_twice(spool: Path) -> None:
    log_run("chex", "digits", 0.3, 0)
    (path,) = (spool / SPOOL).glob("*.jsonl")
    content = path.read_text()
    assert sync(spool).returncode == 0
    path.write_text(content)  # as if the process had ended just before it deleted the file
    (spool / SPOOL / "sent.json").unlink()
    assert sync(spool).returncode == 0
    everything = runs_of(store(spool))
    assert len(everything) == 2
    (run,) = [r for r in everything if "mlflow.parentRunId" in r.data.tags]
    assert len(client(store(spool)).get_metric_history(run.info.run_id, "train loss")) == 3


def test_what_the_store_refuses_holds_up_no_other_run(spool: Path) -> None:
    with RunLog("chex", "refused", "refused") as log:
        log.metrics({"a name that MLflow refuses: [%]": 1.0})
    log_run("chex", "digits", 0.3, 0)
    result = sync(spool)
    assert "chex digits 0.3 seed 0" in [r.info.run_name for r in runs_of(store(spool))]
    assert result.returncode == 1
    assert "refused" in result.stdout + result.stderr
    assert len(spooled(spool)) == 1  # kept, and said so


def test_an_absent_server(spool: Path) -> None:
    log_run("chex", "digits", 0.3, 0)
    before = spooled(spool)
    result = sync(spool, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}", **FAST_FAIL)
    assert result.returncode == 1
    assert "1 runs are still to be sent (in .encore/tracking); run this again" in result.stderr
    assert "tracking store does not answer" in result.stdout
    assert spooled(spool) == before


def test_a_hanging_server(spool: Path) -> None:
    log_run("chex", "digits", 0.3, 0)
    before = spooled(spool)
    with hanging_server() as uri:
        result = sync(spool, MLFLOW_TRACKING_URI=uri, **FAST_FAIL)
    assert result.returncode == 1
    assert spooled(spool) == before


def test_a_long_run_beside_a_hanging_server_is_not_slowed(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is sent while it goes on: the process that sends hangs, the run does not."""
    monkeypatch.setattr(tracking, "LIVE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    with hanging_server() as uri:
        for name, value in environment(MLFLOW_TRACKING_URI=uri).items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        log_run("chex", "digits", 0.3, 0, steps=2000)
        seconds = time.monotonic() - began
        end_processes(spool)
    assert seconds < 4.0
    ((*events,),) = spooled(spool)
    assert len(events) == 2002
    assert (spool / SPOOL / "sync.log").exists()


@pytest.mark.parametrize("server", ["absent", "hanging"])
def test_a_stage_neither_fails_nor_waits(server: str, pretrained: Path) -> None:
    cell = ["chex.prune", "--method", "uniform", "--seed", "0"]

    def seconds(**env: str) -> float:
        began = time.monotonic()
        result = stage(pretrained, *cell, ENCORE_WARM="1", **env)
        assert result.returncode == 0, result.stderr
        return time.monotonic() - began

    seconds()  # starts the warm interpreter
    alone = seconds()
    runs = len(spooled(pretrained))
    if server == "absent":
        beside = seconds(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    else:
        with hanging_server() as uri:
            beside = seconds(MLFLOW_TRACKING_URI=uri)
    assert beside < alone + 4.0
    assert len(spooled(pretrained)) == runs + 2  # two FLOPs targets
    assert all(events[-1]["status"] == "FINISHED" for events in spooled(pretrained))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A server that died midway and came back; the folder of the runs, and its address."""
    folder = tmp_path_factory.mktemp("served")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    env = environment(MLFLOW_TRACKING_URI=uri, **FAST_FAIL)
    command = [sys.executable, "-m", "stages.common.sync", "--patience", "200"]
    # left before the tests run, in every case: they stand in the repository
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w") as log:
        patch.chdir(folder)
        patch.setenv("ENCORE_EXECUTION", "execution-1")
        live = RunLog("chex", "live", "live", params={"method": "chex"})
        live.metrics({"train loss": 3.0}, 0)
        live.flush()
        log_run("chex", "digits", 0.3, 0)
        with mlflow_server(folder / "server", port):
            sender = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
            while len(list((folder / SPOOL).glob("*.jsonl"))) > 1:  # the finished run has arrived
                assert sender.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        for step in range(1, 5):
            live.metrics({"train loss": 3.0 - step / 2}, step)
        live.__exit__(None)
        log_run("chex", "digits", 0.3, 1)
        while "does not answer" not in (folder / "log").read_text():  # it has noticed
            assert sender.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
    with mlflow_server(folder / "server", port):
        assert sender.wait(timeout=120) == 0, (folder / "log").read_text()
        yield folder, uri
    end_processes(folder)


def test_a_server_that_dies_midway_and_comes_back(served: tuple[Path, str]) -> None:
    folder, uri = served
    assert spooled(folder) == []
    everything = runs_of(uri)
    names = sorted(r.info.run_name for r in everything)
    assert names == ["chex digits 0.3 seed 0", "chex digits 0.3 seed 1", "chex execution-1", "live"]
    assert {r.info.status for r in everything} == {"FINISHED"}
    (live,) = [r for r in everything if r.info.run_name == "live"]
    history = client(uri).get_metric_history(live.info.run_id, "train loss")
    assert [(m.step, m.value) for m in history] == [(step, 3.0 - step / 2) for step in range(5)]


@needs_browser
def test_the_mlflow_page_lists_the_runs(served: tuple[Path, str], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    _, uri = served
    experiment = client(uri).get_experiment_by_name("chex")
    assert experiment is not None
    with browser(tmp_path / "profile") as driver:
        driver.get(f"{uri}/#/experiments/{experiment.experiment_id}/runs")
        WebDriverWait(driver, 60).until(
            lambda page: "chex execution-1" in page.find_element(By.TAG_NAME, "body").text
        )
        text = driver.find_element(By.TAG_NAME, "body").text
    assert "chex" in text


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="needs Linux with autogroups")
@pytest.mark.parametrize("own", [True, False])
def test_sending_steps_back_in_a_session_of_its_own(own: bool) -> None:
    """`nice` alone weighs nothing between sessions; a session that is not the sender's keeps its weight."""
    step = "from stages.common.sync import step_back; step_back()"
    inner = [sys.executable, "-c", f"{step}; print(open('/proc/self/autogroup').read())"]
    code = f"""
import subprocess
from pathlib import Path
weight = Path("/proc/self/autogroup")
try:
    weight.write_text("5")
    assert weight.read_text().strip().endswith("nice 5")
except (OSError, AssertionError) as error:
    print("kept:", error)
else:
    subprocess.run({inner!r}, start_new_session={own}, check=True)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        start_new_session=True,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    if ran.stdout.startswith("kept:"):
        pytest.skip(f"this kernel lets no process weigh its session ({ran.stdout.strip()})")
    assert ran.stdout.strip().endswith("nice 19" if own else "nice 5"), ran.stdout
