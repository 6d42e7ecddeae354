"""The physically slim network: a plain module without masks, equal to the masked one, and its file.

Source: card, "Performance" (slimming) and step "Components" (`slim`, `save_slim`, `load_slim`).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stages.chex.method.channel_groups import ChannelGroup
from stages.chex.method.narrow import Kept, Masks, copied, kept_positions, narrow_
from stages.chex.method.resnet import ResNet, ResNetSpec


def slim(model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks) -> nn.Module:
    """A slim copy of a masked network: same outputs, fewer multiply-accumulates and parameters.

    Args:
        model: the full network; not changed.
        groups: its channel groups.
        masks: group name -> [units] bool, True: kept. What is masked counts as zero, whether it is or not.

    Returns:
        The copy, in the mode (train or eval) of `model`. Its `slim_kept` attribute says what is left.
    """
    kept = kept_positions(model, groups, masks)
    slimmed = narrow_(copied(model), kept)
    slimmed.slim_kept = kept  # type: ignore[assignment]
    return slimmed


def save_slim(model: nn.Module, path: Path) -> None:
    """Write a slim network as one safetensors file: its weights, and its structure as JSON in the metadata.

    Raises:
        ValueError: `model` does not come from `slim`.
    """
    kept = getattr(model, "slim_kept", None)
    if not isinstance(kept, Kept):
        raise ValueError("save_slim writes what slim() returned; this model has no slim_kept")
    structure = {"kept": asdict(kept)}
    if isinstance(model, ResNet):
        structure["resnet"] = asdict(model.spec)
    metadata = {"slim": json.dumps(structure)}  # one entry: safetensors writes several in random order
    # safetensors stores no tensor twice: contiguous copies of shared ones
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata)


def load_slim(path: Path, skeleton: nn.Module | None = None) -> nn.Module:
    """Read a slim network, in eval mode; the dense weights are neither needed nor allocated.

    Args:
        path: a file of `save_slim`.
        skeleton: for networks other than `resnet.ResNet`: the dense architecture, whose weights are not read;
            build it under `torch.device("meta")` to allocate nothing. It is changed into the slim network.

    Raises:
        ValueError: the file is not one of ours, or needs a skeleton, or does not fit it.

    Example:
        >>> with torch.device("meta"):
        ...     skeleton = torchvision.models.mobilenet_v2()  # doctest: +SKIP
        >>> net = load_slim(Path("slim.safetensors"), skeleton)  # doctest: +SKIP
    """
    with safe_open(path, framework="pt") as file:
        structure: dict[str, Any] = json.loads((file.metadata() or {}).get("slim", "{}"))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "kept" not in structure:
        raise ValueError(f"{path}: no slim structure in the metadata; write it with save_slim")
    if skeleton is None:
        if "resnet" not in structure:
            raise ValueError(f"{path}: not one of our ResNets; pass the dense architecture as `skeleton`")
        fields = structure["resnet"]
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        with torch.device("meta"):
            skeleton = ResNet(ResNetSpec(**fields))
    kept = Kept(**structure["kept"])
    try:
        narrow_(skeleton, kept).load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit {type(skeleton).__name__}: {error}") from error
    skeleton.slim_kept = kept  # type: ignore[assignment]
    return skeleton.eval()
