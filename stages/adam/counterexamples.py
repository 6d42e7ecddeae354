"""adam-counterexamples: linear problems on which Adam with a small beta walks the wrong way (E5, after Reddi et al.).

Reads nothing. Writes `runs/adam/<scale>/counterexamples/`, table T3: the last point of [-1, 1] of every walk (the optimum
is -1), averaged over a seed's walks: the lite stochastic version, the 3-cycle, and where `cycle_steps` says so the
101-cycle and its stochastic version.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from stages.adam.lab import Sheet, column, run_experiment
from stages.adam.method.noise import Noise
from stages.adam.method.probe import log_spaced
from stages.adam.method.problems.reddi import ReddiStochastic, long_cycle, three_cycle
from stages.adam.method.recursion import Recursion
from stages.adam.method.schedules import Constant, Increasing, Schedule
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

MEMBERS = ("adam", "amsgrad")
LITE = "C=20 with p=0.057, else -1"
THREE_CYCLE = "3-cycle"
LONG_CYCLE = "101-cycle"
LONG_STOCHASTIC = "1010 with p=0.01, else -10"
STEP = 0.5  # eta_t = STEP / sqrt(t+1)


def main() -> None:
    """Walk with all members."""
    params = load_params(AdamParams, "adam")
    run_experiment("counterexamples", params, MEMBERS, partial(measure, params=params))


def measure(member: str, params: AdamParams) -> Sheet:
    """All problems and betas of one member."""
    options = params.counterexamples
    sheet = Sheet(params, "counterexamples", options, params.seeds)
    S = len(params.seeds)

    def record(
        data: str, betas: Sequence[float], beta2: float, steps: int, gradient: Callable[[int], Tensor]
    ) -> None:
        schedules: dict[str, Schedule] = {f"beta={beta:g}": Constant(beta) for beta in betas}
        schedules["beta increasing"] = Increasing()
        points = walk(
            Recursion(member, beta2, init_first_moment="zeros"), list(schedules.values()), gradient, steps
        )
        for r, setting in enumerate(schedules):
            ends = {t: x_RSW1[r].flatten(1).mean(-1).expand(S) for t, x_RSW1 in points.items()}
            sheet.add("T3", member, setting, "last_x", ends[steps], "", data)
            sheet.curve(member, f"{data}, {setting}", "x", ends)

    lite = Noise(params.seeds, 0, ReddiStochastic().draw(options.walks))
    record(LITE, options.betas, 0.9, options.steps, lite.at)
    cycle = three_cycle()
    record(THREE_CYCLE, [0.0], 0.1, options.steps, lambda t: torch.full((1, 1, 1), cycle.at(t)).double())
    if options.cycle_steps:
        long = long_cycle()
        record(
            LONG_CYCLE, options.cycle_betas, 0.99, options.cycle_steps,
            lambda t: torch.full((1, 1, 1), long.at(t)).double(),
        )  # fmt: skip
        rare = Noise(params.seeds, 1, ReddiStochastic(C=1010.0, p=0.01, other=-10.0).draw(options.walks))
        record(LONG_STOCHASTIC, options.cycle_betas, 0.99, options.cycle_steps, rare.at)
    return sheet


def walk(
    recursion: Recursion, schedules: Sequence[Schedule], gradient: Callable[[int], Tensor], steps: int
) -> dict[int, Tensor]:
    """Projected steps from 0 under every schedule at once; returns the points [R, S, walks, 1] at log-spaced times."""
    marks = set(log_spaced(steps))
    x = torch.zeros((), dtype=torch.float64)
    points = {}
    for t in range(steps):
        g = gradient(t).expand(len(schedules), -1, -1, -1)
        beta = column(schedule(t) for schedule in schedules)[..., None]
        x = recursion.step(x, g, STEP / (t + 1) ** 0.5, beta).clamp(-1, 1)
        if t + 1 in marks:
            points[t + 1] = x
    return points


if __name__ == "__main__":
    run(main)
