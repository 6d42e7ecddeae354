"""What names a run of this paper, and which rows a cell of the matrix trains."""

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.common.stage.tracking import RunLog, run_key
from stages.motionrgbd.data import Clips, few
from stages.motionrgbd.method.capf import CAPF, ConcatFusion
from stages.motionrgbd.networks import build_fusion, build_unimodal, load_sides
from stages.motionrgbd.params import MODALITIES, FusionRow, Modality, MotionrgbdParams, UnimodalRow

METHODS = ("full", "ablation")
FUSIONS = ("fusion", "interaction")
FUSION_ROWS: dict[str, tuple[FusionRow, ...]] = {
    "fusion": ("capf", "concat"),
    "interaction": ("no-spatial", "no-temporal", "no-auxiliary"),
}
Step = Literal["pretrain", "finetune"]
Job = tuple[UnimodalRow, Modality]


def jobs_of(method: str, params: MotionrgbdParams) -> list[Job]:
    """The unimodal trainings of a cell: the full method on both modalities, or the ablation's rows on one."""
    if method == "full":
        return [("full", modality) for modality in MODALITIES]
    return [(row, params.ablation.modality) for row in params.ablation.rows]


def target_of(method: str, params: MotionrgbdParams, label_N: Tensor) -> Tensor:
    """The target of a cell's trainings.

    On generated clips the ablation's is what its modality can see of the label (8 of 16 classes): half of the label is
    out of reach, and a row's accuracy would move in half steps.
    """
    if method != "ablation" or params.data.name != "generated":
        return label_N
    return visible(label_N, params.ablation.modality)


def visible(label_N: Tensor, modality: Modality) -> Tensor:
    """The part of a generated label that a modality can see, 0 .. 7: trajectory and glove, or trajectory and push."""
    return label_N // 2 if modality == "rgb" else label_N // 4 * 2 + label_N % 2


def classes_of(method: str, params: MotionrgbdParams) -> int:
    """How many classes `target_of` has."""
    half = method == "ablation" and params.data.name == "generated"
    return params.data.classes // 2 if half else params.data.classes


def clips_of(method: str, params: MotionrgbdParams, clips: Clips) -> Tensor:
    """The training clips of a cell: all, or the ablation's few."""
    return few(clips.label_N, params.ablation.per_class if method == "ablation" else 0)


def key_of(params: MotionrgbdParams, method: str, name: str, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow; `name` is a job's or a fusion row's."""
    return run_key(
        "motionrgbd", method, name, seed, params.model_dump(exclude={"methods", "fusions", "seeds", "launch"})
    )


def run_log(params: MotionrgbdParams, method: str, name: str, seed: int) -> RunLog:
    """The MLflow run of one training."""
    recipe = params.finetune if method in FUSIONS else params.pretrain.recipe
    return RunLog(
        "motionrgbd",
        f"{method} {name} seed {seed}",
        key_of(params, method, name, seed),
        params={
            "cell": method,
            "row": name,
            "seed": seed,
            **recipe.model_dump(),
            **params.network.model_dump(),
        },
        tags={"scale": params.scale, "data": params.data.name, "method": name},
    )


def stem(job: Job) -> str:
    """File name of a unimodal training."""
    return f"{job[0]}-{job[1]}"


def trained_unimodal(
    params: MotionrgbdParams, method: str, job: Job, folder: Path, seed: int, device: torch.device
) -> nn.Module:
    """A network that `pretrain` left in `folder`, in eval mode."""
    net = build_unimodal(params, job[0], classes_of(method, params), seed)
    net.load_state_dict(load_file(folder / f"{stem(job)}.safetensors"))
    return net.to(device).eval()


def trained_fusion(
    params: MotionrgbdParams, row: FusionRow, folder: Path, seed: int, device: torch.device
) -> nn.Module:
    """A network that `finetune` left in `folder`, in eval mode."""
    net = build_fusion(params, row, seed)
    net.load_state_dict(load_file(folder / f"{row}.safetensors"))
    return net.to(device).eval()


def new_fusion(params: MotionrgbdParams, row: FusionRow, pretrained: Path, seed: int) -> CAPF | ConcatFusion:
    """A fusion that starts from both trained unimodal networks."""
    net = build_fusion(params, row, seed)
    states = [load_file(pretrained / f"{stem(('full', modality))}.safetensors") for modality in MODALITIES]
    load_sides(net, *states)
    return net
