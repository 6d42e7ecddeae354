"""The two search spaces: how one block of a structure is changed (card, section 4).

`rules` "2022" are those of the paper's time; "2023" (the refactored release) also keep channels from falling along
the network. Draws come from `choose(options)`, for example `random.Random(seed).choice`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, ClassVar, Literal

from stages.zendet.method.cost import Size, count_layers, sides
from stages.zendet.method.structure import BlockSpec, Kind, Structure

Choose = Callable[[Sequence[Any]], Any]
Rules = Literal["2022", "2023"]
KERNELS, DEPTH_CHANGES = (3, 5), (-2, -1, 1, 2)
MAX_STEM = 32
STEPS = 2  # blocks changed by one mutation where the layers fit


def round8(value: float) -> int:
    """The nearest multiple of 8 (half to even), at least 8."""
    return max(8, round(value / 8) * 8)


class Space(ABC):
    """What both spaces share: kernel and depth moves, and putting a changed block back into its structure."""

    kind: ClassVar[Kind]
    scales: ClassVar[tuple[float, ...]]
    max_channels: ClassVar[int]

    def __init__(self, layers: int, size: Size, rules: Rules = "2022") -> None:
        """`layers` is the layer budget, which also caps depths; `size` the image, which caps kernels."""
        self.layers, self.side, self.monotone = layers, min(sides(size)), rules == "2023"

    @abstractmethod
    def mutable(self, structure: Structure, block: int) -> bool:
        """Whether a block can change at all."""

    @abstractmethod
    def changed(self, structure: Structure, block: int, choose: Choose, fine: bool) -> BlockSpec:
        """The block after one move; the structure is as it was."""

    @abstractmethod
    def depth_cap(self, structure: Structure, block: int) -> int:
        """The most bottlenecks that a super-block may have."""

    def apply(self, structure: Structure, block: int, choose: Choose, fine: bool = False) -> Structure:
        """Change one block (where it can change), chain channels again, shrink kernels that exceed their map."""
        blocks = list(structure)
        if self.mutable(structure, block):
            blocks[block] = self.changed(structure, block, choose, fine)
        cin, side = 3, float(self.side)
        for index, spec in enumerate(blocks):
            kernel = spec.kernel
            while kernel > 1 and kernel * 1.5 > side:
                kernel -= 2
            if spec.cin != cin or spec.kernel != kernel:
                blocks[index] = spec._replace(cin=cin, kernel=kernel)
            cin, side = spec.cout, side / spec.stride
        return tuple(blocks)

    def mutate(self, structure: Structure, rng: Random, fine: bool = False) -> Structure:
        """One mutation: two steps, each of which goes on changing blocks until the layers keep to the budget.

        So depth can move from one block to another where the budget is full. After as many changes as there are
        blocks a step ends anyway, and the budget rejects what is still too deep.
        """
        candidates = [i for i in range(len(structure)) if self.mutable(structure, i)]
        for _ in range(STEPS):
            for _ in range(len(structure)):
                structure = self.apply(structure, rng.choice(candidates), rng.choice, fine)
                if count_layers(structure) <= self.layers:
                    break
        return structure

    def _kernel(self, kernel: int, choose: Choose) -> int:
        for _ in range(2):
            drawn = choose(KERNELS)
            if drawn != kernel:
                break
        return int(drawn)

    def _depth(self, structure: Structure, block: int, choose: Choose) -> int:
        depth = structure[block].depth
        for _ in range(4):
            changed = max(1, depth + choose(DEPTH_CHANGES))
            if changed != depth:
                break
        return min(changed, self.depth_cap(structure, block))


class K1KXK1Space(Space):
    """ResNet-like bottlenecks: 1x1, full k x k, 1x1."""

    kind = "k1kxk1"
    scales = (1.5, 1.25, 0.8, 0.6, 0.5)
    max_channels = 2048

    def mutable(self, structure: Structure, block: int) -> bool:
        """Under the 2022 rules a plain convolution in last position stays."""
        return self.monotone or structure[block].kind != "conv" or block != len(structure) - 1

    def depth_cap(self, structure: Structure, block: int) -> int:
        """Three in the first super-block; an even share of the layer budget elsewhere."""
        return 3 if block == 1 else self.layers // 3 // (len(structure) - 2)

    def changed(self, structure: Structure, block: int, choose: Choose, fine: bool) -> BlockSpec:
        """Output channels, kernel, bottleneck width or depth; in the fine phase only widths."""
        spec, last = structure[block], block == len(structure) - 1
        following = None if last else structure[block + 1].cout
        if spec.kind == "conv":
            choose(("out",))
            cout = min(self.max_channels, round8(choose(self.scales) * spec.cout))
            cout = min(cout, MAX_STEM)
            return spec._replace(cout=min(cout, following) if self.monotone and following else cout)
        match choose(("out", "btn") if fine else ("out", "k", "btn", "L")):
            case "out":
                cout = min(self.max_channels, round8(choose(self.scales) * spec.cout))
                cout = min(4 * spec.cin, cout)
                if self.monotone:
                    cout = max(spec.cin, cout)
                    cout = cout if following is None else min(cout, following)
                if following is not None:
                    cout = max(cout, round8(following / 4))
                spec = spec._replace(cout=cout)
            case "k":
                spec = spec._replace(kernel=self._kernel(spec.kernel, choose))
            case "btn":
                mid = min(self.max_channels, round8(choose(self.scales) * spec.mid))
                spec = spec._replace(mid=min(mid, spec.cout))
            case _:
                spec = spec._replace(depth=self._depth(structure, block, choose))
        return spec._replace(mid=round8(spec.cout / 10)) if spec.mid < spec.cout / 10 else spec


class K1DWK1Space(Space):
    """MobileNet-like inverted bottlenecks: 1x1, depthwise k x k, 1x1."""

    kind = "k1dwk1"
    scales = (2.0, 1.5, 1.25, 0.8, 0.6, 0.5)
    max_channels = 1280
    ratios = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)  # bottleneck width over output channels

    def mutable(self, structure: Structure, block: int) -> bool:
        """The last block, the wide 1x1 convolution, stays."""
        return block != len(structure) - 1

    def depth_cap(self, structure: Structure, block: int) -> int:
        """An even share of the layer budget."""
        return self.layers // 3 // (len(structure) - 3)

    def changed(self, structure: Structure, block: int, choose: Choose, fine: bool) -> BlockSpec:
        """Output channels (the ratio stays), kernel, ratio or depth; in the fine phase only widths."""
        spec, following = structure[block], structure[block + 1].cout
        if spec.kind == "conv":
            choose(("out",))
            cout = min(self.max_channels, round8(choose(self.scales) * spec.cout))
            return spec._replace(cout=min(cout, MAX_STEM, following))
        ratio = min(self.ratios, key=lambda listed: abs(listed - spec.mid / spec.cout))
        match choose(("out", "btn") if fine else ("out", "k", "btn", "L")):
            case "out":
                cout = min(self.max_channels, round8(choose(self.scales) * spec.cout))
                cout = min(max(spec.cin, cout), following)
                return spec._replace(cout=cout, mid=round8(cout * ratio))
            case "k":
                return spec._replace(kernel=self._kernel(spec.kernel, choose))
            case "btn":
                for _ in range(8):
                    drawn = choose(self.ratios)
                    if drawn != ratio:
                        break
                return spec._replace(mid=round8(spec.cout * drawn))
            case _:
                return spec._replace(depth=self._depth(structure, block, choose))


SPACES: dict[Kind, type[Space]] = {"k1kxk1": K1KXK1Space, "k1dwk1": K1DWK1Space}
