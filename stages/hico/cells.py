"""The rows of the tables: which clips a method draws, from which videos, and what it minimises."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from stages.common.stage.tracking import RunLog, run_key
from stages.hico.method.clip_sampling import ClipRule
from stages.hico.method.encoders import HiCoModel
from stages.hico.method.heads import Combine
from stages.hico.params import HicoParams, MethodName

Source = Literal["untrimmed", "trimmed"]
Distance = tuple[float, float]


@dataclass(frozen=True)
class Method:
    """A row.

    Args:
        label: how the tables name it.
        loss: "hico" attracts the near pair (VCL), "simclr" every pair of a video's clips.
        clips: of a video; where there are three, the last one is drawn anywhere.
        distance: between near clips in seconds, at the start and at the end; "gradual" is the parameter's; None: anywhere.
        topic: weight of the topic loss; None leaves its head away.
        visual: False leaves VCL away.
        gamma: of the topic loss; None is the parameter's.
        combine: how the topic predictor sees a pair.
        source: what it is trained on.
    """

    label: str
    loss: Literal["simclr", "hico"] = "hico"
    clips: int = 3
    distance: Distance | Literal["gradual"] | None = "gradual"
    topic: float | None = 1.0
    visual: bool = True
    gamma: float | None = None  # None: the parameter's
    combine: Combine = "concat"
    source: Source = "untrimmed"

    def rule(self, params: HicoParams) -> ClipRule:
        """How its clips are drawn."""
        low, high = params.pretrain.distance
        distance = (low, high) if self.distance == "gradual" else self.distance
        return ClipRule(self.clips, distance, self.clips == 3)


def _vcl(distance: Distance | Literal["gradual"], label: str) -> Method:
    return Method(label, clips=2, distance=distance, topic=None)


METHODS: dict[MethodName, Method] = {
    "scratch": Method("random encoder; fine-tuned: supervised from scratch", topic=1.0),
    "simclr": Method("SimCLR, clips anywhere (unlimited distance)", "simclr", 2, None, None),
    "simclr-trimmed": Method("SimCLR, trimmed video", "simclr", 2, None, None, source="trimmed"),
    "vcl-0": _vcl((0, 0), "VCL only, 0 s"),
    "vcl-0.5": _vcl((0.5, 0.5), "VCL only, 0.5 s"),
    "vcl-1": _vcl((1, 1), "VCL only, 1 s"),
    "vcl-5": _vcl((5, 5), "VCL only, 5 s"),
    "vcl-10": _vcl((10, 10), "VCL only, 10 s"),
    "vcl-gradual": _vcl("gradual", "VCL only, gradual"),
    "vcl-3-clips": Method("control: three clips, no topic loss", topic=None),
    "tcl": Method("TCL only", visual=False),
    "hico": Method("**HiCo**: VCL + TCL, gradual"),
    "hico-fixed": Method("VCL + TCL, fixed 1 s", distance=(1, 1)),
    "hico-trimmed": Method("HiCo, trimmed video", source="trimmed"),
    "hico-far-positive": Method("far clip as a third positive", "simclr", topic=None),
    "hico-weight-0.5": Method("HiCo, topic weight 0.5", topic=0.5),
    "hico-weight-2": Method("HiCo, topic weight 2", topic=2.0),
    "hico-gamma-0": Method("HiCo, gamma 0", gamma=0.0),
    "hico-gamma-2": Method("HiCo, gamma 2", gamma=2.0),
    "hico-difference": Method("HiCo, pairs by difference", combine="difference"),
    "hico-dot": Method("HiCo, pairs by dot product", combine="dot"),
}


def build_model(params: HicoParams, method: MethodName, seed: int) -> HiCoModel:
    """The model that pre-training starts from; encoders of a seed are the same in every row."""
    torch.manual_seed(seed)
    row, recipe = METHODS[method], params.pretrain
    return HiCoModel(
        params.net, recipe.hidden, recipe.out, recipe.predictor, row.topic is not None, row.combine
    )


def pretrained_model(params: HicoParams, method: MethodName, seed: int, path: Path) -> HiCoModel:
    """The model that `hico-pretrain` left in the file `path`, on the CPU."""
    model = build_model(params, method, seed)
    model.load_state_dict(load_file(path))
    return model


def key_of(params: HicoParams, method: MethodName, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    data = params.untrimmed if METHODS[method].source == "untrimmed" else params.trimmed
    return run_key("hico", params.scale, data, params.net, method, seed, params.clip, params.pretrain)


def run_log(params: HicoParams, method: MethodName, seed: int) -> RunLog:
    """The MLflow run of one pre-training."""
    row, recipe = METHODS[method], params.pretrain
    data = str(params.untrimmed if row.source == "untrimmed" else params.trimmed)
    return RunLog(
        paper="hico",
        name=f"{method} seed {seed}",
        key=key_of(params, method, seed),
        params={
            "method": method,
            "data": data,
            "source": row.source,
            "net": params.net,
            "seed": seed,
            "clips": row.clips,
            "clip_seconds": params.clip.seconds,
            **recipe.model_dump(exclude={"augmentation"}),
        },
        tags={"scale": params.scale, "data": data, "method": method},
    )
