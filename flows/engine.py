"""Which stage starts when: as soon as its upstream has ended well, in plan order, if the machine has room for it."""

import contextlib
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import uuid4

from flows.plan import Plan, Step
from flows.process import Leash
from flows.project import Log, Project
from flows.slots import Pool, Reservation
from flows.stage import GOOD, End, Outcome, Runner, StageRun

LOOK_SECONDS = (
    1.0  # between two looks for a GPU that another flow has given back, or whether a pause has ended
)
READY_SECONDS = 0.1  # between two looks whether Prefect is there
THREADS = 256  # no limit: the engine starts a stage only when there is room for it
WHY = {End.FAILED: "failed", End.CANCELLED: "was cancelled"}
PAUSED = "the flow run to be resumed"

Start = Callable[[Step, Reservation], "Future[Outcome]"]
Skip = Callable[[Step, str], None]


class Engine:
    """Carries out a plan, at most `jobs` stages at once. A stage that fails stops those that depend on it, and no others."""

    def __init__(self, plan: Plan, pool: Pool, jobs: int, log: Log) -> None:
        self.plan, self.pool, self.jobs, self.log = plan, pool, jobs, log
        self.paused: Callable[[], bool] = lambda: False  # whether no further stage may start now
        self.outcomes = {step.name: Outcome(End.UNCHANGED) for step in plan.steps.values() if not step.runs}
        self._waiting = {step.name: step for step in plan.to_run}
        self._running: dict[str, tuple[Future[Outcome], Reservation]] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._told: dict[str, str] = {}

    def run(self, start: Start, skipped: Skip, until: Callable[[], bool] | None = None) -> None:
        """Start stages with `start` until all have ended, or until `until()`: then a second call goes on.

        `skipped` is told of stages that are not run, and why.
        """
        while self._waiting or self._running:
            if until and until():
                return
            waits_for = self._start_what_can(start, skipped)
            if not self._running and not waits_for:
                continue
            looks = [READY_SECONDS] * bool(until) + [LOOK_SECONDS] * waits_for.startswith(("a GPU", PAUSED))
            with contextlib.suppress(queue.Empty):
                self._end(self._ended.get(timeout=min(looks, default=None)))

    def _start_what_can(self, start: Start, skipped: Skip) -> str:
        """Start the stages that there is room for; returns what the last of the others waits for."""
        waits_for = ""
        for step in list(self._waiting.values()):
            known = [name for name in step.upstream if name in self.outcomes]
            if bad := [name for name in known if self.outcomes[name].end not in GOOD]:
                reason = f"{bad[0]} {WHY.get(self.outcomes[bad[0]].end, 'was not run')}"
                self.outcomes[step.name] = Outcome(End.NOT_RUN, reason)
                del self._waiting[step.name]
                skipped(step, reason)
                continue
            if len(self._running) >= self.jobs or len(known) < len(step.upstream):
                continue
            if self.paused():
                self._tell(step, PAUSED)
                return PAUSED
            # a worker reserves for what it runs
            reserved = Reservation(0, 0) if step.away else self.pool.reserve(step.needs)
            if isinstance(reserved, str):
                waits_for = reserved
                if reserved.startswith("a GPU"):
                    self._tell(step, reserved)
                continue
            del self._waiting[step.name]
            under_way = start(step, reserved)
            self._running[step.name] = under_way, reserved
            under_way.add_done_callback(lambda _, name=step.name: self._ended.put(name))  # type: ignore[misc]
        return waits_for

    def _tell(self, step: Step, waits_for: str) -> None:
        if self._told.get(step.name) != waits_for:
            self.log(f"{step.name} waits for {waits_for}")
            self._told[step.name] = waits_for

    def _end(self, name: str) -> None:
        under_way, reserved = self._running.pop(name)
        self.pool.give_back(reserved)
        try:
            self.outcomes[name] = under_way.result()
        except Exception as error:
            self.outcomes[name] = Outcome(End.FAILED, str(error) or type(error).__name__)


