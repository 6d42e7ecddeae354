"""Parity: every case of tests/golden/adam (its README describes the files)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.adam.method.adabound import AdaBound
from stages.adam.method.adam_family import AdamFamily
from stages.adam.method.bilevel import SMB, neumann_inverse_vector
from stages.adam.method.compositional import CompositionalMA
from stages.adam.method.minmax import PDSM, PDAda
from stages.adam.method.problems.auc import aucm, best_alpha
from stages.adam.method.problems.bilevel_quadratic import BilevelQuadratic
from stages.adam.method.problems.compositional_welsch import CompositionalWelsch
from stages.adam.method.problems.ncsc_quadratic import NCSCQuadratic
from stages.adam.method.problems.quadratic_welsch import QuadraticWelsch
from stages.adam.method.recursion import Recursion
from stages.adam.method.schedules import Constant, Debias, Increasing, Schedule, Stagewise
from tests.golden_cases import golden_cases

Case = dict[str, Tensor]
ATOL = 1e-10


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("adam", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def close(ours: Tensor, theirs: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


class Hyper:
    """Configuration of a trajectories file, and the schedules that its keys name."""

    def __init__(self, case: Case) -> None:
        self.beta1, self.beta2, self.eta, self.G0, self.c_l, self.c_u = case["hyper"].tolist()
        self.bounds = (self.c_l, self.c_u)
        T = len(case["grads"])
        stages = ((0, 0.5), (T // 3, self.beta1), (2 * (T // 3), 1 - (1 - self.beta1) / 10))
        self.betas: dict[str, Schedule] = {
            "const": Constant(self.beta1),
            "const_sqrtstep": Constant(self.beta1),
            "inc": Increasing(),
            "stage": Stagewise(stages),
            "debias": Debias(self.beta1),
        }

    def lr(self, schedule: str, t: int) -> float:
        return self.eta / (t + 1) ** 0.5 if schedule == "const_sqrtstep" else self.eta


def family_keys(case: Case, last: str) -> Iterator[tuple[str, str, str, str]]:
    for key in case:
        parts = key.split("/")
        if parts[0] == "family" and parts[4] == last:
            yield key, parts[1], parts[2], parts[3]


def follow(case: Case, optimizer_of: object, hyper: Hyper) -> Tensor:
    """Iterates of a torch optimizer on the given gradients."""
    x = case["x0"].clone().requires_grad_()
    optimizer = optimizer_of([x])  # type: ignore[operator]
    rows = []
    for g in case["grads"]:
        x.grad = g.clone()
        optimizer.step()
        rows.append(x.detach().clone())
    return torch.stack(rows)


@pytest.mark.parametrize("path", cases("trajectories"))
def test_golden_schedules(path: Path) -> None:
    case = load(path)
    hyper = Hyper(case)
    for name in ("inc", "stage", "debias"):
        betas = [hyper.betas[name](t) for t in range(len(case["grads"]))]
        close(torch.tensor(betas, dtype=torch.float64), case[f"beta_{name}"])


@pytest.mark.parametrize("path", cases("trajectories"))
def test_golden_recursion(path: Path) -> None:
    case = load(path)
    hyper = Hyper(case)
    for key, member, schedule, init in family_keys(case, "x"):
        x, rows, scales = case["x0"], [], []
        recursion = Recursion(member, hyper.beta2, hyper.G0, hyper.bounds, init)  # type: ignore[arg-type]
        for t, g in enumerate(case["grads"]):
            x = recursion.step(x, g, hyper.lr(schedule, t), hyper.betas[schedule](t))
            rows.append(x)
            scales.append(recursion.s.expand_as(x))
        close(torch.stack(rows), case[key])
        if (scale_key := key.removesuffix("x") + "scale") in case:
            close(torch.stack(scales), case[scale_key].expand(len(scales), len(x)))


@pytest.mark.parametrize("path", cases("trajectories"))
def test_golden_optimizer(path: Path) -> None:
    case = load(path)
    hyper = Hyper(case)
    for key, member, schedule, init in family_keys(case, "x"):
        ours = follow(
            case,
            lambda params, m=member, s=schedule, i=init: AdamFamily(
                params, lr=lambda t: hyper.lr(s, t), beta1=hyper.betas[s], member=m, beta2=hyper.beta2, G0=hyper.G0,
                bounds=hyper.bounds, init_first_moment=i,
            ),
            hyper,
        )  # fmt: skip
        close(ours, case[key])


@pytest.mark.parametrize("path", cases("trajectories"))
def test_golden_torch_rivals(path: Path) -> None:
    """torch's own optimizers as members of the family (facts in the README)."""
    case = load(path)
    hyper = Hyper(case)
    common = {"lr": hyper.eta, "beta1": hyper.beta1, "beta2": hyper.beta2, "G0": hyper.G0}
    corrected = {**common, "init_first_moment": "zeros", "bias_correction": True}
    rivals = {
        "adam": corrected,
        "amsgrad": {**corrected, "member": "amsgrad"},
        "adamw": {**corrected, "decoupled_weight_decay": 0.1},
        "rmsprop": {**common, "member": "rmsprop"},
        "adagrad": {**common, "member": "adagrad"},
        "sgd_ema": {**common, "member": "sgdm"},
    }
    for name, options in rivals.items():
        close(follow(case, lambda p, o=options: AdamFamily(p, **o), hyper), case[f"torch/{name}"])
    debias = {**common, "beta1": Debias(hyper.beta1), "beta2": Debias(hyper.beta2)}
    close(follow(case, lambda p: AdamFamily(p, **debias), hyper), case["torch/adam"])


