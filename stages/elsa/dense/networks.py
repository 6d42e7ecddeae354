"""The networks of the tables: one trunk with the row's mixer, in a Mask R-CNN or a UPerNet; full-size ones for counts."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from stages.common.dense.detectors import MaskRCNNConfig, mask_rcnn
from stages.common.dense.upernet import UPerNet, UPerNetConfig
from stages.common.stage.errors import InputError
from stages.elsa.dense.params import ElsaDenseParams, Task
from stages.elsa.method.dense import DenseBackbone
from stages.elsa.method.swin import SwinTransformer, elsa_swin_small, elsa_swin_tiny, window_mixer
from stages.elsa.params import MixerName
from stages.elsa.variants import VARIANTS, build_mixer

CLASSES: dict[Task, int] = {"detection": 80, "segmentation": 150}  # COCO, ADE20K


def build_network(
    task: Task, mixer: MixerName, seed: int, classes: int, params: ElsaDenseParams
) -> tuple[nn.Module, DenseBackbone]:
    """A fresh network, its weights drawn from `seed`, and the backbone in it."""
    torch.manual_seed(seed)
    trunk, section = params.trunk, params.detection if task == "detection" else params.segmentation
    row = partial(
        build_mixer, variant=VARIANTS[mixer], kernel_size=trunk.window_size, group_width=trunk.group_width
    )
    body = DenseBackbone(
        SwinTransformer(
            [row] * (len(trunk.depths) - 1) + [window_mixer],
            None,
            trunk.patch_size,
            1,
            trunk.embed_dim,
            trunk.depths,
            trunk.num_heads,
            trunk.window_size,
            trunk.mlp_ratio,
            section.drop_path,
            trunk.init_std,
        ),
        range(len(trunk.depths)),
    )
    if task == "detection":
        d = params.detection
        strides = tuple(trunk.patch_size * 2**stage for stage in range(len(trunk.depths)))
        config = MaskRCNNConfig(
            d.channels, strides, d.anchor_scale, d.box_features, tuple(d.mask_channels), d.proposals, d.regions,
            d.detections, tuple(d.sizes), d.longest,
        )  # fmt: skip
        return mask_rcnn(body, body.out_channels, classes, config), body
    s = params.segmentation
    return UPerNet(
        body, body.out_channels, classes, UPerNetConfig(s.channels, tuple(s.pools), s.auxiliary_channels)
    ), body


def load_pretrained(body: DenseBackbone, folder: Path, mixer: MixerName, seed: int) -> None:
    """Start the trunk of `body` from a classifier's weights.

    Raises:
        InputError: the file is missing or of another trunk.
    """
    path = folder / f"{mixer}-{seed}" / f"{mixer}.safetensors"
    if not path.is_file():
        raise InputError(
            f"{path}: not found; elsa-dense.pretrained names a folder that elsa-pretrain has filled"
        )
    state = {k: v for k, v in load_file(path).items() if not k.startswith(("head.", "norm."))}
    try:
        body.trunk.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def full_size(task: Task) -> dict[str, Callable[[], nn.Module]]:
    """The networks of T2 and T3 by the published name of their backbone."""
    trunks: dict[str, Callable[[], SwinTransformer]] = {
        "Swin-T": partial(SwinTransformer, [window_mixer] * 4, None),
        "ELSA-Swin-T": partial(elsa_swin_tiny, img_size=None),
        "Swin-S": partial(SwinTransformer, [window_mixer] * 4, None, depths=(2, 2, 18, 2)),
        "ELSA-Swin-S": partial(elsa_swin_small, img_size=None),
    }

    def build(trunk: Callable[[], SwinTransformer]) -> nn.Module:
        body = DenseBackbone(trunk())
        if task == "detection":
            return mask_rcnn(body, body.out_channels, CLASSES[task], MaskRCNNConfig())
        return UPerNet(body, body.out_channels, CLASSES[task], UPerNetConfig())

    return {name: partial(build, trunk) for name, trunk in trunks.items()}
