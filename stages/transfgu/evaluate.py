"""transfgu-evaluate: score every trained row, the bottom-up clusters and the CAM variants on the test images.

Reads `data/transfgu/<scale>/`, `runs/transfgu/<scale>/{pretrain,cluster,train}/`. Writes
`runs/transfgu/<scale>/evaluate/`: `results.parquet` (tidy; tables T1 methods, T3 ablation, T4 CAM variants, T5 number of
concepts, T6 time is the report's) and `panels.safetensors`, predictions on the first test images of the first seed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog
from stages.transfgu.cells import TERMS, Job, concept_set, jobs_of, key_of, pretrained_backbone
from stages.transfgu.data import Images, PreparedData, class_names
from stages.transfgu.method.augment import normalise
from stages.transfgu.method.concept_cam import CAM_VARIANTS, cam_variant
from stages.transfgu.method.losses import mix_pseudo_labels
from stages.transfgu.method.metrics import ConfusionMatrix, Scores, many_to_one_scores, segmentation_scores
from stages.transfgu.method.rivals import cluster_logits, colour_features, fit_patches
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.official import head_from_official
from stages.transfgu.params import BackboneName, TransfguParams
from stages.transfgu.rivals import rival_logits
from stages.transfgu.training import head_logits, patch_tokens

BATCH = 16
FIT_IMAGES = 200  # training images that patch and colour clusters are fitted on
PANELS = 6
Predict = Callable[[Tensor], Tensor]  # images 0..255 -> scores [B, K, h, w]
Place = tuple[str, str]  # table and method
Row = dict[str, Any]


def main() -> None:
    """Evaluate all seeds."""
    params = load_params(TransfguParams, "transfgu")
    prepared, runs = Path("data/transfgu") / params.scale, Path("runs/transfgu") / params.scale
    cells = [(method, seed) for seed in params.seeds for method in params.methods]
    inputs = [prepared, *(runs / "train" / f"{method}-{seed}" for method, seed in cells)]
    inputs += [runs / part / str(seed) for part in ("pretrain", "cluster") for seed in params.seeds]
    with Stage("transfgu-evaluate", params, inputs):
        rows: list[Row] = []
        panels: dict[str, Tensor] = {}
        with progress("transfgu-evaluate", len(params.seeds)) as bar:
            work = partial(evaluate, params=params, prepared=prepared, runs=runs)
            for seed, (numbers, shown) in run_jobs(work, params.seeds):
                rows += numbers
                panels = shown if seed == params.seeds[0] else panels
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            save_file(panels, output / "panels.safetensors")


def evaluate(
    seed: int, params: TransfguParams, prepared: Path, runs: Path
) -> tuple[list[Row], dict[str, Tensor]]:
    """Rows of one seed, and predictions for the picture grid; numbers of trained rows also go to their MLflow runs."""
    data = PreparedData(prepared / str(seed), params)
    rows: list[Row] = []
    panels: dict[str, Tensor] = {}
    for places, predict in predictors(seed, params, data, runs):
        counts_CK, first = predict_all(predict, data.test, params)
        scores, merged = segmentation_scores(counts_CK), many_to_one_scores(counts_CK)
        numbers = {
            "mIoU": scores.miou,
            "mIoU things": group_iou(scores, params, True),
            "mIoU stuff": group_iou(scores, params, False),
            "pixel accuracy": scores.pixel_accuracy,
            "class accuracy": scores.class_accuracy,
            "mIoU, many to one": merged.miou,
            "pixel accuracy, many to one": merged.pixel_accuracy,
        }
        numbers |= {
            f"IoU {name}": float(value)
            for name, value in zip(class_names(params.data.name), scores.iou_C, strict=True)
        }
        numbers = {metric: value for metric, value in numbers.items() if np.isfinite(value)}
        for method in sorted({method for table, method in places if table in ("T1", "T3", "T5")}):
            with RunLog("transfgu", "", key_of(params, method, seed), kind="amend") as log:
                log.metrics(numbers)
        class_of_K = torch.full((counts_CK.shape[1],), 255, dtype=torch.uint8)
        for index, cluster in enumerate(scores.match_C):
            if cluster >= 0:
                class_of_K[cluster] = index
        for table, method in places:
            rows += [tidy(params, table, method, seed, metric, value) for metric, value in numbers.items()]
            panels[f"{table}/{method}"] = class_of_K[first]
    ids = list(range(min(PANELS, len(data.test))))
    panels["image"] = data.test.read(ids, (params.data.height, params.data.width)).to(torch.uint8)
    truth = data.test.labels(ids)
    panels["truth"] = torch.where(truth < 0, 255, truth).to(torch.uint8)
    return rows, {name: value.contiguous() for name, value in panels.items()}


def group_iou(scores: Scores, params: TransfguParams, things: bool) -> float:
    """mIoU over PartScenes' things or stuff; NaN for data whose classes are not told apart."""
    if params.data.name != "partscenes":
        return float("nan")
    stuff = 3
    return float(np.nanmean(scores.iou_C[stuff:] if things else scores.iou_C[:stuff]))


