"""One stage, from the check whether it has to run to the record of what it has made."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue

from flows.errors import Cancelled, StageFailed
from flows.plan import Step, first_line
from flows.process import Leash, run_command
from flows.project import Action, Log, Project
from flows.slots import Reservation


class End(Enum):
    """How a stage of a flow ended."""

    UNCHANGED = "unchanged"
    RESTORED = "restored"
    RAN = "ran"
    FAILED = "failed"
    NOT_RUN = "not run"
    CANCELLED = "cancelled"


GOOD = (End.UNCHANGED, End.RESTORED, End.RAN)


@dataclass
class Outcome:
    """How a stage ended, and why."""

    end: End
    reason: str = ""


@dataclass
class Runner:
    """Runs stages of one flow."""

    project: Project
    leash: Leash
    environment: dict[str, str] = field(default_factory=dict)  # added to what every stage gets
    force: bool = False
    timeout: float | None = None  # seconds for stages whose meta does not say
    send: Callable[[Step, Log], None] | None = (
        None  # runs a stage elsewhere, and leaves its result in the DVC remote
    )

    def run(self, step: Step, reservation: Reservation, log: Log) -> Outcome:
        """Run a stage if it has to; its output goes to `log`.

        Raises `Killed` when running it again may help: it then takes up its checkpoints.
        """
        from dvc.exceptions import DvcException

        try:
            action = self.project.begin(step, self.force)
            if action is not Action.RUN:
                return Outcome(End.RESTORED if action is Action.RESTORED else End.UNCHANGED)
            try:
                if step.away and self.send:
                    self.send(step, log)
                    self.project.record_shared(step)
                else:
                    self._command(step, reservation, log)
                    self.project.record(step)
            finally:
                self.project.discard(step)  # nothing, when it has been recorded
        except Cancelled:
            return Outcome(End.CANCELLED, "cancelled")
        except (StageFailed, DvcException, OSError) as error:
            return Outcome(End.FAILED, first_line(error))
        return Outcome(End.RAN)

    def _command(self, step: Step, reservation: Reservation, log: Log) -> None:
        from dvc.stage.run import _make_cmd, get_executable, prepare_kwargs

        stage = step.stage
        settings = prepare_kwargs(stage, run_env={**self.environment, **reservation.environment()})
        for command in stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines():
            log(f"> {command}")
            run_command(
                _make_cmd(get_executable(), command),
                str(settings["cwd"]),
                settings["env"],
                log,
                self.leash,
                self.project.cancelled,
                step.needs.timeout or self.timeout,
                step.needs.memory,
                (reservation.slot,) if reservation.slot is not None else (),
            )


class StageRun:
    """A stage under way. Its first attempt may begin before there is a task run for it, which then takes it over."""

    def __init__(self, step: Step, reservation: Reservation) -> None:
        self.step, self.reservation = step, reservation
        self.ended: Future[Outcome] = Future()  # what the engine waits for
        self._begun: Future[Outcome] | None = None
        self._begun_at = 0.0
        self._lines: SimpleQueue[str | None] = SimpleQueue()

    def begin(self, runner: Runner, threads: ThreadPoolExecutor) -> None:
        """Begin the first attempt in a thread; what it says is kept."""

        def attempt() -> Outcome:
            try:
                outcome = runner.run(self.step, self.reservation, self._lines.put)
                self.ended.set_result(outcome)
                return outcome
            finally:
                self._lines.put(None)

        self._begun_at = time.monotonic()
        self._begun = threads.submit(attempt)

    def attempt(self, runner: Runner, log: Log) -> Outcome:
        """Run the stage, or take over the attempt that has begun. Raises `Killed`, as `Runner.run` does."""
        if self._begun is None:
            outcome = runner.run(self.step, self.reservation, log)
            self.ended.set_result(outcome)
            return outcome
        begun, self._begun = self._begun, None
        log(f"began {time.monotonic() - self._begun_at:.1f} s ago, while Prefect was being loaded")
        while (line := self._lines.get()) is not None:
            log(line)
        return begun.result()
