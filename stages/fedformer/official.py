"""Checkpoints trained with the authors' code (they have released none), loaded into `method.trunk.FEDformer`.

The selected modes are not in those files. Where a block keeps a strict subset of the frequencies they must be
given, or drawn again as the official training drew them (`redraw_modes`); a wrong set gives wrong forecasts
without any sign.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.fedformer.method.modes import SelectedModes, select_modes
from stages.fedformer.method.trunk import PROJECTIONS, Config, FEDformer

OFFICIAL_SEED = 2021  # of numpy's global generator, once per official run


def load_official(path: Path, config: Config, mode_indices: Sequence[list[int]] | None = None) -> FEDformer:
    """Read a `checkpoint.pth` of the official code, no code unpickled; see `from_official`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a state dict")
    return from_official(state, config, mode_indices)


def redraw_modes(config: Config, repetition: int = 0) -> list[list[int]]:
    """The four index lists of repetition `repetition` (from 0) of an official run of FEDformer-f.

    Nothing else consumes numpy's generator there, so repetition r used draws 4 r to 4 r + 3: encoder,
    decoder, cross queries, cross keys.
    """
    sizes = config.sizes
    decoder = sizes.seq_len // 2 + sizes.pred_len
    rng = np.random.RandomState(OFFICIAL_SEED)
    for _ in range(repetition + 1):
        drawn = [
            select_modes(length, config.modes, config.policy, rng)
            for length in (sizes.seq_len, decoder, decoder, sizes.seq_len)
        ]
    return drawn


def from_official(
    state_dict: Mapping[str, Tensor], config: Config, mode_indices: Sequence[list[int]] | None = None
) -> FEDformer:
    """A model in eval mode with the weights of an official state dict (FEDformer-f, -w or its Autoformer).

    Args:
        state_dict: official names, with or without the `module.` prefix.
        config: the blocks and sizes it was trained with; `variant` must be "official".
        mode_indices: per Fourier block (encoder, decoder, cross queries, cross keys); by default
            `redraw_modes(config)`.

    Raises:
        ValueError: one line naming what is missing, unexpected, of the wrong shape, or not shared as it must
            be.
    """
    if config.variant != "official":
        raise ValueError("official weights belong to variant 'official'")
    state = {name.removeprefix("module."): value for name, value in state_dict.items()}
    model = FEDformer(config, np.random.RandomState(OFFICIAL_SEED))
    if config.self_block == "fourier" and config.cross_block == "fourier":
        _set_modes(model, mode_indices or redraw_modes(config))
    own = model.state_dict()
    renamed = dict(_rename(state, config))
    for name, value in renamed.items():
        if name not in own:
            raise ValueError(f"official weights: nothing here takes {name}; check the configuration")
        if own[name].shape != value.shape:
            raise ValueError(
                f"official weights: {name} has shape {tuple(value.shape)}, this configuration needs "
                f"{tuple(own[name].shape)}"
            )
    optional = (
        (".index", "decomp.layer.weight", "decomp.layer.bias") if len(config.kernels) == 1 else ".index"
    )
    missing = [name for name in own if name not in renamed and not name.endswith(optional)]
    if missing:
        raise ValueError(f"official weights: {missing[0]} is missing ({len(missing)} in all)")
    model.load_state_dict(own | renamed)
    return model.eval()


def _set_modes(model: FEDformer, indices: Sequence[list[int]]) -> None:
    holders = (
        model.encoder_block.modes, model.decoder_block.modes, model.cross_block.modes_q,
        model.cross_block.modes_kv,
    )  # fmt: skip
    for holder, index in zip(holders, indices, strict=True):
        assert isinstance(holder, SelectedModes)
        if len(index) != len(holder.index):
            raise ValueError(f"mode_indices: a list of {len(index)} where {len(holder.index)} are kept")
        holder.set_index([int(i) for i in index])


def _rename(state: Mapping[str, Tensor], config: Config) -> list[tuple[str, Tensor]]:
    """Official names to ours; a block that layers share appears once."""
    shared: dict[str, Tensor] = {}
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("position_embedding.pe"):  # never used by the official forward pass
            continue
        if ".inner_correlation." in name:
            layer, _, rest = name.partition(".inner_correlation.")
            where = "cross" if "cross" in layer else "encoder" if layer.startswith("encoder") else "decoder"
            key = f"{where}_block.{rest}"
            if key in shared and not torch.equal(shared[key], value):
                raise ValueError(f"official weights: {name} differs between layers, which must share it")
            shared[key] = value
            continue
        name = name.replace("encoder.attn_layers.", "encoder.").replace("decoder.layers.", "decoder.")
        name = name.replace("encoder.norm.", "encoder_norm.").replace("decoder.norm.", "decoder_norm.")
        name = (
            "projection" + name.removeprefix("decoder.projection")
            if name.startswith("decoder.projection")
            else name
        )
        for projection in PROJECTIONS:
            name = name.replace(f".{projection}_projection.", f".projections.{projection}.")
        name = name.replace(".out_projection.", ".out.")
        if ".conv1." in name or ".conv2." in name:  # 1 x 1 convolutions there, linear maps here
            name = name.replace(".conv1.", ".feed_forward.enter.").replace(".conv2.", ".feed_forward.leave.")
            value = value.squeeze(-1)
        out[name] = value
    return [*out.items(), *_blocks(shared, config)]


def _blocks(shared: Mapping[str, Tensor], config: Config) -> list[tuple[str, Tensor]]:
    """Weights of the blocks: complex tensors in the layout of our products, filters joined."""
    items: list[tuple[str, Tensor]] = []
    for key, value in shared.items():
        where, _, name = key.partition(".")
        name = name.replace("MWT_CZ.0.", "")
        kernels = {"A.weights1": "details", "B.weights1": "averages", "C.weights1": "up"}
        linears = {"Lk0": "enter", "Lk1": "leave", "Lq": "enter.query", "Lk": "enter.key", "out": "leave"}
        head, _, tail = name.rpartition(".")
        if name == "weights1":  # [H, I, O, M]
            items.append((f"{where}.mix.weight_HMIO2", _pairs(value.permute(0, 3, 1, 2))))
        elif name in kernels:  # [I, O, M]
            items.append((f"{where}.{kernels[name]}.weight_MIO2", _pairs(value.permute(2, 0, 1))))
        elif head in linears:
            items.append((f"{where}.{linears[head]}.{tail}", value))
        elif head == "T0" and where != "cross_block":  # the official cross block has one, but never uses it
            items.append((f"{where}.coarsest.{tail}", value))
        elif name == "ec_s":
            joined = torch.cat([shared[f"{key[:-1]}d"], value], dim=1)
            items.append((f"{where}.pyramid.split_matrix", joined))
        elif name == "rc_e":
            joined = torch.cat([value, shared[f"{key[:-1]}o"]], dim=1)
            items.append((f"{where}.pyramid.merge_matrix", joined))
        elif head not in ("T0", "Lv") and name not in (
            "ec_d",
            "rc_o",
        ):  # Lv: the official code ignores the values
            raise ValueError(f"official weights: nothing here takes {key}; check the configuration")
    return items


def _pairs(value: Tensor) -> Tensor:
    return torch.view_as_real(value.contiguous())
