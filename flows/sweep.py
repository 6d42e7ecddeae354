"""DVC experiments side by side, as a Prefect flow: a task run for each.

Each combination of parameters is one `dvc exp run --temp`: DVC runs it in a copy of the workspace, which stays as it is, and
keeps it as an experiment (`dvc exp show`; `dvc exp apply NAME` brings it here). Each is one execution in MLflow.
"""

import os
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.errors import Cancelled, Killed, StageFailed
from flows.experiments import as_markdown, combinations, comparison, experiment_name, experiment_ref
from flows.process import Leash, run_command
from flows.reproduce import flow_run_id

TABLE = Path(".encore/flows/comparison.md")


def carry_out(papers: list[str], overrides: list[str], jobs: int, force: bool) -> State[Any]:
    """The body of the flow: an experiment per combination, at most `jobs` at once, and a table of them."""
    logger = get_run_logger()
    run_id = flow_run_id()
    names = {experiment_name(papers, choice): choice for choice in combinations(overrides)}
    leash, cancelled = Leash(), threading.Event()
    failed: dict[str, str] = {}

    @task(name="experiment", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
    def experiment(name: str) -> State[Any]:
        from dvc.utils import fix_env

        command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", name, *["--force"] * force]
        for override in names[name]:
            command += ["--set-param", override]
        log = get_run_logger().info
        log(f"> {shlex.join([*command[2:], *papers])}")
        more = {"ENCORE_EXECUTION": name, "PREFECT__FLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": _store()}
        if experiment_ref(name) and not force:
            return Completed(message="exists already")
        try:
            run_command([*command, *papers], ".", fix_env(None) | more, log, leash, cancelled)
        except (StageFailed, Killed, Cancelled) as error:
            failed[name] = str(error)
            return Failed(message=str(error))
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
        cancelled.set()
        for future in futures:
            future.wait()
        raise
    finally:
        leash.close()
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


def _store() -> str:
    """Where runs are tracked: experiments run in copies of the workspace, but their runs belong here."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def run_experiments(papers: list[str], overrides: list[str], jobs: int, force: bool) -> tuple[bool, str]:
    """Run them in a flow run of its own; returns whether all went well, and how it went."""

    def reproduce(papers: list[str], overrides: list[str], jobs: int, force: bool) -> State[Any]:
        return carry_out(papers, overrides, jobs, force)

    runner: Any = ThreadPoolTaskRunner(max_workers=256)
    body: Any = flow(name="reproduce", task_runner=runner, persist_result=False)(reproduce)
    state = body(papers, overrides, jobs, force, return_state=True)
    return state.is_completed(), state.message or ""
