"""A project with a plan, held for as long as it is carried out."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flows.plan import Plan
from flows.project import Project
from flows.slots import Pool
from flows.stage import GOOD, End, Outcome

RETRIES = 2  # of a stage that was killed; one that fails by itself would fail again


@dataclass
class Session:
    """A project with a plan, and how to carry it out."""

    project: Project
    plan: Plan
    jobs: int
    force: bool = False
    timeout: float | None = None
    retries: int = RETRIES
    pool: Pool = field(default_factory=Pool)
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
    targets: list[str], jobs: int, log: Callable[[str], None], **options: Any
) -> Iterator[Session]:
    """Plan `targets`, and be the only flow at work on their pipelines."""
    project = Project(log)
    try:
        plan = project.plan(targets, options.get("force", False))
        with project.pipelines(plan.pipelines) as waited:
            if waited:  # whoever we have waited for may have done it all
                plan = project.plan(targets, options.get("force", False))
            yield Session(project, plan, jobs, **options)
    finally:
        project.close()
