"""The authors' checkpoints: a released file becomes our networks, and ours become its tensors. No code is unpickled.

A file is a dict with `model` (also `optimizer`, `epoch`, `bestacc`), its keys perhaps behind `module.`. Classes, frames,
depth, heads and widths are read from shapes; rho is not stored (0.7, for Jester 0.8). Missing or extra tensors are refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.stage.errors import InputError
from stages.motionrgbd.method.capf import CAPF
from stages.motionrgbd.method.dsn import inception_dsn
from stages.motionrgbd.method.dtn import DTN
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.unimodal import UnimodalNet

HEAD_DIM = 64
BRANCHES = ("small", "media", "large")
RGB, DEPTH = "Modalit_rgb.", "Modalit_depth."
# (pattern of our name, template of the released one, axes of size 1 that it has besides)
UNIMODAL_RULES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    (r"dsn\.layers\.(.+)\.conv\.weight", r"\1.conv3d.weight", (2,)),
    (r"dsn\.layers\.(.+)", r"\1", ()),
    (r"dsn\.frp\.taps", r"frp_module.rpconv1d.weight", (0, 2)),
    (r"dsn\.norm\.(.+)", r"LinearMap.0.\1", ()),
    (r"dsn\.linear\.(.+)", r"LinearMap.1.\1", ()),
    (r"rcm\.query\.(.+)", r"dtn.rcm.q.\1", ()),
    (r"rcm\.key\.(.+)", r"dtn.rcm.k.\1", ()),
    (r"rcm\.squeeze\.(.+)", r"dtn.rcm.project.0.\1", ()),
    (r"rcm\.excite\.(.+)", r"dtn.rcm.project.2.\1", ()),
    (r"rcm\.norm\.(.+)", r"dtn.rcm.project.3.\1", ()),
    (r"rcm\.student\.(.+)", r"dtn.rcm.linear.\1", ()),
    (r"dtn\.branches\.(\d)\.class_token", r"dtn.cls_token_{\1}", ()),
    (r"dtn\.branches\.(\d)\.positions", r"dtn.pos_embedding_{\1}", ()),
    (
        r"dtn\.branches\.(\d)\.local\.(\w+)\.conv\.weight",
        r"dtn.multi_scale_transformers.0.Mixed_{\1}.\2.conv3d.weight",
        (3, 4),
    ),
    (r"dtn\.branches\.(\d)\.local\.(.+)", r"dtn.multi_scale_transformers.0.Mixed_{\1}.\2", ()),
    (
        r"dtn\.branches\.(\d)\.blocks\.(\d+)\.norm([12])\.(.+)",
        r"dtn.multi_scale_transformers.\2.transformer_enc_{\1}.layers.0.<\3>.norm.\4",
        (),
    ),
    (
        r"dtn\.branches\.(\d)\.blocks\.(\d+)\.attention\.to_out\.(.+)",
        r"dtn.multi_scale_transformers.\2.transformer_enc_{\1}.layers.0.0.fn.to_out.0.\3",
        (),
    ),
    (
        r"dtn\.branches\.(\d)\.blocks\.(\d+)\.attention\.(.+)",
        r"dtn.multi_scale_transformers.\2.transformer_enc_{\1}.layers.0.0.fn.\3",
        (),
    ),
    (
        r"dtn\.branches\.(\d)\.blocks\.(\d+)\.(fc[12]\..+)",
        r"dtn.multi_scale_transformers.\2.transformer_enc_{\1}.layers.0.1.fn.\3",
        (),
    ),
    (r"heads\.(\d)\.(.+)", r"dtn.mlp_head_{\1}.\2", ()),
)
FUSION_RULES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    (r"spatial\.conv1\.weight", r"crossFusion.0.weight", (3,)),
    (r"spatial\.bn\.(.+)", r"crossFusion.1.\1", ()),
    (r"spatial\.conv2\.weight", r"crossFusion.3.weight", (3,)),
    (r"temporal\.conv1\.weight", r"crossFusionT.0.weight", (3,)),
    (r"temporal\.bn\.(.+)", r"crossFusionT.1.\1", ()),
    (r"temporal\.conv2\.weight", r"crossFusionT.3.weight", (3,)),
    (r"rgb_head\.(.+)", r"classifier1.\1", ()),
    (r"depth_head\.(.+)", r"classifier2.\1", ()),
    (r"encoder\.([0369])\.weight", r"fusion_model.encoder.enconv.\1.weight", (2, 3)),
    (r"encoder\.(.+)", r"fusion_model.encoder.enconv.\1", ()),
    (r"decoder\.([03])\.weight", r"fusion_model.decoder.deconv.\1.weight", (2, 3)),
    (r"decoder\.(.+)", r"fusion_model.decoder.deconv.\1", ()),
    (r"classifier\.weight", r"fusion_model.efc.weight", (2, 3)),
    (r"discriminator\.weight", r"fc.weight", (2, 3)),
)


def official_name(name: str) -> tuple[str, tuple[int, ...]]:
    """The released name of one of our tensors, and the axes of size 1 that it has there."""
    for modality, prefix in (("rgb.", RGB), ("depth.", DEPTH)):
        if name.startswith(modality):
            released, axes = official_name(name.removeprefix(modality))
            return prefix + released, axes
    for pattern, template, axes in UNIMODAL_RULES + FUSION_RULES:
        if found := re.fullmatch(pattern, name):
            released = found.expand(template)
            released = re.sub(r"\{(\d)\}", lambda match: BRANCHES[int(match[1])], released)
            return re.sub(r"<(\d)>", lambda match: str(int(match[1]) - 1), released), axes
    raise ValueError(f"{name}: has no place in a released file")


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network under the released names and in their shapes.

    Raises:
        ValueError: the network has a tensor that the released one does not have.
    """
    state = {}
    for name, value in model.state_dict().items():
        released, axes = official_name(name)
        value = value.detach().cpu().clone()
        for axis in axes:
            value = value.unsqueeze(axis)
        state[released] = value
    return state


