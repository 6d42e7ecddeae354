"""elsa: the comparison tables, the claims' verdicts and the figures.

Reads `runs/elsa/<scale>/evaluate/results.parquet`. Writes `reports/elsa/<scale>/`: `results.parquet`, `table.md`,
`claims.md`, `claims.json`, figures, and `timings.json`: what mixers and the operator cost, measured here and kept.
"""

from pathlib import Path
from typing import get_args

import pandas as pd

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.elsa.claims import check_claims, per_seed
from stages.elsa.cost import BATCH, KERNEL, REPEATS, SHAPES, mixer_cost, operator_cost
from stages.elsa.figures import draw_figures
from stages.elsa.params import ElsaParams, MixerName
from stages.elsa.variants import VARIANTS, rows_of

Costs = dict[str, list[float]]


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(ElsaParams, "elsa")
    evaluated = Path("runs/elsa") / params.scale / "evaluate"
    with Stage("elsa", params, [evaluated]):
        results = read_parquet(evaluated / "results.parquet")
        timings = Timings(report_folder("elsa", params.scale) / "timings.json")
        operator, mixers = measure(timings)
        rows = [row for mixer in params.mixers for row in rows_of(mixer, params.ablations)]
        claims = check_claims(results, operator, params)
        table = table_markdown(results, operator, mixers, rows, timings, params)
        write_report(
            "elsa",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, mixers, rows, params, output),
            timings,
        )


def measure(timings: Timings) -> tuple[Costs, Costs]:
    """Costs of the operator's CPU backends, and of every mixer at every shape."""
    operator = {
        backend: timings.measure(f"operator {backend}", lambda backend=backend: operator_cost(backend))  # type: ignore[misc]
        for backend in ("reference", "shift")
    }
    mixers = {}
    for shape in SHAPES:
        dim, side, _ = shape
        for mixer in get_args(MixerName):
            key = f"{mixer} {dim}x{side}x{side}"
            mixers[key] = timings.measure(key, lambda mixer=mixer, shape=shape: mixer_cost(mixer, shape))  # type: ignore[misc]
    return operator, mixers


def table_markdown(
    results: pd.DataFrame,
    operator: Costs,
    mixers: Costs,
    rows: list[str],
    timings: Timings,
    params: ElsaParams,
) -> str:
    """`table.md`: all tables of the card that this scale fills."""
    parts = [
        f"# ELSA: enhanced local self-attention, {params.scale} scale\n",
        _unified(results, rows, params),
        _ghost(results, params),
        _heads(results, params),
        _models(results),
        _cost(operator, mixers, timings),
    ]
    return "\n".join(part for part in parts if part)


def _header(params: ElsaParams) -> str:
    note = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    recipe = params.pretrain
    return (
        f"{note}: {recipe.data}, {recipe.steps} steps of {recipe.batch} images for every row, "
        f"mean ± std over n = {len(params.seeds)} seeds"
    )


def _unified(results: pd.DataFrame, rows: list[str], params: ElsaParams) -> str:
    """T4: all rows, by what the unified view says about them."""
    base = per_seed(results, "window")
    sizes = results[results["setting"] == "size"].set_index(["method", "metric"])["value"]
    lines = []
    for name in rows:
        variant, top1 = VARIANTS[name], per_seed(results, name)
        label = f"**{name}**" if name == "elsa" else name
        lines.append(
            [
                label + (f" (Net {variant.net})" if variant.net else ""),
                variant.terms,
                variant.norm,
                variant.support,
                mean_std(top1),
                mean_std((top1 - base).dropna()),
                mean_std(per_seed(results, name, "finetune")),
                f"{sizes[name, 'params'] / 1e3:.1f}",
                f"{sizes[name, 'macs'] / 1e6:.1f}",
            ]
        )
    header = ["row", "logit terms", "Norm", "support", "top-1 %", "minus window", "fine-tuned top-1 %"]
    text = (
        "## One trunk, one mixer per row (T4)\n\n"
        f"{_header(params)}. The last stage keeps window attention in every row. Differences are paired by seed.\n"
    )
    if params.finetune:
        fine = params.finetune
        text += f"Fine-tuned: {fine.steps} further steps of {fine.batch} images on {fine.data}.\n"
    return text + "\n" + markdown_table([*header, "params (k)", "MMACs"], lines)


