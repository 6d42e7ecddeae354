"""The authors' released CHEX ResNets, loaded as slim networks.

Their ResNet-50/101 files hold dense tensors with exact zeros, their ResNet-18/34 files tensors that are
narrow already (card, "Official checkpoints"). Both carry torchvision's names behind a `module.` prefix.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup, find_channel_groups
from stages.chex.method.narrow import masked_positions
from stages.chex.method.resnet import ResNet, ResNetSpec
from stages.chex.method.slim import slim


def load_official(path: Path) -> nn.Module:
    """Read a released ResNet checkpoint (a dict with `state_dict`), no code unpickled; slim it.

    Raises:
        ValueError: not such a checkpoint, or an inconsistent one (see `from_official`).
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path}: no 'state_dict' in it; the released ResNet files are dicts that have one")
    return from_official(checkpoint["state_dict"])


def from_official(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A slim network, in eval mode, from a released state dict.

    A channel counts as pruned if its row of the producing convolution is zero; then its norm scale and bias
    and the columns that read it must be zero too.

    Args:
        state_dict: torchvision names, with or without the `module.` prefix; widths are read from the shapes.

    Raises:
        ValueError: one line naming the tensor: missing, or zeros that do not fit together.
    """
    state = {name.removeprefix("module."): value for name, value in state_dict.items()}
    model = ResNet(_spec(state))
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"not a released ResNet: missing {missing[:3]}, unexpected {unexpected[:3]}")
    groups, _ = find_channel_groups(model, torch.zeros(1, model.spec.in_channels, 64, 64))
    masks = {g.name: state[f"{g.name}.weight"].flatten(1).any(1) for g in groups}
    _check_zeros(model, groups, masks)
    return slim(model.eval(), groups, masks)


def _spec(state: Mapping[str, Tensor]) -> ResNetSpec:
    """Architecture from names and shapes; the strides are those of every released ResNet."""
    if "conv1.weight" not in state or "layer1.0.conv1.weight" not in state:
        raise ValueError("not a released ResNet: no conv1.weight and layer1.0.conv1.weight")
    last = "conv3" if "layer1.0.conv3.weight" in state else "conv2"
    blocks = [name.removesuffix(".conv1.weight") for name in state if name.endswith(".conv1.weight")]
    stages: dict[str, list[str]] = {}
    for block in sorted(
        blocks, key=lambda name: [int(part) for part in name.removeprefix("layer").split(".")]
    ):
        stages.setdefault(block.partition(".")[0], []).append(block)
    stem = state["conv1.weight"]
    return ResNetSpec(
        block="bottleneck" if last == "conv3" else "basic",
        stem=stem.shape[0],
        large_stem=stem.shape[-1] == 7,
        depths=tuple(len(blocks) for blocks in stages.values()),
        outs=tuple(state[f"{blocks[0]}.{last}.weight"].shape[0] for blocks in stages.values()),
        mids=tuple(state[f"{b}.conv1.weight"].shape[0] for blocks in stages.values() for b in blocks),
        strides=(1,) + (2,) * (len(stages) - 1),
        num_classes=state["fc.weight"].shape[0],
        in_channels=stem.shape[1],
    )


def _check_zeros(model: nn.Module, groups: list[ChannelGroup], masks: dict[str, Tensor]) -> None:
    rows, columns = masked_positions(model, groups, masks)
    for name, kept in rows.items():
        module = model.get_submodule(name)
        if not isinstance(module, nn.BatchNorm2d):
            continue
        for key, value in module.named_parameters():
            _require(
                not bool(value[~kept].any()), f"{name}.{key}", "is not zero where the convolution's rows are"
            )
        alive = bool((module.weight[kept] != 0).all())
        _require(alive, f"{name}.weight", "is zero where the convolution's rows are not")
    for name, kept in columns.items():
        weight = model.get_parameter(f"{name}.weight")
        _require(not bool(weight[:, ~kept].any()), f"{name}.weight", "has input columns for pruned channels")


def _require(condition: bool, tensor: str, problem: str) -> None:
    if not condition:
        raise ValueError(f"inconsistent zeros: {tensor} {problem}")