class Session:
    """A project with a plan, and the plan's stages under way: in threads while Prefect is loaded, then as its task runs.

    Used in a `with` block: when an exception leaves it, stages that run are ended.
    """

    def __init__(
        self,
        project: Project,
        plan: Plan,
        jobs: int,
        force: bool = False,
        timeout: float | None = None,  # seconds for stages whose meta does not say
        pool: Pool | None = None,
    ) -> None:
        self.project, self.plan, self.jobs, self.force, self.timeout = project, plan, jobs, force, timeout
        self.execution = f"{datetime.now():%Y%m%d-%H%M%S}-{uuid4().hex[:8]}"  # groups its runs in MLflow
        self.engine = Engine(plan, pool or Pool(), jobs, project.log)
        self.runner = Runner(project, Leash(), {"ENCORE_EXECUTION": self.execution}, force, timeout)
        self.runs: dict[str, StageRun] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stage")
        self._skipped: list[tuple[Step, str]] = []

    def begin(self, until: Callable[[], bool] | None = None) -> None:
        """Run stages in threads until `until()`, or all of them."""

        def start(step: Step, reservation: Reservation) -> "Future[Outcome]":
            run = self.runs[step.name] = StageRun(step, reservation)
            run.begin(self.runner, self._threads)
            return run.ended

        self.engine.run(start, lambda step, reason: self._skipped.append((step, reason)), until)

    def go_on(self, submit: Callable[[StageRun], Any], skipped: Skip) -> None:
        """Run the rest with `submit`, which makes a task run of a stage; those that have begun already get one too."""
        for run in self.runs.values():
            submit(run)
        for step, reason in self._skipped:
            skipped(step, reason)

        def start(step: Step, reservation: Reservation) -> "Future[Outcome]":
            run = self.runs[step.name] = StageRun(step, reservation)
            submit(run)
            return run.ended

        self.engine.run(start, skipped)
        self.project.flush()

    def __enter__(self) -> "Session":
        self.project.ignore_outputs(self.plan)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error:
            self.project.cancelled.set()
        self._threads.shutdown()
        try:
            with contextlib.suppress(Exception) if error else contextlib.nullcontext():
                self.project.flush()
        finally:
            self.runner.leash.close()

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """How each stage has ended."""
        never = Outcome(End.NOT_RUN, "cancelled")
        return {name: self.engine.outcomes.get(name, never) for name in self.plan.steps}

    def summary(self) -> str:
        """How it went, on one line; on failure the reason."""
        outcomes = self.outcomes
        bad = [name for name, outcome in outcomes.items() if outcome.end not in GOOD]
        failed = [name for name in bad if outcomes[name].end is End.FAILED]
        if failed:
            others = f" (also failed: {', '.join(failed[1:])})" if failed[1:] else ""
            not_run = [name for name in bad if outcomes[name].end is End.NOT_RUN]
            dependants = f"; not run: {', '.join(not_run)}" if not_run else ""
            return f"{failed[0]} failed: {outcomes[failed[0]].reason}{others}{dependants}"
        if bad:
            return f"cancelled; not finished: {', '.join(bad)}"
        counts = {end: sum(outcome.end is end for outcome in outcomes.values()) for end in GOOD}
        return ", ".join(f"{number} {end.value}" for end, number in counts.items())

    @property
    def succeeded(self) -> bool:
        """Whether every stage ended well."""
        return all(outcome.end in GOOD for outcome in self.outcomes.values())


@contextlib.contextmanager
def open_session(
    targets: list[str],
    jobs: int,
    log: Log,
    force: bool = False,
    timeout: float | None = None,
    pool: Pool | None = None,
) -> Iterator[Session]:
    """Plan `targets`, and be the only flow at work on their pipelines."""
    project = Project(log)
    try:
        plan = project.plan(targets, force)
        with project.pipelines(plan.pipelines) as waited:
            if waited:  # whoever we have waited for may have done it all
                plan = project.plan(targets, force)
            with Session(project, plan, jobs, force, timeout, pool) as session:
                yield session
    finally:
        project.close()
