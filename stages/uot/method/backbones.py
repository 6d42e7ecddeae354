"""Feature extractors, each with the width of its feature."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

BackboneName = Literal["mlp", "resnet18", "resnet50"]
WIDTHS: dict[BackboneName, int] = {"mlp": 24, "resnet18": 512, "resnet50": 2048}
MLP = (144, 64, 64, 24)  # of the quick scale (card, "Data")


def build_backbone(name: BackboneName) -> nn.Module:
    """An untrained extractor: images or vectors to features `[B, WIDTHS[name]]`."""
    if name == "mlp":
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(MLP):
            layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU()]
        return nn.Sequential(*layers)
    from torchvision import models

    network = getattr(models, name)(weights=None)
    network.fc = nn.Identity()
    return network


class Projection(nn.Module):
    """MoCo-v2's head.

    Its output before normalisation is what self-supervised class means are made of (card, "Step 1").
    """

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, features_BD: Tensor) -> Tensor:
        """`[B, D]` to `[B, out]`."""
        return self.layers(features_BD)


def projection_from(state: Mapping[str, Tensor]) -> Projection | None:
    """The projection head in a start's state dict; None where class means are of pooled features."""
    inner = {n.removeprefix("projection."): v for n, v in state.items() if n.startswith("projection.")}
    if not inner:
        return None
    hidden, dim = inner["layers.0.weight"].shape
    projection = Projection(dim, hidden, len(inner["layers.2.weight"]))
    projection.load_state_dict(inner)
    return projection


@torch.no_grad()
def features(backbone: nn.Module, x: Tensor, projection: nn.Module | None = None) -> Tensor:
    """Features of one batch for class means, in the backbone's current mode."""
    pooled_BD = backbone(x)
    return pooled_BD if projection is None else projection(pooled_BD)
