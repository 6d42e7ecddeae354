"""A backbone as a tuple of block specifications: parsed, checked and written without building a module.

The authors write a backbone as a list of dicts (card, section 1): a convolution `ConvKXBNRELU`, and super-blocks of `L`
bottlenecks, `SuperResK1KXK1` (full k x k convolution) or `SuperResK1DWK1` (depthwise). Both releases' names are read.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["conv", "k1kxk1", "k1dwk1"]
CLASSES: dict[str, Kind] = {
    "ConvKXBNRELU": "conv",
    "SuperResK1KXK1": "k1kxk1",
    "SuperResConvK1KXK1": "k1kxk1",  # the 2022 release
    "SuperResK1DWK1": "k1dwk1",
    "SuperResConvK1DWK1": "k1dwk1",
}
NAMES: dict[Kind, str] = {"conv": "ConvKXBNRELU", "k1kxk1": "SuperResK1KXK1", "k1dwk1": "SuperResK1DWK1"}
DIVISOR = 32  # strides of the five stages multiplied: shortcuts floor where convolutions ceil


class BlockSpec(NamedTuple):
    """One element of a backbone. `depth` bottlenecks of width `mid` (a plain convolution has depth 1 and mid 0)."""

    kind: Kind
    cin: int
    cout: int
    stride: int
    kernel: int
    depth: int = 1
    mid: int = 0


Structure = tuple[BlockSpec, ...]


class ConvSpec(NamedTuple):
    """One convolution of a backbone, with the name of its weight in the authors' checkpoints (no `.weight`).

    `role` is "stem" (any plain convolution), "conv1", "conv2", "conv3" or "projection"; `shrink` is the stride from the
    image to its input; `block` numbers bottlenecks and plain convolutions through the backbone.
    """

    name: str
    role: Literal["stem", "conv1", "conv2", "conv3", "projection"]
    cin: int
    cout: int
    kernel: int
    stride: int
    groups: int
    shrink: int
    block: int
    shortcut: bool


def parse_structure(text: str) -> Structure:
    """Read a structure file's content: a list of dicts, or `{'best_structures': [[...]], ...}` (its first one).

    Raises:
        ValueError: one line saying which element is wrong and what is allowed.
    """
    try:
        content = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("not a structure: must be a Python list of dicts") from None
    if isinstance(content, dict) and content.get("best_structures"):
        content = content["best_structures"][0]
    if not isinstance(content, list) or not content:
        raise ValueError("not a structure: must be a non-empty list of dicts, or have 'best_structures'")
    return validate_structure(tuple(_block(index, item) for index, item in enumerate(content)))


def _block(index: int, item: Any) -> BlockSpec:
    where = f"element {index}"
    if not isinstance(item, dict) or item.get("class") not in CLASSES:
        raise ValueError(f"{where}: 'class' must be one of {', '.join(CLASSES)}")
    kind = CLASSES[item["class"]]
    keys = ["in", "out", "s", "k"] + ([] if kind == "conv" else ["L", "btn"])
    for key in keys:
        if not isinstance(item.get(key), int) or item[key] < 1:
            raise ValueError(f"{where}: '{key}' = {item.get(key)!r} must be a whole number, 1 or greater")
    extra = set(item) - {"class", "inner_class", *keys}  # the official code adds `inner_class` in place
    if extra:
        raise ValueError(f"{where}: unknown key {sorted(extra)[0]!r}; allowed: class, {', '.join(keys)}")
    depth, mid = (1, 0) if kind == "conv" else (item["L"], item["btn"])
    return BlockSpec(kind, item["in"], item["out"], item["s"], item["k"], depth, mid)


def validate_structure(structure: Structure) -> Structure:
    """Return a structure that hangs together.

    Raises:
        ValueError: channels that do not chain, an even kernel, a stride other than 1 and 2, or no plain convolution first.
    """
    if structure[0].kind != "conv" or structure[0].cin != 3:
        raise ValueError("element 0: must be ConvKXBNRELU with 'in' = 3")
    for index, block in enumerate(structure):
        if block.stride not in (1, 2):
            raise ValueError(f"element {index}: 's' = {block.stride} must be 1 or 2")
        if block.kernel % 2 == 0:
            raise ValueError(f"element {index}: 'k' = {block.kernel} must be odd")
        if index and block.cin != structure[index - 1].cout:
            raise ValueError(
                f"element {index}: 'in' = {block.cin} must be the 'out' before it, {structure[index - 1].cout}"
            )
    return structure


def dump_structure(structure: Structure) -> str:
    """The authors' text form, one element a line."""
    lines = []
    for block in structure:
        item: dict[str, Any] = {"class": NAMES[block.kind], "in": block.cin, "out": block.cout}
        item |= {"s": block.stride, "k": block.kernel}
        item |= {} if block.kind == "conv" else {"L": block.depth, "btn": block.mid}
        lines.append(f" {item!r},\n")
    return "[\n" + "".join(lines) + "]\n"


