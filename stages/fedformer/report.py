"""fedformer: the comparison tables, the claims' verdicts and the figures.

Reads `runs/fedformer/<scale>/evaluate/`. Writes `reports/fedformer/<scale>/`: `results.parquet`, `table.md`,
`claims.md`, `claims.json`, figures, and `timings.json`: the times behind the complexity figure, kept from
the last run on the same kind of machine.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, run
from stages.fedformer.cells import VARIED
from stages.fedformer.claims import FULL_WIDTH, NAMES, Results, check_claims
from stages.fedformer.complexity import BLOCKS, HORIZONS, LENGTHS, MODELS, block_seconds, model_cost, slope
from stages.fedformer.data import TITLES
from stages.fedformer.figures import draw_figures
from stages.fedformer.params import DataName, Features, FedformerParams, ModelName

PUBLISHED_NAMES: dict[ModelName, str] = {
    "fedformer-f": "FEDformer-f", "fedformer-w": "FEDformer-w", "autoformer": "Autoformer",
    "informer": "Informer",
}  # fmt: skip
CITED = ("LogTrans", "Reformer")  # the authors copied these, and so do we: there is no run behind them
DATASETS = ("ETTm2", "Electricity", "Exchange", "Traffic", "Weather", "ILI")


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(FedformerParams, "fedformer")
    runs = Path("runs/fedformer") / params.scale
    with Stage("fedformer", params, [runs / "evaluate"]):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        timings = Timings(report_folder("fedformer", params.scale) / "timings.json")
        blocks, models = measure(timings)
        slopes = {name: slope(LENGTHS, seconds) for name, seconds in blocks.items()}
        claims = check_claims(results, slopes, params)
        table = table_markdown(results, slopes, models, timings.machine, params)
        write_report(
            "fedformer",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, blocks, models, params, output),
            timings,
        )


def measure(timings: Timings) -> tuple[dict[str, list[float]], dict[str, list[list[float]]]]:
    """Times of blocks by length, times and memory of models by horizon."""
    with progress("fedformer complexity", len(BLOCKS) + len(MODELS)) as bar:
        blocks = {}
        for name in BLOCKS:
            blocks[name] = timings.measure(
                f"{name}, lengths {LENGTHS}",
                lambda name=name: [block_seconds(name, length) for length in LENGTHS],  # type: ignore[misc]
            )
            bar.advance()
        models = {}
        for name in MODELS:
            flat = timings.measure(
                f"{name}, horizons {HORIZONS}",
                lambda name=name: [number for horizon in HORIZONS for number in model_cost(name, horizon)],  # type: ignore[misc]
            )
            models[name] = [flat[i : i + 2] for i in range(0, len(flat), 2)]
            bar.advance()
    return blocks, models


def table_markdown(
    frame: pd.DataFrame, slopes: dict[str, float], models: dict[str, list[list[float]]], machine: str,
    params: FedformerParams,
) -> str:  # fmt: skip
    """`table.md`: ours and published, multivariate and univariate; ablations; complexity."""
    results = Results(frame, params)
    parts = [f"# FEDformer: long-term forecasting, {params.scale} scale\n", what_ran(params)]
    parts += [main_table(results, data, "M", "Multivariate (T1)") for data in params.data]
    parts += [main_table(results, data, "S", "Univariate (T2)") for data in params.data]
    parts += [
        variants_table(results),
        ablation_table(results),
        similarity_table(results),
        complexity_table(slopes, models, machine),
        published_table(),
        summary(results),
    ]
    return "\n".join(part for part in parts if part)


def what_ran(params: FedformerParams) -> str:
    """How each data set was trained on: no small setting may pass for the paper's."""
    lines = []
    for data, recipe in params.data.items():
        windows = (
            "all training windows"
            if recipe.train_windows is None
            else f"{recipe.train_windows} training windows"
        )
        same = recipe.width == FULL_WIDTH and data != "generated"
        setting = "the paper's width" if same else "**not the paper's setting**"
        lines.append(
            f"- {TITLES[data]}: width {recipe.width} ({setting}), batch {recipe.batch}, at most "
            f"{recipe.epochs} epochs of "
            f"{windows}, learning rate {recipe.lr:g} (linear models {recipe.linear_lr:g})."
        )
    seeds = len(params.seeds)
    return (
        f"Errors are on scaled values, mean ± std over n = {seeds} seeds (Repeat-last has nothing to "
        "seed). *all* is every "
        "test window; *−last* leaves out the last windows that fill no batch of 32, as every published "
        "number does. "
        "Published numbers are of the paper's setting and, with the difference, set beside ours for "
        "orientation.\n\n" + "\n".join(lines) + "\n"
    )


