"""The flow as Prefect's UI shows it: its parameters are typed and checked, and can be edited there."""

import os
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import sweep
from flows.engine import THREADS, open_session
from flows.reproduce import carry_out

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


@flow(task_runner=_runner, persist_result=False)
def reproduce(
    papers: Papers, scale: Scale = None, seeds: Seeds = None, jobs: Jobs = None, force: Force = False
) -> State[Any]:
    """Reproduce papers: run what is out of date, stages side by side."""
    count = jobs or len(os.sched_getaffinity(0))
    overrides = [f"{paper}={scale}" for paper in papers if scale]
    overrides += [f"{paper}.seeds=[{','.join(map(str, seeds))}]" for paper in papers if seeds]
    if overrides:
        return sweep.carry_out(papers, overrides, count, force)
    with open_session(papers, count, get_run_logger().info, force=force) as session:
        return carry_out(session)
