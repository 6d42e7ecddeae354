"""What a structure costs: FLOPs (multiply-adds), parameters, layers, all counted from the tuple (card, section 2)."""

from functools import lru_cache
from typing import Literal, NamedTuple

from stages.zendet.method.structure import BlockSpec, Structure, convolutions, has_shortcut, stage_ends

Convention = Literal["official", "conv", "conv_bn1", "conv_bn2"]
BN_OPERATIONS: dict[Convention, int] = {"conv": 0, "conv_bn1": 1, "conv_bn2": 2}
Size = int | tuple[int, int]


class BlockCost(NamedTuple):
    """Costs of one element: FLOPs per pixel of its input, parameters, layers."""

    flops: float
    params: int
    layers: int


class StageRow(NamedTuple):
    """One stage: its last element, bottlenecks and layers up to its end, channels, stride."""

    end: int
    blocks: int
    layers: int
    channels: int
    stride: int


def sides(size: Size) -> tuple[int, int]:
    """Height and width of an image given as one side or as both."""
    return (size, size) if isinstance(size, int) else size


@lru_cache(maxsize=1 << 18)
def block_cost(block: BlockSpec) -> BlockCost:
    """Costs of one element by the search's own formula: convolution, batch norm, ReLU, shortcut pooling and projection."""
    if block.kind == "conv":
        weights = block.cin * block.cout * block.kernel**2
        flops = (weights + 3 * block.cout) / block.stride**2  # batch norm counts 2, ReLU 1
        return BlockCost(flops, weights + 2 * block.cout, 1)
    first = _bottleneck(block, block.cin, block.stride, True)
    if block.depth == 1:
        return BlockCost(first[0], first[1], 3)
    other = _bottleneck(block, block.cout, 1, False)
    repeats, shrink = block.depth - 1, block.stride**2
    return BlockCost(first[0] + repeats * other[0] / shrink, first[1] + repeats * other[1], 3 * block.depth)


def _bottleneck(block: BlockSpec, cin: int, stride: int, first: bool) -> tuple[float, int]:
    """FLOPs per input pixel and parameters of one bottleneck."""
    mid, cout, shrink = block.mid, block.cout, stride**2
    spatial = mid * block.kernel**2 * (1 if block.kind == "k1dwk1" else mid)
    flops = cin * mid + 2 * mid + (spatial + 2 * mid) / shrink + (mid * cout + 2 * cout) / shrink
    flops += mid + mid / shrink + cout / shrink  # ReLU
    params = cin * mid + spatial + mid * cout + 4 * mid + 2 * cout
    if has_shortcut(block, first):
        flops += cin if stride == 2 else 0  # average pooling
        if block.kind == "k1kxk1" and first:
            flops += (cin * cout + 3 * cout) / shrink
            params += cin * cout + 2 * cout
    return flops, params


def count_flops(structure: Structure, size: Size, convention: Convention = "official") -> float:
    """Multiply-adds of one image of side `size` (or height, width); sides are divided by strides without rounding.

    "official" is the search's formula, which the budgets use. "conv" counts convolutions only, "conv_bn1" and
    "conv_bn2" add 1 or 2 per batch-norm output: the published ResNet and MAE-DET figures (at 1280 x 800).
    """
    height, width = sides(size)
    if convention == "official":
        total, shrink = 0.0, 1
        for block in structure:
            total += block_cost(block).flops * (height / shrink) * (width / shrink)
            shrink *= block.stride
        return total
    total = 0.0
    for conv in convolutions(structure):
        outputs = conv.cout * (height / (conv.shrink * conv.stride)) * (width / (conv.shrink * conv.stride))
        total += outputs * (conv.cin // conv.groups * conv.kernel**2 + BN_OPERATIONS[convention])
    return total


def count_params(structure: Structure) -> int:
    """Convolution weights and two numbers per batch-norm channel."""
    return sum(block_cost(block).params for block in structure)


def count_layers(structure: Structure) -> int:
    """One per plain convolution, three per bottleneck; projections do not count (ResNet-50 has 49)."""
    return sum(block_cost(block).layers for block in structure)


def stage_table(structure: Structure) -> list[StageRow]:
    """The stages C1, C2, ...; bottlenecks and layers are cumulative, as the entropy score needs them."""
    rows, start, blocks, layers, stride = [], 0, 0, 0, 1
    for end in stage_ends(structure):
        for block in structure[start : end + 1]:
            blocks, layers, stride = (
                blocks + block.depth,
                layers + block_cost(block).layers,
                stride * block.stride,
            )
        rows.append(StageRow(end, blocks, layers, structure[end].cout, stride))
        start = end + 1
    return rows
