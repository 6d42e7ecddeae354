"""The comparison tables T1 to T8 of the card as markdown, from the tidy results."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.adam import bilevel, compositional, counterexamples, digits, minmax, skewed
from stages.adam.claims import CURVES
from stages.adam.fits import per_seed, rate
from stages.adam.method.rates import Fit
from stages.adam.method.recursion import MEMBERS
from stages.adam.params import AdamParams
from stages.common.report.tables import markdown_table, mean_std
from stages.common.results import published

HUGE = 1e4  # beyond this a run is said to diverge
CONTROL = " (control)"


def tables_markdown(results: pd.DataFrame, params: AdamParams) -> str:
    """`table.md`."""
    scale = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    parts = [
        f"# Convergence of the Adam family, {params.scale} scale\n\n"
        f"All rows: {scale}; problems with exact gradients, n = {len(params.seeds)} seeds unless said otherwise. The paper "
        "is a theorem: there are no published accuracies to match but inequalities, exponents and controls. Exponents are "
        "least squares of log mean over seeds on log T; brackets hold the 95 % bootstrap interval over seeds (the same "
        "seeds at every T). ± is the standard deviation over seeds, or the standard error where it says so.\n",
        family(results, params),
        variance(results, params),
        counterexample(results, params),
        floors(results, params),
        on_digits(results, params),
        extensions(results, params),
        on_auc(results, params),
        cleaning(results),
        complexity(results, params),
        cifar10(results, params),
    ]
    return "\n".join(part for part in parts if part)


def interval(fit: Fit) -> str:
    """`-0.48 [-0.49, -0.47]`."""
    return f"{fit.slope:.3f} [{fit.low:.3f}, {fit.high:.3f}]"


def number(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """Mean and standard deviation with that many significant digits of the mean, or that it diverged."""
    array = np.asarray(values, dtype=float)
    mean = array.mean()
    if not np.isfinite(mean) or abs(mean) > HUGE:
        return "diverges"
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(mean))))) if mean else digits
    return mean_std(array, min(places, 6))


def _label(member: str) -> str:
    return member if MEMBERS[member].momentum else member + CONTROL


def _range(low: float, high: float) -> str:
    return f"{low:.3f} .. {high:.3f}"


def family(results: pd.DataFrame, params: AdamParams) -> str:
    """T1."""
    last = f"T={params.rate.horizons[-1]}"
    lines = []
    for member in params.rate.members:
        where = {"table": "T1", "method": member}
        tail = number(per_seed(results, "avg_grad_sq", **where).loc[last].to_numpy())
        line = [
            _label(member),
            MEMBERS[member].formula,
            interval(rate(results, "avg_grad_sq", **where)),
            tail,
        ]
        if MEMBERS[member].momentum:
            c = {
                m: per_seed(results, m, **where).loc[last].iloc[0]
                for m in ("c_l", "c_u", "c_l_theory", "c_u_theory")
            }
            ratios = [per_seed(results, m, **where).mean(axis=1) for m in ("B1_ratio", "B2_ratio")]
            margin = per_seed(results, "step_margin", **where).to_numpy().min()
            line += [
                _range(c["c_l_theory"], c["c_u_theory"]), _range(c["c_l"], c["c_u"]), f"{margin:.2f}",
                *(_range(ratio.min(), ratio.max()) for ratio in ratios),
            ]  # fmt: skip
        else:
            line += ["–"] * 5
        lines.append(line)
    header = [
        "member", "u", "exponent of mean ‖∇F‖² in T", f"mean ‖∇F‖² at {last}", "c_l .. c_u, formula",
        f"c_l .. c_u, measured to {last}", "step limit / step", "B1: left / right, over T", "B2: left / right, over T",
    ]  # fmt: skip
    return (
        "## T1 The family: rates and the theorem's bounds (E1, E2)\n\n"
        "Predicted exponent -1/2. A ratio above 1 would violate a bound; a step limit / step below 1 would leave the "
        "theorem. adabound with these bounds sits at its upper one (gradients are small): heavy ball here.\n\n"
        + markdown_table(header, lines)
    )


def variance(results: pd.DataFrame, params: AdamParams) -> str:
    """T2."""
    gammas = sorted(params.rate.gammas, reverse=True)
    rows = results[results["table"] == "T2"]
    lines = []
    for method in dict.fromkeys([*params.rate.members, *rows["method"]]):
        table = per_seed(results, "tail_D", table="T2", method=method)
        label = _label(method) if method in MEMBERS else method
        lines.append([label, *(number(table.loc[f"gamma={gamma:g}"].to_numpy()) for gamma in gammas)])
    lines.append(["σ² γ/(2−γ), exact for frozen x", *(f"{gamma / (2 - gamma):.4f}" for gamma in gammas)])
    return (
        "## T2 The first moment's error by γ (E3)\n\nMean of ‖v − ∇F‖² over the second half of "
        f"{params.rate.variance_steps} steps; σ² = 1.\n\n"
        + markdown_table(["member", *(f"γ = {gamma:g}" for gamma in gammas)], lines)
    )


def counterexample(results: pd.DataFrame, params: AdamParams) -> str:
    """T3."""
    rows = results[results["table"] == "T3"]
    lines = []
    for (data, setting), group in rows.groupby(["data", "setting"], sort=False):
        cells = []
        for method in counterexamples.MEMBERS:
            values = group.loc[group["method"] == method, "value"]
            cells.append(f"{values.mean():+.3f} ± {values.std() / len(values) ** 0.5:.3f}")
        lines.append([str(data), str(setting), *cells])
    order = {name: i for i, name in enumerate(dict.fromkeys(line[0] for line in lines))}
    lines.sort(key=lambda line: (order[line[0]], "incr" in line[1]))
    return (
        "## T3 Counterexamples (E5)\n\nLast x, mean ± standard error over seeds "
        f"({params.counterexamples.walks} walks each; the cycles have no chance in them); the optimum is -1, the worst "
        "point +1.\n\n" + markdown_table(["gradients", "schedule", *counterexamples.MEMBERS], lines)
    )


def floors(results: pd.DataFrame, params: AdamParams) -> str:
    """T4."""
    large, small = max(params.skewed.etas), min(params.skewed.etas)
    lines = []
    for member in skewed.MEMBERS:
        table = per_seed(results, "tail_grad_sq", table="T4", method=member)
        factor = skewed.SGDM_FACTOR if member == "sgdm" else 1.0
        for beta in params.skewed.betas:
            at = [table.loc[f"beta={beta:g}, eta={factor * eta:g}"] for eta in (large, small)]
            lines.append([member, f"{beta:g}", *map(number, at), mean_std(at[1] / at[0])])
    header = ["member", "β", f"η = {large:g}", f"η = {small:g}", "ratio, small / large η"]
    return (
        f"## T4 Skewed noise: floors of ‖∇F‖² (E4)\n\nMean over the second half of {params.skewed.steps} steps; sgdm's η "
        f"are {skewed.SGDM_FACTOR:g} times these. A ratio near 1 is a floor that no step size lowers.\n\n"
        + markdown_table(header, lines)
    )


def on_digits(results: pd.DataFrame, params: AdamParams) -> str:
    """T5."""
    metrics = ["tail_grad_sq", "tail_D", "tail_noise_sq", "loss", "accuracy"]
    lines = []
    for member in params.digits.members:
        cells = {metric: per_seed(results, metric, table="T5", method=member) for metric in metrics}
        for setting in digits.TIMETABLES:
            values = [cells[metric].loc[setting] for metric in metrics]
            lines.append([_label(member), setting, *map(number, values[:-1]), mean_std(values[-1])])
    header = ["member", "schedule", "tail ‖∇F‖²", "tail ‖v − ∇F‖²", "tail ‖g − ∇F‖²", "loss", "accuracy %"]
    return (
        f"## T5 Digits, a 64-32-10 network (E6)\n\n{params.digits.steps} steps of {digits.BATCH}, "
        f"n = {len(params.digits.seeds)} seeds; exact gradients every {digits.EVERY} steps. Stagewise beta lowers the "
        "estimator's error, not the gradient: compare the last two schedules of a member.\n\n"
        + markdown_table(header, lines)
    )


def extensions(results: pd.DataFrame, params: AdamParams) -> str:
    """T6, the problems where everything is exact."""
    lines = []
    for data, tracked in (
        (minmax.QUADRATIC, "avg_dual_sq"), (compositional.DATA, "avg_inner_sq"), (bilevel.QUADRATIC, "avg_lower_sq"),
    ):  # fmt: skip
        rows = results[(results["data"] == data) & (results["metric"] == "avg_grad_sq")]
        for method in dict.fromkeys(rows["method"]):
            where = {"data": data, "method": method}
            means = per_seed(results, "avg_grad_sq", **where)
            T = max(int(setting.removeprefix("T=")) for setting in means.index)
            at_last = [
                per_seed(results, m, **where).loc[f"T={T}"].to_numpy()
                for m in ("avg_grad_sq", "tail_grad_sq", tracked)
            ]
            diverges = at_last[0].mean() > HUGE
            slopes = (
                ["–", "–"]
                if diverges
                else [interval(rate(results, m, **where)) for m in ("avg_grad_sq", tracked)]
            )
            control = CONTROL if method in ("sgda", "naive") else ""
            lines.append([data, method + control, slopes[0], *map(number, at_last), slopes[1]])
    header = [
        "problem", "algorithm", "exponent of mean ‖∇‖²", "mean ‖∇‖² at largest T", "tail ‖∇‖² at largest T",
        "mean tracking error² at largest T", "its exponent",
    ]  # fmt: skip
    return (
        "## T6 Extensions (E7 to E9)\n\n∇ is the exact gradient of the outer problem (∇Phi of a min-max or bilevel one). "
        "The tracking error is that of y, of the inner value z, or of the lower level's y. Predicted exponents -1/2.\n\n"
        + markdown_table(header, lines)
    )


def on_auc(results: pd.DataFrame, params: AdamParams) -> str:
    """T6, AUC maximisation."""
    lines = []
    for method in minmax.AUC_JOBS:
        where = {"data": minmax.AUC, "method": method}
        line = [
            method + (CONTROL if method == "sgda" else ""),
            mean_std(per_seed(results, "auc", **where).to_numpy()[0], 4),
        ]
        for metric in ("tail_grad_sq", "tail_D"):
            line.append(
                "–" if method == "bce-adam" else number(per_seed(results, metric, **where).to_numpy()[0])
            )
        lines.append(line)
    return (
        f"### AUC maximisation: digit 8 of digits, {minmax.POSITIVES} positives in {minmax.POSITIVES + minmax.NEGATIVES} "
        f"(E7)\n\n{params.minmax.auc_steps} steps. The comparison is of errors; that an AUC loss beats cross-entropy is not "
        "claimed.\n\n" + markdown_table(["algorithm", "test AUC", "tail ‖∇Phi‖²", "tail ‖v − ∂f/∂x‖²"], lines)
    )


def cleaning(results: pd.DataFrame) -> str:
    """T6, hyper-cleaning."""
    lines = []
    for method in ("cleaning", bilevel.NOISY_ONLY):
        rows = results[(results["data"] == bilevel.CLEANING) & (results["method"] == method)]
        cells = [
            rows.loc[rows["metric"] == m, "value"] for m in ("validation_loss", "weights_auc", "accuracy")
        ]
        label = "smb, adam" if method == "cleaning" else method + CONTROL
        lines.append(
            [label, *(mean_std(cell, places) for cell, places in zip(cells, (3, 3, 2), strict=True))]
        )
    n = rows["seed"].nunique()
    return f"### {bilevel.CLEANING} (E9), n = {n} seeds\n\n" + markdown_table(
        ["algorithm", "validation loss", "AUC of weights against true labels", "test accuracy %"], lines
    )


def complexity(results: pd.DataFrame, params: AdamParams) -> str:
    """T7: mean ‖∇‖² ~ T^-q means that eps² takes T ~ eps^-p with p = 2/q."""
    rows = published("adam")
    rows = rows[
        (rows["table"] == "complexity") & rows["unit"].str.startswith("exponent") & (rows["value"] > 0)
    ]
    smb = f"smb K={max(params.bilevel.terms)}"
    ours: dict[str, list[tuple[str, dict[str, str]]]] = {
        "Adam family": [
            ("adam", {"table": "T1", "method": "adam"}),
            ("sgdm", {"table": "T1", "method": "sgdm"}),
        ],
        "PDSM/PDAda": [(m, {"data": minmax.QUADRATIC, "method": m}) for m in ("pdsm", "pdada")],
        "SMB": [(smb, {"data": bilevel.QUADRATIC, "method": smb})],
    }
    lines = []
    for row in rows.itertuples():
        for family_name, methods in ours.items():
            if not str(row.method).startswith(family_name):
                continue
            for name, where in methods:
                fit = rate(results, "avg_grad_sq", **where)
                lines.append([f"{row.setting}: {name}", f"{row.value:g}", str(row.source), f"{-2 / fit.slope:.2f}",
                              f"{-2 / fit.low:.2f} .. {-2 / fit.high:.2f}"])  # fmt: skip
    return (
        "## T7 Complexity: oracle calls to ‖∇‖ <= eps grow like eps^-p\n\nFitted p = -2 / exponent.\n\n"
        + markdown_table(["setting", "p, published", "source", "p, fitted", "95 % interval"], lines)
    )


def cifar10(results: pd.DataFrame, params: AdamParams) -> str:
    """T8: ours beside the AdaBound repository's curves."""
    table = published("adam")
    table = table[(table["table"] == CURVES) & table["setting"].str.startswith("ResNet-34")]
    theirs = {
        part: table[table["metric"].str.startswith(f"{part} accuracy, final")].set_index("method")["value"]
        for part in ("test", "train")
    }
    mine = results[results["table"] == "T8"]
    names = dict.fromkeys([*(params.cifar10.methods if params.cifar10 else ()), *theirs["test"].index])
    lines = [
        [
            str(name),
            *(mean_std(mine.loc[(mine["method"] == name) & (mine["metric"] == f"{part}_accuracy"), "value"])
              for part in ("test", "train")),
            *(f"{theirs[part][name]:.2f}" if name in theirs[part] else "–" for part in ("test", "train")),
        ]
        for name in names
    ]  # fmt: skip
    done = (
        f"Ours: {params.cifar10.net}, {params.cifar10.epochs} epochs, n = {len(params.cifar10.seeds)} seeds"
        if params.cifar10
        else "Ours: not run at this scale"
    )
    return (
        f"## T8 CIFAR-10 beside published curves\n\n{done}. Published: the AdaBound repository's ResNet-34 curves after 200 "
        "epochs (`reports/published/adam.csv`), one run each.\n\n"
        + markdown_table(
            ["method", "test %, ours", "train %, ours", "test %, published", "train %, published"], lines
        )
    )
