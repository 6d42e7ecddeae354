"""The Prefect server that a flow talks to: the one that is named or served here, else an embedded one.

`PREFECT_API_URL` names a server; `python -m flows serve` leaves the address of its own in `.encore/flows/serve.json`.
Otherwise `EmbeddedServer` starts one for this flow, with its history in `.encore/prefect`.
"""

import atexit
import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from flows.errors import FlowError

HOME = Path(".encore/prefect")
SERVED = Path(".encore/flows/serve.json")
START_SECONDS = 180.0  # a loaded machine takes a minute
# what a single flow has no use for; each service costs time at start and end
UNUSED = (
    "CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "SCHEDULER", "TRIGGERS",
)  # fmt: skip


def settle_environment(root: Path) -> None:
    """Set what Prefect reads when it is imported: its home in the project, no telemetry, calm logs."""
    defaults = {
        "PREFECT_HOME": str((root / HOME).resolve()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and (url := served_url(root)):
        os.environ["PREFECT_API_URL"] = url


def server_named() -> bool:
    """Whether there is a server to use; else flows run with an embedded one."""
    return "PREFECT_API_URL" in os.environ


def check_server() -> None:
    """Raise unless the server that is named can be reached."""
    url = os.environ["PREFECT_API_URL"]
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=10).close()
    except urllib.error.HTTPError:  # it is there, and has something to say
        return
    except OSError as error:
        raise FlowError(f"no Prefect server at {url} (PREFECT_API_URL): {error}") from error


def load_prefect(module: str) -> "Future[Any]":
    """Import a module of flows that uses Prefect, in a thread; it is there when Prefect's server answers."""
    server = None
    if server_named():
        check_server()
    else:
        server = EmbeddedServer(Path())

    def load() -> Any:
        loaded = importlib.import_module(module)
        if server:
            server.wait()
        return loaded

    return ThreadPoolExecutor(1, thread_name_prefix="prefect").submit(load)


def served_url(root: Path) -> str | None:
    """The API of the server that `python -m flows serve` runs for this project, if it does."""
    try:
        served = json.loads((root / SERVED).read_text())
        alive = psutil.Process(served["pid"]).create_time() == served["started"]
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return str(served["api"]) if alive else None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether an HTTP server answers with success."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def wait_until_answers(url: str, process: "subprocess.Popen[bytes]", log: Path, name: str) -> None:
    """Wait for a server that has just been started."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise FlowError(f"{name} did not start; its log: {log}")
        time.sleep(0.1)


class EmbeddedServer:
    """A Prefect server for one flow, on a free port of 127.0.0.1, without UI; to be started before Prefect is imported."""

    def __init__(self, root: Path) -> None:
        folder = root / HOME
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "server.log"
        self.api = f"http://127.0.0.1:{free_port()}/api"
        services = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in UNUSED}
        environment = {
            **os.environ,
            **services,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT_API_URL": self.api,
            "PREFECT__SERVER_EPHEMERAL": "1",
        }
        command = [
            sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app",
            "--host", "127.0.0.1", "--port", self.api.split(":")[2].split("/")[0],
            "--log-level", "error", "--lifespan", "on",
        ]  # fmt: skip
        self._command, self._environment = command, environment
        self.start()
        os.environ["PREFECT_API_URL"] = self.api
        # registered before Prefect is imported, so that it happens after Prefect has sent its last log lines
        atexit.register(self.close)

    def start(self) -> None:
        """Start the process."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until_answers(f"{self.api}/health", self._process, self.log, "the embedded Prefect server")

    def close(self) -> None:
        """End it. Happens by itself at the end of this process, when Prefect has sent what it has to send."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
