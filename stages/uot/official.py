"""What the authors released or started from: class means, dual-head models, pre-trained checkpoints.

No code is unpickled.

Names in released files (card, "Official checkpoints"): a fine-tuned model has torchvision's ResNet names plus
`fc_up.*` and `fc_down.*`, with an optional `module.` prefix; MoCo-v2 has `module.encoder_q.*`, whose `fc.0`
and `fc.2` are the projection head.
"""

import codecs
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.common.stage.errors import InputError
from stages.uot.method.backbones import WIDTHS, BackboneName, build_backbone
from stages.uot.method.dual_head import DualHeadModel

MOCO_PREFIX = "module.encoder_q."


def from_official(state_dict: Mapping[str, Tensor]) -> DualHeadModel:
    """A released fine-tuned model, in eval mode; the network and its class counts are read from the shapes.

    A plain torchvision ResNet state dict is taken too: its `fc` becomes `fc_up`, and `fc_down` is fresh with
    as many classes.

    Raises:
        ValueError: one line naming a tensor that is missing, left over or of another shape.
    """
    state = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if "fc.weight" in state and "fc_up.weight" not in state:
        state = {("fc_up" + name[2:] if name.startswith("fc.") else name): v for name, v in state.items()}
    if "fc_up.weight" not in state:
        raise ValueError("not a dual-head ResNet: no fc_up.weight")
    net = network_of(state)
    n_source = len(state["fc_up.weight"])
    n_target = len(state.get("fc_down.weight", state["fc_up.weight"]))
    model = DualHeadModel(build_backbone(net), WIDTHS[net], n_source, n_target)
    heads = ("fc_up.", "fc_down.")
    renamed = {(name if name.startswith(heads) else f"backbone.{name}"): v for name, v in state.items()}
    optional = () if "fc_down.weight" in state else ("fc_down.",)
    _load(model, renamed, optional)
    return model.eval()


def load_official(path: Path) -> DualHeadModel:
    """Read a released fine-tuned model from a file: a state dict, or a dict with one under `state_dict`.

    Raises:
        InputError: the file is missing or not such a checkpoint.
    """
    try:
        return from_official(_state_dict(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def load_start(path: Path, net: BackboneName) -> dict[str, Tensor]:
    """A pre-trained checkpoint as `backbone.*`, and `projection.*` if it is MoCo-v2's.

    Takes torchvision's ResNet-18 and ResNet-50 files and MoCo-v2's `moco_v2_800ep_pretrain.pth.tar`.

    Raises:
        InputError: the file is missing, or not a checkpoint of `net`.
    """
    state = _state_dict(path)
    result: dict[str, Tensor] = {}
    if any(name.startswith(MOCO_PREFIX) for name in state):
        state = {n.removeprefix(MOCO_PREFIX): v for n, v in state.items() if n.startswith(MOCO_PREFIX)}
        result = {
            f"projection.layers.{n.removeprefix('fc.')}": v for n, v in state.items() if n.startswith("fc.")
        }
    backbone = build_backbone(net)
    try:
        _load(backbone, {name: value for name, value in state.items() if not name.startswith("fc.")})
    except ValueError as error:
        raise InputError(f"{path}: not a checkpoint of {net}: {error}") from None
    return {**result, **{f"backbone.{name}": value for name, value in backbone.state_dict().items()}}


def network_of(state: Mapping[str, Tensor]) -> BackboneName:
    """Which ResNet these torchvision names and shapes are.

    Raises:
        ValueError: neither ResNet-18 nor ResNet-50.
    """
    if "layer1.0.conv1.weight" not in state:
        raise ValueError("not a ResNet: no layer1.0.conv1.weight")
    if "layer1.0.conv3.weight" in state:
        return "resnet50"
    if "layer1.2.conv1.weight" in state:
        raise ValueError("a ResNet-34: the released models are ResNet-18 and ResNet-50")
    return "resnet18"


def _load(module: nn.Module, state: Mapping[str, Tensor], optional: tuple[str, ...] = ()) -> None:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    skipped = (*optional, "num_batches_tracked")
    missing = [name for name in missing if not name.startswith(skipped) and not name.endswith(skipped)]
    if missing or unexpected:
        raise ValueError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise InputError(f"{path}: not a checkpoint ({' '.join(str(error).split())[:120]})") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: not a state dict")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays, lists, strings and numbers; refuses everything that could run code."""

    ALLOWED: Mapping[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
        **{
            (module, "_reconstruct"): np._core.multiarray._reconstruct  # type: ignore[attr-defined]
            for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self.ALLOWED[module, name]


def load_class_means(path: Path) -> Tensor:
    """A released `class_mean_unnorm.pkl`: float64 `[classes, features]`.

    Raises:
        InputError: the file is missing, holds something else than a matrix, or would run code.
    """
    means = _unpickle(path)
    if not isinstance(means, np.ndarray) or means.ndim != 2 or means.dtype.kind != "f":
        raise InputError(f"{path}: not a matrix of class means")
    return torch.from_numpy(means).double()


def load_names(path: Path) -> list[str]:
    """A released list of strings (`class_concept.pkl`, `class_names.pkl`, `class_path.pkl`).

    Raises:
        InputError: the file is missing, holds something else, or would run code.
    """
    names = _unpickle(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: not a list of names")
    return names


def _unpickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # damaged pickles raise many kinds
        raise InputError(f"{path}: not a released pickle ({error})") from None
