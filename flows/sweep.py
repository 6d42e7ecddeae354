"""DVC experiments side by side, as a Prefect flow: a task run for each, here or on a worker.

Each combination of parameters is one `dvc exp run` in a checkout of its own: the workspace stays as it is, and gets the
experiment (`dvc exp show`; `dvc exp apply NAME` brings it here). Each is one execution in MLflow. A checkout is removed
when all is well; else it stays, so that the same command goes on where it was.

On a worker the checkout is beside the worker's clone. What is up to date here goes there through the DVC remote, and so
does what the experiment has made; the experiment itself goes to the git remote `origin` of the worker's clone
(`dvc exp push`), and from there to this one (`dvc exp pull`).
"""

import contextlib
import fcntl
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.away import changed_files, check_committed, check_remote, checkout, git, run_on_worker
from flows.engine import LOOK_SECONDS, THREADS
from flows.errors import Cancelled, FlowError, Killed, StageFailed
from flows.experiments import (
    as_markdown,
    combinations,
    comparison,
    experiment_commit,
    experiment_name,
    experiment_ref,
)
from flows.plan import Needs, first_line, needs_together
from flows.process import Leash, run_command
from flows.project import Log, Project
from flows.reproduce import flow_run_id
from flows.slots import Pool, Reservation

TABLE = Path(".encore/flows/comparison.md")
SPOOL = Path(".encore/tracking")  # of runs that are still to be sent to MLflow
SPOOL_SECONDS = 60.0  # to wait until they are


@dataclass
class Lab:
    """Runs experiments of one commit, and of what is changed since in the workspace, in this clone."""

    project: Project
    papers: list[str]
    needs: Needs
    force: bool = False
    pull: bool = False  # what there is in the DVC remote
    leash: Leash = field(default_factory=Leash)

    def run(self, name: str, overrides: list[str], commit: str, changes: bytes, log: Log) -> None:
        """Run one, unless it is there already. Raises `StageFailed`, `Killed` or `Cancelled`."""
        with self.project.pipelines([name]):  # two sweeps may have it in common
            if experiment_ref(name) and not self.force:
                log("exists already")
                return
            folder = checkout(commit, name)
            make_fresh(folder, changes)
            command = ["exp", "run", "--name", name, *["--force"] * self.force, *["--pull"] * self.pull]
            for override in overrides:
                command += ["--set-param", override]
            with self.reserved(log) as reservation:
                more = {"ENCORE_EXECUTION": name, "PREFECT__FLOW_RUN_ID": flow_run_id()}
                more |= reservation.environment()
                self.dvc([*command, *self.papers], log, folder, more, reservation.slot)
            if ref := experiment_ref(name, folder):
                git("fetch", "--quiet", str(folder), f"+{ref}:{ref}")
            deadline = time.monotonic() + SPOOL_SECONDS
            while not (sent := all_sent(folder / SPOOL)) and time.monotonic() < deadline:
                if self.project.cancelled.wait(LOOK_SECONDS):
                    break
            if sent:
                shutil.rmtree(folder)
            else:
                log(f"not all is in MLflow yet: `python -m stages.common.sync` in {folder}")

    def share(self, command: str, name: str, *options: str, log: Log) -> None:
        """Exchange an experiment with the git remote `origin`; one at a time, as DVC does not wait for its lock."""
        with self.project.pipelines([f"dvc exp {command}"]):
            self.dvc(["exp", command, *options, *["--force"] * self.force, "origin", name], log)

    def dvc(
        self,
        arguments: list[str],
        log: Log,
        folder: Path = Path(),
        environment: dict[str, str] | None = None,
        slot: int | None = None,
    ) -> None:
        """Run a DVC command with its output to `log`."""
        from dvc.utils import fix_env

        log(f"> {shlex.join(['dvc', *arguments])}")
        run_command(
            [sys.executable, "-m", "dvc", *arguments],
            str(folder),
            fix_env(None) | (environment or {}),
            log,
            self.leash,
            self.project.cancelled,
            keep=() if slot is None else (slot,),
        )

    @contextlib.contextmanager
    def reserved(self, log: Log) -> Iterator[Reservation]:
        """What the experiment's stages need, for as long as it runs; GPUs are shared out among all flows of this machine."""
        pool, told = Pool(), ""
        while isinstance(reservation := pool.reserve(self.needs), str):
            if reservation != told:
                log(f"waits for {reservation}")
                told = reservation
            if self.project.cancelled.wait(LOOK_SECONDS):
                self.project.check_cancelled()
        try:
            yield reservation
        finally:
            pool.give_back(reservation)


def make_fresh(folder: Path, changes: bytes) -> None:
    """Make a checkout what the workspace is, without what a run that was killed has left; its checkpoints stay."""
    here = ("-C", str(folder))
    for ref in git(*here, "for-each-ref", "refs/exps", "--format=%(refname)").split():
        git(*here, "update-ref", "-d", ref)
    git(*here, "reset", "--quiet", "--hard")
    if changes:
        subprocess.run(["git", *here, "apply", "--whitespace=nowarn", "-"], input=changes, check=True)


