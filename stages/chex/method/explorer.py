"""Channel exploration: prune to a target, bring some channels back, let the fraction brought back decay to
zero.

Source: card, "Method" steps 1-3 and "Pitfalls". Every `period` units of time t (epochs or steps), `step(t)`
    1. decides how many units each group keeps (one threshold on norm scales, or the same fraction
    everywhere), 2. decides which (column subset selection on the masked weights),
    3. restores all pruned entries to their most recently used (MRU) values,
    4. draws some pruned units to come back, those that the kept ones explain worst being likeliest,
    5. masks the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stages.chex.method.allocation import global_allocation, sparsity_for_macs, uniform_channels
from stages.chex.method.channel_groups import ChannelGroup, Span
from stages.chex.method.column_subset import Criterion, Wide, select_channels
from stages.chex.method.flops import MacModel
from stages.chex.method.narrow import tensor_masks
from stages.chex.method.regrow import (
    Decay,
    projection_residual,
    regrow_counts,
    regrow_factor,
    regrow_probabilities,
    sample_regrow,
)


@dataclass(frozen=True)
class ExplorerConfig:
    """How to explore. Defaults are the paper's rules, other values its ablations or the released code.

    Attributes:
        t_max: last time at which an update may happen, in the unit of `step(t)`.
        period: time between updates.
        sparsity: fraction of all prunable units that is pruned in the end.
        macs_budget: instead of `sparsity`: multiply-accumulates of the final sub-model; the sparsity that
            meets it is solved anew at every update, since layers differ in cost.
        delta0: regrown fraction at t = 0; None: all that is pruned, so the network starts dense.
        decay: how the regrown fraction falls.
        allocation: "global" (one threshold on norm scales) or "uniform" widths.
        criterion: which channels stay, see `column_subset.select_channels`.
        wide: rule for layers with fewer weights per channel than channels, see
            `column_subset.leverage_scores`.
        regrow: "residual" (sampled by projection residual), "random", or "none" (gradual pruning: the same
            sparsity over time, reached by pruning alone).
        regrow_allocation: how many come back in each group: "uniform" (same fraction, exact total),
            "uniform_floor" (released detection and segmentation code), "global_norm" (released classification
            code; never widens a layer).
        residual_power, temperature: see `regrow.regrow_probabilities`.
        restore: regrown channels return with their MRU values ("mru") or with zero weights ("zero"; their
            norm and the layers that read them are restored in any case, otherwise they could never learn).
        min_channels: at least so many units stay in each group.
        round_to: the last update rounds widths up to a multiple of this (which may exceed a budget a little).
    """

    t_max: float
    period: int
    sparsity: float = 0.7
    macs_budget: float | None = None
    delta0: float | None = None
    decay: Decay = "cosine"
    allocation: Literal["global", "uniform"] = "global"
    criterion: Criterion = "css"
    wide: Wide = "l1"
    regrow: Literal["residual", "random", "none"] = "residual"
    regrow_allocation: Literal["uniform", "uniform_floor", "global_norm"] = "uniform"
    residual_power: float = 2.0
    temperature: float = 1.0
    restore: Literal["mru", "zero"] = "mru"
    min_channels: int = 1
    round_to: int = 1


@dataclass(frozen=True)
class UpdateReport:
    """What one update did; counts of units per group name.

    `delta` is the regrown fraction that was aimed at, `sparsity` the pruned fraction afterwards.
    """

    delta: float
    sparsity: float
    kept: dict[str, int]
    regrown: dict[str, int]
    active: dict[str, int]


class ChannelExplorer:
    """Keeps the masks of a network's channel groups and updates them while it trains.

    Args:
        model: trained by the caller; its weights are masked in place.
        groups: from `find_channel_groups`.
        config: see `ExplorerConfig`.
        generator: CPU generator of all random draws.
        macs: cost model, needed with `config.macs_budget`.

    Attributes:
        masks: group name -> [units] bool on the CPU, True: active.

    Example:
        >>> explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(0))  # doctest:
        +SKIP >>> explorer.initialise()  # doctest: +SKIP
        >>> for epoch in range(epochs):  # doctest: +SKIP
        ...     if explorer.due(epoch):
        ...         explorer.step(epoch)
        ...     elif epoch > config.t_max:
        ...         explorer.finish()  # early enough to train on afterwards
        ...     for batch in batches:
        ...         ...  # forward, backward, optimizer.step()
        ...         explorer.apply_masks()
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        config: ExplorerConfig,
        generator: torch.Generator,
        macs: MacModel | None = None,
    ) -> None:
        if config.macs_budget is not None and macs is None:
            raise ValueError(
                "config.macs_budget needs the cost model: pass macs=MacModel(model, groups, example_input)"
            )
        self.model, self.groups, self.config, self.generator, self.macs = (
            model,
            groups,
            config,
            generator,
            macs,
        )
        self.masks: dict[str, Tensor] = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
        self._tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._memory: dict[str, Tensor] = {}
        self._delta = self._delta0 = 0.0
        self._masked: tuple[list[Tensor], list[Tensor]] = ([], [])

    # --------------------------------------------------------------------------------------------- life cycle

    def initialise(self) -> None:
        """First sub-model: uniform widths at S - delta0 by L1 norm; first memory: the full network."""
        sizes = [g.units for g in self.groups]
        sparsity = self._target_sparsity(self._allocation([torch.ones(size) for size in sizes], "uniform"))
        self._delta0 = sparsity if self.config.delta0 is None else self.config.delta0
        self._delta = self._delta0
        counts = uniform_channels(sizes, sparsity - self._delta0, self.config.min_channels)
        touched = tensor_masks(self.model, self.groups, self.masks, buffers=True)
        self._memory = {name: self._tensors[name].detach().clone() for name in touched}
        for group, n in zip(self.groups, counts, strict=True):
            self.masks[group.name] = _mask(group.units, select_channels(self._matrix(group), n, "l1"))
        self._use_masks()

    def due(self, t: int) -> bool:
        """Whether an update belongs before the training of time t."""
        return 1 <= t <= self.config.t_max and t % self.config.period == 0

    def step(self, t: float) -> UpdateReport:
        """The update at time t; afterwards the pruned fraction is S - delta_t."""
        return self._update(regrow_factor(t, self.config.t_max, self._delta0, self.config.decay))

    def finish(self) -> UpdateReport | None:
        """Prune to the target if the last update left regrown channels over (None if it did not).

        Needed whenever t_max is no multiple of the period; called right after `initialise` and some training
        it is pruning at once.
        """
        return self._update(0.0) if self._delta > 0 else None

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero all that belongs to pruned units: after every optimizer step, before evaluating, saving."""
        tensors, masks = self._masked
        if tensors:
            torch._foreach_mul_(tensors, masks)

    def sync(self) -> None:
        """Take the masks of rank 0, if there are several ranks; every update does it by itself."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        device = next(self.model.parameters()).device
        flat = torch.cat([self.masks[g.name] for g in self.groups]).to(device, torch.uint8)
        dist.broadcast(flat, src=0)
        parts = flat.cpu().bool().split([g.units for g in self.groups])
        self.masks = {g.name: part.clone() for g, part in zip(self.groups, parts, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Masks, MRU memory, regrown fraction and generator state as one flat dict of tensors."""
        state = {f"mask/{name}": mask for name, mask in self.masks.items()}
        state |= {f"memory/{name}": value for name, value in self._memory.items()}
        state["generator"] = self.generator.get_state()
        state["delta"] = torch.tensor([self._delta0, self._delta], dtype=torch.float64)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict`; the weights of the model are loaded by the caller, before or after."""
        self.masks = {g.name: state[f"mask/{g.name}"].clone() for g in self.groups}
        for name in tensor_masks(self.model, self.groups, self.masks, buffers=True):
            self._memory[name] = state[f"memory/{name}"].clone().to(self._tensors[name].device)
        self.generator.set_state(state["generator"])
        self._delta0, self._delta = state["delta"].tolist()
        self._prepare_masks()

    # --------------------------------------------------------------------------------------------- one update

    @torch.no_grad()
    def _update(self, delta: float) -> UpdateReport:
        config = self.config
        self.apply_masks()
        sizes = [g.units for g in self.groups]
        scales = [self._scale(g) for g in self.groups]
        counts_at = self._allocation(scales, config.allocation)
        sparsity = self._target_sparsity(counts_at)
        gradual = config.regrow == "none"
        counts = counts_at(max(sparsity - delta, 0.0) if gradual else sparsity)
        if delta == 0:
            counts = [
                min(-(-n // config.round_to) * config.round_to, c) for n, c in zip(counts, sizes, strict=True)
            ]
        kept = [
            select_channels(
                self._matrix(g), n, config.criterion, scale=scale, wide=config.wide, generator=self.generator
            )
            for g, n, scale in zip(self.groups, counts, scales, strict=True)
        ]
        grow = [0] * len(sizes)
        if delta > 0 and config.regrow_allocation == "global_norm" and not gradual:
            wider = counts_at(max(sparsity - delta, 0.0))
            grow = [max(w - n, 0) for w, n in zip(wider, counts, strict=True)]
        elif delta > 0 and not gradual:
            grow = regrow_counts(counts, sizes, delta, exact=config.regrow_allocation == "uniform")

        self._restore()
        for group, keep, n in zip(self.groups, kept, grow, strict=True):
            self.masks[group.name] = _mask(group.units, torch.cat([keep, self._draw(group, keep, n)]))
        self._delta = delta
        self._use_masks()
        active = {g.name: int(self.masks[g.name].sum()) for g in self.groups}
        return UpdateReport(
            delta=delta,
            sparsity=1 - sum(active.values()) / sum(sizes),
            kept={g.name: len(keep) for g, keep in zip(self.groups, kept, strict=True)},
            regrown={g.name: n for g, n in zip(self.groups, grow, strict=True)},
            active=active,
        )

    def _allocation(self, scales: Sequence[Tensor], allocation: str) -> Callable[[float], list[int]]:
        """Units kept in each group, as a function of the sparsity."""
        if allocation == "global":
            return global_allocation(scales, self.config.min_channels)
        sizes = [len(s) for s in scales]
        return lambda sparsity: uniform_channels(sizes, sparsity, self.config.min_channels)

    def _target_sparsity(self, counts_at: Callable[[float], list[int]]) -> float:
        if self.config.macs_budget is None or self.macs is None:
            return self.config.sparsity
        return sparsity_for_macs(counts_at, self.macs, self.config.macs_budget)

    def _restore(self) -> None:
        """Give every pruned entry its MRU value; what is then there is the new memory."""
        for name, mask in tensor_masks(self.model, self.groups, self.masks, buffers=True).items():
            value = self._tensors[name]
            value.copy_(torch.where(mask.bool(), value, self._memory[name]))
            self._memory[name].copy_(value)

    def _draw(self, group: ChannelGroup, keep: Tensor, n: int) -> Tensor:
        """n units of a group to bring back, out of those that are not kept."""
        if n == 0:
            return torch.empty(0, dtype=torch.long)
        candidates = (~_mask(group.units, keep)).nonzero()[:, 0]
        if self.config.regrow == "residual":
            eps = projection_residual(self._matrix(group), keep, candidates)
            p = regrow_probabilities(eps, self.config.residual_power, self.config.temperature)
        else:
            p = torch.ones(len(candidates))
        drawn = candidates[sample_regrow(p, n, self.generator)]
        if self.config.restore == "zero":
            for span in group.producers:
                self._tensors[f"{span.module}.weight"][span.positions(drawn)] = 0
        return drawn

    def _use_masks(self) -> None:
        self.sync()
        self._prepare_masks()
        self.apply_masks()

    def _prepare_masks(self) -> None:
        masks = tensor_masks(self.model, self.groups, self.masks)
        self._masked = ([self._tensors[name] for name in masks], list(masks.values()))

    # --------------------------------------------------------------------------------------- views of a group

    def _matrix(self, group: ChannelGroup) -> Tensor:
        """Weights of a group's producers, one row per unit, [units, d]."""
        return torch.cat([self._rows(span, group.units) for span in group.producers], 1)

    def _scale(self, group: ChannelGroup) -> Tensor:
        """Mean |norm scale| of each unit, [units]; without a norm, its weight norm over the mean one."""
        norms = [s for s in group.norms if f"{s.module}.weight" in self._tensors]
        if norms:
            return torch.cat([self._rows(span, group.units).abs() for span in norms], 1).mean(1)
        size = self._matrix(group).norm(dim=1)
        return size / size[self.masks[group.name].to(size.device)].mean()

    def _rows(self, span: Span, units: int) -> Tensor:
        tensor = self._tensors[f"{span.module}.weight"].detach()
        return tensor[span.start : span.start + units * span.block].reshape(units, -1)


def _mask(units: int, active: Tensor) -> Tensor:
    return torch.zeros(units, dtype=torch.bool).index_fill(0, active, True)