def _ghost(results: pd.DataFrame, params: ElsaParams) -> str:
    """T5: the ghost head."""
    powers = {"elsa-no-ghost": "0, 0", "elsa-mul": "1, 0", "elsa": "0, 1", "elsa-mul-add": "1, 1"}
    trained = {name: per_seed(results, name) for name in powers}
    lines = [[powers[name], name, mean_std(top1)] for name, top1 in trained.items() if len(top1)]
    text = f"## Ghost head (T5)\n\n{_header(params)}.\n\n"
    return text + markdown_table(["lambda, gamma", "row", "top-1 %"], lines)


def _heads(results: pd.DataFrame, params: ElsaParams) -> str:
    """T6: the number of heads, where the scale varies it."""
    lines = []
    for mixer in ("window", "elsa"):
        values = [per_seed(results, name) for name in (f"{mixer}-1-head", mixer, f"{mixer}-2x-heads")]
        if len(values[0]) and len(values[2]):
            lines.append([mixer, *map(mean_std, values)])
    if not lines:
        return ""
    text = f"## Heads (T6)\n\n{_header(params)}; top-1 %.\n\n"
    return text + markdown_table(["mixer", "1 head", "1x", "2x"], lines)


def _models(results: pd.DataFrame) -> str:
    """T1: the full-size models; their accuracies are the authors', ours are counts."""
    ours = results[results["table"] == "T1"].set_index(["method", "metric"])["value"]
    theirs = published("elsa").query("table == 'imagenet1k'")

    def quoted(name: str) -> str:
        found = theirs[
            (theirs["method"] == name)
            & (theirs["metric"] == "top1")
            & theirs["setting"].str.startswith("224")
        ]
        return f"{found['value'].iloc[0]:.1f} ({found['source'].iloc[0]})" if len(found) else "–"

    lines = []
    for name in dict.fromkeys(ours.index.get_level_values("method")):
        baseline = name.removeprefix("ELSA-")
        label = f"{name}, configuration reconstructed" if "VOLO" in name else name
        lines.append(
            [label, f"{ours[name, 'params_exact']:,.0f}", f"{ours[name, 'macs']:.2f}", quoted(name), quoted(baseline)]
        )  # fmt: skip
    return (
        "## Full-size models (T1)\n\n"
        "Parameters and MACs are counted here, at 224 pixels; **top-1 is published, not ours** (source in brackets; "
        "`memory` is not verified). MACs: convolutions, linear layers, attention products, and one per tap, channel and "
        "pixel of the operator.\n\n"
        + markdown_table(["model", "params", "GMACs", "published top-1 %", "published baseline %"], lines)
    )


def _cost(operator: Costs, mixers: Costs, timings: Timings) -> str:
    """T7: time and memory on a CPU."""

    def line(key: str, costs: list[float]) -> list[str]:
        return [key, *(f"{number:.1f}" for number in costs)]

    columns = ["ms forward", "ms forward + backward", "MiB at the peak"]
    names = {"reference": "unfold formulation (reference)", "shift": "**shift (default on a CPU)**"}
    return (
        "## Cost on a CPU (T7)\n\n"
        f"Batch {BATCH}, kernel and window {KERNEL}; CPU time of one thread, the least of {REPEATS}; growth of "
        f"resident memory. On {timings.machine}.\n\n"
        + markdown_table(
            ["operator at 96 x 56 x 56", *columns], [line(names[k], v) for k, v in operator.items()]
        )
        + "\n"
        + markdown_table(["mixer, with its projections", *columns], [line(*item) for item in mixers.items()])
    )


if __name__ == "__main__":
    run(main)
