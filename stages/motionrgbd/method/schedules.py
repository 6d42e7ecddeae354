"""What changes over epochs: sharpness temperature, learning rate, weight of the distillation."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SharpnessSchedule:
    """The temperature that scores are divided by: linear over the first `ramp` epochs, then constant.

    A ramp longer than the training is shortened to it (the released code stops with an error there).
    """

    epochs: int
    start: float = 0.04
    end: float = 0.07
    ramp: int = 30

    def __call__(self, epoch: int) -> float:
        """Temperature in `epoch`, from 0."""
        steps = min(self.ramp, self.epochs) - 1
        return self.end if epoch >= steps else self.start + (self.end - self.start) * epoch / steps


def learning_rate(
    epoch: int, epochs: int, base: float, minimum: float, warmup: int, official: bool = False
) -> float:
    """Linear warm-up that reaches `base` in its last epoch, then a cosine to `minimum`.

    With `official`, what the released unimodal loop does: its warm-up starts at 1e-8, ends one epoch early, and the
    cosine goes on from the rate it has then, so that the peak is half of `base` for three epochs of warm-up.
    """
    peak, first = base, 1e-8
    if official and warmup > 1:
        ramp = [first + (base - first) * step / (warmup - 1) for step in range(warmup - 1)]
        if epoch < len(ramp):
            return ramp[epoch]
        peak = ramp[-1]
    elif epoch < warmup:
        return base * (epoch + 1) / warmup
    share = max(0, epoch - warmup) / max(1, epochs - warmup)
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * share)) / 2


def distillation_weight(epoch: int, warmup: int) -> float:
    """0 in the warm-up but for its last epoch, then 1."""
    return float(epoch >= warmup - 1)