@pytest.mark.parametrize("path", cases("trajectories"))
def test_golden_official_adabound(path: Path) -> None:
    case = load(path)
    hyper = Hyper(case)
    for name in ("adabound", "amsbound"):
        ours = follow(
            case,
            lambda p, n=name: AdaBound(
                p, lr=hyper.eta, betas=(hyper.beta1, hyper.beta2), final_lr=0.1, gamma=0.05, eps=hyper.G0,
                weight_decay=0.01, amsbound=n == "amsbound",
            ),
            hyper,
        )  # fmt: skip
        close(ours, case[f"official/{name}"])


def base(case: Case) -> QuadraticWelsch:
    return QuadraticWelsch(case["qw/Q"], case["qw/lam"], float(case["qw/alpha"]))


def minmax(case: Case) -> NCSCQuadratic:
    return NCSCQuadratic(base(case), case["mm/A"], float(case["mm/mu"]))


def compositional(case: Case) -> CompositionalWelsch:
    return CompositionalWelsch(case["co/A"], case["co/b"], float(case["co/lam"]))


def bilevel(case: Case) -> BilevelQuadratic:
    return BilevelQuadratic(base(case), case["bl/H"], case["bl/B"], case["bl/c"])


@pytest.mark.parametrize("path", cases("problems"))
def test_golden_exact_values(path: Path) -> None:
    case = load(path)
    x = case["qw/x"]
    assert abs(base(case).L - float(case["qw/L"])) <= ATOL
    close(base(case).value(x), case["qw/F"])
    close(base(case).grad(x), case["qw/grad"])
    close(minmax(case).best_y(x), case["mm/ystar"])
    close(minmax(case).value(x), case["mm/Phi"])
    close(minmax(case).grad(x), case["mm/gradPhi"])
    close(compositional(case).value(x), case["co/F"])
    close(compositional(case).grad(x), case["co/grad"])
    close(bilevel(case).best_y(x), case["bl/ystar"])
    close(bilevel(case).value(x), case["bl/F"])
    close(bilevel(case).grad(x), case["bl/hypergrad"])


@pytest.mark.parametrize("path", cases("problems"))
def test_golden_neumann(path: Path) -> None:
    case = load(path)
    problem = bilevel(case)
    for key in case:
        if key.startswith("bl/neumann_K"):
            b = problem.upper_grad_y(case["bl/y"])
            K = int(key.removeprefix("bl/neumann_K"))
            h = neumann_inverse_vector(lambda _, u: u @ problem.H, b, K, C=1.0)
            close(problem.hypergradient(case["qw/x"], h), case[key])


def recursion_of(key: str) -> Recursion:
    return Recursion("adam", beta2=0.99, G0=1.0) if key.endswith("_adaptive") else Recursion("sgdm")


@pytest.mark.parametrize("path", cases("problems"))
def test_golden_minmax_trajectories(path: Path) -> None:
    case = load(path)
    gamma, eta_x, eta_y = case["traj_hyper"].tolist()
    problem = minmax(case)
    for name, stepper in {"pdsm": PDSM(), "pdada": PDAda(beta2=0.99, G0=1.0)}.items():
        x, y, rows = case["qw/x"][0], torch.zeros(len(case["mm/A"]), dtype=torch.float64), []
        for noise_x, noise_y in zip(case["noise_x"], case["noise_y"], strict=True):
            grad_x, grad_y = problem.grad_x(x, y) + noise_x, problem.grad_y(x, y) + noise_y
            x, y = stepper.step(x, y, grad_x, grad_y, eta_x, eta_y, 1 - gamma)
            rows.append(torch.cat([x, y]))
        close(torch.stack(rows), case[f"mm/traj_{name}"])


