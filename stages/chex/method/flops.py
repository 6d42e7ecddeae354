"""Counting: multiply-accumulates and parameters, and multiply-accumulates of any sub-model without running
it.

Convention (card, "Metrics"): MACs of convolutions and linear layers at batch 1, plus one per output of a
bias; norms, activations, pooling and additions are free. ResNet-50 at 224: 4,089,185,256.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup, evaluating
from stages.chex.method.narrow import Masks

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def layer_positions(model: nn.Module, example_input: Tensor) -> dict[str, int]:
    """How often each convolution or linear layer applies its weight to one input: output pixels.

    Args:
        model: any network; one forward pass in eval mode.
        example_input: [N, ...]; the count is per item of the batch.
    """
    found: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _COUNTED):

            def record(module: nn.Module, _: object, output: Tensor, name: str = name) -> None:
                per_position = output.shape[-1 if isinstance(module, nn.Linear) else 1] * len(example_input)
                found[name] = found.get(name, 0) + output.numel() // max(per_position, 1)

            handles.append(module.register_forward_hook(record))
    try:
        with evaluating(model):
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return found


def count_macs(model: nn.Module, example_input: Tensor) -> int:
    """Multiply-accumulates of one forward pass at batch 1; zeros in weights count in full."""
    total = 0
    for name, positions in layer_positions(model, example_input).items():
        total += positions * sum(p.numel() for p in model.get_submodule(name).parameters(recurse=False))
    return total


def count_params(model: nn.Module) -> int:
    """Parameters that are physically there (buffers are not counted)."""
    return sum(p.numel() for p in model.parameters())


@dataclass(frozen=True)
class _Side:
    """Width of one side of a layer: what is always there, and what each unit of a group adds."""

    fixed: int
    per_unit: tuple[tuple[int, int], ...]  # (group, positions)

    def width(self, counts: Sequence[int]) -> int:
        return self.fixed + sum(block * counts[group] for group, block in self.per_unit)


class MacModel:
    """Multiply-accumulates of every sub-model as a function of how many units each group keeps.

    A layer costs (columns kept) x (rows kept) x kernel x pixels: bilinear in the counts, so that a budget is
    solved without a forward pass.

    Example:
        >>> macs = MacModel(model, groups, example_input)  # doctest: +SKIP
        >>> macs([g.units for g in groups]) == count_macs(model, example_input)  # doctest: +SKIP
        True
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], example_input: Tensor) -> None:
        self.groups = tuple(groups)
        self._layers: list[tuple[int, int, _Side, _Side]] = []  # kernel * pixels, bias pixels, rows, columns
        for name, positions in layer_positions(model, example_input).items():
            weight, bias = (
                model.get_parameter(f"{name}.weight"),
                getattr(model.get_submodule(name), "bias", None),
            )
            rows = self._side(name, weight.shape[0], ("producers", "depthwise"))
            columns = self._side(name, weight.shape[1], ("consumers",))
            kernel = weight[0, 0].numel()
            self._layers.append((kernel * positions, positions if bias is not None else 0, rows, columns))

    def _side(self, name: str, width: int, roles: tuple[str, ...]) -> _Side:
        per_unit = tuple(
            (i, span.block)
            for i, group in enumerate(self.groups)
            for role in roles
            for span in getattr(group, role)
            if span.module == name
        )
        return _Side(width - sum(self.groups[i].units * block for i, block in per_unit), per_unit)

    def __call__(self, counts: Sequence[int]) -> int:
        """Multiply-accumulates at batch 1 with `counts[i]` units kept of group i."""
        total = 0
        for weight_cost, bias_cost, rows, columns in self._layers:
            out = rows.width(counts)
            total += out * (columns.width(counts) * weight_cost + bias_cost)
        return total

    def of_masks(self, masks: Mapping[str, Tensor]) -> int:
        """Multiply-accumulates of the sub-model that the masks leave."""
        return self([int(masks[group.name].sum()) for group in self.groups])


def masked_macs(model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks, example_input: Tensor) -> int:
    """Multiply-accumulates of the sub-model that the masks leave; equals `count_macs` of the slim network."""
    return MacModel(model, groups, example_input).of_masks(masks)
