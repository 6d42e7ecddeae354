"""Clouds to train and test on.

Data flow: `prepare` writes `points.safetensors` with `train_x [N, 3, P]`, `train_y [N]`, `test_x`, `test_y`, and
`classes.json`.
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.chex.points.params import Recipe

EVALUATION_BATCH = 250
JITTER, JITTER_LIMIT = 0.01, 0.05  # PointNet's, for clouds in the unit ball


def class_names(prepared: Path) -> list[str]:
    """Names of the classes, in the order of their labels."""
    return json.loads((prepared / "classes.json").read_text())


class PointData:
    """A prepared data set, in memory."""

    def __init__(self, prepared: Path, recipe: Recipe, device: torch.device) -> None:
        tensors = load_file(prepared / "points.safetensors")
        self.train_x, self.train_y, self.test_x, self.test_y = (
            tensors[name].to(device) for name in ("train_x", "train_y", "test_x", "test_y")
        )
        self.recipe = recipe

    def train(self, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless training batches from step `start` on; each depends on `seed` and its step alone."""
        size = self.recipe.batch
        per_epoch = len(self.train_x) // size
        order_N, shuffled = torch.empty(0), -1
        for step in itertools.count(start):
            epoch, index = divmod(step, per_epoch)
            if epoch != shuffled:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
                order_N, shuffled = torch.randperm(len(self.train_x), generator=generator), epoch
            rows_B = order_N[index * size : (index + 1) * size].to(self.train_x.device)
            x_B3P = self.train_x[rows_B]
            if self.recipe.augment == "turn-jitter":
                x_B3P = turn_jitter(x_B3P, torch.Generator().manual_seed(seed * 1_000_003 + step))
            yield x_B3P, self.train_y[rows_B]


def turn_jitter(x_B3P: Tensor, generator: torch.Generator) -> Tensor:
    """Clouds turned about the second axis by a random angle each, with clipped Gaussian noise on every coordinate."""
    angle_B = 2 * math.pi * torch.rand(len(x_B3P), generator=generator)
    zero_B, one_B = torch.zeros_like(angle_B), torch.ones_like(angle_B)
    rows = [
        (angle_B.cos(), zero_B, angle_B.sin()),
        (zero_B, one_B, zero_B),
        (-angle_B.sin(), zero_B, angle_B.cos()),
    ]
    turn_B33 = torch.stack([torch.stack(row, 1) for row in rows], 1)
    noise_B3P = JITTER * torch.randn(x_B3P.shape, generator=generator)
    noise_B3P = noise_B3P.clamp(-JITTER_LIMIT, JITTER_LIMIT)
    return turn_B33.to(x_B3P.device) @ x_B3P + noise_B3P.to(x_B3P.device)


@torch.no_grad()
def accuracies(network: nn.Module, data: PointData) -> tuple[float, float]:
    """Share of the test clouds that are classified right, and its mean over classes, in percent."""
    predicted_N = torch.cat([network(x_B3P).argmax(1) for x_B3P in data.test_x.split(EVALUATION_BATCH)])
    right_N = (predicted_N == data.test_y).double()
    per_class = [right_N[data.test_y == label].mean() for label in data.test_y.unique()]
    return 100 * float(right_N.mean()), 100 * float(torch.stack(per_class).mean())
