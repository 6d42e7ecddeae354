"""A project that is being served, for all tests that need servers: starting them takes longer than most tests."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.server import free_port
from tests.flows.papers import make_papers
from tests.flows.project import environment, run, wait_for

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)  # Debian's package

LOG = ".encore-serve.log"
HOLD = "while test -e hold; do touch held; sleep 0.2; done"


@dataclass
class Served:
    """A project that is being served."""

    folder: Path
    prefect: str
    mlflow: str
    process: "subprocess.Popen[bytes]"
    database: str | None  # the PostgreSQL server's address, where there is one

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


@contextmanager
def postgres() -> Iterator[str | None]:
    """A PostgreSQL server with empty databases `prefect` and `mlflow`; its address, or None where there is no server."""
    if POSTGRES is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="encore-postgres-"))
    user: list[str] = []
    if os.getuid() == 0:  # as root it refuses to run
        shutil.chown(folder, "postgres", "postgres")
        user = ["runuser", "-u", "postgres", "--"]
    port = free_port()
    run(
        [*user, str(POSTGRES / "initdb"), "-A", "trust", "-U", "encore", "-N", str(folder / "data")],
        Path("/"),
    )
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    control = [*user, str(POSTGRES / "pg_ctl"), "-D", str(folder / "data"), "-l", str(folder / "log"), "-w"]
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
    try:
        for name in ("prefect", "mlflow"):
            run(
                [str(POSTGRES / "createdb"), "-h", str(folder), "-p", str(port), "-U", "encore", name], folder
            )
        yield f"encore@127.0.0.1:{port}"
    finally:
        run([*control, "-m", "immediate", "stop"], Path("/"))
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Papers `alpha` and `beta`, served: on PostgreSQL where Debian's package of it is installed, else on SQLite."""
    folder = make_papers(tmp_path_factory.mktemp("served") / "p", HOLD)
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "flows", "serve"]
    command += ["--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    with postgres() as database, (folder / LOG).open("wb") as log:
        stores = {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{database}/mlflow",
        }
        process = subprocess.Popen(
            command, cwd=folder, env=environment(ENCORE_GPUS="", **(stores if database else {})),
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output = folder / LOG
            wait_for(lambda: process.poll() is not None or "ready;" in output.read_text(), "serve")
            assert process.poll() is None, output.read_text()
            prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
            yield Served(folder, prefect, mlflow, process, database)
        finally:
            process.terminate()
            process.wait()
