"""When the student starts again from its first weights with itself as teacher ("bootstrapping")."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class RestartSchedule:
    """Epoch e restarts when e >= start and e mod I = 0, I = intervals[min(e // epoch_step, last)].

    Raises:
        ValueError: the teacher would be an untrained head (epoch `start` is no restart, or is the first epoch).
    """

    start: int
    intervals: Sequence[int]
    epoch_step: int = 10
    since_restart: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.start < 1 or self.start % self._interval(self.start):
            raise ValueError(
                f"restart start = {self.start}: must be a positive multiple of the interval "
                f"{self._interval(self.start)}, or the first teacher is an untrained head"
            )

    def _interval(self, epoch: int) -> int:
        return self.intervals[min(epoch // self.epoch_step, len(self.intervals) - 1)]

    def restarts(self, epoch: int) -> bool:
        """Whether the student restarts before this epoch."""
        return epoch >= self.start and epoch % self._interval(epoch) == 0

    def teacher_on(self, epoch: int) -> bool:
        """Whether there is a teacher in this epoch."""
        return epoch >= self.start

    def epochs_since(self, epoch: int) -> int:
        """Epochs since the last restart, 0 in the epoch of one; counted from the first epoch before any."""
        return next((epoch - e for e in range(epoch, -1, -1) if self.restarts(e)), epoch)
