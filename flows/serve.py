"""Everything on one machine: `python -m flows serve` runs Prefect's and MLflow's servers and a worker, on 127.0.0.1.

The work pools are `cpu` and `gpu`; a worker each (`gpu` where there are GPUs) runs flows in processes of their own in this
workspace. Workers of other clones, for single stages: `python -m flows worker`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from flows.errors import FlowError
from flows.plan import Needs, needs_of_papers
from flows.project import FOLDER, Log
from flows.server import SERVED, answers, settle_environment, wait_until_answers
from flows.slots import gpu_names

LOGS = FOLDER
WATCH_SECONDS = 2.0  # between two looks at the processes, and the least between two starts of one
NIGHT = "0 3 * * *"
SERVER_SECONDS = 5.0  # that servers may take to end, which wait for browsers that are still connected
PARALLEL_FLOWS = 4  # per worker; flows on one paper wait for each other anyway


def pool_of(stages: Iterable[Needs], gpus: list[str]) -> str:
    """The work pool for these stages: `gpu` when one of them can use one and this machine has one."""
    return "gpu" if gpus and any(needs.gpu != 0 for needs in stages) else "cpu"


def register(gpus: list[str]) -> list[str]:
    """Register a deployment per paper, one for all, and `stage` and `experiment` in each pool; returns the papers' ones.

    Their nightly schedules are off. Workers import the flows from the clone that they work in.
    """
    from dvc.repo import Repo
    from prefect.deployments.runner import EntrypointType
    from prefect.schedules import Cron

    from flows.deployed import experiment, reproduce, stage
    from flows.worker import POOLS, STAGES

    module: dict[str, Any] = {"entrypoint_type": EntrypointType.MODULE_PATH}
    with Repo() as repo:
        papers = needs_of_papers(repo)
    names = []
    deployment: Any
    for name, targets in [*((paper, [paper]) for paper in papers), ("all", list(papers))]:
        deployment = reproduce.to_deployment(
            name=name,
            work_pool_name=pool_of((needs for paper in targets for needs in papers[paper]), gpus),
            parameters={"papers": targets},
            schedules=[Cron(NIGHT, active=False)],
            description=f"`dvc repro {' '.join(targets)}`, in parallel",
            **module,
        )
        deployment.apply()
        names.append(f"reproduce/{name}")
    for pool in POOLS:
        for part in (stage, experiment):
            deployment = part.to_deployment(name=pool, work_pool_name=pool, work_queue_name=STAGES, **module)
            deployment.apply()
    return names


class Services:
    """Child processes that are started again when they die, and end together."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        LOGS.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        """Start one, with its log in `.encore/flows`."""
        self._commands[name] = command
        with (LOGS / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    def watch(self, stop: threading.Event, log: Log) -> None:
        """Start those that die again, until `stop`."""
        while not stop.wait(WATCH_SECONDS):
            for name, process in list(self.processes.items()):
                if process.poll() is not None:
                    log(
                        f"{name} has ended (exit code {process.returncode}) and is started again; its log: {LOGS / name}.log"
                    )
                    self.start(name, self._commands[name])

    def close(self) -> None:
        """End them, workers first: they end their flows, and say so to the server."""
        workers = [name for name in self.processes if name.startswith("worker")]
        self._end(workers, 60)
        self._end([name for name in self.processes if name not in workers], SERVER_SECONDS)

    def _end(self, names: list[str], seconds: float) -> None:
        family: list[psutil.Process] = []  # what a server leaves behind, such as MLflow's workers
        for name in names:
            with contextlib.suppress(psutil.NoSuchProcess):
                family += psutil.Process(self.processes[name].pid).children(recursive=True)
            self.processes[name].terminate()
        deadline = time.monotonic() + seconds
        for name in names:
            try:
                self.processes[name].wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.processes[name].kill()
                self.processes[name].wait()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()


def serve(prefect_port: int, mlflow_port: int, log: Log) -> int:
    """Run until interrupted."""
    host = "127.0.0.1"
    api, tracking = f"http://{host}:{prefect_port}/api", f"http://{host}:{mlflow_port}"
    for url, name in ((f"{api}/health", "Prefect"), (f"{tracking}/health", "MLflow")):
        if answers(url):
            raise FlowError(
                f"{name} is answering on {url.rsplit('/', 1)[0]} already; --{name.lower()}-port takes another"
            )
    settle_environment(Path())
    os.environ |= {
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": api,
        "PREFECT_SERVER_API_HOST": host,
        "MLFLOW_TRACKING_URI": tracking,
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    os.environ.setdefault("MLFLOW_BACKEND_STORE_URI", "sqlite:///mlflow.db")
    os.environ.setdefault(
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"
    )  # seven processes for jobs nobody sends
    os.environ.setdefault("MLFLOW_ARTIFACTS_DESTINATION", "mlartifacts")
    python = sys.executable
    services, stop = Services(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        prefect = services.start("prefect", [
            python, "-m", "prefect", "server", "start", "--host", host, "--port", str(prefect_port),
        ])  # fmt: skip
        mlflow = services.start("mlflow", [
            python, "-m", "mlflow", "server", "--host", host, "--port", str(mlflow_port), "--workers", "1",
        ])  # fmt: skip
        wait_until_answers(f"{api}/health", prefect, LOGS / "prefect.log", "the Prefect server")
        gpus = gpu_names()
        from flows.worker import ensure_pools

        ensure_pools()
        for pool in ("cpu", "gpu") if gpus else ("cpu",):
            services.start(f"worker-{pool}", [
                python, "-m", "flows", "worker", pool, "--queue", "default", "--limit", str(PARALLEL_FLOWS),
            ])  # fmt: skip
        names = register(gpus)
        wait_until_answers(f"{tracking}/health", mlflow, LOGS / "mlflow.log", "the MLflow server")
        started = psutil.Process().create_time()
        SERVED.write_text(json.dumps({"api": api, "pid": os.getpid(), "started": started}))
        log(f"Prefect  http://{host}:{prefect_port}   deployments: {', '.join(names)}")
        log(f"MLflow   {tracking}")
        log("ready; Ctrl-C ends it")
        services.watch(stop, log)
        return 0
    finally:
        SERVED.unlink(missing_ok=True)
        services.close()
