"""Which images of a data set take part: chosen once by a prepare stage, listed in a file that later stages read."""

import json
import random
from pathlib import Path
from typing import Any, Literal, get_args

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)


def choose(items: list[Any], count: int | None) -> list[Any]:
    """`count` of the items, drawn with a fixed seed, in their order; all when `count` is None or more than there are."""
    if count is None or count >= len(items):
        return items
    kept = sorted(random.Random(0).sample(range(len(items)), count))
    return [items[index] for index in kept]


def write_listing(path: Path, root: Path, chosen: dict[Split, list[Any]]) -> None:
    """Say in a file where the data set is and what of it takes part; a data set beside the file may move with it."""
    beside = root.is_relative_to(path.parent)
    place = root.relative_to(path.parent) if beside else root.resolve()
    path.write_text(json.dumps({"root": str(place), **chosen}))


def read_listing(path: Path, split: Split) -> tuple[Path, list[Any]]:
    """Root of the data set and what of a split takes part."""
    content = json.loads(path.read_text())
    return path.parent / content["root"], content[split]
