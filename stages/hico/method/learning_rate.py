"""Cosine with a linear warm-up that ends on the cosine (card, "Optimisation")."""

import math


def cosine_warmup_lr(epoch: float, base: float, warmup_start: float, warmup: float, total: float) -> float:
    """Learning rate at a fractional epoch (or step: any unit that `warmup` and `total` share)."""

    def cosine(at: float) -> float:
        return base * (math.cos(math.pi * at / total) + 1) / 2

    if epoch < warmup:
        return warmup_start + (cosine(warmup) - warmup_start) * epoch / warmup
    return cosine(epoch)


def scaled_lr(base: float, videos: int, n_clips: int) -> float:
    """The linear scaling rule: `base` is for 256 clips a step, over all processes.

    The official formula multiplies a batch that is divided among GPUs by their number again (card, pitfall 2); this
    is the rule that it states.
    """
    return base * videos * n_clips / 256