def unimodal_from_official(state: Mapping[str, Any], rho: float = 0.7) -> UnimodalNet:
    """A unimodal network in eval mode.

    Raises:
        ValueError: one line naming a tensor that is missing, left over or of another shape.
    """
    tensors = unwrapped(state)
    model = _unimodal(tensors, rho, classes=_shape(tensors, "dtn.mlp_head_small.1.weight")[0])
    _load(model, tensors)
    return model.eval()


def fusion_from_official(state: Mapping[str, Any], rho: float = 0.7) -> CAPF:
    """A fusion network in eval mode, with the released reshape.

    Raises:
        ValueError: one line naming a tensor that is missing, left over or of another shape.
    """
    tensors = unwrapped(state)
    sides = []
    for prefix in (RGB, DEPTH):
        part = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        sides.append(_unimodal(part, rho, classes=1))
    classes, dim = _shape(tensors, "classifier1.1.weight")
    spatial, temporal = "crossFusion.0.weight" in tensors, "crossFusionT.0.weight" in tensors
    rgb, depth = sides
    model = CAPF(rgb, depth, dim, classes, spatial, temporal, official_reshape=True)
    _load(model, tensors)
    return model.eval()


def load_released(path: Path) -> UnimodalNet | CAPF:
    """Read a released file of either kind.

    Raises:
        InputError: the file is missing or not such a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # unpickling errors come in many kinds
        raise InputError(f"{path}: not a checkpoint of tensors ({str(error).splitlines()[0][:80]})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: not a dict of tensors")
    try:
        fusion = any(name.startswith(RGB) for name in unwrapped(content))
        return fusion_from_official(content) if fusion else unimodal_from_official(content)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file, out of `model` and without `module.`."""
    inner = state["model"] if isinstance(state.get("model"), Mapping) else state
    return {name.removeprefix("module."): value for name, value in inner.items()}


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"not a MotionRGBD checkpoint: no {name}")
    return tuple(tensors[name].shape)


def _unimodal(tensors: Mapping[str, Tensor], rho: float, classes: int) -> UnimodalNet:
    frames = [_shape(tensors, f"dtn.pos_embedding_{branch}")[1] - 1 for branch in BRANCHES]
    first = "dtn.multi_scale_transformers.0.transformer_enc_small.layers.0"
    inner, dim = _shape(tensors, f"{first}.0.fn.to_qkv.weight")
    hidden = _shape(tensors, f"{first}.1.fn.fc1.weight")[0]
    depth = 1 + max(
        int(n.split(".")[2]) for n in tensors if re.match(r"dtn\.multi_scale_transformers\.\d+\.", n)
    )
    rcm = None
    if "dtn.rcm.q.weight" in tensors:
        rcm = RCM(_shape(tensors, "dtn.rcm.q.weight")[1], _shape(tensors, "dtn.rcm.project.0.weight")[0], dim)
    dsn = inception_dsn(dim, frp="frp_module.rpconv1d.weight" in tensors)
    dtn = DTN(frames, dim, depth, inner // 3 // HEAD_DIM, HEAD_DIM, hidden, rho)
    return UnimodalNet(dsn, rcm, dtn, dim, classes)


def _load(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    state = {}
    for name, value in model.state_dict().items():
        released, axes = official_name(name)
        if released not in tensors:
            raise ValueError(f"{released} is missing")
        found = tensors[released]
        for axis in reversed(axes):
            if axis < found.ndim and found.shape[axis] == 1:
                found = found.squeeze(axis)
        if found.shape != value.shape:
            raise ValueError(
                f"{released} is {tuple(tensors[released].shape)}, does not fit {tuple(value.shape)}"
            )
        state[name] = found
    extra = sorted(tensors.keys() - {official_name(name)[0] for name in state})
    if extra:
        raise ValueError(f"{extra[0]} is not part of this model (of {len(extra)} such tensors)")
    model.load_state_dict(state)


def start_from_released(model: nn.Module, path: Path) -> None:
    """Give `model` the tensors of a released unimodal file that fit it: all but heads of other classes.

    Raises:
        InputError: the file is missing or not such a checkpoint, or nothing but heads differ and still do not fit.
    """
    released = load_released(path)
    own, state = model.state_dict(), released.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    lacking = sorted(name for name in own.keys() - fitting.keys() if not name.startswith("heads."))
    if lacking:
        raise InputError(f"{path}: does not fit the network of the parameters, first at {lacking[0]}")
    model.load_state_dict({**own, **fitting})
