"""Sends spooled runs (`stages.common.stage.tracking`) to MLflow: `python -m stages.common.sync [--patience SECONDS]`.

One experiment per paper; a parent run per pipeline execution; one nested run per spool file. The store is
`MLFLOW_TRACKING_URI`, or `mlflow.db` in the repository. Whatever cannot be sent now stays in the spool.
"""

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from stages.common.stage.files import write_atomic
from stages.common.stage.tracking import SPOOL

STATE = SPOOL / "sent.json"
LOCAL_STORE = "sqlite:///mlflow.db"
LOCAL_ARTIFACTS = "mlartifacts"
BATCH = 1000  # the most metrics that MLflow takes in one call
# MLflow's answers to what it will never take, such as a metric's name with a bracket or a run that a user has deleted
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
PARAM_LENGTH = 6000  # the longest parameter value that MLflow takes


class Sender:
    """Knows what has been sent: per spool file the MLflow run and the lines that are in it."""

    def __init__(self) -> None:
        # a hanging server must cost this process seconds, not the minutes that MLflow allows by default
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient  # two seconds: after the lock is ours, not before

        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or LOCAL_STORE)
        self.experiments: dict[str, str] = {}
        state = json.loads(STATE.read_text()) if STATE.exists() else {}
        self.parents: dict[str, str] = state.get("parents", {})
        self.files: dict[str, dict[str, Any]] = state.get("files", {})

    def save(self) -> None:
        """Remember what has been sent."""
        write_atomic(STATE, json.dumps({"parents": self.parents, "files": self.files}))

    def experiment(self, paper: str) -> str:
        """Id of the experiment of a paper, made when there is none."""
        if paper not in self.experiments:
            found = self.client.get_experiment_by_name(paper)
            if found is None:
                location = (
                    None
                    if os.environ.get("MLFLOW_TRACKING_URI")
                    else Path(LOCAL_ARTIFACTS, paper).resolve().as_uri()
                )
                self.experiments[paper] = self.client.create_experiment(paper, artifact_location=location)
            else:
                self.experiments[paper] = found.experiment_id
        return self.experiments[paper]

    def find(self, paper: str, tag: str, value: str) -> str | None:
        """Id of the latest run of a paper with this tag."""
        found = self.client.search_runs(
            [self.experiment(paper)], f"tags.`{tag}` = '{value}'", max_results=1, order_by=["start_time DESC"]
        )
        return str(found[0].info.run_id) if found else None

    def create(self, paper: str, name: str, start: int, tags: dict[str, str]) -> str:
        """Id of a new run."""
        run = self.client.create_run(self.experiment(paper), start_time=start, tags=tags, run_name=name)
        return str(run.info.run_id)

    def parent(self, paper: str, execution: str, start: int) -> str:
        """Id of the run of a pipeline execution."""
        key = f"{paper}/{execution}"
        if key not in self.parents:
            self.parents[key] = self.find(paper, "encore.execution", key) or self.create(
                paper, f"{paper} {execution}", start, {"encore.execution": key}
            )
        return self.parents[key]

    def run_of(self, path: Path, start: dict[str, Any]) -> str:
        """Id of the MLflow run that a spool file belongs to, made when there is none (also after a crash midway)."""
        parent = self.parent(start["paper"], start["execution"], start["time"])
        if start["kind"] == "execution":
            return parent
        identity = (
            ("encore.run_key", start["key"]) if start["kind"] == "amend" else ("encore.spool", path.name)
        )
        if found := self.find(start["paper"], *identity):
            return found
        tags = {
            "encore.spool": path.name,
            "encore.run_key": start["key"],
            "mlflow.parentRunId": parent,
            **start["tags"],
        }
        return self.create(start["paper"], start["name"], start["time"], tags)

    def send(self, path: Path) -> None:
        """Send what is new in one spool file; delete the file when its run has ended."""
        from mlflow.entities import Metric, Param

        start = started(path)
        if start is None:
            return
        alive = psutil.pid_exists(start["pid"])  # before reading: what it wrote last must not be missed
        lines = path.read_text().splitlines(keepends=True)
        complete = [json.loads(line) for line in lines if line.endswith("\n")]
        if path.name not in self.files:
            run = self.run_of(path, start)
            params = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in start["params"].items()]
            self.client.log_batch(run, params=params)
            # who made the run ends it: an amendment to a run that this store has never seen makes one too
            found = self.client.get_run(run).data.tags.get("encore.spool") == path.name
            self.files[path.name] = {"run": run, "lines": 1, "ends": found}
        sent = self.files[path.name]
        new = complete[sent["lines"] :]
        metrics = [
            Metric(name, value, event["time"], event["step"])
            for event in new
            if event["event"] == "metrics"
            for name, value in event["values"].items()
        ]
        for first in range(0, len(metrics), BATCH):
            self.client.log_batch(sent["run"], metrics=metrics[first : first + BATCH])
        for event in new:
            if event["event"] == "artifact" and Path(event["path"]).exists():
                self.client.log_artifact(sent["run"], event["path"])
        sent["lines"] = len(complete)
        end = complete[-1] if complete[-1]["event"] == "end" else None
        if end is None and not alive:
            end = {"status": "KILLED", "time": complete[-1]["time"]}
        if end:
            if sent["ends"]:
                self.client.set_terminated(sent["run"], end["status"], end["time"])
            path.unlink()
            del self.files[path.name]

    def close_parents(self) -> None:
        """End the runs of the pipeline executions, of which nothing is left to send."""
        for run in self.parents.values():
            self.client.set_terminated(run)
        self.parents.clear()


