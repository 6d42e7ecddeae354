"""Work on other machines: a flow sends stages to workers of the pools `cpu` and `gpu`, each in a clone of its own.

The flow pushes a stage's inputs to the DVC remote and starts a run of the deployment `stage/cpu` or `stage/gpu`. A worker
checks out the same commit beside its clone, pulls the inputs, runs the stage alone, and pushes its outputs and run cache,
from where the flow takes them. Prefect's work pools distribute; what a worker finds in the run cache it does not compute.
Experiments (`flows/sweep.py`) are sent the same way, as runs of the deployments `experiment/cpu` and `experiment/gpu`.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import get_client, get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, State

from flows.engine import Session
from flows.errors import Cancelled, FlowError, Killed, StageFailed, UsageError
from flows.plan import Needs, Plan, Step
from flows.process import END_SECONDS
from flows.project import Log, Project
from flows.reproduce import carry_out

LOOK_SECONDS = 0.5  # between two looks at a run on a worker
CHECKOUTS = Path(".encore/worker")
STORE = ("mlflow.db", "mlartifacts")  # where runs are tracked when no server is named


def send_away(session: Session) -> None:
    """Have the session's stages run on workers, where that can be.

    A stage whose outputs, or whose inputs from other stages, are under git and not in DVC's cache stays here.
    """
    project, plan = session.project, session.plan
    check_remote(project)
    for step in plan.to_run:
        stages = [step.stage, *(plan.steps[name].stage for name in step.upstream)]
        cached = all(out.use_cache for stage in stages for out in stage.outs)
        step.away = cached and bool(step.stage.cmd) and not step.stage.frozen
    check_committed(changed_for(plan))
    project.shares = True
    project.receive({}, [])  # what others have run before need not be sent
    session.runner.send = Sender(session).run


def check_remote(project: Project) -> None:
    """Refuse a project without a DVC remote."""
    if not project.repo.config["core"].get("remote"):
        raise UsageError("workers exchange data through DVC's remote, and there is none: `dvc remote add -d`")


def check_committed(changed: list[str]) -> None:
    """Refuse these files: no worker would see how they have changed."""
    if changed:
        raise UsageError(f"workers check out this commit; commit first: {', '.join(changed)}")


def changed_files() -> list[str]:
    """Files under git that differ from the commit."""
    return git("diff", "--name-only", "--relative", "HEAD").splitlines()


def changed_for(plan: Plan) -> list[str]:
    """Those that stages to be sent depend on."""
    sent = [step for step in plan.to_run if step.away]
    made = [Path(out.fs_path) for step in plan.steps.values() for out in step.stage.outs]
    read = [Path(str(dep.fs_path)) for step in sent for dep in step.stage.deps if dep.protocol == "local"]
    read += [Path(step.stage.dvcfile.path) for step in sent]

    def among(path: Path, others: list[Path]) -> bool:
        return any(path.is_relative_to(other) for other in others)

    return [
        name
        for name in changed_files()
        if among(path := Path(name).resolve(), read) and not among(path, made)
    ]


class Sender:
    """Runs stages of a session on workers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.commit = git("rev-parse", "HEAD").strip()

    def run(self, step: Step, log: Log) -> None:
        """Run a stage on a worker; its result is in the DVC remote then. To be called in a task run."""
        session, project = self.session, self.session.project
        parameters = {
            "name": step.name,
            "commit": self.commit,
            "entries": project.share_inputs(step, session.plan),
            "upstream": list(step.upstream),
            "execution": session.execution,
            "force": session.force,
            "timeout": session.timeout,
        }
        run_on_worker("stage", step.needs, step.name, parameters, log, project.cancelled)


