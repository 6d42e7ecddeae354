"""`python -m flows serve`, seen through a browser: a flow run with its graph, its artifacts, MLflow; cancelling."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from flows.serve import papers_of, pool_of
from flows.server import free_port
from tests.common.browser import browser, needs_browser
from tests.flows.papers import make_papers
from tests.flows.project import REPOSITORY, environment, wait_for

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
SCREENSHOTS = REPOSITORY / "docs"


def test_papers_of_this_repository() -> None:
    text = (REPOSITORY / "dvc.yaml").read_text()
    assert "chex" in papers_of(text)
    assert not [name for name in papers_of(text) if "-" in name]
    assert pool_of("chex", text, []) == "cpu"
    assert pool_of("chex", text, ["0"]) == "gpu"


@dataclass
class Served:
    """A project that is being served."""

    folder: Path
    prefect: str
    mlflow: str
    process: "subprocess.Popen[bytes]"

    def api(self, method: str, path: str, **content: Any) -> Any:
        """Call Prefect's API."""
        reply = httpx.request(method, f"{self.prefect}/api{path}", json=content or None, timeout=60)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a flow run from the deployment of this name, as the UI does."""
        found = self.api("GET", f"/deployments/name/reproduce/{deployment}")
        run = self.api("POST", f"/deployments/{found['id']}/create_flow_run", parameters=parameters)
        return str(run["id"])

    def state(self, run: str) -> str:
        """State of a flow run."""
        return str(self.api("GET", f"/flow_runs/{run}")["state"]["type"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make_papers(
        tmp_path_factory.mktemp("served") / "p", "if test -e hold; then touch held; sleep 600; fi"
    )
    ports = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "flows",
        "serve",
        "--prefect-port",
        str(ports[0]),
        "--mlflow-port",
        str(ports[1]),
    ]
    with (folder / ".encore-serve.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(ENCORE_GPUS=""), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for(
            lambda: process.poll() is not None or "ready;" in (folder / ".encore-serve.log").read_text(),
            "serve",
        )
        assert process.poll() is None, (folder / ".encore-serve.log").read_text()
        yield Served(folder, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", process)
    finally:
        process.terminate()
        process.wait()


def test_deployments(served: Served) -> None:
    """One per paper and one for all; typed parameters; a nightly schedule that is off; only on 127.0.0.1."""
    found = {d["name"]: d for d in served.api("POST", "/deployments/filter")}
    assert set(found) == {"alpha", "beta", "all"}
    assert found["all"]["parameters"] == {"papers": ["alpha", "beta"]}
    for deployment in found.values():
        assert [(s["active"], s["schedule"]["cron"]) for s in deployment["schedules"]] == [
            (False, "0 3 * * *")
        ]
        assert set(deployment["parameter_openapi_schema"]["properties"]) == {
            "papers",
            "scale",
            "seeds",
            "jobs",
            "force",
        }
    for wrong in ({"jobs": 0}, {"scale": "huge"}, {"seeds": [-1]}, {"force": "perhaps"}):
        with pytest.raises(httpx.HTTPStatusError, match="409"):
            served.start("alpha", papers=["alpha"], **wrong)


def screenshot(driver: "Chrome", name: str) -> None:
    """Keep a picture: in docs/ with ENCORE_SCREENSHOTS=1, else in the test's folder."""
    folder = SCREENSHOTS if os.environ.get("ENCORE_SCREENSHOTS") else Path.cwd()
    driver.save_screenshot(str(folder / name))


@needs_browser
def test_flow_run_in_the_browser(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = served.start("alpha")
    wait_for(lambda: served.state(run) in FINAL, "the flow run")
    assert served.state(run) == "COMPLETED"
    names = {task["name"] for task in served.api("POST", "/task_runs/filter")}
    assert {"alpha-prepare", "alpha-train", "alpha"} <= names
    artifacts = {a["key"]: a for a in served.api("POST", "/artifacts/filter")}
    assert {"alpha-quick-tables", "alpha-quick-claims"} <= set(artifacts)
    with browser(tmp_path / "profile") as driver:

        def text() -> str:
            from selenium.webdriver.common.by import By

            return driver.find_element(By.TAG_NAME, "body").text

        driver.get(f"{served.prefect}/runs/flow-run/{run}")
        wait_for(lambda: "Completed" in text() and "alpha-train" in text(), "the page of the flow run")
        screenshot(driver, "flow-run.png")
        driver.get(f"{served.prefect}/artifacts/artifact/{artifacts['alpha-quick-tables']['id']}")
        wait_for(lambda: "91.9" in text(), "the table")
        screenshot(driver, "flow-artifact.png")
        driver.get(f"{served.prefect}/deployments")
        wait_for(lambda: "beta" in text(), "the deployments")
        screenshot(driver, "flow-deployments.png")
        driver.get(served.mlflow)
        wait_for(lambda: "Experiments" in text(), "MLflow")


def test_cancel_ends_the_stage(served: Served) -> None:
    (served.folder / "hold").touch()
    (served.folder / "source.txt").write_text("changed\n")
    run = served.start("alpha")
    wait_for((served.folder / "held").exists, "the stage")
    assert sleeping(served.folder)
    served.api("POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    wait_for(lambda: served.state(run) == "CANCELLED", "the cancellation")
    wait_for(lambda: not sleeping(served.folder), "the end of the stage")
    assert not (served.folder / "alpha.model").exists()
    assert "alpha.model" not in (served.folder / ".dvc/tmp/rwlock").read_text()
    (served.folder / "hold").unlink()
    again = served.start("alpha")  # and it can be run again
    wait_for(lambda: served.state(again) in FINAL, "the second run")
    assert served.state(again) == "COMPLETED"


def sleeping(folder: Path) -> list[int]:
    """Processes of the stage that waits."""
    import contextlib

    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "sleep" and process.cwd() == str(folder):
                found.append(process.pid)
    return found
