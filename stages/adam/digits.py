"""adam-digits: every member under five schedules of beta and step size, on a small network (E6).

Reads `data/adam/<scale>/digits.safetensors`. Writes `runs/adam/<scale>/digits/`, table T5: with the exact gradient every
50 steps, the squared gradient norm and the first moment's error (means over the second half), the raw noise of a mini-batch
gradient; final loss and test accuracy.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.adam.lab import Sheet, column, run_experiment
from stages.adam.method.noise import Noise, choices
from stages.adam.method.probe import GradientProbe
from stages.adam.method.problems.digits_mlp import DigitsMLP
from stages.adam.method.recursion import Recursion
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

DATA = "digits (scikit-learn)"
BATCH, EVERY = 32, 50
BETA2, G0, BOUNDS = 0.999, 1e-3, (0.3, 30.0)
ETA = {"sgdm": 0.5, "adam_plus": 0.1}  # the others: DEFAULT_ETA
DEFAULT_ETA = 0.003

Timetable = Callable[[int, int], tuple[float, float]]  # (t, T) -> beta_t, factor of eta


def increasing(t: int, T: int) -> tuple[float, float]:
    """gamma_t and eta_t fall together like (t+1)^-1/2."""
    gamma = min(1.0, 5 / (t + 1) ** 0.5)
    return 1 - gamma, gamma


def stagewise(t: int, T: int) -> tuple[float, float]:
    """gamma and eta fall together tenfold at T/2 and 3T/4."""
    stage = (t >= T // 2) + (t >= 3 * T // 4)
    return 1 - 0.1 ** (stage + 1), 0.1**stage


TIMETABLES: dict[str, Timetable] = {
    "beta=0.9": lambda t, T: (0.9, 1.0),
    "beta=0.99": lambda t, T: (0.99, 1.0),
    "increasing": increasing,
    "stagewise beta and eta": stagewise,
    "stagewise eta, beta=0.9": lambda t, T: (0.9, stagewise(t, T)[1]),
}


def main() -> None:
    """Train with all members."""
    params = load_params(AdamParams, "adam")
    prepared = Path("data/adam") / params.scale
    work = partial(measure, params=params, prepared=prepared)
    run_experiment("digits", params, params.digits.members, work, [prepared])


def measure(member: str, params: AdamParams, prepared: Path) -> Sheet:
    """All schedules and seeds of one member."""
    seeds, T = params.digits.seeds, params.digits.steps
    sheet = Sheet(params, "digits", params.digits, seeds)
    images = load_file(prepared / "digits.safetensors")
    problem = DigitsMLP(images["train_x"], images["train_y"])
    probe, w_RSP = train(member, problem, seeds, T)
    loss_RS, accuracy_RS = problem.value(w_RSP), problem.accuracy(w_RSP, images["test_x"], images["test_y"])
    measured: dict[str, Tensor] = {
        "tail_grad_sq": probe.tail("grad_sq", T // EVERY),
        "tail_D": probe.tail("error_sq", T // EVERY),
        "tail_noise_sq": probe.tail("noise_sq", T // EVERY),
        "loss": loss_RS,
        "accuracy": 100 * accuracy_RS,
    }
    for r, setting in enumerate(TIMETABLES):
        for metric, values_RS in measured.items():
            unit = "%" if metric == "accuracy" else ""
            sheet.add("T5", member, setting, metric, values_RS[r], unit, DATA)
        for metric in ("grad_sq", "error_sq"):
            points = {EVERY * n: values_RS[r] for n, values_RS in probe.now_at[metric].items()}
            sheet.curve(member, setting, metric, points)
    return sheet


def train(member: str, problem: DigitsMLP, seeds: list[int], T: int) -> tuple[GradientProbe, Tensor]:
    """Train all schedules and seeds at once; the probe sees every `EVERY`-th step. Returns the weights [R, S, P] too."""
    eta = ETA.get(member, DEFAULT_ETA)
    recursion = Recursion(member, BETA2, G0, BOUNDS)
    noise = Noise(seeds, 0, choices(len(problem.x), BATCH))
    probe = GradientProbe(range(1, T // EVERY + 1))
    w = problem.network.start(seeds).expand(len(TIMETABLES), -1, -1)
    for t in range(T):
        beta, factor = (
            column(values) for values in zip(*(f(t, T) for f in TIMETABLES.values()), strict=True)
        )
        g = problem.oracle(w, noise.at(t))
        old, w = w, recursion.step(w, g, eta * factor, beta)
        if (t + 1) % EVERY == 0:
            exact = problem.grad(old)
            errors = {"grad_sq": exact, "error_sq": recursion.v - exact, "noise_sq": g - exact}
            probe.see(**{name: error.square().sum(-1) for name, error in errors.items()})
    return probe, torch.as_tensor(w)


if __name__ == "__main__":
    run(main)
