"""`python -m flows serve`, seen through a browser: a flow run with its graph, its artifacts, MLflow; cancelling."""

import contextlib
import json
import os
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
import yaml
from dvc.repo import Repo

from flows.plan import needs_of_papers
from flows.serve import pool_of
from tests.common.browser import browser, needs_browser
from tests.flows.conftest import POSTGRES, Served
from tests.flows.project import REPOSITORY, run, wait_for

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
SCREENSHOTS = REPOSITORY / "docs"
TIMELINE = 20  # pixels of the graph's lower edge
SETTLED_SECONDS = 1.0  # that a page must look the same
SETTLING_SECONDS = 10.0  # some pages never do
GREEN = (0x21, 0x9D, 0x4B)  # Prefect's colour of what is completed


def test_papers_of_this_repository() -> None:
    targets = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    with Repo(str(REPOSITORY)) as repo:
        papers = needs_of_papers(repo)
    assert {"adam", "chex"} <= set(papers)
    assert set(papers) == set(targets)
    assert pool_of(papers["chex"], []) == "cpu"
    assert pool_of(papers["chex"], ["0"]) == "gpu"


@pytest.mark.skipif(POSTGRES is None, reason="PostgreSQL is not installed (apt-get install postgresql)")
def test_both_servers_keep_their_data_in_postgresql(served: Served) -> None:
    assert POSTGRES is not None
    for name, table in (("prefect", "deployment"), ("mlflow", "experiments")):
        query = [str(POSTGRES / "psql"), f"postgresql://{served.database}/{name}", "-Atc"]
        assert int(run([*query, f"select count(*) from {table}"], served.folder).stdout) > 0
    assert not (served.folder / "mlflow.db").exists()
    assert not (served.folder / ".encore/prefect/prefect.db").exists()


def test_deployments(served: Served) -> None:
    """One per paper and one for all; typed parameters; a nightly schedule that is off; only on 127.0.0.1."""
    found = {d["name"]: d for d in served.api("POST", "/deployments/filter")}
    assert set(found) == {"alpha", "beta", "all", "cpu", "gpu"}
    assert found["all"]["parameters"] == {"papers": ["alpha", "beta"]}
    assert {found.pop(pool)["work_pool_name"] for pool in ("cpu", "gpu")} == {"cpu", "gpu"}  # for workers
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
            "workers",
        }
    for wrong in ({"jobs": 0}, {"scale": "huge"}, {"seeds": [-1]}, {"force": "perhaps"}):
        with pytest.raises(httpx.HTTPStatusError, match="409"):
            served.start("alpha", papers=["alpha"], **wrong)


def screenshot(driver: "Chrome", name: str) -> None:
    """Keep a picture, when nothing moves any more: in docs/ with ENCORE_SCREENSHOTS=1, else in the test's folder."""
    folder = SCREENSHOTS if os.environ.get("ENCORE_SCREENSHOTS") else Path.cwd()
    deadline, before, picture = time.monotonic() + SETTLING_SECONDS, b"", driver.get_screenshot_as_png()
    while picture != before and time.monotonic() < deadline:
        time.sleep(SETTLED_SECONDS)
        before, picture = picture, driver.get_screenshot_as_png()
    (folder / name).write_bytes(picture)


