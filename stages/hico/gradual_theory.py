"""Why widening the distance gradually may help: SGD on a toy problem (card, "Theory of gradual sampling").

A simulation of the argument, not a proof. The loss is |w - w*|² / 2. The gradient of pairs at a distance d in 0 .. 1 is

    H(d) (w - w*) + d (beta u + sigma xi),    H(d) = diag(1 ... 1, d ... d),

clean but blind for half of the directions where pairs are near (they are few in kind), complete but biased along u
and noisy where they are far. Steps are 2 / (t + 2), the usual ones for a strongly convex loss, so that the last
iterate still holds the noise of the early ones. Schedules have the same number of steps and the same noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

DIRECTIONS = 20  # half of them seen by far pairs only
BIAS, NOISE = 0.3, 1.0

Schedule = Callable[[float], float]
SCHEDULES: dict[str, Schedule] = {
    "gradual": lambda progress: progress,
    "fixed": lambda _: 1.0,
    "half": lambda _: 0.5,
    "near only": lambda _: 0.0,
    "reversed": lambda progress: 1.0 - progress,
}


def excess_losses(steps: int, seed: int) -> dict[str, Tensor]:
    """Loss after every step, `[steps]`, of each schedule; start, optimum, bias and noise are the seed's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start_D, bias_D, noise_TD = normal(DIRECTIONS), normal(DIRECTIONS), normal(steps, DIRECTIONS)
    bias_D = BIAS * bias_D / bias_D.norm()
    far_D = (torch.arange(DIRECTIONS) >= DIRECTIONS // 2).double()
    losses = {}
    for name, schedule in SCHEDULES.items():
        error_D, trace = start_D.clone(), []
        for step in range(steps):
            distance = schedule(step / (steps - 1))
            seen_D = 1 - far_D * (1 - distance)
            gradient_D = seen_D * error_D + distance * (bias_D + NOISE * noise_TD[step])
            error_D = error_D - 2 / (step + 2) * gradient_D
            trace.append((error_D**2).sum() / 2)
        losses[name] = torch.stack(trace)
    return losses
