"""Reproduce papers as a Prefect flow: a task run per stage that runs, with its log, retries and duration."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import publish
from flows.engine import THREADS, Session
from flows.errors import Cancelled, Killed
from flows.plan import Step
from flows.stage import GOOD, End, Outcome, StageRun

KILLED = "Killed"
RETRIES = 2  # of a stage that was killed; one that fails by itself would fail again


def was_killed(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a stage is worth another try."""
    return state.name == KILLED


def flow_run_id() -> str:
    """The flow run that this is part of."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return str(context.flow_run.id)


def pause_of(run: str, client: SyncPrefectClient) -> Callable[[], bool]:
    """Tells whether the flow run is paused now; Prefect's own pause holds back no task of a flow that runs.

    Raises:
        Cancelled: Prefect has ended the run: the pause was longer than it might be.
    """

    def paused() -> bool:
        try:
            state = client.read_flow_run(UUID(run)).state
        except httpx.HTTPError:  # no server just now: it comes back, and cannot have paused the run meanwhile
            return False
        if state and state.is_final():
            raise Cancelled(f"the flow run is {state.name} already: {state.message}")
        return bool(state and state.is_paused())

    return paused


def carry_out(session: Session) -> State[Any]:
    """The body of the flow: run the session's plan, or what has not been run of it yet, with a task run per stage."""
    logger = get_run_logger()
    project, plan = session.project, session.plan
    project.log = session.engine.log = logger.info
    session.runner.environment["PREFECT__FLOW_RUN_ID"] = flow_run_id()
    futures: dict[str, PrefectFuture[Any]] = {}

    @task(
        name="stage",
        task_run_name="{name}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_condition_fn=was_killed,
    )
    def stage(name: str) -> State[Any]:
        try:
            outcome = session.runs[name].attempt(session.runner, get_run_logger().info)
        except Killed as killed:
            return Failed(name=KILLED, message=str(killed))
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

    def start(run: StageRun) -> None:
        def settle(future: PrefectFuture[Any]) -> None:
            if not run.ended.done():  # killed at every attempt, or Prefect itself has not let it run
                state = future.state
                again = f", at each of {RETRIES + 1} attempts" if state.name == KILLED else ""
                run.ended.set_result(Outcome(End.FAILED, (state.message or str(state.name)) + again))

        submit(run.step).add_done_callback(settle)

    def skipped(step: Step, reason: str) -> None:
        logger.warning("%s is not run: %s", step.name, reason)
        submit(step).wait()  # Prefect marks it NotReady

    unchanged = len(plan.steps) - len(plan.to_run)
    logger.info("%d stages, %d up to date, at most %d at once", len(plan.steps), unchanged, session.jobs)
    for step in plan.to_run:
        logger.info("to run: %s (%s)", step.name, step.reason or "after its upstream")
    try:
        with get_client(sync_client=True) as client:
            session.engine.paused = pause_of(flow_run_id(), client)
            session.go_on(start, skipped)
    except BaseException:
        project.cancelled.set()
        raise
    finally:
        for future in futures.values():
            future.wait()
    for paper in plan.targets:
        if session.outcomes.get(paper, Outcome(End.NOT_RUN)).end in GOOD:
            publish(plan.steps[paper], session.execution)
    message = session.summary()
    return Completed(message=message) if session.succeeded else Failed(message=message)


def run_session(session: Session) -> None:
    """Carry out a session in a flow run of its own; how it went stands in `session.outcomes`."""

    def reproduce(papers: list[str], jobs: int, force: bool) -> State[Any]:
        return carry_out(session)

    runner: Any = ThreadPoolTaskRunner(max_workers=THREADS)
    body: Any = flow(
        name="reproduce", flow_run_name=session.execution, task_runner=runner, persist_result=False
    )(reproduce)
    body(session.plan.targets, session.jobs, session.force, return_state=True)
