"""The authors' released weights of detectors and backbones (card, "Official checkpoints").

Their structure files are read by `stages.zendet.method.structure`, their latency tables by `stages.zendet.latency_table`.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.stage.errors import InputError
from stages.zendet.detector import build_detector
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.structure import Structure
from stages.zendet.params import Detector

RENAMED = (  # MMDetection's names and torchvision's
    (re.compile(r"^bbox_head\."), "head."),
    (re.compile(r"^neck\.lateral_convs\.(\d)\.conv\."), r"backbone.fpn.inner_blocks.\1.0."),
    (re.compile(r"^neck\.fpn_convs\.([0-2])\.conv\."), r"backbone.fpn.layer_blocks.\1.0."),
    (re.compile(r"^neck\.fpn_convs\.3\.conv\."), "backbone.fpn.extra_blocks.convs.0."),
    (re.compile(r"^neck\.fpn_convs\.4\.conv\."), "backbone.fpn.extra_blocks.convs.1."),
)


def load_official_backbone(path: Path, structure: Structure) -> MasterNet:
    """A backbone in eval mode, from a released classification or detection checkpoint.

    Raises:
        InputError: not a checkpoint of this structure; one line naming the first tensors.
    """
    state = {
        name.removeprefix("module.").removeprefix("backbone.body."): value
        for name, value in _state_dict(path).items()
    }
    body = {name: value for name, value in state.items() if name.startswith("block_list.")}
    try:
        return MasterNet(structure).from_official(body).eval()
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def load_official_detector(path: Path, structure: Structure, classes: int = 80) -> nn.Module:
    """A GFLV2 detector in eval mode, from a released `latest.pth`; its width is read from the neck.

    Labels count COCO's 80 categories in their order. The released M file gave a user AP 3.9 (card): do not trust it.

    Raises:
        InputError: not a checkpoint of this structure; one line naming the first tensors.
    """
    theirs = _state_dict(path)
    if "neck.lateral_convs.0.conv.bias" not in theirs:
        raise InputError(f"{path}: not a released detector: no neck.lateral_convs.0.conv.bias")
    state = {our_name(name): value for name, value in theirs.items()}
    channels = len(theirs["neck.lateral_convs.0.conv.bias"])
    released = Detector(
        channels=channels, convs=4, levels=5, groups=32, sizes=[800], longest=1333, zero_residual=False
    )
    detector = build_detector(structure, "gfl", classes, released)
    own = detector.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    left = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or left or wrong:
        raise InputError(
            f"{path}: not this detector: missing {missing[:3]}, left over {left[:3]}, of another shape {wrong[:3]}"
        )
    detector.load_state_dict(state, strict=False)
    return detector.eval()


def our_name(name: str) -> str:
    """The name that a tensor of a released detector has here."""
    for pattern, ours in RENAMED:
        name = pattern.sub(ours, name)
    return name


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint, no code unpickled."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except Exception as error:  # torch raises several kinds, depending on where the damage is
        raise InputError(
            f"{path}: not a checkpoint of tensors ({str(error).splitlines()[0][:100]})"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: no state dict in it")
    return state
