"""From masks over channel groups to positions in modules, and to modules of which only those positions are
left.

`masked_positions` says what a mask keeps in every module, `tensor_masks` what it zeroes in every parameter,
`narrow_` cuts a network down to it. The masked network, the compact one between updates and the slim one at
the end all come from here. Source: card, "Performance" (slimming).

Shapes: N batch, C channels of the full layer, c kept channels, G groups of a norm, P pixels.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup

Masks = Mapping[str, Tensor]  # group name -> [units] bool, True: kept

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Kept:
    """Positions that are kept in each module, as plain lists (they go into the slim file as JSON).

    Attributes:
        rows: output channels of convolutions, linear layers and norms.
        columns: input channels of convolutions and linear layers.
        exits: modules whose narrow output is scattered back to so many channels (pruned shortcuts).
    """

    rows: dict[str, list[int]] = field(default_factory=dict)
    columns: dict[str, list[int]] = field(default_factory=dict)
    exits: dict[str, int] = field(default_factory=dict)


def masked_positions(
    model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Boolean masks over the rows and over the input columns of every module that a group touches."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for group in groups:
        pruned = (~masks[group.name].cpu()).nonzero()[:, 0]
        for span in (*group.producers, *group.norms, *group.depthwise):
            size = _width(model.get_submodule(span.module))
            rows.setdefault(span.module, torch.ones(size, dtype=torch.bool))[span.positions(pruned)] = False
        for span in group.consumers:
            size = _fan_in(model.get_submodule(span.module))
            columns.setdefault(span.module, torch.ones(size, dtype=torch.bool))[span.positions(pruned)] = (
                False
            )
    return rows, columns


def tensor_masks(
    model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks, buffers: bool = False
) -> dict[str, Tensor]:
    """For each tensor that a group touches, a 0/1 mask that broadcasts over it, like it in type.

    Weights get [C, 1 or Cin, 1, 1], everything else [C].

    Args:
        model: the full network.
        groups: its groups.
        masks: group name -> [units] bool.
        buffers: also the running statistics of norms (which no mask zeroes, but which are restored and cut).
    """
    rows, columns = masked_positions(model, groups, masks)
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys((*rows, *columns)):
        module = model.get_submodule(name)
        tensors: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
        if buffers:
            tensors |= {key: value for key, value in module.named_buffers(recurse=False) if value.dim()}
        for key, value in tensors.items():
            mask = torch.ones(1, dtype=torch.bool)
            if name in rows:
                mask = rows[name].reshape(-1, *[1] * (value.dim() - 1))
            if name in columns and value.dim() > 1:
                mask = mask & columns[name].reshape(1, -1, *[1] * (value.dim() - 2))
            found[f"{name}.{key}"] = mask.to(value.device, value.dtype)
    return found


def kept_positions(model: nn.Module, groups: Sequence[ChannelGroup], masks: Masks) -> Kept:
    """What the masks keep of each module, as lists of positions."""
    rows, columns = masked_positions(model, groups, masks)
    return Kept(
        {name: mask.nonzero()[:, 0].tolist() for name, mask in rows.items()},
        {name: mask.nonzero()[:, 0].tolist() for name, mask in columns.items()},
        {name: _width(model.get_submodule(name)) for group in groups for name in group.exits},
    )


def narrow_(model: nn.Module, kept: Kept) -> nn.Module:
    """Cut a network down to the kept positions, in place (its modules are changed: pass a copy). Returns it.

    Inner groups lose rows, norm entries and columns; a norm over groups keeps its original statistics; a
    shortcut computes its kept rows and adds them in place of the full width; layers without rows or columns
    left cost nothing.
    """
    for name in dict.fromkeys((*kept.rows, *kept.columns)):
        module = model.get_submodule(name)
        narrow = _narrow_module(module, kept.rows.get(name), kept.columns.get(name))
        model.set_submodule(name, narrow)
    for name, width in kept.exits.items():
        model.set_submodule(name, SlimShortcut(model.get_submodule(name), kept.rows[name], width))
    return model


def copied(model: nn.Module) -> nn.Module:
    """A deep copy in half the time: most of what a module holds are empty dictionaries of hooks."""
    held = [value for module in model.modules() for value in vars(module).values()]
    return copy.deepcopy(
        model, {id(value): type(value)() for value in held if isinstance(value, dict) and not value}
    )


def full_name(name: str, kept: Kept) -> str:
    """Name in the full network of a parameter or buffer of the narrow one."""
    for wrapped in kept.exits:
        if name.startswith(f"{wrapped}.inner."):
            return wrapped + name.removeprefix(f"{wrapped}.inner")
    return name


def cut(tensor: Tensor, rows: Sequence[int] | None, columns: Sequence[int] | None) -> Tensor:
    """The kept rows (axis 0) and columns (axis 1) of a tensor; None keeps the axis."""
    if rows is not None:
        tensor = tensor.index_select(0, torch.tensor(rows, dtype=torch.long, device=tensor.device))
    if columns is not None and tensor.dim() > 1:
        tensor = tensor.index_select(1, torch.tensor(columns, dtype=torch.long, device=tensor.device))
    return tensor


def _narrow_module(module: nn.Module, rows: list[int] | None, columns: list[int] | None) -> nn.Module:
    if isinstance(module, nn.GroupNorm):
        return SlimGroupNorm(module, rows or [])
    for key, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, key, nn.Parameter(cut(parameter.detach(), rows, columns), parameter.requires_grad))
    for key, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim():
            setattr(module, key, cut(buffer, rows, columns))
    if isinstance(module, nn.Linear):
        module.out_features = len(rows) if rows is not None else module.out_features
        module.in_features = len(columns) if columns is not None else module.in_features
    elif isinstance(module, _BATCH_NORMS):
        module.num_features = len(rows or [])
        if not rows:
            return nn.Identity()
    elif isinstance(module, _CONVS):
        if module.groups > 1 and rows is not None:  # rows of whole groups: the kept groups
            module.groups = len(rows) * module.groups // module.out_channels
            module.in_channels = module.weight.shape[1] * module.groups
        module.out_channels = len(rows) if rows is not None else module.out_channels
        module.in_channels = len(columns) if columns is not None else module.in_channels
        if module.weight.numel() == 0:
            return EmptyConv(module)
    return module


def _width(module: nn.Module) -> int:
    """Output channels of a convolution, linear layer or norm."""
    for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    raise TypeError(f"{type(module).__name__} has no channel axis")


def _fan_in(module: nn.Module) -> int:
    """Input channels of a convolution or linear layer."""
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


class SlimShortcut(nn.Module):
    """Runs `inner` on the kept channels and scatters them into the full width; pruned channels add zero."""

    kept: Tensor

    def __init__(self, inner: nn.Module, kept: Iterable[int], width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width
        device = next(inner.parameters(), torch.empty(0)).device
        self.register_buffer("kept", torch.tensor(list(kept), dtype=torch.long, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[N, c or Cin, ...] -> [N, width, ...]."""
        y = self.inner(x)
        full = y.new_zeros(y.shape[0], self.width, *y.shape[2:])
        return full.index_add(1, self.kept, y) if y.shape[1] else full


