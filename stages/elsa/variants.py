"""The rows of the tables: mixers and their variants, all in the same trunk.

"Net 1" to "Net 7" are the seven networks of the unified view (card, "Baselines and ablations"): logit terms, `Norm` and
`Phi` are switched one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from stages.elsa.method.mixers import (
    DDF,
    DepthwiseConv,
    DynamicFilter,
    Involution,
    NeighborhoodAttention,
    WindowAttention,
)
from stages.elsa.method.swin import MixerFactory, SwinTransformer, elsa_mixer, window_mixer
from stages.elsa.params import AblationName, MixerName, Trunk


@dataclass(frozen=True)
class Variant:
    """One row: a mixer, its options, and what the unified view says about it."""

    mixer: MixerName
    options: dict[str, object] = field(default_factory=dict)
    heads: float | None = 1.0  # times the trunk's; None is one head in every stage
    net: int | None = None
    terms: str = ""
    norm: str = "softmax"
    support: str = "neighbourhood"


# a mixer's main row has its name; the others are ablations
VARIANTS: dict[str, Variant] = {
    "window": Variant("window", net=4, terms="q·k + r^b", support="window"),
    "window-no-bias": Variant("window", {"bias": False}, terms="q·k", support="window"),
    "window-terms": Variant(
        "window", {"terms": True}, net=6, terms="q·k + q·r^k + r^q·k + r^b", support="window"
    ),
    "window-1-head": Variant("window", heads=None, terms="q·k + r^b", support="window"),
    "window-2x-heads": Variant("window", heads=2.0, terms="q·k + r^b", support="window"),
    "neighborhood": Variant("neighborhood", net=5, terms="q·k + r^b"),
    "neighborhood-terms": Variant("neighborhood", {"terms": True}, net=7, terms="q·k + q·r^k + r^q·k + r^b"),
    "depthwise": Variant("depthwise", net=1, terms="r^b", norm="identity"),
    "dynamic": Variant("dynamic", {"norm": "softmax"}, net=3, terms="q·r^k + r^b"),
    "dynamic-filter-norm": Variant(
        "dynamic", {"norm": "filter"}, net=2, terms="q·r^k + r^b", norm="filter-norm"
    ),
    "ddf": Variant("ddf", {"combine": "mul"}, terms="q·r^k + r^b, x static", norm="filter-norm"),
    "ddf-add": Variant("ddf", {"combine": "add"}, terms="q·r^k + r^b, + static", norm="filter-norm"),
    "involution": Variant("involution", terms="q·r^k + r^b", norm="identity"),
    "elsa": Variant("elsa", {"lam": 0.0, "gamma": 1.0}, terms="(q*k)·r^k + r^q·(q*k) + r^b"),
    "elsa-no-ghost": Variant("elsa", {"lam": 0.0, "gamma": 0.0}, terms="(q*k)·r^k + r^q·(q*k) + r^b"),
    "elsa-mul": Variant("elsa", {"lam": 1.0, "gamma": 0.0}, terms="(q*k)·r^k + r^q·(q*k) + r^b"),
    "elsa-mul-add": Variant("elsa", {"lam": 1.0, "gamma": 1.0}, terms="(q*k)·r^k + r^q·(q*k) + r^b"),
    "elsa-1-head": Variant("elsa", heads=None, terms="(q*k)·r^k + r^q·(q*k) + r^b"),
    "elsa-2x-heads": Variant("elsa", heads=2.0, terms="(q*k)·r^k + r^q·(q*k) + r^b"),
}


def rows_of(mixer: MixerName, ablations: Sequence[AblationName]) -> list[str]:
    """Names of the rows that a cell of the matrix trains: the mixer's own and the ablations of it."""
    return [mixer, *(name for name in ablations if VARIANTS[name].mixer == mixer)]


def build_mixer(
    dim: int, heads: int, window: int, shift: int, variant: Variant, kernel_size: int, group_width: int
) -> nn.Module:
    """The mixer of one block; `heads` are the trunk's."""
    heads = 1 if variant.heads is None else int(heads * variant.heads)
    options = variant.options
    match variant.mixer:
        case "window":
            return WindowAttention(dim, heads, window, shift, **options)  # type: ignore[arg-type]
        case "neighborhood":
            return NeighborhoodAttention(dim, heads, kernel_size, **options)  # type: ignore[arg-type]
        case "depthwise":
            return DepthwiseConv(dim, kernel_size)
        case "dynamic":
            return DynamicFilter(dim, heads, kernel_size, **options)  # type: ignore[arg-type]
        case "ddf":
            return DDF(dim, kernel_size, **options)  # type: ignore[arg-type]
        case "involution":
            return Involution(dim, heads, kernel_size)
        case "elsa":
            return elsa_mixer(dim, heads, window, shift, kernel_size, group_width, **options)  # type: ignore[arg-type]


def build_network(name: str, trunk: Trunk, img_size: int, classes: int, drop_path: float) -> SwinTransformer:
    """The network of a row: its mixer in every stage but the last, which keeps window attention."""
    variant = VARIANTS[name]
    mixer = partial(
        build_mixer, variant=variant, kernel_size=trunk.window_size, group_width=trunk.group_width
    )
    mixers: Sequence[MixerFactory] = [mixer] * (len(trunk.depths) - 1) + [window_mixer]
    return SwinTransformer(
        mixers,
        img_size,
        trunk.patch_size,
        classes,
        trunk.embed_dim,
        trunk.depths,
        trunk.num_heads,
        trunk.window_size,
        trunk.mlp_ratio,
        drop_path,
        trunk.init_std,
    )