def all_sent(spool: Path) -> bool:
    """Whether all runs are in MLflow; what is not, and its artifacts, lie in the spool's checkout."""
    if not spool.exists():
        return True
    with (spool / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # they are being sent
            return False
    return not any(spool.glob("*.jsonl"))


def open_lab(papers: list[str], force: bool, workers: bool, log: Log) -> Lab:
    """Look what the papers need. With `workers`, send what is up to date to the DVC remote, or refuse what cannot be."""
    project = Project(log)
    try:
        if workers:
            check_remote(project)
            check_committed(changed_files())
        plan = project.plan(papers)
        if workers:
            project.share(plan)
        return Lab(project, papers, needs_together(step.needs for step in plan.steps.values()), force)
    except BaseException:
        project.close()
        raise


def carry_out(lab: Lab, overrides: list[str], jobs: int, workers: bool) -> State[Any]:
    """The body of the flow: an experiment per combination, at most `jobs` at once, and a table of them."""
    logger = get_run_logger()
    papers = lab.papers
    commit = git("rev-parse", "HEAD").strip()
    changes = subprocess.run(["git", "diff", "--binary", "HEAD"], capture_output=True, check=True).stdout
    names = {experiment_name(papers, choice, commit, changes): choice for choice in combinations(overrides)}
    failed: dict[str, str] = {}

    @task(name="experiment", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
    def experiment(name: str) -> State[Any]:
        log = get_run_logger().info
        try:
            if workers:
                run_away(lab, name, names[name], commit, log)
            else:
                lab.run(name, names[name], commit, changes, log)
        except Cancelled as error:
            failed[name] = str(error)
            return CancelledState(message=str(error))
        except Exception as error:
            failed[name] = first_line(error)
            return Failed(message=failed[name])
        return Completed()

    futures: list[PrefectFuture[Any]] = []
    room = threading.Semaphore(jobs)
    try:
        for name in names:
            room.acquire()
            future: PrefectFuture[Any] = experiment.submit(name=name, return_state=False)
            future.add_done_callback(lambda _: room.release())
            futures.append(future)
        for future in futures:
            future.wait()
    except BaseException:
        lab.project.cancelled.set()
        for future in futures:
            future.wait()
        raise
    finally:
        lab.leash.close()
        lab.project.close()
    done = {name: choice for name, choice in names.items() if name not in failed}
    if done:
        table = as_markdown(comparison(done, papers))
        logger.info("experiments\n%s", table)
        create_markdown_artifact(
            key="comparison", markdown=table, description=f"{', '.join(papers)}: experiments"
        )
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(table)
    if failed:
        name, reason = next(iter(failed.items()))
        return Failed(message=f"{name} failed: {reason}; {len(failed)} of {len(names)} experiments failed")
    return Completed(message=f"{len(names)} experiments; their table: {TABLE}")


PUSHED = "Pushed"


def run_away(lab: Lab, name: str, overrides: list[str], commit: str, log: Log) -> None:
    """Run an experiment on a worker, and get it from there. Its data stay in the DVC remote until they are asked for."""
    if experiment_commit(name) and not lab.force:
        log("exists already")
        return
    parameters = {
        "papers": lab.papers,
        "name": name,
        "overrides": overrides,
        "commit": commit,
        "needs": asdict(lab.needs),
        "force": lab.force,
    }
    state = run_on_worker("experiment", lab.needs, name, parameters, log, lab.project.cancelled)
    if state.name != PUSHED:
        log(str(state.message))
        return
    if experiment_commit(name) != state.message and "origin" in git("remote").split():
        lab.share("pull", name, "--no-cache", log=log)  # else the worker's `origin` is this repository
    if experiment_commit(name) != state.message:
        raise StageFailed(
            "it went to the git remote 'origin' of its worker's clone, which is another than here"
        )


def carry_out_here(
    papers: list[str], name: str, overrides: list[str], commit: str, needs: Needs, force: bool
) -> State[Any]:
    """The worker's part, in its clone: run one experiment of a commit and share it."""
    log = get_run_logger().info
    if "origin" not in git("remote").split():
        return Failed(message=f"{Path.cwd()} has no git remote 'origin' to push the experiment to")
    lab = Lab(Project(log), papers, needs, force, pull=True)
    try:
        lab.run(name, overrides, commit, b"", log)
        if not experiment_commit(name):
            return Completed(
                name="Unchanged", message="nothing differs from the commit: there is none to keep"
            )
        lab.share("push", name, "--run-cache", log=log)
    except (FlowError, StageFailed, Killed) as error:
        return Failed(message=str(error))
    finally:
        lab.leash.close()
        lab.project.close()
    return Completed(name=PUSHED, message=experiment_commit(name))


def run_experiments(
    papers: list[str], overrides: list[str], jobs: int, force: bool, workers: bool, log: Log
) -> tuple[bool, str]:
    """Run them in a flow run of its own; returns whether all went well, and how it went."""
    lab = open_lab(papers, force, workers, log)

    def reproduce(
        papers: list[str], overrides: list[str], jobs: int, force: bool, workers: bool
    ) -> State[Any]:
        lab.project.log = get_run_logger().info
        return carry_out(lab, overrides, jobs, workers)

    runner: Any = ThreadPoolTaskRunner(max_workers=THREADS)
    body: Any = flow(name="reproduce", task_runner=runner, persist_result=False)(reproduce)
    state = body(papers, overrides, jobs, force, workers, return_state=True)
    return state.is_completed(), state.message or ""
