"""What names a run on point clouds (method, FLOPs target, seed), and its network, untrained and trained."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup, find_channel_groups
from stages.chex.method.slim import load_slim
from stages.chex.points.data import class_names
from stages.chex.points.params import PointsParams
from stages.chex.points.pointnet import PointNet
from stages.common.stage.tracking import RunLog, run_key


def setting_of(target: float | None) -> str:
    """How tables name a FLOPs target; None is the dense network."""
    return "dense" if target is None else f"FLOPs {target:g}"


def key_of(params: PointsParams, method: str, setting: str, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    parts = (part.model_dump() for part in (params.data, params.net, params.recipe, params.prune))
    return run_key("chex-points", params.scale, method, setting, seed, *parts)


def run_log(params: PointsParams, method: str, setting: str, seed: int) -> RunLog:
    """The MLflow run of one training."""
    return RunLog(
        paper="chex-points",
        name=f"{method} {setting} seed {seed}",
        key=key_of(params, method, setting, seed),
        params={
            "method": method, "data": params.data.name, "setting": setting, "seed": seed, **params.net.model_dump(),
            **params.recipe.model_dump(), **params.prune.model_dump(exclude={"flops"}),
        },
        tags={"scale": params.scale, "data": params.data.name, "method": method},
    )  # fmt: skip


def example(params: PointsParams, batch: int = 1) -> Tensor:
    """An input of the right shape, [N, 3, P]."""
    return torch.zeros(batch, 3, params.data.points)


def dense_model(
    params: PointsParams, prepared: Path, seed: int, device: torch.device
) -> tuple[nn.Module, list[ChannelGroup]]:
    """The untrained network of a seed and its prunable channel groups."""
    torch.manual_seed(seed)
    net = params.net
    model = PointNet(
        len(class_names(prepared)), net.shared, net.hidden, net.dropout, net.transform, net.norm_scale
    )
    groups, _ = find_channel_groups(model, example(params))
    return model.to(device), groups


def network_of(
    method: str, target: float | None, params: PointsParams, prepared: Path, runs: Path, seed: int, device: torch.device
) -> tuple[nn.Module, Path]:  # fmt: skip
    """A trained network, dense or slim, in eval mode, and its file."""
    network, _ = dense_model(params, prepared, seed, torch.device("cpu"))
    if target is None:
        path = runs / "pretrain" / str(seed) / "dense.safetensors"
        network.load_state_dict(load_file(path))
    else:
        path = runs / "prune" / f"{method}-{seed}" / f"{target:g}.safetensors"
        network = load_slim(path, network)
    return network.to(device).eval(), path
