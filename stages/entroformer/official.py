"""The authors' released checkpoints as codecs of this project.

A released file is a pickle of whole modules of their code. None of that code is needed or run: torch's restricted
unpickler gets an empty module class in place of each of theirs, and nothing else but torch's own modules.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.entroformer.method.attention import AttentionSpec
from stages.entroformer.method.codec import CodecSpec, ImageCodec

PARTS = ("encode", "decode", "cit_he", "cit_hd", "prob", "cit_ar", "cit_pn")
PUBLISHED_TOPK = 32  # the only size that shapes do not tell
QKV = re.compile(r"(.*)SelfAttention\.qkv\.weight$")
RENAMED = (
    (r"^encode\.encoder\.", "analysis.layers."),
    (r"^decode\.decoder\.(\d)\.transpose\.", r"synthesis.layers.\1."),
    (r"^decode\.decoder\.", "synthesis.layers."),
    (r"^prob\.mu$", "entropy.prior.mean_C"),
    (r"^prob\.log_sigma$", "entropy.prior.log_sigma_C"),
    (r"^cit_pn\.", "entropy.parameter_network."),
    (r"^cit_(he|hd)\.trans_blocks\.(\d+)\.(\d+)\.", r"cit_\1.stacks.\2.blocks.\3."),
    (r"^cit_ar\.blocks\.", "cit_ar.stack.blocks."),
    (r"blocks\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight$", "table_Pd"),
    (r"layer\.0\.SelfAttention\.o\.", "attention.output."),
    (r"layer\.0\.layer_norm\.", "attention_norm."),
    (r"layer\.1\.norm\.", "mlp_norm."),
    (r"layer\.1\.fn\.net\.", "mlp."),
    (r"^(.*)to_patch_embedding\.", r"\1embed."),
    (r"mlp_head\.", "head."),
    (r"cit_hd\.scale_blocks\.(\d)\.conv2d\.", r"cit_hd.up.\1.0."),
    (r"cit_he\.scale_blocks\.", "cit_he.down."),
    (r"sos_pred_token$", "start_11D"),
    (r"^cit_he\.", "entropy.hyper_encoder."),
    (r"^cit_hd\.", "entropy.hyper_decoder."),
    (r"^cit_ar\.", "entropy.context."),
)


class _Theirs(nn.Module):
    """Stands for any module class of the authors' code; only the tensors in it are read."""


def load_official(path: Path, topk: int = PUBLISHED_TOPK) -> ImageCodec:
    """Read a released checkpoint, none of its code run.

    Raises:
        ValueError: it names anything but the authors' modules and torch's, or is not such a checkpoint.
    """
    allowed: list[tuple[type, str]] = []
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
        if name.startswith("module."):
            allowed.append((type("Theirs", (_Theirs,), {}), name))
        elif name.startswith("torch.nn.modules.") and isinstance(found := _torch_class(name), type):
            allowed.append((found, name))
        else:
            raise ValueError(f"{path}: names {name}, which is no module of the authors' code or of torch")
    with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not set(PARTS) <= content.keys():
        raise ValueError(f"{path}: not a released Entroformer: no dict with {', '.join(PARTS)}")
    return from_official({part: content[part].state_dict() for part in PARTS}, topk)


def _torch_class(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(torch.nn, attribute, None) if module.startswith("torch.nn.modules") else None


def from_official(
    parts: Mapping[str, Mapping[str, Tensor]], topk: int = PUBLISHED_TOPK, heads: int | None = None
) -> ImageCodec:
    """A codec, in eval mode, from the state dicts of the seven parts; sizes are read from the shapes.

    Args:
        parts: tensors by part and by the authors' names.
        topk: keys that survive, which no shape tells.
        heads: where None, inner width / width of a position vector.

    Raises:
        ValueError: tensors are missing or unexpected.
    """
    state = {f"{part}.{name}": value for part in PARTS for name, value in parts[part].items()}
    codec = ImageCodec(_spec(state, topk, heads))
    converted = convert(state)
    missing, unexpected = codec.load_state_dict(converted, strict=False)
    missing = [name for name in missing if not name.endswith("start_11D")]
    if missing or unexpected:
        raise ValueError(f"not a released Entroformer: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return codec.eval()


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names; the interleaved rows of qkv are taken apart."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if found := QKV.match(name):
            for offset, part in enumerate(("query", "key", "value")):
                converted[_renamed(f"{found[1]}SelfAttention.{part}.weight")] = value[offset::3].clone()
        else:
            converted[_renamed(name)] = value.flatten() if name.startswith("prob.") else value
    return converted


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name.replace("layer.0.SelfAttention.", "attention.")


def _spec(state: Mapping[str, Tensor], topk: int, heads: int | None) -> CodecSpec:
    try:
        table = state["cit_ar.blocks.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        qkv = state["cit_ar.blocks.0.layer.0.SelfAttention.qkv.weight"]
        embed = state["cit_ar.to_patch_embedding.weight"]
        wide, outputs = state["cit_pn.0.weight"].shape[0], state["cit_pn.2.weight"].shape[0]
        channels, hyper = state["encode.encoder.0.weight"].shape[0], state["prob.mu"].numel()
    except KeyError as error:
        raise ValueError(f"not a released Entroformer: no {error.args[0]}") from None
    dim, latents = embed.shape
    depth = len({name.split(".")[2] for name in state if name.startswith("cit_ar.blocks.")})
    per_latent = outputs // latents
    inner = qkv.shape[0] // 3
    spec = AttentionSpec(
        dim, heads or inner // table.shape[1], table.shape[1], wide // dim, round(len(table) ** 0.5), topk
    )
    return CodecSpec(
        "conv", channels, latents, hyper, "transformer",
        "serial" if "cit_ar.sos_pred_token" in state else "two-pass",
        spec, depth, 1 if per_latent == 2 else per_latent // 3,
    )  # fmt: skip