class SlimGroupNorm(nn.Module):
    """GroupNorm over kept channels that counts the pruned ones, as zeros, in mean and variance.

    Cutting channels out of a plain GroupNorm changes the function; here each channel stays in its original
    group and sums are divided by the size of the full group.
    """

    member: Tensor
    pruned: Tensor

    def __init__(self, norm: nn.GroupNorm, kept: Sequence[int]) -> None:
        super().__init__()
        self.eps, self.num_groups = norm.eps, norm.num_groups
        self.group_size = norm.num_channels // norm.num_groups
        self.weight = nn.Parameter(cut(norm.weight.detach(), kept, None)) if norm.affine else None
        self.bias = nn.Parameter(cut(norm.bias.detach(), kept, None)) if norm.affine else None
        member = torch.tensor(kept, dtype=torch.long) // self.group_size
        pruned = self.group_size - torch.bincount(member, minlength=self.num_groups)
        device = norm.weight.device if norm.affine else "cpu"
        self.register_buffer("member", member.to(device))  # [c] group of each kept channel
        self.register_buffer("pruned", pruned.to(device))  # [G] channels of each group that are gone

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, ...] -> [N, c, ...]."""
        x_NcP = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))  # sums in bf16 would be coarse
        zeros_NG = x_NcP.new_zeros(x.shape[0], self.num_groups)
        count = self.group_size * x_NcP.shape[2]
        mean_NG = zeros_NG.index_add(1, self.member, x_NcP.sum(2)) / count
        centred_NcP = x_NcP - mean_NG[:, self.member, None]
        # squares about the mean: of the kept values, and mean^2 for every zero that is gone
        squares_NG = zeros_NG.index_add(1, self.member, centred_NcP.square().sum(2))
        squares_NG = squares_NG + self.pruned * x_NcP.shape[2] * mean_NG.square()
        rstd_NG = (squares_NG / count + self.eps).rsqrt()
        y_NcP = centred_NcP * rstd_NG[:, self.member, None]
        if self.weight is not None and self.bias is not None:
            y_NcP = y_NcP * self.weight[:, None] + self.bias[:, None]
        return y_NcP.to(x.dtype).reshape(x.shape)


class EmptyConv(nn.Module):
    """A convolution without input or output channels left: zeros (plus its bias), right shape."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        self.out_channels, self.bias = conv.out_channels, conv.bias
        span = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if isinstance(conv.padding, str):
            padded = span if conv.padding == "same" else [0] * len(span)
        else:
            padded = [2 * p for p in conv.padding]
        # out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        self.grow = [p - s - 1 for p, s in zip(padded, span, strict=True)]
        self.stride = conv.stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, any, ...] -> [N, out_channels, ...]."""
        sizes = [(n + g) // s + 1 for n, g, s in zip(x.shape[2:], self.grow, self.stride, strict=True)]
        y = x.new_zeros(x.shape[0], self.out_channels, *sizes)
        return y if self.bias is None else y + self.bias.reshape(-1, *[1] * len(sizes))