def main_table(results: Results, data: DataName, features: Features, title: str) -> str:
    """One data set in the paper's layout: a row per horizon and model."""
    recipe = results.params.data[data]
    if features not in recipe.features:
        return ""
    numbers = _published_numbers()
    horizons = sorted({horizon for found in recipe.models.values() for horizon in found})
    lines = []
    for horizon in horizons:
        setting = (
            f"dataset={TITLES[data]};features={features};seq_len={recipe.seq_len};label_len={recipe.label_len};"
            f"pred_len={horizon}"
        )
        for model in recipe.models:
            values = {
                metric: results.per_seed(data, horizon, model, metric, features)
                for metric in ("mse", "mae", "mse_drop_last", "mae_drop_last")
            }
            if not len(values["mse"]):
                continue
            cited = [numbers.get((_published_name(model), setting, metric)) for metric in ("mse", "mae")]
            difference = (
                "–" if cited[0] is None else f"{100 * (values['mse_drop_last'].mean() / cited[0] - 1):+.1f} %"
            )
            lines.append(
                [str(horizon), NAMES[model], *(mean_std(values[metric], 3) for metric in values),
                 *("–" if value is None else f"{value:.3f}" for value in cited), difference]
            )  # fmt: skip
        for name in CITED:
            cited = [numbers.get((name, setting, metric)) for metric in ("mse", "mae")]
            if cited[0] is not None and any(horizon in recipe.models.get(m, []) for m in PUBLISHED_NAMES):
                lines.append(
                    [str(horizon), f"{name} (cited)", *["–"] * 4,
                     *("–" if value is None else f"{value:.3f}" for value in cited), "–"]
                )  # fmt: skip
    header = ["horizon", "model", "MSE, all", "MAE, all", "MSE, −last", "MAE, −last", "published MSE",
              "published MAE",
              "MSE, −last, against published"]  # fmt: skip
    scale = (
        "small scale, not the paper's setting"
        if results.params.scale == "quick"
        else f"{results.params.scale} scale"
    )
    return f"## {title}: {TITLES[data]} ({scale})\n\n" + markdown_table(header, lines)


def _published_name(model: ModelName) -> str:
    return {"repeat-last": "Repeat (LTSF-Linear)"}.get(model) or PUBLISHED_NAMES.get(model, "")


def _published_numbers() -> dict[tuple[str, str, str], float]:
    table = published("fedformer").drop_duplicates(["method", "setting", "metric"])
    table = table[table["metric"].isin(["mse", "mae"])]
    return {(str(r.method), str(r.setting), str(r.metric)): float(r.value) for r in table.itertuples()}


def variants_table(results: Results) -> str:
    """T8: the released code against the text, and what either's encoder is worth."""
    lines = []
    for data, recipe in results.params.data.items():
        for model in recipe.models:
            for horizon in recipe.models[model]:
                zeroed = results.per_seed(data, horizon, model, "mse_encoder_zeroed")
                if len(zeroed):
                    whole = results.per_seed(data, horizon, model)
                    change = 100 * (zeroed / whole - 1).abs()
                    lines.append(
                        [TITLES[data], str(horizon), NAMES[model], mean_std(whole, 3), mean_std(zeroed, 3),
                         mean_std(change, 3)]
                    )  # fmt: skip
    header = ["data", "horizon", "model", "MSE", "MSE, encoder zeroed", "change %"]
    return (
        "## Does the forecast depend on the encoder? (T8)\n\nThe encoder's output is replaced by zeros "
        "after training.\n\n" + markdown_table(header, lines)
    )


def ablation_table(results: Results) -> str:
    """T4, T6 and the mode selections: everything in `Recipe.variations`."""
    lines = []
    for data, recipe in results.params.data.items():
        for model in (model for model in VARIED if recipe.variations):
            for horizon in recipe.models.get(model, []):
                for variation in ("", *recipe.variations):
                    values = results.per_seed(data, horizon, model, variation=variation)
                    name = variation or f"as it is (M = {recipe.modes} random)"
                    lines.append([TITLES[data], str(horizon), NAMES[model], name, mean_std(values, 3)])
    if not lines:
        return ""
    return (
        "## Ablations: modes, blocks, kernels (T4, T6)\n\n`M16-low`: the 16 lowest modes; V1: "
        "auto-correlation in place of FEA-f, "
        "V2: in place of FEB-f, V3: FEA-f in place of FEB-f; mixture: kernels 7, 12, 14, 24, 48.\n\n"
        + markdown_table(["data", "horizon", "model", "variation", "MSE"], lines)
    )


