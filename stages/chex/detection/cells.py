"""What names a run on detectors (detector, method, FLOPs target, seed), its data, and its trained network."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from stages.chex.detection.networks import build
from stages.chex.detection.params import DetectionParams, DetectorName
from stages.chex.method.slim import load_slim
from stages.common.dense.coco import CocoImages, open_coco
from stages.common.dense.splits import Split
from stages.common.stage.tracking import RunLog, run_key


def setting_of(target: float | None) -> str:
    """How tables name a FLOPs target (of the body); None is the dense detector."""
    return "dense" if target is None else f"body FLOPs {target:g}"


def key_of(params: DetectionParams, detector: DetectorName, method: str, setting: str, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    parts = params.data.model_dump(), params.detectors[detector].model_dump()
    return run_key("chex-detection", params.scale, detector, method, setting, seed, *parts)


def run_log(params: DetectionParams, detector: DetectorName, method: str, setting: str, seed: int) -> RunLog:
    """The MLflow run of one training."""
    settings = params.detectors[detector]
    return RunLog(
        paper="chex-detection",
        name=f"{detector} {method} {setting} seed {seed}",
        key=key_of(params, detector, method, setting, seed),
        params={
            "detector": detector, "method": method, "setting": setting, "seed": seed, "net": settings.net,
            **settings.recipe.model_dump(), **settings.prune.model_dump(exclude={"flops"}),
        },
        tags={"scale": params.scale, "detector": detector, "method": method},
    )  # fmt: skip


def open_images(prepared: Path, split: Split, detector: DetectorName) -> CocoImages:
    """The prepared images with the targets that a detector learns from."""
    return open_coco(prepared, split, first_label=1, masks=detector == "mask-rcnn")


def network_of(
    detector: DetectorName, method: str, target: float | None, params: DetectionParams, runs: Path, seed: int,
    device: torch.device,
) -> tuple[nn.Module, Path]:  # fmt: skip
    """A trained detector, dense or slim, in eval mode, and its file."""
    cpu = torch.device("cpu")
    network = build(detector, params.detectors[detector].net, params.classes, seed, cpu).model
    if target is None:
        path = runs / "pretrain" / str(seed) / f"{detector}-dense.safetensors"
        network.load_state_dict(load_file(path))
    else:
        path = runs / "prune" / f"{method}-{seed}" / f"{detector}-{target:g}.safetensors"
        network = load_slim(path, network)
    return network.to(device).eval(), path
