"""The learning-rate schedule of the recipe (card, "Classification recipe")."""

import math


def warmup_cosine(epoch: int, base: float, warmup: int, total: int) -> float:
    """Learning rate of one epoch: linear up to `base` over `warmup` epochs, then a cosine to 0."""
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (total - warmup)))