def started(path: Path) -> dict[str, Any] | None:
    """The first event of a spool file; None where there is none yet."""
    with path.open() as file:
        line = file.readline()
    return json.loads(line) if line.endswith("\n") else None


def in_order(path: Path) -> tuple[int, int]:
    """Sorts spool files by their start; what amends a run comes after it."""
    start = started(path)
    return (start["kind"] != "new", start["time"]) if start else (2, 0)


def sync(patience: float) -> bool:
    """Send until the spool is empty; when the store does not answer, keep trying for `patience` seconds.

    What the store refuses is left in the spool.

    Returns whether everything has been sent. Returns at once, with True, when another process is at it.
    """
    SPOOL.mkdir(parents=True, exist_ok=True)
    with (SPOOL / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        deadline, pause = time.monotonic() + patience, 1.0
        sender = None
        refused: set[Path] = set()
        while files := sorted(set(SPOOL.glob("*.jsonl")) - refused, key=in_order):
            try:
                sender = sender or Sender()
                for path in files:
                    try:
                        sender.send(path)
                    except Exception as error:
                        if getattr(error, "error_code", None) not in REFUSALS:
                            raise
                        refused.add(path)  # it holds up no other run
                        print(f"the tracking store refuses {path}: {str(error)[:200]}", flush=True)
                    sender.save()
                pause = 1.0
                deadline = time.monotonic() + patience
            except Exception as error:  # any kind of store, any kind of fault: the spool is kept, try again
                print(
                    f"tracking store does not answer: {type(error).__name__}: {str(error)[:200]}", flush=True
                )
                sender = None
                if time.monotonic() > deadline:
                    return False
                pause = min(2 * pause, 30.0)
            time.sleep(pause)
        if sender:
            sender.close_parents()
            sender.save()
    return not refused


def main() -> None:
    """Send the spool; exit code 1 when something is left in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patience", type=float, default=600, help="seconds to wait for an absent server")
    if not sync(parser.parse_args().patience):
        left = len(list(SPOOL.glob("*.jsonl")))
        sys.exit(f"{left} runs are still to be sent (in {SPOOL}); run this again when the server is back")


def step_back() -> None:
    """Leave the cores to the stages. Linux weighs sessions against each other first, and `nice` counts only within one.

    In somebody else's session (`make sync` in a terminal) it is not for us to say what that weighs.
    """
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text("19")


if __name__ == "__main__":
    step_back()
    main()
