"""The authors' released weights: ELSA-Swin classifiers and the backbones of their detectors and segmentors.

The trunk of `method/swin.py` has the authors' parameter names, so that a checkpoint needs no renaming; what differs is
wrapped around it (card, "Official checkpoints"): a `module.` or `backbone.` prefix, an EMA copy, and buffers that
follow from the configuration.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common.stage.errors import InputError
from stages.elsa.method.dense import DenseBackbone

BUFFERS = ("relative_id", "attn_mask")


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict with the names of `SwinTransformer` or `ELSAVOLO`: prefixes and buffers are dropped."""
    state = {}
    for name, value in state_dict.items():
        name = name.removeprefix("module.").removeprefix("backbone.")
        if not name.endswith(BUFFERS):
            state[name] = value
    return state


def load_official(model: nn.Module, path: Path, ema: bool = False) -> nn.Module:
    """Load a released file into a classifier or a `DenseBackbone`; `ema` picks the averaged weights (base model).

    Raises:
        InputError: the file is missing, is no checkpoint, or does not fit the model.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise InputError(f"{path}: not a checkpoint ({' '.join(str(error).split())[:120]})") from None
    key = "state_dict_ema" if ema else "state_dict"
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise InputError(f"{path}: has no {key}")
    state = from_official({k: v for k, v in content[key].items() if isinstance(v, Tensor)})
    if isinstance(model, DenseBackbone):  # detectors have more than the backbone
        names = model.state_dict().keys()
        state = {k: v for k, v in dense_names(state).items() if k in names}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    return model.eval()


def dense_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a released backbone as `DenseBackbone` has them: `normN` beside the trunk."""
    own = ("norm0", "norm1", "norm2", "norm3")
    return {(k if k.startswith(own) else f"trunk.{k}"): v for k, v in state.items()}


def swin_to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Swin's weights (Microsoft's or timm's names) as the authors name window attention.

    `qkv` [q|k|v] becomes `pre_proj` [v|q|k]; the bias table `[(2w-1)^2, heads]` by (query - key) becomes `rb`,
    transposed and reversed, because it is by (key - query). timm counts merging with the stage
    behind it, Swin with the one before.
    """
    timm = (
        "layers.1.downsample.norm.weight" in state_dict
        and "layers.0.downsample.norm.weight" not in state_dict
    )
    state = {}
    for name, value in state_dict.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        parts = name.split(".")
        if timm and "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        name = ".".join(parts).replace("head.fc.", "head.")
        if ".attn.qkv." in name:
            q, k, v = value.chunk(3)
            name, value = name.replace("qkv", "pre_proj"), torch.cat([v, q, k])
        elif name.endswith("relative_position_bias_table"):
            name, value = name.replace("relative_position_bias_table", "rb"), value.flip(0).T.contiguous()
        state[name.replace(".attn.proj.", ".attn.post_proj.")] = value
    return state
