"""Which stage starts when: as soon as its upstream has ended well, in plan order, if the machine has room for it."""

import contextlib
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from flows.plan import Plan, Step
from flows.project import Log, Project
from flows.slots import Pool, Reservation
from flows.stage import GOOD, End, Outcome

LOOK_SECONDS = 1.0  # between two looks for a GPU that another flow has given back
READY_SECONDS = 0.1  # between two looks whether to go on elsewhere
WHY = {End.FAILED: "failed", End.CANCELLED: "was cancelled"}

Start = Callable[[Step, Reservation], "Future[Outcome]"]
Skip = Callable[[Step, str], None]


class Engine:
    """Carries out a plan, at most `jobs` stages at once. A stage that fails stops those that depend on it, and no others."""

    def __init__(self, plan: Plan, pool: Pool, jobs: int, log: Log) -> None:
        self.plan, self.pool, self.jobs, self.log = plan, pool, jobs, log
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
            looks = [READY_SECONDS] * bool(until) + [LOOK_SECONDS] * waits_for.startswith("a GPU")
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
            reserved = self.pool.reserve(step)
            if isinstance(reserved, str):
                waits_for = reserved
                if reserved.startswith("a GPU") and self._told.get(step.name) != reserved:
                    self.log(f"{step.name} waits for {reserved}")
                    self._told[step.name] = reserved
                continue
            del self._waiting[step.name]
            under_way = start(step, reserved)
            self._running[step.name] = under_way, reserved
            under_way.add_done_callback(lambda _, name=step.name: self._ended.put(name))  # type: ignore[misc]
        return waits_for

    def _end(self, name: str) -> None:
        under_way, reserved = self._running.pop(name)
        self.pool.give_back(reserved)
        try:
            self.outcomes[name] = under_way.result()
        except Exception as error:
            self.outcomes[name] = Outcome(End.FAILED, str(error) or type(error).__name__)


@dataclass
class Session:
    """A project with a plan, and how to carry it out."""

    project: Project
    plan: Plan
    jobs: int
    force: bool = False
    timeout: float | None = None  # seconds for stages whose meta does not say
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def summary(self) -> str:
        """How it went, on one line; on failure the reason."""
        bad = [name for name, outcome in self.outcomes.items() if outcome.end not in GOOD]
        failed = [name for name in bad if self.outcomes[name].end is End.FAILED]
        if failed:
            others = f" (also failed: {', '.join(failed[1:])})" if failed[1:] else ""
            not_run = [name for name in bad if self.outcomes[name].end is End.NOT_RUN]
            dependants = f"; not run: {', '.join(not_run)}" if not_run else ""
            return f"{failed[0]} failed: {self.outcomes[failed[0]].reason}{others}{dependants}"
        if bad:
            return f"cancelled; not finished: {', '.join(bad)}"
        counts = {end: sum(outcome.end is end for outcome in self.outcomes.values()) for end in GOOD}
        return ", ".join(f"{number} {end.value}" for end, number in counts.items())

    @property
    def succeeded(self) -> bool:
        """Whether every stage ended well."""
        return all(outcome.end in GOOD for outcome in self.outcomes.values())


@contextlib.contextmanager
def open_session(
    targets: list[str], jobs: int, log: Log, force: bool = False, timeout: float | None = None
) -> Iterator[Session]:
    """Plan `targets`, and be the only flow at work on their pipelines."""
    project = Project(log)
    try:
        plan = project.plan(targets, force)
        with project.pipelines(plan.pipelines) as waited:
            if waited:  # whoever we have waited for may have done it all
                plan = project.plan(targets, force)
            yield Session(project, plan, jobs, force, timeout)
    finally:
        project.close()
