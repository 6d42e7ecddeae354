"""Other parameters than the workspace's: `-S chex.prune.flops=0.3,0.4` becomes DVC experiments, side by side.

Each combination is one `dvc exp run --temp`: DVC runs it in a copy of the workspace, which stays as it is, and keeps it
as an experiment (`dvc exp show`; `dvc exp apply NAME` brings it here). Each is one execution in MLflow.
"""

import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.errors import Cancelled, Killed, StageFailed
from flows.overrides import combinations, experiment_name
from flows.process import Leash, run_command


def comparison(names: dict[str, list[str]], papers: list[str]) -> list[dict[str, Any]]:
    """One row per experiment: its parameters, and the verdicts on the claims of the papers."""
    rows = []
    for name, overrides in names.items():
        row: dict[str, Any] = {"experiment": name} | dict(
            override.lstrip("+").split("=", 1) for override in overrides
        )
        for path in _files(name):
            parts = Path(path).parts
            if parts[0] == "reports" and parts[1] in papers and parts[-1] == "claims.json":
                row |= {
                    f"{parts[1]} {claim['id']}": claim["verdict"] for claim in json.loads(_show(name, path))
                }
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column, "") for column in columns} for row in rows]


def _commit(name: str) -> str:
    found = subprocess.run(
        ["git", "for-each-ref", "refs/exps", "--format=%(refname)"], capture_output=True, text=True
    )
    return next((ref for ref in found.stdout.split() if ref.endswith(f"/{name}")), "HEAD")


def _files(name: str) -> list[str]:
    command = ["git", "ls-tree", "-r", "--name-only", _commit(name)]
    return [
        path
        for path in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        if "/" in path
    ]


def _show(name: str, path: str) -> str:
    return subprocess.run(["git", "show", f"{_commit(name)}:{path}"], capture_output=True, text=True).stdout


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def carry_out(papers: list[str], overrides: list[str], jobs: int, force: bool) -> State[Any]:
    """The body of the flow: an experiment per combination, at most `jobs` at once, and a table of them."""
    from prefect.artifacts import create_markdown_artifact

    logger = get_run_logger()
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run_id = str(context.flow_run.id)
    names = {experiment_name(papers, choice): choice for choice in combinations(overrides)}
    leash, cancelled = Leash(), threading.Event()
    failed: dict[str, str] = {}

    @task(name="experiment", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
    def experiment(name: str) -> State[Any]:
        from dvc.utils import fix_env

        command = [
            sys.executable,
            "-m",
            "dvc",
            "exp",
            "run",
            "--temp",
            "--name",
            name,
            "--force" if force else "",
        ]
        command = [word for word in command if word]
        for override in names[name]:
            command += ["--set-param", override]
        log = get_run_logger().info
        log(f"> {shlex.join([*command[2:], *papers])}")
        more = {"ENCORE_EXECUTION": name, "PREFECT__FLOW_RUN_ID": run_id, "MLFLOW_TRACKING_URI": _store()}
        if _commit(name) != "HEAD" and not force:
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
        Path(".encore/flows").mkdir(parents=True, exist_ok=True)
        Path(".encore/flows/comparison.md").write_text(table)
    if failed:
        name, reason = next(iter(failed.items()))
        return Failed(message=f"{name} failed: {reason}; {len(failed)} of {len(names)} experiments failed")
    return Completed(message=f"{len(names)} experiments; their table: .encore/flows/comparison.md")


def _store() -> str:
    """Where runs are tracked: experiments run in copies of the workspace, but their runs belong here."""
    import os

    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"


def run_experiments(papers: list[str], overrides: list[str], jobs: int, force: bool) -> tuple[bool, str]:
    """Run them in a flow run of its own; returns whether all went well, and how it went."""

    def reproduce(papers: list[str], overrides: list[str], jobs: int, force: bool) -> State[Any]:
        return carry_out(papers, overrides, jobs, force)

    runner: Any = ThreadPoolTaskRunner(max_workers=256)
    body: Any = flow(name="reproduce", task_runner=runner, persist_result=False)(reproduce)
    state = body(papers, overrides, jobs, force, return_state=True)
    return state.is_completed(), state.message or ""
