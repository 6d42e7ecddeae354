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
    # Beta(a, a) as a ratio of Gammas: torch.distributions takes no generator
    weight = torch._sample_dirichlet(torch.full((2,), alpha, dtype=torch.float64), generator)[0].item()
    partner = torch.randperm(len(images), generator=generator).to(images.device)
    onehot_NK = F.one_hot(labels, num_classes).to(images.dtype)
    return images.lerp(images[partner], 1 - weight), onehot_NK.lerp(onehot_NK[partner], 1 - weight)
