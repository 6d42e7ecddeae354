"""Which stage starts when: as soon as its upstream has ended well, in plan order, if the machine has room for it."""

import queue
from collections.abc import Callable
from typing import Any, Protocol

from flows.plan import Plan, Step
from flows.slots import Pool, Reservation
from flows.stage import GOOD, End, Outcome

LOOK_SECONDS = 1.0  # between two looks for a GPU that another flow has given back
WHY = {End.FAILED: "failed", End.CANCELLED: "was cancelled"}


class Pending(Protocol):
    """What `start` returns: a stage under way (a future of concurrent.futures, or Prefect's)."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call `fn` when the stage has ended."""

    def result(self) -> Outcome:
        """How it ended."""


def run_plan(
    plan: Plan,
    start: Callable[[Step, Reservation], Pending],
    pool: Pool,
    jobs: int,
    log: Callable[[str], None],
    skipped: Callable[[Step, str], None] = lambda step, reason: None,
) -> dict[str, Outcome]:
    """Run the stages of a plan, at most `jobs` at once; returns how each ended.

    A stage that fails stops those that depend on it (`skipped` is told) and no others.
    """
    outcomes = {step.name: Outcome(End.UNCHANGED) for step in plan.steps.values() if not step.runs}
    waiting = {step.name: step for step in plan.to_run}
    running: dict[str, tuple[Pending, Reservation]] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    told: dict[str, str] = {}

    while waiting or running:
        waits_for = ""
        for step in list(waiting.values()):
            bad = [name for name in step.upstream if name in outcomes and outcomes[name].end not in GOOD]
            if bad:
                reason = f"{bad[0]} {WHY.get(outcomes[bad[0]].end, 'was not run')}"
                outcomes[step.name] = Outcome(End.NOT_RUN, reason)
                del waiting[step.name]
                skipped(step, reason)
                continue
            if len(running) >= jobs or not all(name in outcomes for name in step.upstream):
                continue
            reserved = pool.reserve(step)
            if isinstance(reserved, str):
                waits_for = reserved
                if reserved.startswith("a GPU") and told.get(step.name) != reserved:
                    log(f"{step.name} waits for {reserved}")
                    told[step.name] = reserved
                continue
            del waiting[step.name]
            pending = start(step, reserved)
            running[step.name] = (pending, reserved)
            pending.add_done_callback(lambda _, name=step.name: ended.put(name))  # type: ignore[misc]
        if not running and not waits_for:
            continue
        try:
            name = ended.get(timeout=LOOK_SECONDS if waits_for.startswith("a GPU") else None)
        except queue.Empty:
            continue
        pending, reserved = running.pop(name)
        pool.give_back(reserved)
        try:
            outcomes[name] = pending.result()
        except Exception as error:
            outcomes[name] = Outcome(End.FAILED, str(error) or type(error).__name__)
    return {name: outcomes[name] for name in plan.steps}