def similarity_table(results: Results) -> str:
    """T5: Kolmogorov-Smirnov similarity of input and forecast."""
    lines = []
    for data, recipe in results.params.data.items():
        for model, horizons in recipe.models.items():
            for horizon in horizons:
                values = results.per_seed(data, horizon, model, "ks_pvalue")
                lines.append([TITLES[data], str(horizon), NAMES[model], mean_std(values, 4)])
    return (
        "## Are forecasts distributed like their inputs? (T5)\n\nMean p-value of two-sample "
        "Kolmogorov-Smirnov tests between "
        "an input window and its forecast, per variate, over 32 evenly spaced test windows.\n\n"
        + markdown_table(["data", "horizon", "model", "p"], lines)
    )


def complexity_table(slopes: dict[str, float], models: dict[str, list[list[float]]], machine: str) -> str:
    """T7: time and memory."""
    lines = [
        [name, *(f"{1e3 * seconds:.1f} / {kept / 2**20:.1f}" for seconds, kept in costs)]
        for name, costs in models.items()
    ]
    slope_text = ", ".join(f"{name} {value:.2f}" for name, value in slopes.items())
    return (
        "## Complexity (T7)\n\nForward milliseconds / MiB kept for the backward pass, width 64, batch 2, "
        "input 96, one thread of "
        f"{machine}. Log-log slopes of a block's forward time over lengths {', '.join(map(str, LENGTHS))}: "
        f"{slope_text}.\n\n" + markdown_table(["model", *(f"O = {horizon}" for horizon in HORIZONS)], lines)
    )


def published_table() -> str:
    """The paper's own main table."""
    table = published("fedformer")
    rows = table[table["table"] == "multivariate_main"].astype({"value": float})
    methods = ["FEDformer-f", "FEDformer-w", "Autoformer", "Informer", "LogTrans", "Reformer"]
    wide = rows.pivot_table(index="setting", columns=["method", "metric"], values="value", sort=False)
    lines = []
    for setting, row in wide.iterrows():
        parts = dict(part.split("=") for part in str(setting).split(";"))
        lines.append(
            [
                f"{parts['dataset']}-{parts['pred_len']}",
                *(f"{row[m, 'mse']:.3f} / {row[m, 'mae']:.3f}" for m in methods),
            ]
        )
    return (
        "## Published: multivariate main table, MSE / MAE (the paper's setting)\n\n"
        "From `reports/published/fedformer.csv`, which gives the source of each number.\n\n"
        + markdown_table(["setting", *methods], lines)
    )


def summary(results: Results) -> str:
    """Relative reduction of the error against the best baseline, with the formula; ours and recomputed from
    the paper.
    """
    numbers = _published_numbers()
    settings = sorted(
        {setting for method, setting, _ in numbers if method == "FEDformer-w" and "features=M" in setting}
    )
    settings = [s for s in settings if s.partition(";")[0].removeprefix("dataset=") in DATASETS]

    def mse(method: str, setting: str) -> float:
        return numbers[method, setting, "mse"]

    gains = {
        "the better of -f and -w": [min(mse("FEDformer-f", s), mse("FEDformer-w", s)) for s in settings],
        "-f": [mse("FEDformer-f", s) for s in settings],
        "-w": [mse("FEDformer-w", s) for s in settings],
    }
    theirs = [mse("Autoformer", s) for s in settings]
    text = ", ".join(
        f"{name} {100 * np.mean(1 - np.divide(values, theirs)):.1f} %" for name, values in gains.items()
    )
    ours = []
    baselines: tuple[ModelName, ...] = ("autoformer", "informer", "transformer")
    floors: tuple[ModelName, ...] = ("dlinear", "nlinear", "repeat-last")
    for data, recipe in results.params.data.items():
        for horizon in recipe.models.get("fedformer-f", []):

            def best(
                group: tuple[ModelName, ...], data: DataName = data, horizon: int = horizon
            ) -> float | None:
                means = [results.per_seed(data, horizon, m).mean() for m in group]
                return min((float(v) for v in means if v == v), default=None)

            fed, base, floor = best(("fedformer-f", "fedformer-w")), best(baselines), best(floors)
            if fed is None:
                continue
            against = [
                f"{100 * (1 - fed / value):+.1f} % against the best {name}"
                for name, value in (("transformer baseline", base), ("floor", floor)) if value
            ]  # fmt: skip
            ours.append(f"- {TITLES[data]}-{horizon}: {'; '.join(against)}.")
    return (
        "## Relative reduction of the MSE\n\n"
        f"Published, mean over the {len(settings)} multivariate settings of 1 - MSE / MSE(Autoformer): "
        f"{text}; the abstract says "
        "14.8 %, which none of these formulas gives.\n\nOurs, 1 - MSE / MSE(other) of mean errors over "
        "seeds on all test windows, "
        "official variants, the better of -f and -w; positive is lower error:\n\n" + "\n".join(ours) + "\n"
    )


if __name__ == "__main__":
    run(main)
