"""What names a run of this paper (model, data set, horizon ...) and what every run starts with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from stages.common.stage.tracking import RunLog, run_key
from stages.fedformer.data import TITLES, Series, open_series
from stages.fedformer.method.linear import DLinear, NLinear, RepeatLast
from stages.fedformer.method.time_features import FEATURES
from stages.fedformer.method.transformer import Transformer
from stages.fedformer.method.trunk import Config, FEDformer, Sizes
from stages.fedformer.params import DataName, Features, FedformerParams, ModelName, Recipe, VariationName

TRUNKS: dict[ModelName, dict[str, Any]] = {
    "fedformer-f": {"self_block": "fourier", "cross_block": "fourier"},
    "fedformer-f-paper": {
        "self_block": "fourier", "cross_block": "fourier", "variant": "paper", "activation": "tanh_split"
    },
    "fedformer-w": {"self_block": "wavelet", "cross_block": "wavelet"},
    "fedformer-w-paper": {
        "self_block": "wavelet", "cross_block": "wavelet", "variant": "paper", "activation": "tanh_split"
    },
    "autoformer": {"self_block": "auto-correlation", "cross_block": "auto-correlation"},
}  # fmt: skip
# the models that `Recipe.variations` is about
VARIED: tuple[ModelName, ...] = ("fedformer-f", "fedformer-f-paper")
VARIATIONS: Mapping[str, dict[str, Any]] = {
    **{
        f"M{m}-{policy}": {"modes": m, "policy": policy}
        for m in (2, 4, 8, 16, 32)
        for policy in ("random", "low")
    },
    "mixture": {"kernels": (7, 12, 14, 24, 48)},
    "softmax": {"activation": "softmax"},
    "V1": {"cross_block": "auto-correlation"},
    "V2": {"self_block": "auto-correlation"},
    "V3": {"self_block": "fourier-attention"},
}


@dataclass(frozen=True)
class Job:
    """One training inside a cell; `variation` is "" for the model as it is."""

    data: DataName
    features: Features
    horizon: int
    variation: VariationName | Literal[""] = ""

    @property
    def stem(self) -> str:
        """File name of its results."""
        return "-".join(
            str(part) for part in (self.data, self.features, self.horizon, self.variation) if part
        )


def jobs_of(params: FedformerParams, model: ModelName) -> list[Job]:
    """Everything that is trained of one model and seed; the expensive ones first."""
    jobs = []
    for data, recipe in params.data.items():
        for horizon in recipe.models.get(model, []):
            jobs += [Job(data, features, horizon) for features in recipe.features]
            if model in VARIED:
                jobs += [Job(data, "M", horizon, variation) for variation in recipe.variations]
    return sorted(jobs, key=lambda job: -job.horizon)


def setting_of(job: Job, recipe: Recipe) -> str:
    """How the published numbers name a setting, and the variation behind it."""
    setting = (
        f"dataset={TITLES[job.data]};features={job.features};seq_len={recipe.seq_len};"
        f"label_len={recipe.label_len};pred_len={job.horizon}"
    )
    return setting + (f";variation={job.variation}" if job.variation else "")


def key_of(params: FedformerParams, job: Job, model: ModelName, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    recipe = params.data[job.data].model_dump(exclude={"models", "variations", "features"})
    return run_key("fedformer", params.scale, job.stem, model, seed, recipe)


def run_log(params: FedformerParams, job: Job, model: ModelName, seed: int) -> RunLog:
    """The MLflow run of one training."""
    recipe = params.data[job.data].model_dump(exclude={"models", "variations", "features"})
    return RunLog(
        paper="fedformer",
        name=f"{model} {job.stem} seed {seed}",
        key=key_of(params, job, model, seed),
        params={"model": model, "data": job.data, "features": job.features, "horizon": job.horizon,
                "variation": job.variation, "seed": seed, **recipe},
        tags={"scale": params.scale, "data": job.data, "method": model},
    )  # fmt: skip


def open_job(prepared: Path, job: Job, device: torch.device) -> Series:
    """The data of a job."""
    series = open_series(prepared / f"{job.data}.safetensors")
    return (series.only_target() if job.features == "S" else series).to(device)


def build_model(model: ModelName, job: Job, recipe: Recipe, variates: int, seed: int) -> nn.Module:
    """The untrained network of a seed; the seed draws its random modes too."""
    torch.manual_seed(seed)
    sizes = Sizes(
        variates=variates, features=FEATURES["h"], seq_len=recipe.seq_len, label_len=recipe.label_len,
        pred_len=job.horizon, width=recipe.width, heads=recipe.heads, hidden=recipe.hidden,
    )  # fmt: skip
    match model:
        case "repeat-last":
            return RepeatLast(job.horizon)
        case "dlinear":
            return DLinear(recipe.seq_len, job.horizon)
        case "nlinear":
            return NLinear(recipe.seq_len, job.horizon)
        case "informer" | "transformer":
            return Transformer(sizes, sparse=model == "informer")
    config = Config(
        sizes, kernels=tuple(recipe.kernels), modes=recipe.modes, polynomials=recipe.wavelet.polynomials,
        self_channels=recipe.wavelet.self_channels, cross_channels=recipe.wavelet.cross_channels,
        alpha=recipe.wavelet.alpha, skipped=recipe.wavelet.skipped,
    )  # fmt: skip
    config = replace(config, **TRUNKS[model])
    config = replace(config, **VARIATIONS[job.variation]) if job.variation else config
    return FEDformer(config, np.random.RandomState(seed))
