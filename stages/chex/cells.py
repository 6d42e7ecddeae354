"""What names a run of this paper (data set, method, FLOPs target, seed) and what every run starts with."""

import torch
from torch import nn

from stages.chex.data import CLASSES, SHAPES
from stages.chex.method.channel_groups import ChannelGroup, find_channel_groups
from stages.chex.method.resnet import build
from stages.chex.params import ChexParams, DataName, Recipe
from stages.common.stage.tracking import RunLog, run_key

BN_SCALE = 0.5  # the authors start every norm scale at a half (card, "Classification recipe")


def setting_of(target: float | None) -> str:
    """How tables name a FLOPs target; None is the dense network."""
    return "dense" if target is None else f"FLOPs {target:g}"


def key_of(params: ChexParams, data: DataName, method: str, setting: str, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    recipe = params.data[data].model_dump()
    return run_key("chex", params.scale, data, method, setting, seed, recipe, params.prune.model_dump())


def run_log(params: ChexParams, data: DataName, method: str, setting: str, seed: int) -> RunLog:
    """The MLflow run of one training."""
    return RunLog(
        paper="chex",
        name=f"{method} {data} {setting} seed {seed}",
        key=key_of(params, data, method, setting, seed),
        params={
            "method": method, "data": data, "setting": setting, "seed": seed,
            **params.data[data].model_dump(), **params.prune.model_dump(exclude={"flops"}),
        },
        tags={"scale": params.scale, "data": data, "method": method},
    )  # fmt: skip


def dense_model(
    data: DataName, recipe: Recipe, seed: int, device: torch.device
) -> tuple[nn.Module, list[ChannelGroup]]:
    """The untrained network of a seed and its prunable channel groups."""
    torch.manual_seed(seed)
    model = build(recipe.net, CLASSES[data], in_channels=SHAPES[data][0], norm_scale=BN_SCALE)
    groups, _ = find_channel_groups(model, example(data))
    return model.to(device), groups


def example(data: DataName, batch: int = 1) -> torch.Tensor:
    """An input of the right shape."""
    return torch.zeros(batch, *SHAPES[data])
