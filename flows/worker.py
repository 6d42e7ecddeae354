"""A worker of a Prefect work pool, in this clone: `python -m flows worker gpu`.

It is Prefect's own process worker, watched: when it dies, what it ran is ended, given back to the pool and run again, from
its checkpoints. The same when a worker starts after its machine went down.
"""

import contextlib
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import AwaitingRetry, Cancelled

from flows.deployed import CLONE
from flows.errors import FlowError
from flows.process import END_SECONDS
from flows.project import FOLDER, Log

POOLS = {
    "cpu": "Machines without GPUs",
    "gpu": "Machines with GPUs: a worker owns named slots (ENCORE_GPUS), a stage waits for one of them",
}
STAGES = "stages"  # the queue of single stages; runs of whole papers are in the queue `default`
AGAIN_SECONDS = 5.0  # between two starts of a worker that dies
ACTIVE = ["PENDING", "RUNNING", "CANCELLING"]


def ensure_pools() -> None:
    """Make the work pools where they are missing."""
    with get_client(sync_client=True) as client:
        for name, description in POOLS.items():
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))


def worker_name(pool: str, queue: str) -> str:
    """Name of the worker of this clone: the same whenever it starts."""
    clone = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:6]
    return f"{socket.gethostname()}-{pool}-{queue}-{clone}"


def run_worker(pool: str, queue: str, limit: int, log: Log) -> int:
    """Be a worker until ended."""
    name = worker_name(pool, queue)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FlowError(f"this clone has a worker of pool {pool} already: {name}") from None
        ensure_pools()
        command = [
            sys.executable, "-m", "prefect", "worker", "start", "--type", "process",
            "--pool", pool, "--work-queue", queue, "--name", name, "--limit", str(limit),
        ]  # fmt: skip
        modules = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, CLONE: str(Path.cwd()), "PYTHONPATH": modules}
        ending = threading.Event()
        while True:
            requeue(name, log)
            started = time.monotonic()
            process = subprocess.Popen(command, env=environment, start_new_session=True)

            def end(*_: Any, process: "subprocess.Popen[bytes]" = process) -> None:
                ending.set()
                process.terminate()  # it ends its runs, and says so to the server, if that is there
                late = threading.Timer(END_SECONDS, process.kill)
                late.daemon = True
                late.start()

            signal.signal(signal.SIGTERM, end)
            signal.signal(signal.SIGINT, end)
            code = process.wait()
            if ending.is_set() or code >= 0:
                return max(code, 0)
            log(f"worker {name} was killed by {signal.Signals(-code).name}; it is started again")
            time.sleep(max(0.0, AGAIN_SECONDS - (time.monotonic() - started)))


def requeue(worker: str, log: Log) -> None:
    """Give back to the pool what an earlier worker of this name was at, and end what is left of it."""
    kill(lambda process: ["--name", worker] == process.cmdline()[-4:-2])
    with get_client(sync_client=True) as client:
        active = FlowRunFilter.model_validate({"state": {"type": {"any_": ACTIVE}}})
        for run in client.read_flow_runs(flow_run_filter=active):
            if run.labels.get("prefect.worker.name") != worker:
                continue
            end_run(str(run.id))
            if run.state and run.state.is_cancelling():
                client.set_flow_run_state(run.id, Cancelled(message="its worker died"), force=True)
            else:
                log(f"flow run {run.name} is queued again: its worker died")
                client.set_flow_run_state(run.id, AwaitingRetry(message="its worker died"), force=True)


def end_run(run: str) -> None:
    """Kill what is left of a flow run on this machine: its process, upon which its leash ends the stages."""

    def module(process: psutil.Process) -> str:
        if process.environ().get("PREFECT__FLOW_RUN_ID") != run:
            return ""
        return next((word for word in process.cmdline() if word.startswith(("prefect.", "flows."))), "")

    leashes = find(lambda process: module(process) == "flows.process")
    kill(lambda process: module(process).startswith("prefect."))
    psutil.wait_procs(leashes, timeout=3 * END_SECONDS)


def kill(wanted: Callable[[psutil.Process], bool]) -> None:
    """Kill processes of this machine."""
    for process in (found := find(wanted)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=END_SECONDS)


def find(wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Processes of this machine, as far as one may look at them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if wanted(process):
                found.append(process)
    return found
