"""The flows as Prefect's UI shows them, where their parameters can be edited, and as workers import them."""

import os
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import away, sweep
from flows.engine import THREADS, open_session
from flows.plan import Needs
from flows.reproduce import carry_out

CLONE = "ENCORE_CLONE"  # names the clone of the worker that runs this; Prefect starts it in an empty folder

_runner: Any = ThreadPoolTaskRunner(max_workers=THREADS)

Papers = Annotated[list[str], Field(description="Stages of dvc.yaml, such as chex; all when none is named")]
Scale = Annotated[
    Literal["quick", "real", "paper"] | None,
    Field(description="Run as a DVC experiment at this scale; empty: the workspace as it is"),
]
Seeds = Annotated[
    list[Annotated[int, Field(ge=0)]] | None, Field(description="Run as a DVC experiment with these seeds")
]
Jobs = Annotated[int | None, Field(ge=1, le=256, description="The most stages at once; empty: one per core")]
Force = Annotated[bool, Field(description="Run what is up to date as well")]
Workers = Annotated[
    bool, Field(description="Run stages, or experiments, on the workers of the pools cpu and gpu")
]


@flow(task_runner=_runner, persist_result=False)
def reproduce(
    papers: Papers,
    scale: Scale = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    force: Force = False,
    workers: Workers = False,
) -> State[Any]:
    """Reproduce papers: run what is out of date, stages side by side."""
    os.chdir(os.environ[CLONE])
    count = jobs or len(os.sched_getaffinity(0))
    overrides = [f"{paper}={scale}" for paper in papers if scale]
    overrides += [f"{paper}.seeds=[{','.join(map(str, seeds))}]" for paper in papers if seeds]
    if overrides:
        lab = sweep.open_lab(papers, force, workers, get_run_logger().info)
        return sweep.carry_out(lab, overrides, count, workers)
    with open_session(papers, count, get_run_logger().info, force=force) as session:
        if workers:
            away.send_away(session)
        return carry_out(session)


@flow(task_runner=_runner, persist_result=False)
def stage(
    name: str,
    commit: str,
    entries: dict[str, Any],
    upstream: list[str],
    execution: str,
    force: bool = False,
    timeout: float | None = None,
) -> State[Any]:
    """Run one stage of a commit for a flow on another machine (`flows/away.py`)."""
    os.chdir(os.environ[CLONE])
    return away.carry_out_here(name, commit, entries, upstream, execution, force, timeout)


@flow(persist_result=False)
def experiment(
    papers: list[str], name: str, overrides: list[str], commit: str, needs: Needs, force: bool = False
) -> State[Any]:
    """Run one DVC experiment on a commit for a flow on another machine (`flows/sweep.py`)."""
    os.chdir(os.environ[CLONE])
    return sweep.carry_out_here(papers, name, overrides, commit, needs, force)