def predictors(
    seed: int, params: TransfguParams, data: PreparedData, runs: Path
) -> list[tuple[list[Place], Predict]]:
    """Everything that is scored: its places in the tables, and what gives its cluster scores."""
    device = start_device()
    found: list[tuple[list[Place], Predict]] = []
    pretrained, size = runs / "pretrain" / str(seed), (params.data.height, params.data.width)
    clusters = params.cluster.things + params.cluster.stuff + params.cluster.background
    count = min(FIT_IMAGES, len(data.train))  # spread evenly: neighbours may be frames of one film
    fit_images = data.train.read([index * len(data.train) // count for index in range(count)], size)
    backbones: dict[BackboneName, VisionTransformer] = {
        name: pretrained_backbone(name, params, pretrained, seed, device) for name in params.backbones
    }
    for name, model in backbones.items():
        fitted = fit_patches(tokens_of(model, fit_images), clusters, True, seed).centroids_KD
        method = "patch k-means" if name == "dino" else f"patch k-means, {name} backbone"
        found.append(([("T1", method)], partial(patch_scores, model, fitted)))
    main = backbones["dino"]
    colours = fit_patches(colour_features(fit_images / 255, main.patch), clusters, False, seed).centroids_KD
    found.append(([("T1", "colour k-means")], partial(colour_scores, main.patch, colours)))
    centroids = load_file(runs / "cluster" / str(seed) / f"{concept_set('dino')}.safetensors")["centroids"]
    for variant in CAM_VARIANTS:
        places = [("T4", variant), *([("T3", "cam")] if variant == "transfgu" else [])]
        found.append((places, partial(cam_scores, main, centroids, variant, params)))
    for method_name in params.methods:
        for job in jobs_of(method_name, params):
            path = runs / "train" / f"{method_name}-{seed}" / f"{job.row}.safetensors"
            predict = trained_scores(job, path, backbones[job.backbone])
            tables = ["T3"] if job.row in TERMS else []
            tables += ["T5"] if job.row == "transfgu" or method_name == "sweep" else []
            tables += ["T1"] if method_name not in ("ablation", "sweep") else []
            found.append(([(table, job.row) for table in tables], predict))
    return found


def tokens_of(model: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """Patch tokens of images 0..255, on the encoder's device."""
    return patch_tokens(model, normalise(images_BCHW.to(next(model.parameters()).device))).clone()


def patch_scores(model: VisionTransformer, centroids_KD: Tensor, images_BCHW: Tensor) -> Tensor:
    """Cosines of patch tokens with their clusters."""
    return cluster_logits(tokens_of(model, images_BCHW), centroids_KD, True)


def colour_scores(patch: int, centroids_KD: Tensor, images_BCHW: Tensor) -> Tensor:
    """Nearness of colour statistics to their clusters."""
    return cluster_logits(colour_features(images_BCHW / 255, patch), centroids_KD, False)


def cam_scores(
    model: VisionTransformer, centroids_KD: Tensor, variant: str, params: TransfguParams, images_BCHW: Tensor
) -> Tensor:
    """The pseudo labels alone."""
    x_BCHW = normalise(images_BCHW.to(next(model.parameters()).device))
    grid = x_BCHW.shape[-2] // model.patch, x_BCHW.shape[-1] // model.patch
    maps_BKn = cam_variant(variant, model, x_BCHW, centroids_KD, params.cam.batch_size)  # type: ignore[arg-type]
    return mix_pseudo_labels(maps_BKn.unflatten(-1, grid), None, params.cluster.background)[0]


def trained_scores(job: Job, path: Path, model: VisionTransformer) -> Predict:
    """A trained head on its frozen encoder."""
    state = load_file(path)
    if job.kind != "head":
        return lambda images_BCHW: rival_logits(state, tokens_of(model, images_BCHW))
    record = {name: value for name, value in state.items() if name != "heads"}
    head = head_from_official(record, int(state["heads"])).to(next(model.parameters()).device)

    @torch.no_grad()
    def predict(images_BCHW: Tensor) -> Tensor:
        return head_logits(head, tokens_of(model, images_BCHW))[0]

    return predict


def predict_all(predict: Predict, images: Images, params: TransfguParams) -> tuple[Tensor, Tensor]:
    """Confusion `[C, K]` over the test set, and the clusters of its first images `[P, H, W]`.

    Scores are upsampled bilinearly to the images' size before the argmax.
    """
    size, confusion, first = (params.data.height, params.data.width), None, []
    for start in range(0, len(images), BATCH):
        ids = list(range(start, min(start + BATCH, len(images))))
        scores_BKhw = predict(images.read(ids, size))
        clusters_BHW = F.interpolate(scores_BKhw, size, mode="bilinear").argmax(1).cpu()
        if confusion is None:
            confusion = ConfusionMatrix(len(class_names(params.data.name)), scores_BKhw.shape[1])
        confusion.update(images.labels(ids), clusters_BHW)
        if start < PANELS:
            first.append(clusters_BHW)
    assert confusion is not None
    return confusion.counts_CK, torch.cat(first)[:PANELS]


def tidy(params: TransfguParams, table: str, method: str, seed: int, metric: str, value: float) -> Row:
    """One row of the results."""
    return {
        "paper": "transfgu",
        "table": table,
        "method": method,
        "setting": f"{params.cluster.things} things, {params.cluster.stuff} stuff",
        "metric": metric,
        "value": value,
        "unit": "%",
        "seed": seed,
        "scale": params.scale,
        "data": params.data.name,
        "run_id": key_of(params, method, seed),
        "git_rev": git_revision(),
    }


if __name__ == "__main__":
    run(main)