def run_on_worker(
    flow: str, needs: Needs, name: str, parameters: dict[str, Any], log: Log, cancelled: threading.Event
) -> State[Any]:
    """Run one of the flows `stage` and `experiment` on a worker; to be called in a task run.

    Returns its last state. Raises `StageFailed`, `Killed` or `Cancelled`; then nothing of it runs any more.
    """
    with get_client(sync_client=True) as client:
        pool = pool_of(needs, client)
        sent: Any = run_deployment(f"{flow}/{pool}", parameters=parameters, flow_run_name=name, timeout=0)
        log(f"waits for a worker of pool {pool}: flow run {sent.id}")
        worker = ""
        while not (state := (run := client.read_flow_run(sent.id)).state) or not state.is_final():
            if (label := str(run.labels.get("prefect.worker.name", ""))) != worker:
                log(f"runs on {label}")
                worker = label
            if cancelled.wait(LOOK_SECONDS):
                _cancel(client, sent.id)
                raise Cancelled("cancelled")
    if state.is_crashed():
        raise Killed(f"its run on a worker crashed: {state.message}")
    if not state.is_completed():
        raise StageFailed(f"{state.message or state.name} (on {worker})")
    return state


def _cancel(client: SyncPrefectClient, run: Any) -> None:
    client.set_flow_run_state(run, Cancelling())
    deadline = time.monotonic() + 3 * END_SECONDS
    while time.monotonic() < deadline:
        state = client.read_flow_run(run).state
        if state and state.is_final():
            return
        time.sleep(LOOK_SECONDS)


def pool_of(needs: Needs, client: SyncPrefectClient) -> str:
    """The work pool for these needs; for an optional GPU `gpu` when a worker of it is there."""
    if needs.gpu == "optional":
        with contextlib.suppress(ObjectNotFound):
            workers = client.read_workers_for_work_pool("gpu")
            return "gpu" if any(worker.status == WorkerStatus.ONLINE for worker in workers) else "cpu"
    return "gpu" if needs.gpu in (1, "shared") else "cpu"


def carry_out_here(
    name: str,
    commit: str,
    entries: dict[str, Any],
    upstream: list[str],
    execution: str,
    force: bool,
    timeout: float | None,
) -> State[Any]:
    """The worker's part, in its clone: run one stage of a commit and share its result."""
    os.chdir(checkout(commit))
    project = Project(get_run_logger().info)
    try:
        project.shares = True
        project.receive(entries, upstream)
        plan = project.plan([name], force, single=True)
        with Session(project, plan, 1, force, timeout) as session:
            session.runner.environment["ENCORE_EXECUTION"] = execution
            state = carry_out(session)
        if session.succeeded:
            project.share_result(plan.steps[name])
        return state
    finally:
        project.close()


def checkout(commit: str, purpose: str = "") -> Path:
    """A checkout of a commit beside this clone, with the clone's cache and MLflow store; made when there is none yet.

    Checkouts for different purposes are different ones.
    """
    clone, folder = Path.cwd(), CHECKOUTS.resolve() / "-".join(filter(None, (commit[:12], purpose)))
    with _alone(folder):
        if folder.exists():
            return folder
        if not _has(commit):
            subprocess.run(["git", "fetch", "--quiet", "--all"], capture_output=True)
        if not _has(commit):
            raise FlowError(f"commit {commit[:12]} is in no remote of {clone}: push it")
        from dvc.config import Config

        making = folder.with_name(f"{folder.name}.tmp")
        shutil.rmtree(making, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", ".", str(making)], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", commit], cwd=making, check=True)
        own = clone / ".dvc/config.local"  # where the remote is and how it is entered, on this machine
        if own.exists():
            shutil.copy(own, making / ".dvc/config.local")
        with Config(str(making / ".dvc")).edit("local") as settings:
            settings.setdefault("cache", {}).setdefault("dir", str(clone / ".dvc/cache"))
        with (making / ".git/info/exclude").open("a") as exclude:
            for name in STORE:
                (making / name).symlink_to(clone / name)
                exclude.write(f"/{name}\n")
        making.rename(folder)
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _has(commit: str) -> bool:
    return (
        subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0
    )


def git(*arguments: str) -> str:
    """What git says."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout
