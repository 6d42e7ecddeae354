"""The networks of the rows: what each ablation changes, and how a network is built from the parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from stages.motionrgbd.method.baselines import SmallCNN3d, TokenPool, VideoResNet
from stages.motionrgbd.method.capf import CAPF, ConcatFusion
from stages.motionrgbd.method.dsn import DSN, inception_dsn, plain_dsn
from stages.motionrgbd.method.dtn import DTN
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.params import FusionRow, MotionrgbdParams, Network, UnimodalRow

Changes = Callable[[MotionrgbdParams], dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """How a row differs from the full method; `network` changes the parameters of that name."""

    rcm: bool = True
    distillation: bool = True
    frp: bool = True
    sharpness: bool = True
    branch_losses: bool = True
    shuffled_maps: bool = False
    temporal: Literal["dtn", "mean", "lstm", "3d-cnn"] = "dtn"
    network: Changes = lambda params: {}
    window: float = 1.0  # times w
    tau: float = 1.0  # times tau


def _frames(choose: Callable[[list[int]], list[int]]) -> Changes:
    return lambda params: {"frames": choose(params.network.frames)}


ROWS: Mapping[UnimodalRow, Row] = {
    "full": Row(),
    "no-rcm": Row(rcm=False, distillation=False),
    "no-distillation": Row(distillation=False),
    "no-frp": Row(frp=False),
    "random-map": Row(shuffled_maps=True),
    "no-sharpness": Row(sharpness=False),
    "single-loss": Row(branch_losses=False),
    "all-neighbours": Row(network=lambda params: {"rho": 1.0}),
    "branch-1": Row(network=_frames(lambda n: n[:1])),
    "branch-2": Row(network=_frames(lambda n: n[1:2])),
    "branch-3": Row(network=_frames(lambda n: n[2:])),
    "frames-half": Row(network=_frames(lambda n: [max(1, count // 2) for count in n])),
    "frames-first": Row(network=_frames(lambda n: [n[0]] * 3)),
    "frames-last": Row(network=_frames(lambda n: [n[2]] * 3)),
    "dsn-mean": Row(frp=False, temporal="mean"),
    "dsn-lstm": Row(frp=False, temporal="lstm"),
    "3d-cnn": Row(frp=False, temporal="3d-cnn"),
    "dtn": Row(rcm=False, distillation=False, frp=False, sharpness=False),
    "dtn-rcm": Row(distillation=False, frp=False, sharpness=False),
    "dtn-rcm-distillation": Row(frp=False, sharpness=False),
    "half-window": Row(window=0.5),
    "double-window": Row(window=2.0),
    "rho-0.5": Row(network=lambda params: {"rho": 0.5}),
    "half-tau": Row(tau=0.5),
    "double-tau": Row(tau=2.0),
    "half-depth": Row(network=lambda params: {"depth": max(1, params.network.depth // 2)}),
    "double-depth": Row(network=lambda params: {"depth": 2 * params.network.depth}),
}
FUSION_SWITCHES: Mapping[FusionRow, dict[str, bool]] = {
    "capf": {},
    "no-spatial": {"spatial": False},
    "no-temporal": {"temporal": False},
    "no-auxiliary": {"auxiliary": False},
}


def build_dsn(network: Network, frp: bool) -> DSN:
    """The spatial network of the parameters' kind."""
    if network.spatial == "inception":
        return inception_dsn(network.dim, frp, network.strict_spatial)
    return plain_dsn(network.widths, network.strides, network.dim, frp)


def set_momentum(net: nn.Module, momentum: float) -> None:
    """How fast the averages of batch norms follow; TensorFlow's 0.01 needs more steps than a small training has."""
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = momentum


def build_unimodal(
    params: MotionrgbdParams, name: UnimodalRow, classes: int, seed: int
) -> UnimodalNet | TokenPool | SmallCNN3d | VideoResNet:
    """The untrained network of a row."""
    torch.manual_seed(seed)
    row = ROWS[name]
    network = params.network.model_copy(update=row.network(params))
    match row.temporal:
        case "mean" | "lstm":
            return TokenPool(build_dsn(network, row.frp), network.dim, classes, row.temporal)
        case "3d-cnn":
            plain = network.spatial == "plain"
            return SmallCNN3d(network.widths, network.strides, classes) if plain else VideoResNet(classes)
    dsn = build_dsn(network, row.frp)
    set_momentum(dsn, network.bn_momentum)
    frames = params.data.frames
    rcm = RCM(frames, network.rcm_hidden, network.dim, network.rcm_gain) if row.rcm else None
    dtn = DTN(
        network.frames, network.dim, network.depth, network.heads, network.head_dim, network.hidden, network.rho,
        network.dropout, network.position_std,
    )  # fmt: skip
    set_momentum(dtn, network.bn_momentum)
    return UnimodalNet(dsn, rcm, dtn, network.dim, classes)


def build_fusion(params: MotionrgbdParams, name: FusionRow, seed: int) -> CAPF | ConcatFusion:
    """The untrained network of a fusion row."""
    classes, dim = params.data.classes, params.network.dim
    sides = [build_unimodal(params, "full", classes, seed) for _ in range(2)]
    rgb, depth = (side for side in sides if isinstance(side, UnimodalNet))
    torch.manual_seed(seed)
    if name == "concat":
        return ConcatFusion(rgb, depth, dim, classes)
    return CAPF(rgb, depth, dim, classes, **FUSION_SWITCHES[name])


def load_sides(
    fusion: CAPF | ConcatFusion, rgb: dict[str, torch.Tensor], depth: dict[str, torch.Tensor]
) -> None:
    """Give a fusion the trained unimodal weights, all but the heads."""
    for side, state in ((fusion.rgb, rgb), (fusion.depth, depth)):
        side.load_state_dict({key: value for key, value in state.items() if not key.startswith("heads.")})


def parameters_of(net: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
