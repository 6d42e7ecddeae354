"""Tensors of the golden cases that are not stored: filled from their key (tests/golden/motionrgbd/README.md)."""

import re
import zlib

import numpy as np
import torch
from torch import Tensor

PAIR = re.compile(r"(\S+) \(([\d, ]*)\)")


def generator(key: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)


def filled(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A weight."""
    rng = generator(key, seed)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_var"):
        value = 0.5 + rng.random_sample(shape)
    elif key.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        embedding = "pos_embedding" in key or "cls_token" in key
        value = (0.5 if embedding else np.sqrt(2 / np.prod(shape[1:]))) * rng.standard_normal(shape)
    elif key.endswith("weight"):
        value = 1 + 0.1 * rng.standard_normal(shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def filled_state(pairs: np.ndarray, seed: int) -> dict[str, Tensor]:
    """All weights of a list of `key (shape)` texts."""
    state = {}
    for text in pairs:
        match = PAIR.fullmatch(str(text))
        assert match
        shape = tuple(int(part) for part in match[2].split(",") if part.strip())
        state[match[1]] = filled(match[1], shape, seed)
    return state


def inputs(key: str, shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Tensor:
    """An input."""
    value = scale * generator(key, seed).standard_normal(shape)
    return torch.from_numpy(value.astype(np.float32))
