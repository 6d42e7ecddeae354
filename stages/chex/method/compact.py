"""Training between two updates at the cost of the sub-model: a slim copy whose weights flow back into the
full net.

Source: card, "Performance": instead of multiplying the dense network by masks after every step, train sliced
parameters with sliced optimizer state and scatter both back at the next update.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup
from stages.chex.method.narrow import Masks, copied, cut, full_name, kept_positions, narrow_


class CompactModel:
    """A trainable slim copy of `model` under `masks`; forward and gradients are those of the masked network.

    (In train mode for BatchNorm networks; random layers such as dropout draw other numbers.)

    Attributes:
        module: the slim copy. Its parameters are new: give them to the optimizer.

    Example, between two updates at times t and t + dT:
        >>> compact = CompactModel(model, groups, explorer.masks)  # doctest: +SKIP
        >>> ...  # train compact.module  # doctest: +SKIP
        >>> compact.scatter_()  # doctest: +SKIP
        >>> explorer.step(t + dT)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks) -> None:
        self._full = model
        self._kept = kept_positions(model, groups, masks)
        self.module = narrow_(copied(model), self._kept)

    def _positions(self, name: str) -> tuple[list[int] | None, list[int] | None]:
        module = name.rpartition(".")[0]
        return self._kept.rows.get(module), self._kept.columns.get(module)

    def _write(self, into: Tensor, narrow: Tensor, name: str) -> None:
        """Put a narrow tensor where it belongs in a full one."""
        rows, columns = self._positions(name)
        index: list[Tensor] = []
        for axis, kept in enumerate((rows, columns)[: into.dim()]):
            size = into.shape[axis]
            positions = torch.arange(size) if kept is None else torch.tensor(kept, dtype=torch.long)
            index.append(positions.to(into.device))
        if len(index) == 2:
            index[0] = index[0][:, None]
        if index:
            into[tuple(index)] = narrow
        else:
            into.copy_(narrow)

    @torch.no_grad()
    def scatter_(self) -> None:
        """Write parameters and buffers back into the full model; masked entries become zero.

        Running statistics of pruned channels keep what they had.
        """
        full = self._full.state_dict(keep_vars=True)
        for name in dict.fromkeys((*self._kept.rows, *self._kept.columns)):
            for parameter in self._full.get_submodule(name).parameters(recurse=False):
                parameter.zero_()
        for name, value in self.module.state_dict().items():
            name = full_name(name, self._kept)
            if name in full:
                self._write(full[name], value, name)

    def slice_state(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per-parameter optimizer state (momentum, say), keyed by full names, cut for the compact parameters.

        Returns:
            Compact parameter name -> tensor; parameters that `full` does not name are left out.
        """
        names = [(name, full_name(name, self._kept)) for name, _ in self.module.named_parameters()]
        return {name: cut(full[key], *self._positions(key)) for name, key in names if key in full}

    def scatter_state(
        self, compact: Mapping[str, Tensor], known: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The reverse of `slice_state`: full name -> tensor of the full shape.

        Where pruned it has what `known` has by full name, and zero without.
        """
        full = dict(self._full.named_parameters())
        result = {}
        for name, value in compact.items():
            key = full_name(name, self._kept)
            before = known.get(key) if known else None
            result[key] = value.new_zeros(full[key].shape) if before is None else before.clone()
            self._write(result[key], value, key)
        return result
