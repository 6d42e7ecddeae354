"""Stages on other machines: a flow sends them to workers of the pools `cpu` and `gpu`, each in a clone of its own.

The flow pushes a stage's inputs to the DVC remote and starts a run of the deployment `stage/cpu` or `stage/gpu`. A worker
checks out the same commit beside its clone, pulls the inputs, runs the stage alone, and pushes its outputs and run cache,
from where the flow takes them. Prefect's work pools distribute; what a worker finds in the run cache it does not compute.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
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
from flows.plan import Plan, Step
from flows.process import END_SECONDS
from flows.project import Log, Project
from flows.reproduce import carry_out

LOOK_SECONDS = 0.5  # between two looks at a run on a worker
CHECKOUTS = Path(".encore/worker")


def send_away(session: Session) -> None:
    """Have the session's stages run on workers, where that can be.

    A stage whose outputs, or whose inputs from other stages, are under git and not in DVC's cache stays here.
    """
    project, plan = session.project, session.plan
    if not project.repo.config["core"].get("remote"):
        raise UsageError("workers exchange data through DVC's remote, and there is none: `dvc remote add -d`")
    for step in plan.to_run:
        stages = [step.stage, *(plan.steps[name].stage for name in step.upstream)]
        cached = all(out.use_cache for stage in stages for out in stage.outs)
        step.away = cached and bool(step.stage.cmd) and not step.stage.frozen
    if changed := uncommitted(plan):
        raise UsageError(f"workers check out this commit; commit first: {', '.join(changed)}")
    project.shares = True
    project.receive({}, [])  # what others have run before need not be sent
    session.runner.send = Sender(session).run


def uncommitted(plan: Plan) -> list[str]:
    """Files under git that stages to be sent depend on, and that differ from the commit."""
    sent = [step for step in plan.to_run if step.away]
    made = [Path(out.fs_path) for step in plan.steps.values() for out in step.stage.outs]
    read = [Path(str(dep.fs_path)) for step in sent for dep in step.stage.deps if dep.protocol == "local"]
    read += [Path(step.stage.dvcfile.path) for step in sent]

    def among(path: Path, others: list[Path]) -> bool:
        return any(path.is_relative_to(other) for other in others)

    changed = [Path(line).resolve() for line in _git("diff", "--name-only", "HEAD").splitlines()]
    return [
        str(path.relative_to(Path.cwd())) for path in changed if among(path, read) and not among(path, made)
    ]


class Sender:
    """Runs stages of a session on workers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.commit = _git("rev-parse", "HEAD").strip()

    def run(self, step: Step, log: Log) -> None:
        """Run a stage on a worker; its result is in the DVC remote then. To be called in a task run."""
        session, project = self.session, self.session.project
        entries = project.share_inputs(step, session.plan)
        with get_client(sync_client=True) as client:
            pool = pool_of(step, client)
            sent: Any = run_deployment(
                f"stage/{pool}",
                parameters={
                    "name": step.name,
                    "commit": self.commit,
                    "entries": entries,
                    "upstream": list(step.upstream),
                    "execution": session.execution,
                    "force": session.force,
                    "timeout": session.timeout,
                },
                flow_run_name=step.name,
                timeout=0,
            )
            log(f"waits for a worker of pool {pool}: flow run {sent.id}")
            worker = ""
            while not (state := (run := client.read_flow_run(sent.id)).state) or not state.is_final():
                if (name := str(run.labels.get("prefect.worker.name", ""))) != worker:
                    log(f"runs on {name}")
                    worker = name
                if project.cancelled.wait(LOOK_SECONDS):
                    self._cancel(client, sent.id)
                    raise Cancelled("cancelled")
        if state.is_crashed():
            raise Killed(f"its run on a worker crashed: {state.message}")
        if not state.is_completed():
            raise StageFailed(f"{state.message or state.name} (on {worker})")

    def _cancel(self, client: SyncPrefectClient, run: Any) -> None:
        client.set_flow_run_state(run, Cancelling())
        deadline = time.monotonic() + 3 * END_SECONDS
        while time.monotonic() < deadline:
            state = client.read_flow_run(run).state
            if state and state.is_final():
                return
            time.sleep(LOOK_SECONDS)


def pool_of(step: Step, client: SyncPrefectClient) -> str:
    """The work pool for a stage; for one with an optional GPU `gpu` when a worker of it is there."""
    if step.needs.gpu == "optional":
        with contextlib.suppress(ObjectNotFound):
            workers = client.read_workers_for_work_pool("gpu")
            return "gpu" if any(worker.status == WorkerStatus.ONLINE for worker in workers) else "cpu"
    return "gpu" if step.needs.gpu in (1, "shared") else "cpu"


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


def checkout(commit: str) -> Path:
    """A checkout of a commit beside this clone, with the clone's cache; made when there is none."""
    clone, folder = Path.cwd(), CHECKOUTS.resolve() / commit[:12]
    with _alone(folder):
        if folder.exists():
            return folder
        if not _has(commit):
            subprocess.run(["git", "fetch", "--quiet", "--all"], capture_output=True)
        if not _has(commit):
            raise FlowError(f"commit {commit[:12]} is in no remote of {clone}: push it")
        from dvc.config import Config

        making = folder.with_suffix(".tmp")
        shutil.rmtree(making, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", "--shared", "--no-checkout", ".", str(making)], check=True)
        subprocess.run(["git", "checkout", "-q", "--detach", commit], cwd=making, check=True)
        own = clone / ".dvc/config.local"  # where the remote is and how it is entered, on this machine
        if own.exists():
            shutil.copy(own, making / ".dvc/config.local")
        with Config(str(making / ".dvc")).edit("local") as settings:
            settings.setdefault("cache", {}).setdefault("dir", str(clone / ".dvc/cache"))
        making.rename(folder)
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _has(commit: str) -> bool:
    return (
        subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0
    )


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout
