"""Released weights: DINO and DINOv2 backbones (files, or timm by name) and TransFGU heads. No code is unpickled.

Backbones come as flat keys (`cls_token`, `pos_embed`, `blocks.*` ...), as a full DINO checkpoint (under `teacher`, with
`module.` and `backbone.` prefixes and a `head.*`), by timm's model name, or as `pretrain` here left them (safetensors, with
the number of attention heads in the metadata). Heads are `<setting>_decoder.pt`.
Missing or extra tensors are refused: the released loader would go on with random weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.common.stage.errors import InputError, ParameterError
from stages.transfgu.method.mask_transformer import MaskTransformer
from stages.transfgu.method.transformer_block import Block
from stages.transfgu.method.vision_transformer import VisionTransformer

HEAD_WIDTH = 64  # of every DINO and DINOv2 backbone: heads = width / 64
WRAPPERS = ("teacher", "state_dict", "model")
PREFIXES = ("module.", "backbone.", "decoder.", "encoder.")
DROPPED = ("head.", "mask_token")  # of DINO's own training; no part of the encoder


def backbone_from_official(state_dict: Mapping[str, Any], heads: int | None = None) -> VisionTransformer:
    """The encoder in eval mode; width, depth, patch and native grid are read from the shapes.

    Raises:
        ValueError: one line naming a tensor that is missing, left over or of another shape.
    """
    state = _unwrapped(state_dict)
    state = {name: value for name, value in state.items() if not name.startswith(DROPPED)}
    for name in ("patch_embed.proj.weight", "pos_embed"):
        if name not in state:
            raise ValueError(f"not a ViT of DINO's layout: no {name}")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    native = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    depth = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    layer_scale = "blocks.0.ls1.gamma" in state
    model = VisionTransformer(patch, width, depth, heads or width // HEAD_WIDTH or 1, native, layer_scale)
    _load(model, state)
    return model.eval()


def head_from_official(state_dict: Mapping[str, Any], heads: int | None = None) -> MaskTransformer:
    """A released head in eval mode, without dropout; sizes are read from the shapes.

    Raises:
        ValueError: one line naming a tensor that is missing, left over or of another shape.
    """
    state = _unwrapped(state_dict)
    for name in ("cls_emb", "proj_dec.weight"):
        if name not in state:
            raise ValueError(f"not a mask-transformer head: no {name}")
    _, n_cls, d_model = state["cls_emb"].shape
    depth = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    d_encoder = state["proj_dec.weight"].shape[1]
    model = MaskTransformer(n_cls, d_encoder, d_model, depth, heads or d_model // HEAD_WIDTH or 1)
    _load(model, state)
    return model.eval()


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of an encoder or a head under the released names (they are our own)."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def load_backbone(path: Path) -> VisionTransformer:
    """Read a DINO or DINOv2 backbone from a file, or one that `save_backbone` wrote.

    Raises:
        InputError: the file is missing or not such a backbone.
    """
    try:
        if path.suffix == ".safetensors":
            return backbone_from_official(*_read_safetensors(path))
        return backbone_from_official(_read(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def save_backbone(model: VisionTransformer, path: Path) -> None:
    """Write an encoder as safetensors."""
    block = model.blocks[0]
    assert isinstance(block, Block)
    save_file(to_official(model), path, {"heads": str(block.attn.heads)})


def load_head(path: Path) -> MaskTransformer:
    """Read a released head from a file.

    Raises:
        InputError: the file is missing or not such a head.
    """
    try:
        return head_from_official(_read(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def timm_backbone(name: str, pretrained: bool = True) -> VisionTransformer:
    """A DINO or DINOv2 backbone by timm's name, such as `vit_small_patch8_224.dino`; downloaded if not in its cache.

    Raises:
        ParameterError: timm has no such model, or it is not a plain ViT with a class token.
        InputError: the weights can be neither found nor downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise ParameterError(
            f"backbone 'timm:{name}': timm has no such model; `timm.list_models('*dino*')` lists them"
        )
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # timm and its hub client raise many kinds
        raise InputError(
            f"backbone 'timm:{name}': no weights ({type(error).__name__}); put them into the Hugging Face cache, "
            "or name a DINO file instead"
        ) from None
    try:
        return backbone_from_official(model.state_dict())
    except ValueError as error:
        raise ParameterError(f"backbone 'timm:{name}': {error}") from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Tensors, and the number of attention heads if the file says it."""
    try:
        with safe_open(path, "pt") as file:
            heads = (file.metadata() or {}).get("heads")
            return {name: file.get_tensor(name) for name in file.keys()}, int(heads) if heads else None  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a checkpoint of tensors ({error})") from None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # unpickling errors come in many kinds
        raise InputError(f"{path}: not a checkpoint of tensors ({str(error).splitlines()[0][:80]})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: not a dict of tensors")
    return content


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    state = {}
    for name, value in state_dict.items():
        stripped = name
        while stripped.startswith(PREFIXES):
            stripped = stripped.partition(".")[2]
        state[stripped] = value
    return state


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in state:
            raise ValueError(f"{name} is missing")
        if state[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}")
    extra = sorted(state.keys() - expected.keys())
    if extra:
        raise ValueError(f"{extra[0]} is not part of this model (of {len(extra)} such tensors)")
    model.load_state_dict(state)
