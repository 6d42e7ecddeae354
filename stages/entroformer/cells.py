"""The methods, what a cell of the matrix trains, what names a run, and models with their files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.common.stage.files import write_atomic
from stages.common.stage.tracking import RunLog, run_key
from stages.entroformer.method.attention import AttentionSpec
from stages.entroformer.method.codec import CodecSpec, ImageCodec
from stages.entroformer.params import EntroformerParams, Family, MethodName, Track, TrackName


@dataclass(frozen=True)
class Method:
    """An entropy model of the tables. `warm`: it starts from the random-mask pre-training."""

    family: Family
    hyper: Literal["none", "conv", "transformer"]
    context: Literal["none", "masked-conv", "checkerboard-conv", "serial", "two-pass"]
    warm: bool = False
    position: str = "diamond"
    dense: bool = False
    score_scale: str = "embed"
    mixtures: int = 1
    prior: Literal["gaussian", "deep"] = "gaussian"


METHODS: dict[MethodName, Method] = {
    "cnn-hyper": Method("cnn", "conv", "none"),
    "cnn-context": Method("cnn", "none", "masked-conv"),
    "cnn-serial": Method("cnn", "conv", "masked-conv"),
    "cnn-two-pass": Method("cnn", "conv", "checkerboard-conv"),
    "ent-hyper": Method("entroformer", "transformer", "none"),
    "ent-context": Method("entroformer", "none", "serial"),
    "ent-serial": Method("entroformer", "transformer", "serial", warm=True),
    "ent-two-pass": Method("entroformer", "transformer", "two-pass", warm=True),
    "context-no-position": Method("ablation", "none", "serial", position="none"),
    "context-absolute": Method("ablation", "none", "serial", position="absolute"),
    "context-square": Method("ablation", "none", "serial", position="square"),
    "context-dense": Method("ablation", "none", "serial", dense=True),
    "context-head-scale": Method("ablation", "none", "serial", score_scale="head"),
    "context-mixtures": Method("ablation", "none", "serial", mixtures=3),
    "serial-deep-prior": Method("ablation", "transformer", "serial", prior="deep"),
}
PRETRAINED = Method("entroformer", "transformer", "two-pass")


@dataclass(frozen=True)
class Job:
    """One training: a method on a track, for one trade-off (0 where the transform is fixed)."""

    track: TrackName
    method: MethodName
    trade_off: float

    @property
    def setting(self) -> str:
        """How results name it, beside its method."""
        return self.track if self.trade_off == 0 else f"{self.track}, lambda {self.trade_off:g}"

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.track}-{self.method}-{self.trade_off:g}"


def jobs_of(family: Family, params: EntroformerParams) -> list[Job]:
    """The trainings of one cell, long ones first."""
    jobs = [
        Job(name, method, trade_off)
        for name, track in params.tracks.items()
        for method in track.methods
        if METHODS[method].family == family
        for trade_off in track.lambdas
    ]
    weight = {"none": 0, "conv": 1, "transformer": 3}
    return sorted(jobs, key=lambda job: (-weight[METHODS[job.method].hyper], job.name))


def codec_spec(method: Method, track: Track) -> CodecSpec:
    """The codec of a method on a track."""
    topk = -1 if method.dense else track.topk
    attention = AttentionSpec(
        track.dim,
        track.heads,
        track.dim_head,
        track.mlp_ratio,
        track.position_num,
        topk,
        method.position,
        method.score_scale,
    )
    return CodecSpec(
        track.transform, track.channels, track.latents, track.hyper_channels, method.hyper, method.context, attention,
        track.depth, method.mixtures, method.prior,
    )  # fmt: skip


def key_of(params: EntroformerParams, job: Job, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    track = params.tracks[job.track].model_dump(exclude={"methods", "lambdas"})
    return run_key("entroformer", params.scale, job.name, seed, track, params.data.model_dump())


def run_log(params: EntroformerParams, job: Job, seed: int) -> RunLog:
    """The MLflow run of one training."""
    track = params.tracks[job.track].model_dump(exclude={"methods", "lambdas"})
    return RunLog(
        paper="entroformer",
        name=f"{job.method} {job.setting} seed {seed}",
        key=key_of(params, job, seed),
        params={"method": job.method, "setting": job.setting, "seed": seed, "lambda": job.trade_off, **track},
        tags={"scale": params.scale, "data": params.data.source, "method": job.method},
    )


def save_model(codec: ImageCodec, path: Path) -> None:
    """Write a codec: safetensors, its specification in the metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in codec.state_dict().items()}
    write_atomic(path, save(state, {"entroformer": json.dumps(asdict(codec.spec))}))


def load_model(path: Path) -> ImageCodec:
    """Read a codec that `save_model` has written, in eval mode.

    Raises:
        InputError: the file is missing, damaged, or not such a codec.
    """
    try:
        with safe_open(path, "pt") as file:
            spec = CodecSpec.from_dict(json.loads((file.metadata() or {})["entroformer"]))
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        codec = ImageCodec(spec)
        codec.load_state_dict(state)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such model file") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path}: not a codec of this project ({' '.join(str(error).split())[:120]})"
        ) from None
    return codec.eval()
