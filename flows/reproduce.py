"""Reproduce papers as a Prefect flow: a task run per stage that runs, with its log, retries and duration."""

import contextlib
from collections.abc import Callable
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import publish
from flows.engine import run_plan
from flows.errors import Killed
from flows.plan import Step
from flows.process import Leash
from flows.session import Session
from flows.slots import Reservation
from flows.stage import GOOD, End, Outcome, Runner

KILLED = "Killed"
THREADS = 256  # no limit: the engine starts a stage only when there is room for it


class _StageRun:
    """A task run, as the engine sees it."""

    def __init__(self, future: PrefectFuture[Any], outcome: Callable[[], Outcome | None]) -> None:
        self._future, self._outcome = future, outcome

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        self._future.add_done_callback(fn)

    def result(self) -> Outcome:
        if outcome := self._outcome():
            return outcome
        state = self._future.state  # Prefect itself has not let it run
        return Outcome(End.FAILED, state.message or str(state.name))


def was_killed(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a stage is worth another try."""
    return state.name == KILLED


def execution_name() -> str:
    """Name of this flow run as MLflow's grouping of runs; the same when the flow run is resumed."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run = context.flow_run
    started = run.expected_start_time or run.created
    stamp = f"{started:%Y%m%d-%H%M%S}-" if started else ""
    return f"{stamp}{str(run.id)[:8]}"


def carry_out(session: Session) -> State[Any]:
    """The body of the flow: run the session's plan with a task run per stage."""
    logger = get_run_logger()
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    project, plan = session.project, session.plan
    project.log = logger.info
    execution = execution_name()
    environment = {"ENCORE_EXECUTION": execution, "PREFECT__FLOW_RUN_ID": str(context.flow_run.id)}
    leash = Leash()
    runner = Runner(project, leash, environment, session.force, session.timeout)
    steps = plan.steps
    reserved: dict[str, Reservation] = {}
    ends: dict[str, Outcome] = {}
    futures: dict[str, PrefectFuture[Any]] = {}

    @task(
        name="stage",
        task_run_name="{name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=session.retries,
        retry_condition_fn=was_killed,
    )
    def stage(name: str) -> State[Any]:
        log = get_run_logger().info
        try:
            outcome = runner.run(steps[name], reserved[name], log)
        except Killed as killed:
            ends[name] = Outcome(End.FAILED, f"{killed}, at each of {session.retries + 1} attempts")
            return Failed(name=KILLED, message=str(killed))
        ends[name] = outcome
        if outcome.end in GOOD:
            return Completed(name=outcome.end.value.title(), message=outcome.reason or outcome.end.value)
        if outcome.end is End.CANCELLED:
            return CancelledState(message=outcome.reason)
        return Failed(message=outcome.reason)

    def submit(step: Step) -> PrefectFuture[Any]:
        upstream = [futures[name] for name in step.upstream if name in futures]
        future: PrefectFuture[Any] = stage.submit(name=step.name, wait_for=upstream, return_state=False)
        futures[step.name] = future
        return future

    def start(step: Step, reservation: Reservation) -> _StageRun:
        reserved[step.name] = reservation
        return _StageRun(submit(step), lambda: ends.get(step.name))

    def skipped(step: Step, reason: str) -> None:
        logger.warning("%s is not run: %s", step.name, reason)
        submit(step).wait()  # Prefect marks it NotReady

    unchanged = len(steps) - len(plan.to_run)
    logger.info("%d stages, %d up to date, at most %d at once", len(steps), unchanged, session.jobs)
    for step in plan.to_run:
        logger.info("to run: %s (%s)", step.name, step.reason or "after its upstream")
    try:
        project.ignore_outputs(plan)
        session.outcomes = run_plan(plan, start, session.pool, session.jobs, logger.info, skipped)
        project.flush()
    except BaseException:
        project.cancelled.set()
        for future in futures.values():
            future.wait()
        with contextlib.suppress(Exception):
            project.flush()
        session.outcomes = {name: ends.get(name, Outcome(End.NOT_RUN, "cancelled")) for name in steps}
        raise
    finally:
        leash.close()
    for paper in plan.targets:
        if session.outcomes.get(paper, Outcome(End.NOT_RUN)).end in GOOD:
            publish(steps[paper], execution)
    message = session.summary()
    return Completed(message=message) if session.succeeded else Failed(message=message)


def flow_of(body: Callable[..., State[Any]]) -> Any:
    """Make the Prefect flow `reproduce` of a function."""
    runner: Any = ThreadPoolTaskRunner(max_workers=THREADS)
    return flow(name="reproduce", task_runner=runner, persist_result=False, validate_parameters=True)(body)


def run_session(session: Session) -> None:
    """Carry out a session in a flow run of its own; how it went stands in `session.outcomes`."""

    def reproduce(papers: list[str], jobs: int, force: bool) -> State[Any]:
        return carry_out(session)

    flow_of(reproduce)(session.plan.targets, session.jobs, session.force, return_state=True)
