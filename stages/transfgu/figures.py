"""TransFGU's figures: predictions beside the truth (F1), per-class IoU (F2), the ablation (F3), concepts (F4)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from stages.common.report.figures import write_svg
from stages.transfgu.cells import concept_set
from stages.transfgu.claims import per_seed
from stages.transfgu.data import PreparedData, class_names
from stages.transfgu.params import TransfguParams

PANELS = {
    "truth": "truth",
    "patch k-means": "T1/patch k-means",
    "CAM": "T3/cam",
    "TransFGU": "T1/transfgu",
}
BARS = ("patch k-means", "colour k-means", "picie", "stego", "transfgu")
ABLATION = ("cam", "no-teacher", "teacher", "negative", "uncertainty", "transfgu")
SHOWN = 8  # windows of a concept


def draw_figures(
    results: pd.DataFrame, params: TransfguParams, prepared: Path, runs: Path, output: Path
) -> None:
    """Write all figures into the folder `output`."""
    write_svg(
        picture_grid(load_file(runs / "evaluate" / "panels.safetensors"), params), output / "predictions.svg"
    )
    write_svg(concept_gallery(params, prepared, runs), output / "concepts.svg")
    write_svg(class_bars(results, params), output / "iou-by-class.svg")
    write_svg(ablation(results, params), output / "ablation.svg")


def colours(labels_HW: Tensor) -> np.ndarray:
    """RGB `[H, W, 3]` of class indices; white where there is no class."""
    palette = np.concatenate([colormaps["tab20"](np.arange(20))[:, :3]] * 13)[:255]
    return np.concatenate([palette, np.ones((1, 3))])[labels_HW.numpy()]


def picture_grid(panels: dict[str, Tensor], params: TransfguParams) -> Figure:
    """F1: image, truth and predictions in the classes they were matched to; white is an unmatched cluster."""
    count = len(panels["image"])
    figure = Figure(figsize=(1.3 * count, 1.3 * (1 + len(PANELS))))
    axes = figure.subplots(1 + len(PANELS), count, squeeze=False)
    for column in range(count):
        axes[0, column].imshow(panels["image"][column].permute(1, 2, 0).numpy())
        for row, name in enumerate(PANELS.values(), 1):
            axes[row, column].imshow(colours(panels[name][column]), interpolation="nearest")
    for row, title in enumerate(["image", *PANELS]):
        axes[row, 0].set_ylabel(title)
    _bare(axes)
    figure.suptitle(f"{params.data.name}, seed {params.seeds[0]} ({params.scale} scale)", fontsize=9)
    return figure


def concept_gallery(params: TransfguParams, prepared: Path, runs: Path) -> Figure:
    """F4: the windows nearest to each concept, first seed."""
    seed = params.seeds[0]
    record = json.loads((runs / "cluster" / str(seed) / f"{concept_set('dino')}.json").read_text())
    images = PreparedData(prepared / str(seed), params).train
    size = 2 * params.data.height, 2 * params.data.width
    rows = list(enumerate(record["nearest"]))[:27]
    figure = Figure(figsize=(0.9 * SHOWN, 0.9 * len(rows)))
    axes = figure.subplots(len(rows), SHOWN, squeeze=False)
    for row, (concept, windows) in enumerate(rows):
        for column, (index, *box) in enumerate(windows[:SHOWN]):
            x0, y0, x1, y1 = (params.backbone.patch * side for side in box)
            crop = images.read([index], size)[0, :, y0 : y1 + 1, x0 : x1 + 1]
            axes[row, column].imshow(crop.permute(1, 2, 0).round().to(torch.uint8).numpy())
        kind = "thing" if concept < params.cluster.things else "stuff"
        axes[row, 0].set_ylabel(f"{kind} {concept}\n{record['sizes'][concept]}", fontsize=6)
    _bare(axes)
    return figure


def _bare(axes: np.ndarray) -> None:
    for panel in axes.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(False)
        for spine in panel.spines.values():
            spine.set_visible(False)


def class_bars(results: pd.DataFrame, params: TransfguParams) -> Figure:
    """F2: IoU of each class, mean over seeds."""
    names = class_names(params.data.name)
    figure = Figure(figsize=(max(6.0, 0.7 * len(names)), 3.2))
    axes = figure.subplots()
    for number, method in enumerate(BARS):
        values = [per_seed(results, "T1", method, f"IoU {name}").mean() for name in names]
        axes.bar(np.arange(len(names)) + 0.16 * (number - 2), values, 0.16, label=method)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
    axes.set(ylabel="IoU %", title=f"{params.data.name} ({params.scale} scale)")
    axes.legend()
    return figure


def ablation(results: pd.DataFrame, params: TransfguParams) -> Figure:
    """F3: mIoU as parts are added; a dot per seed."""
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.subplots()
    series = [per_seed(results, "T3", row) for row in ABLATION]
    axes.plot(range(len(ABLATION)), [values.mean() for values in series], color="C3")
    for place, values in enumerate(series):
        axes.scatter([place] * len(values), values, color="C3", s=10)
    axes.set_xticks(range(len(ABLATION)), ABLATION, rotation=20, ha="right")
    axes.set(ylabel="mIoU %", title=f"each row adds a part ({params.scale} scale)")
    return figure
