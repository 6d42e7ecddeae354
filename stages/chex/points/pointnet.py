"""PointNet for classification (Qi et al., CVPR 2017): a shared MLP on every point, a maximum over points, an MLP.

Written for the coupling analysis of `stages.chex.method.channel_groups`: shared layers are 1x1 convolutions over the
axis of points, so all hidden widths, the global feature's included, are prunable, and the coordinates and logits are
not (card, "3D vision").

Shapes: N clouds, P points, K classes.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def shared_mlp(widths: Sequence[int]) -> nn.Sequential:
    """[N, widths[0], P] -> [N, widths[-1], P]: the same layers on every point, norm and ReLU after each."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv1d(before, after, 1, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """[N, widths[0]] -> [N, widths[-1]]: linear layers, norm and ReLU after each."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def over_points(x_NCP: Tensor) -> Tensor:
    """Maximum over points, [N, C]."""
    return F.max_pool1d(x_NCP, x_NCP.shape[2]).flatten(1)


class InputTransform(nn.Module):
    """The T-net of the coordinates: a small PointNet that predicts a 3x3 matrix, the identity at first."""

    def __init__(self, shared: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        self.shared, self.hidden = shared_mlp((3, *shared)), mlp((shared[-1], *hidden))
        self.matrix = nn.Linear(hidden[-1], 9)
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(3).flatten())

    def forward(self, x_N3P: Tensor) -> Tensor:
        """[N, 3, P] -> [N, 3, P], transformed."""
        matrix_N9 = self.matrix(self.hidden(over_points(self.shared(x_N3P))))
        return torch.bmm(matrix_N9.view(-1, 3, 3), x_N3P)


class PointNet(nn.Module):
    """The classifier.

    Args:
        classes: K. shared: widths of the layers on points; the last one is the global feature's. hidden: widths of
        the layers after the maximum. dropout: before the logits. transform: whether the coordinates pass an
        `InputTransform` of the same widths first. (The original's second one, on 64
            features, mixes all of them by a matrix product, through which no channel could be pruned; it is left out.)
        norm_scale: first value of every norm's scale.
    """

    def __init__(
        self, classes: int, shared: Sequence[int], hidden: Sequence[int], dropout: float, transform: bool,
        norm_scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.transform = InputTransform(shared, hidden) if transform else nn.Identity()
        self.shared, self.hidden = shared_mlp((3, *shared)), mlp((shared[-1], *hidden))
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(hidden[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.constant_(module.weight, norm_scale)

    def forward(self, x_N3P: Tensor) -> Tensor:
        """[N, 3, P] -> [N, K]."""
        x_NC = over_points(self.shared(self.transform(x_N3P)))
        return self.logits(self.dropout(self.hidden(x_NC)))
