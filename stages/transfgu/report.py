"""transfgu: the comparison tables, the claims' verdicts and the figures.

Reads `data/transfgu/<scale>/`, `runs/transfgu/<scale>/{pretrain,cluster,pseudo_label,evaluate}/`. Writes
`reports/transfgu/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`: CAM
times, kept from the last run on the same kind of machine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import Tensor

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.transfgu.cells import concept_counts, concept_set, pretrained_backbone
from stages.transfgu.claims import CAM_LARGE, CAM_SMALL, check_claims, per_seed
from stages.transfgu.data import PreparedData
from stages.transfgu.figures import draw_figures
from stages.transfgu.method.augment import normalise
from stages.transfgu.method.concept_cam import CAM_VARIANTS, CamMethod, concept_cam
from stages.transfgu.params import TransfguParams

LABELS = {
    "transfgu": "**TransFGU**",
    "picie": "PiCIE style",
    "stego": "STEGO style, without CRF",
    "transfgu-random": "TransFGU, random encoder",
    "transfgu-shuffled": "TransFGU, encoder trained on shuffled pixels",
    "cam": "CAM argmax (pseudo labels alone)",
    "no-teacher": "trained, no teacher",
    "teacher": "+ teacher",
    "negative": "+ negative term",
    "uncertainty": "+ uncertainty term",
}
T1 = (
    "colour k-means", "patch k-means", "picie", "stego", "transfgu", "patch k-means, random backbone", "transfgu-random",
    "patch k-means, shuffled backbone", "transfgu-shuffled",
)  # fmt: skip
T3 = ("cam", "no-teacher", "teacher", "negative", "uncertainty", "transfgu")
METRICS = ("mIoU", "mIoU things", "mIoU stuff", "pixel accuracy", "class accuracy")
REPEATS = 7


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(TransfguParams, "transfgu")
    prepared, runs = Path("data/transfgu") / params.scale, Path("runs/transfgu") / params.scale
    seed = params.seeds[0]
    parts = [runs / part / str(seed) for part in ("pretrain", "cluster", "pseudo_label")]
    with Stage("transfgu", params, [prepared, runs / "evaluate", *parts]):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        timings = Timings(report_folder("transfgu", params.scale) / "timings.json")
        cam = measure_cam(params, prepared, runs, timings)
        claims = check_claims(results, cam, params)
        table = table_markdown(results, cam, storage(params, prepared, runs), timings, params)
        write_report(
            "transfgu",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, params, prepared, runs, output),
            timings,
        )


def measure_cam(params: TransfguParams, prepared: Path, runs: Path, timings: Timings) -> dict[str, float]:
    """Seconds per image of both CAM methods by number of concepts, and how far their maps differ."""
    torch.set_num_threads(1)
    seed = params.seeds[0]
    model = pretrained_backbone("dino", params, runs / "pretrain" / str(seed), seed, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.requires_grad_()  # the released code differentiates through them too
    size = params.data.height, params.data.width
    x_BCHW = normalise(PreparedData(prepared / str(seed), params).train.read([0], size))
    generator = torch.Generator().manual_seed(0)
    centroids = torch.randn(CAM_LARGE, model.width, generator=generator)

    def maps(method: CamMethod, count: int) -> Tensor:
        return concept_cam(model, x_BCHW, centroids[:count], cam_batch_size=1, method=method)

    difference = float((maps("closed_form", CAM_LARGE) - maps("autograd", CAM_LARGE)).abs().max())
    found = {"difference": difference}
    methods: tuple[CamMethod, ...] = ("closed_form", "autograd")
    for method in methods:
        for name, count in (("small", CAM_SMALL), ("large", CAM_LARGE)):
            key = f"{method} {name}"
            shape = f"{size[0]}x{size[1]}, width {model.width}, depth {len(model.blocks)}"
            take = _timer(lambda method=method, count=count: maps(method, count))  # type: ignore[misc]
            found[key] = timings.measure(f"CAM {key} K={count} {shape}", take)[0]
    return found


def _timer(work: Callable[[], object]) -> Callable[[], list[float]]:
    def take() -> list[float]:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return [median(seconds)]

    return take


def storage(params: TransfguParams, prepared: Path, runs: Path) -> tuple[float, float, int]:
    """Kilobytes per image of the maps as stored and as dense float32, and concepts."""
    seed = params.seeds[0]
    count = len(PreparedData(prepared / str(seed), params).train)
    path = runs / "pseudo_label" / str(seed) / f"{concept_set('dino')}.safetensors"
    concepts = sum(concept_counts(params))
    grid = (params.data.height // params.backbone.patch) * (params.data.width // params.backbone.patch)
    return path.stat().st_size / count / 1024, 4 * concepts * grid / 1024, concepts


def table_markdown(
    results: pd.DataFrame,
    cam: dict[str, float],
    stored: tuple[float, float, int],
    timings: Timings,
    params: TransfguParams,
) -> str:
    """`table.md`: all tables of the card that this scale fills."""
    parts = [
        f"# TransFGU: segmentation without labels, {params.scale} scale\n",
        _methods(results, params),
        _ablation(results),
        _variants(results),
        _granularity(results, params),
        _cost(cam, stored, timings),
        _published(),
    ]
    return "\n".join(part for part in parts if part)


def _lines(results: pd.DataFrame, table: str, rows: tuple[str, ...], metrics: list[str]) -> list[list[str]]:
    return [
        [LABELS.get(row, row), *(mean_std(per_seed(results, table, row, metric), 1) for metric in metrics)]
        for row in rows
        if len(per_seed(results, table, row))
    ]


def _metrics(results: pd.DataFrame) -> list[str]:
    return [metric for metric in METRICS if (results["metric"] == metric).any()]


def _methods(results: pd.DataFrame, params: TransfguParams) -> str:
    """T1."""
    small = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    source = params.backbone.weights
    shape, dino, heads = params.backbone, params.pretrain, params.train
    backbone = (
        f"DINO trained here, {shape.width} wide, {shape.depth} blocks, {dino.steps} steps of {dino.batch} images"
        if source == "train"
        else source
    )
    crops = "images" if heads.augment == "images" else "tokens that are computed once"
    metrics = _metrics(results)
    more = ["mIoU, many to one", "pixel accuracy, many to one"]
    return (
        f"## Methods (T1; {params.data.name}, {small})\n\n"
        f"Percent on the test images; mean ± std over n = {len(params.seeds)} seeds; last epoch. Backbone: {backbone}; "
        f"frozen, the same for all rows. Heads: {heads.epochs} epochs, crops of {crops}. "
        f"One-to-one matching that maximises matched pixels, once over the test set; "
        f"the last two columns count every cluster as its majority class. "
        f"{params.cluster.things} + {params.cluster.stuff} concepts, from windows of {params.windows.size} pixels.\n\n"
        + markdown_table(["method", *metrics, *more], _lines(results, "T1", T1, metrics + more))
    )


def _ablation(results: pd.DataFrame) -> str:
    """T3."""
    lines = _lines(results, "T3", T3, _metrics(results))
    complete = len(lines) == len(T3)
    if lines:
        lines[-1][0] = "+ embedding term = **full**" if complete else "**full**"
    reading = (
        "Each row adds a part to the row above; the same first weights, batches and dropout."
        if complete
        else "The rows between were not run here."
    )
    return f"## Ablation (T3)\n\n{reading}\n\n" + markdown_table(["row", *_metrics(results)], lines)


def _variants(results: pd.DataFrame) -> str:
    """T4."""
    return (
        "## CAM variants (T4)\n\nArgmax of the maps alone. `attention` and `rollout` weigh the patches that a concept owns, "
        "without a bonus; `gradient` is the bonus alone; `gradient-attention` their product.\n\n"
        + markdown_table(
            ["variant", *_metrics(results)], _lines(results, "T4", CAM_VARIANTS, _metrics(results))
        )
    )


def _granularity(results: pd.DataFrame, params: TransfguParams) -> str:
    """T5."""
    rows = {"transfgu": 1.0, **{f"transfgu-x{factor:g}": factor for factor in params.cluster.sweep}}
    metrics = ["mIoU", "pixel accuracy", "mIoU, many to one", "pixel accuracy, many to one"]
    lines = []
    for row, factor in sorted(rows.items(), key=lambda item: item[1]):
        things, stuff = concept_counts(params, factor)
        values = [mean_std(per_seed(results, "T5", row, metric), 1) for metric in metrics]
        lines.append([f"{things} + {stuff}", *values])
    return (
        "## Number of concepts (T5)\n\nThings + stuff. One to one with fewer or more clusters than classes: what is left "
        "over stays an error.\n\n" + markdown_table(["concepts", *metrics], lines)
    )


def _cost(cam: dict[str, float], stored: tuple[float, float, int], timings: Timings) -> str:
    """T6."""
    names: tuple[tuple[str, str], ...] = (
        ("closed form", "closed_form"),
        ("autograd, a backward pass per concept", "autograd"),
    )
    lines = [
        [label, *(f"{1e3 * cam[f'{method} {size}']:.1f}" for size in ("small", "large"))]
        for label, method in names
    ]
    compact, dense, concepts = stored
    return (
        f"## Cost (T6)\n\nMilliseconds of one image's maps, one thread, {timings.machine}; maps differ by at most "
        f"{cam['difference']:.1e}.\n\n"
        + markdown_table(["CAM", f"K = {CAM_SMALL}", f"K = {CAM_LARGE}"], lines)
        + f"\nPseudo maps as stored: {compact:.1f} KiB per image of {concepts} concepts, {dense / compact:.1f} times less "
        "than dense float32. The feature bank's tokens are float16, half of float32.\n"
    )


def _published() -> str:
    rows = published("transfgu")
    rows = rows[rows["metric"].isin(["mIoU", "pixel accuracy"])]
    lines = [
        [row.method, row.setting, f"{row.metric} {row.value:.1f} %", row.source] for row in rows.itertuples()
    ]
    return (
        "## Published (T1 and T2, the papers' settings; not comparable with the small tables above)\n\n"
        "From `reports/published/transfgu.csv`. Source `memory`: not found written.\n\n"
        + markdown_table(["method", "setting", "result", "source"], lines)
    )


if __name__ == "__main__":
    run(main)