@needs_browser
def test_flow_run_in_the_browser(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = served.start("alpha")
    wait_for(lambda: served.state(flow) in FINAL, "the flow run")
    assert served.state(flow) == "COMPLETED"
    names = {task["name"] for task in served.api("POST", "/task_runs/filter")}
    assert {"alpha-prepare", "alpha-train", "alpha"} <= names
    artifacts = {a["key"]: a for a in served.api("POST", "/artifacts/filter")}
    assert {"alpha-quick-tables", "alpha-quick-claims"} <= set(artifacts)
    with browser(tmp_path / "profile") as driver:
        from selenium.webdriver.common.by import By

        def text() -> str:
            return driver.find_element(By.TAG_NAME, "body").text

        driver.get(f"{served.prefect}/runs/flow-run/{flow}")
        wait_for(lambda: "Completed" in text() and "alpha-train" in text(), "the page of the flow run")
        wait_for(lambda: graph_nodes(driver) > 500, "the graph")
        screenshot(driver, "flow-run.png")
        driver.get(f"{served.prefect}/artifacts/artifact/{artifacts['alpha-quick-tables']['id']}")
        wait_for(lambda: "91.9" in text(), "the table")
        screenshot(driver, "flow-artifact.png")
        driver.get(f"{served.prefect}/deployments")
        wait_for(lambda: "beta" in text(), "the deployments")
        screenshot(driver, "flow-deployments.png")
        driver.get(compare_in_mlflow(served))
        driver.set_window_size(1400, 1650)
        wait_for(lambda: "Comparing 2 Runs" in text(), "the comparison")
        values = ("method dense ours", "flops\ntop1\n4.1\n2\n93.1\n91.9")
        wait_for(lambda: all(value in text() for value in values), "the values side by side")
        for button in driver.find_elements(
            By.CSS_SELECTOR, "[data-component-id*=assistant][aria-label=Close]"
        ):
            button.click()
        screenshot(driver, "mlflow-compare.png")


def graph_nodes(driver: "Chrome") -> int:
    """How many pixels of the flow run's graph are nodes of stages that are completed."""
    from PIL import Image
    from selenium.webdriver.common.by import By

    canvas = driver.find_elements(By.TAG_NAME, "canvas")
    if not canvas or not canvas[0].size["height"]:
        return 0
    image = Image.open(BytesIO(canvas[0].screenshot_as_png)).convert("RGB")
    graph = image.crop((0, 0, image.width, image.height - TIMELINE))
    return sum(
        count for count, colour in graph.getcolors(graph.width * graph.height) or [] if colour == GREEN
    )


def compare_in_mlflow(served: Served) -> str:
    """Log two runs to MLflow; returns the page that compares them."""

    def call(path: str, **content: Any) -> Any:
        reply = httpx.post(f"{served.mlflow}/api/2.0/mlflow/{path}", json=content, timeout=60)
        return reply.raise_for_status().json()

    experiment = call("experiments/create", name="alpha")["experiment_id"]
    runs = []
    for method, values in (("dense", {"top1": 93.1, "flops": 4.1}), ("ours", {"top1": 91.9, "flops": 2.0})):
        now = int(1000 * time.time())
        created = call("runs/create", experiment_id=experiment, run_name=method, start_time=now)
        run = created["run"]["info"]["run_id"]
        metrics = [{"key": key, "value": value, "timestamp": now, "step": 0} for key, value in values.items()]
        params = [{"key": "method", "value": method}, {"key": "seed", "value": "0"}]
        call("runs/log-batch", run_id=run, metrics=metrics, params=params)
        call("runs/update", run_id=run, status="FINISHED", end_time=now + 90_000)
        runs.append(run)
    return f"{served.mlflow}/#/compare-runs?runs={json.dumps(runs)}&experiments={json.dumps([experiment])}"


def test_pause_holds_back_what_has_not_begun(served: Served) -> None:
    """As the UI's buttons do it: a stage that runs goes on, the next one starts when the run is resumed."""
    (served.folder / "held").unlink(missing_ok=True)
    (served.folder / "hold").touch()
    (served.folder / "source.txt").write_text("for a pause\n")
    flow = served.start("alpha")
    wait_for((served.folder / "held").exists, "the stage")
    served.api("POST", f"/flow_runs/{flow}/set_state", state={"type": "PAUSED", "name": "Paused"})
    (served.folder / "hold").unlink()
    chosen = {"logs": {"flow_run_id": {"any_": [flow]}}}
    told = "alpha waits for the flow run to be resumed"
    wait_for(
        lambda: any(told in log["message"] for log in served.api("POST", "/logs/filter", **chosen)),
        "what the flow says",
    )
    assert served.state(flow) == "PAUSED"
    runs = served.api("POST", "/task_runs/filter", flow_runs={"id": {"any_": [flow]}})
    assert sorted(run["name"] for run in runs) == ["alpha-prepare", "alpha-train"]
    served.api("POST", f"/flow_runs/{flow}/resume")
    wait_for(lambda: served.state(flow) in FINAL, "the end of the run")
    assert served.state(flow) == "COMPLETED"


def test_cancel_ends_the_stage(served: Served) -> None:
    (served.folder / "held").unlink(missing_ok=True)
    (served.folder / "hold").touch()
    (served.folder / "source.txt").write_text("changed\n")
    flow = served.start("alpha")
    wait_for((served.folder / "held").exists, "the stage")
    wait_for(lambda: sleeping(served.folder), "its process")
    served.api("POST", f"/flow_runs/{flow}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    wait_for(lambda: served.state(flow) == "CANCELLED", "the cancellation")
    wait_for(lambda: not sleeping(served.folder), "the end of the stage")
    assert not (served.folder / "alpha.model").exists()
    assert "alpha.model" not in (served.folder / ".dvc/tmp/rwlock").read_text()
    (served.folder / "hold").unlink()
    again = served.start("alpha")  # and it can be run again
    wait_for(lambda: served.state(again) in FINAL, "the second run")
    assert served.state(again) == "COMPLETED"


def sleeping(folder: Path) -> list[int]:
    """Processes of the stage that waits."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "test -e hold" in " ".join(process.cmdline()) and process.cwd() == str(folder):
                found.append(process.pid)
    return found
