"""Tracking that cannot fail or slow a run: runs are spooled to files, MLflow gets them from there.

A stage only appends JSON lines to `.encore/tracking/`; `python -m stages.common.sync`, a process of its own, sends them
to MLflow and deletes what has arrived. An absent, dying or hanging server therefore costs a stage nothing.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import psutil

SPOOL = Path(".encore/tracking")
FLUSH_SECONDS = 2.0
LIVE_AFTER_SECONDS = (
    30.0  # shorter stages are sent when the pipeline ends, so that nothing competes with them
)


def execution_id() -> str:
    """Names the pipeline execution this process belongs to: the same for all stages of one `dvc repro`.

    A flow names it in `ENCORE_EXECUTION`; otherwise it is the `dvc` process above this one, or this process.
    """
    if named := os.environ.get("ENCORE_EXECUTION"):
        return named
    # under a warm interpreter this process's parent is not the one that asked for the stage
    process = psutil.Process(int(os.environ.get("ENCORE_CALLER", os.getpid())))
    family = [process, *process.parents()]
    top = next((p for p in family if any(Path(part).name == "dvc" for part in p.cmdline()[:3])), process)
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime(top.create_time()))
    return f"{started}-{top.pid}"


def run_key(*identity: object) -> str:
    """Deterministic short name of one run, from what makes it that run (paper, scale, method, seed ...)."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


class RunLog:
    """What becomes one MLflow run: parameters, metrics over steps, tags and artifacts.

    `kind` says which run: a "new" one; "amend" adds to the latest run with this key (what a later stage found out about
    it); "execution" is the run of the whole pipeline execution, the parent of the others.

    Use as a context manager; a new run is FINISHED when the block ends and FAILED when it raises. A process that is killed
    leaves no end behind, and the run is shown as KILLED.
    """

    def __init__(
        self,
        paper: str,
        name: str,
        key: str,
        kind: Literal["new", "amend", "execution"] = "new",
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        self._lines: list[str] = []
        self._muted = (
            os.environ.get("RANK", "0") != "0"
        )  # of several processes of one run, the first one reports
        if self._muted:
            return
        execution = execution_id()
        stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2]  # without the file that has it
        tags = {"dvc.stage": stage, **(tags or {})}
        if os.environ.get("PREFECT__FLOW_RUN_ID"):
            tags = tags | {"prefect.flow_run_id": os.environ["PREFECT__FLOW_RUN_ID"]}
        self._started = self._flushed = time.time()
        self._live = False
        SPOOL.mkdir(parents=True, exist_ok=True)
        self._path = SPOOL / f"{paper}.{execution}.{key}.{uuid.uuid4().hex[:8]}.jsonl"
        self._event(
            event="start", kind=kind, paper=paper, execution=execution, name=name, key=key,
            params=params or {}, tags=tags, pid=os.getpid(),
        )  # fmt: skip
        self.flush()

    def _event(self, **event: Any) -> None:
        if self._muted:
            return
        self._lines.append(json.dumps({"time": int(time.time() * 1000), **event}))
        if time.time() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log the numbers `values` at `step`."""
        self._event(event="metrics", step=step, values=values)

    def artifact(self, path: Path) -> None:
        """Attach a file; it is read when the run is sent, so give its final path."""
        self._event(event="artifact", path=str(path.resolve()))

    def flush(self) -> None:
        """Write what is buffered."""
        if self._muted:
            return
        with self._path.open("a") as file:
            file.writelines(line + "\n" for line in self._lines)
        self._lines.clear()
        self._flushed = time.time()
        if not self._live and time.time() - self._started > LIVE_AFTER_SECONDS:
            self._live = True
            start_sync()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._event(event="end", status="FAILED" if kind else "FINISHED")
        self.flush()


def start_sync() -> None:
    """Send the spool to MLflow in a process of its own, unless one is at it; returns at once."""
    with (SPOOL / "sync.log").open("a") as log:
        subprocess.Popen(
            ["nice", "-n", "19", sys.executable, "-m", "stages.common.sync"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
