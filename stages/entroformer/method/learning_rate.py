"""The authors' schedule: linear warm-up per picture seen, then factors at whole epochs."""

from collections.abc import Sequence


def learning_rate(
    seen: int, pictures: int, epochs: int, base: float, stages: Sequence[int], decay: float = 0.5
) -> float:
    """Learning rate once `seen` pictures of an epoch's `pictures` have been shown.

    Args:
        stages: epochs at which the rate is multiplied by `decay`; the last stage does not fall below its own.
    """
    warm = 0.05 * epochs * pictures
    falls = sum(seen // pictures >= stage for stage in stages)
    return base * min(1.0, (seen + 1) / warm) * decay**falls