@pytest.mark.parametrize("path", cases("problems"))
def test_golden_compositional_trajectories(path: Path) -> None:
    case = load(path)
    gamma, eta, _ = case["traj_hyper"].tolist()
    problem = compositional(case)
    for key in ("co/traj", "co/traj_adaptive"):
        stepper, x, rows = CompositionalMA(recursion_of(key)), case["qw/x"][1], []
        for noise_x, noise_y in zip(case["noise_x"], case["noise_y"], strict=True):
            x = stepper.step(
                x,
                problem.inner(x) + noise_y,
                lambda z, x=x, n=noise_x: problem.grad_at(x, z) + 0.3 * n,  # type: ignore[misc]
                eta,
                1 - gamma,
                1 - gamma,
            )
            assert stepper.z is not None
            rows.append(torch.cat([x, stepper.z]))
        close(torch.stack(rows), case[key])


@pytest.mark.parametrize("path", cases("problems"))
def test_golden_bilevel_trajectories(path: Path) -> None:
    case = load(path)
    gamma, eta_x, eta_y = case["traj_hyper"].tolist()
    problem = bilevel(case)
    noise_x, noise_y = case["noise_x"], case["noise_y"]
    for key in ("bl/traj", "bl/traj_adaptive"):
        stepper, rows = SMB(recursion_of(key)), []
        x, y = case["qw/x"][2], torch.zeros(len(case["bl/H"]), dtype=torch.float64)
        for t in range(len(noise_x)):
            b = problem.upper_grad_y(y) + noise_y[len(noise_x) - 1 - t]
            h = neumann_inverse_vector(lambda _, u: u @ problem.H, b, K=4, C=1.0)
            hypergradient = problem.hypergradient(x, h) + noise_x[t]
            lower = problem.lower_grad(x, y) + noise_y[t]
            x, y = stepper.step(x, y, hypergradient, lower, eta_x, eta_y, 1 - gamma)
            rows.append(torch.cat([x, y]))
        close(torch.stack(rows), case[key])


@pytest.mark.parametrize("path", cases("reddi"))
def test_golden_reddi(path: Path) -> None:
    case = load(path)
    C, _, beta2, a = case["hyper"].tolist()
    for key in case:
        member, _, name = key.partition("/")
        if not name:
            continue
        beta: Schedule = Increasing() if name == "inc" else Constant(float(name))
        walk = clipped_walk(case["grads"], Recursion(member, beta2, init_first_moment="zeros"), beta, a, 0.0)
        close(walk, case[key])
    cycle_C = float(case["cycle_grads"].max())
    recursion = Recursion("adam", 1 / (1 + cycle_C**2), G0=0.0, init_first_moment="zeros")
    close(clipped_walk(case["cycle_grads"], recursion, Constant(0.0), 0.1, 1.0), case["cycle_adam"])
    assert set(case["grads"].tolist()) == {C, -1.0}


def clipped_walk(grads: Tensor, recursion: Recursion, beta: Schedule, a: float, start: float) -> Tensor:
    x, rows = torch.tensor([start], dtype=torch.float64), []
    for t, g in enumerate(grads):
        x = recursion.step(x, g[None], a / (t + 1) ** 0.5, beta(t)).clamp(-1, 1)
        rows.append(x)
    return torch.cat(rows)


@pytest.mark.parametrize("path", cases("aucm"))
def test_golden_auc_margin(path: Path) -> None:
    case = load(path)
    positive = case["target"].flatten() == 1
    a, b, alpha, margin = case["state"].double().unbind()
    pred = case["pred"].double().flatten().requires_grad_()
    a, b, alpha = (value.clone().requires_grad_() for value in (a, b, alpha))
    p = positive.double().mean()
    loss = aucm(pred, positive, a, b, alpha, float(margin))
    gradients = torch.autograd.grad(loss, [pred, a, b, alpha])
    for version, factor, atol in (("v1", p * (1 - p), 1e-6), ("v2", torch.ones(()), ATOL)):
        close(factor * loss.detach(), case[f"{version}/loss"].double(), atol)
        names = ("grad_pred", "grad_a", "grad_b", "grad_alpha")
        for name, gradient in zip(names, gradients, strict=True):
            theirs = case[f"{version}/{name}"].double().flatten().view_as(gradient)
            close(factor * gradient, theirs, atol)
    close(best_alpha(pred.detach(), positive, float(margin)), case["alpha_star_v2"])
