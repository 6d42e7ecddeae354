"""Mixup with label smoothing, the classification loss of the recipe (card, "Classification recipe").

The loss itself is torch's: `F.cross_entropy(logits, soft_target, label_smoothing=0.1)` is
0.9 * CE(soft_target) + 0.1 * mean over classes of -log p.

Shapes: N batch, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image with another one of the batch, one blending weight ~ Beta(alpha, alpha) per batch.

    Args:
        images: [N, ...].
        labels: [N] int64.
        num_classes: K.
        alpha: 0.2 in the recipe.
        generator: CPU generator of weight and partners.

    Returns:
        Blended images [N, ...] and soft targets [N, K].
    """
    weight = _beta(alpha, generator)
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    onehot_NK = F.one_hot(labels, num_classes).to(images.dtype)
    return images.lerp(images[partner], 1 - weight), onehot_NK.lerp(onehot_NK[partner], 1 - weight)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A number ~ Beta(alpha, alpha) by Joehnk's rejection (torch.distributions takes no generator)."""
    while True:
        u, v = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < u + v <= 1:
            return u / (u + v)
