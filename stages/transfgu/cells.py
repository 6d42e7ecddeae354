"""What names a run of this paper, which rows a cell of the matrix trains, and what every run starts with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from stages.common.stage.tracking import RunLog, run_key
from stages.transfgu.method.losses import Terms
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.official import load_backbone, timm_backbone
from stages.transfgu.params import BackboneName, MethodName, TransfguParams

# the ablation, cumulative: each row adds one part to the row above
TERMS: dict[str, Terms] = {
    "no-teacher": Terms(False, False, False, False),
    "teacher": Terms(True, False, False, False),
    "negative": Terms(True, True, False, False),
    "uncertainty": Terms(True, True, True, False),
    "transfgu": Terms(),
}


@dataclass(frozen=True)
class Job:
    """One training. `kind` "head" trains the mask transformer with `terms`; `factor` multiplies the things."""

    row: str
    kind: Literal["head", "picie", "stego"] = "head"
    terms: Terms = Terms()  # noqa: RUF009  (frozen)
    backbone: BackboneName = "dino"
    factor: float = 1.0

    @property
    def concepts(self) -> str:
        """Stem of its concepts and pseudo maps."""
        return concept_set(self.backbone, self.factor)


def concept_set(backbone: BackboneName, factor: float = 1.0) -> str:
    """Name of a set of concepts."""
    return f"{backbone}-x{factor:g}"


def concept_counts(params: TransfguParams, factor: float = 1.0) -> tuple[int, int]:
    """Things and stuff of a set of concepts."""
    return max(1, round(params.cluster.things * factor)), params.cluster.stuff


def concept_sets(params: TransfguParams) -> list[tuple[BackboneName, float]]:
    """Every set of concepts that the methods need."""
    sets: list[tuple[BackboneName, float]] = [(backbone, 1.0) for backbone in params.backbones]
    return sets + ([("dino", factor) for factor in params.cluster.sweep] if "sweep" in params.methods else [])


def jobs_of(method: MethodName, params: TransfguParams) -> list[Job]:
    """The trainings of one cell."""
    match method:
        case "transfgu":
            return [Job("transfgu")]
        case "ablation":
            return [Job(row, terms=terms) for row, terms in TERMS.items() if row != "transfgu"]
        case "sweep":
            return [Job(f"transfgu-x{factor:g}", factor=factor) for factor in params.cluster.sweep]
        case "random" | "shuffled":
            return [Job(f"transfgu-{method}", backbone=method)]
        case "picie" | "stego":
            return [Job(method, method)]


def key_of(params: TransfguParams, row: str, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    return run_key("transfgu", row, seed, params.model_dump(exclude={"methods", "seeds"}))


def run_log(params: TransfguParams, row: str, seed: int) -> RunLog:
    """The MLflow run of one training."""
    return RunLog(
        "transfgu",
        f"{row} {params.data.name} seed {seed}",
        key_of(params, row, seed),
        params={"method": row, "seed": seed, **params.train.model_dump(), **params.cluster.model_dump()},
        tags={"scale": params.scale, "data": params.data.name, "method": row},
    )


def fresh_backbone(params: TransfguParams, seed: int) -> VisionTransformer:
    """An encoder of the parameters' size with random weights."""
    torch.manual_seed(seed)
    shape = params.backbone
    return VisionTransformer(shape.patch, shape.width, shape.depth, shape.heads, shape.native)


def released_backbone(weights: str) -> VisionTransformer:
    """An encoder from a file, or by timm's name."""
    return (
        timm_backbone(weights.removeprefix("timm:"))
        if weights.startswith("timm:")
        else load_backbone(Path(weights))
    )


def pretrained_backbone(
    name: BackboneName, params: TransfguParams, folder: Path, seed: int, device: torch.device
) -> VisionTransformer:
    """The encoder that `pretrain` left, frozen in eval mode."""
    if params.backbone.weights == "train" or name != "dino":
        model = fresh_backbone(params, seed)
        model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    else:
        model = released_backbone(params.backbone.weights)
    return model.to(device).eval().requires_grad_(False)