def read_structure(path: Path) -> Structure:
    """Read a structure file.

    Raises:
        ValueError: one line that names the file.
    """
    try:
        return parse_structure(path.read_text())
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def stage_ends(structure: Structure) -> list[int]:
    """Index of the last element of each stage: one ends before every stride of 2 but the first, and at the end."""
    starts = [i for i, block in enumerate(structure) if block.stride == 2 and i > 0]
    return [*(start - 1 for start in starts), len(structure) - 1]


def has_shortcut(block: BlockSpec, first: bool) -> bool:
    """Whether a bottleneck adds a shortcut: K1KXK1 always, K1DWK1 only where channels stay."""
    return block.kind == "k1kxk1" or (block.cin if first else block.cout) == block.cout


def convolutions(structure: Structure) -> Iterator[ConvSpec]:
    """Every convolution in order of execution; a projection follows the bottleneck that it bridges."""
    shrink, number = 1, 0
    for i, block in enumerate(structure):
        if block.kind == "conv":
            shape = (block.cin, block.cout, block.kernel, block.stride, 1, shrink)
            yield ConvSpec(f"block_list.{i}.conv1", "stem", *shape, number, False)
            shrink, number = shrink * block.stride, number + 1
            continue
        for j in range(block.depth):
            cin, stride = (block.cin, block.stride) if j == 0 else (block.cout, 1)
            name, mid, k = f"block_list.{i}.block_list.{j}", block.mid, block.kernel
            bridged = has_shortcut(block, j == 0)
            groups = mid if block.kind == "k1dwk1" else 1
            yield ConvSpec(f"{name}.conv1.conv1", "conv1", cin, mid, 1, 1, 1, shrink, number, bridged)
            yield ConvSpec(
                f"{name}.conv2.conv1", "conv2", mid, mid, k, stride, groups, shrink, number, bridged
            )
            shrink *= stride
            yield ConvSpec(f"{name}.conv3.conv1", "conv3", mid, block.cout, 1, 1, 1, shrink, number, bridged)
            if block.kind == "k1kxk1" and j == 0:
                yield ConvSpec(
                    f"{name}.residual_proj.conv1",
                    "projection",
                    cin,
                    block.cout,
                    1,
                    1,
                    1,
                    shrink,
                    number,
                    True,
                )
            number += 1


def resnet_structure(stem: int, mids: Sequence[int], depths: Sequence[int]) -> Structure:
    """A ResNet written in this encoding: stages of bottlenecks four times as wide at their ends, 3 x 3 kernels."""
    blocks = [BlockSpec("conv", 3, stem, 2, 3)]
    for mid, depth in zip(mids, depths, strict=True):
        blocks.append(BlockSpec("k1kxk1", blocks[-1].cout, 4 * mid, 2, 3, depth, mid))
    return tuple(blocks)
