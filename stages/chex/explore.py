"""One call that turns your own network into a slim one while you train it.

    def train_epoch(epoch: int) -> None:
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()

    slim, report = explore(model, images[:1], train_epoch, epochs=30, macs=0.5)
    print(report)

`model` is yours: a torch CNN that has just been initialised (CHEX needs no pretraining) or trained. Your
training function stays as it is; masks are applied after every step of any torch optimizer while `explore`
runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig, UpdateReport
from stages.chex.method.flops import MacModel, count_macs, count_params
from stages.chex.method.slim import slim

EXPLORATION = 0.72  # the paper explores for 180 of 250 epochs and fine-tunes for the rest


@dataclass(frozen=True)
class ExploreReport:
    """What `explore` found and did.

    Attributes:
        widths: group name -> (units left, units at first).
        dense: (layer, reason) of what the coupling analysis had to leave dense.
        macs, params: (slim, dense).
        updates: one report per update, in order.
    """

    widths: dict[str, tuple[int, int]]
    dense: list[tuple[str, str]]
    macs: tuple[int, int]
    params: tuple[int, int]
    updates: list[UpdateReport]

    def __str__(self) -> str:
        lines = [
            f"MACs {self.macs[1]:,} -> {self.macs[0]:,} ({self.macs[0] / self.macs[1]:.0%}), "
            f"parameters {self.params[1]:,} -> {self.params[0]:,} ({self.params[0] / self.params[1]:.0%})"
        ]
        lines += [f"  {name}: {left} of {full}" for name, (left, full) in self.widths.items()]
        lines += [f"  {name}: dense, {reason}" for name, reason in self.dense]
        return "\n".join(lines)


def explore(
    model: nn.Module,
    example_input: Tensor,
    train_epoch: Callable[[int], object],
    epochs: int,
    *,
    macs: float | None = None,
    sparsity: float | None = None,
    config: ExplorerConfig | None = None,
    seed: int = 0,
) -> tuple[nn.Module, ExploreReport]:
    """Train a network with channel exploration and return it slim.

    Args:
        model: any torch CNN with one tensor in; trained and masked in place.
        example_input: [N, C, ...], on the device of the model.
        train_epoch: trains `model` for one epoch (or any other unit of time); gets the number of the epoch, 0
            first.
        epochs: how often to call it.
        macs: target multiply-accumulates as a fraction of the dense network's, in (0, 1).
        sparsity: instead of `macs`: fraction of prunable channels to remove, in (0, 1).
        config: everything else about the exploration; by default it starts dense, updates before every epoch
            and ends after 72 % of the epochs. Its sparsity and budget are replaced by `macs` or `sparsity`.
        seed: of the regrown channels' draw.

    Returns:
        The slim network (plain modules, no masks) and a report.

    Raises:
        ValueError: not exactly one of `macs` and `sparsity`; nothing prunable; a budget that cannot be met.
    """
    if (macs is None) == (sparsity is None):
        raise ValueError("give either macs (a fraction of the dense network's) or sparsity (of its channels)")
    groups, dense = find_channel_groups(model, example_input)
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dense)
        raise ValueError(f"no prunable channels in {type(model).__name__}. {reasons}")
    cost = MacModel(model, groups, example_input)
    full_macs = cost([g.units for g in groups])
    config = config or ExplorerConfig(t_max=max(1, round(EXPLORATION * epochs)), period=1)
    if macs is not None:
        config = replace(config, macs_budget=macs * full_macs)
    elif sparsity is not None:
        config = replace(config, sparsity=sparsity, macs_budget=None)
    explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(seed), cost)
    explorer.initialise()
    hook = register_optimizer_step_post_hook(lambda *_: explorer.apply_masks())
    updates = []
    try:
        for epoch in range(epochs):
            if explorer.due(epoch):
                updates.append(explorer.step(epoch))
            elif epoch > config.t_max and (last := explorer.finish()):
                updates.append(last)
            train_epoch(epoch)
    finally:
        hook.remove()
    if last := explorer.finish():
        updates.append(last)
    small = slim(model, groups, explorer.masks)
    report = ExploreReport(
        widths={g.name: (int(explorer.masks[g.name].sum()), g.units) for g in groups},
        dense=dense,
        macs=(count_macs(small, example_input), full_macs),
        params=(count_params(small), count_params(model)),
        updates=updates,
    )
    return small, report
