"""Rows of the table of point clouds, and how their networks are trained."""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.chex.method.learning_rate import warmup_cosine
from stages.chex.points.data import PointData
from stages.chex.points.params import MethodName, PointsParams
from stages.chex.rows import Row, Schedule
from stages.chex.sub_training import Loss, Task

METHODS: dict[MethodName, Row] = {
    "uniform": Row("before training", "l1", "uniform"),
    "l1": Row("after training", "l1", "uniform"),
    "bn": Row("after training", "bn"),
    "chex": Row("while training", wide="leverage"),
    "chex-no-regrow": Row("while training", wide="leverage", regrow="none"),
    "chex-no-realloc": Row("while training", wide="leverage", allocation="uniform"),
    "chex-wide-l1": Row("while training", wide="l1"),
}


def task_of(
    params: PointsParams, prepared: Path, schedule: Schedule, seed: int, device: torch.device
) -> Task:
    """Training on the prepared clouds."""
    recipe = params.recipe
    data = PointData(prepared, recipe, device)
    peak = recipe.finetune_lr if schedule.finetune else recipe.lr

    def losses(start: int) -> Iterator[Loss]:
        for step, (x_B3P, y_B) in enumerate(data.train(seed, start), start):
            torch.manual_seed(seed * 1_000_003 + step)  # dropout

            def loss(network: nn.Module, x_B3P: Tensor = x_B3P, y_B: Tensor = y_B) -> Tensor:
                return F.cross_entropy(network(x_B3P), y_B)

            yield loss

    return Task(
        optimizer=lambda network: torch.optim.AdamW(
            network.parameters(), lr=peak, weight_decay=recipe.weight_decay
        ),
        lr=lambda step: warmup_cosine(step, 1.0, 0, schedule.steps),
        losses=losses,
    )
