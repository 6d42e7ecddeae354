"""Rows of the tables: when each method trains and how it chooses channels."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stages.chex.method.channel_groups import ChannelGroup
from stages.chex.method.column_subset import Criterion, Wide
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.flops import MacModel
from stages.chex.params import Prune


@dataclass(frozen=True)
class Row:
    """A row of a table.

    `choose`: "before training" a narrow network is trained from scratch; "after training" a network trained for half
    of the steps is pruned once and fine-tuned for the other half; "once" and "while training" start dense from scratch and
    prune at the first update, or at every update.
    """

    choose: Literal["before training", "after training", "once", "while training"]
    criterion: Criterion = "css"
    allocation: Literal["global", "uniform"] = "global"
    regrow: Literal["residual", "random", "none"] = "residual"
    wide: Wide = "l1"


@dataclass(frozen=True)
class Schedule:
    """When to choose channels, in optimizer steps."""

    steps: int
    finetune: bool = False  # starts from a trained network, at a learning rate of its own
    updates: Collection[int] = ()  # before these steps the explorer chooses channels anew
    final_update: int | None = None  # before this one it prunes to the target and regrows nothing


def schedule_of(row: Row, steps: int, prune: Prune) -> Schedule:
    """When a row trains and chooses channels, out of `steps` in all."""
    period = round(steps * prune.period)
    match row.choose:
        case "before training":
            return Schedule(steps)
        case "after training":
            return Schedule(steps - steps // 2, finetune=True, final_update=0)
        case "once":
            return Schedule(steps, final_update=period)
        case "while training":
            updates = range(period, int(steps * prune.explore) + 1, period)
            return Schedule(steps, updates=updates, final_update=updates[-1] + period)


def explorer_of(
    row: Row, model: nn.Module, groups: list[ChannelGroup], macs: MacModel, budget: float, steps: int, prune: Prune,
    seed: int,
) -> ChannelExplorer:  # fmt: skip
    """The explorer of a row, initialised, for `budget` multiply-accumulates in the end."""
    config = ExplorerConfig(
        t_max=steps * prune.explore,
        period=round(steps * prune.period),
        macs_budget=budget,
        delta0=0.0 if row.choose == "before training" else None,
        allocation=row.allocation,
        criterion=row.criterion,
        wide=row.wide,
        regrow=row.regrow,
        residual_power=prune.residual_power,
    )
    explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(seed), macs)
    explorer.initialise()
    return explorer
