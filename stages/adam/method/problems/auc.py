"""AUC as a min-max problem (card, E7; the margin loss that LibAUC calls AUCM).

f(h; a, b, alpha) = E₊(h-a)² + E₋(h-b)² + 2 alpha (m + E₋h - E₊h) - alpha², where h is the score in (0, 1), E₊ and E₋ are
means over positives and negatives, and m the margin. Strongly concave in alpha: alpha* = m + E₋h - E₊h.
"""

import torch
from torch import Tensor

from stages.adam.method.problems.mlp import TanhNetwork, gradient


def aucm(h: Tensor, positive: Tensor, a: Tensor, b: Tensor, alpha: Tensor, margin: float = 1.0) -> Tensor:
    """The loss, [...], for scores h [..., N], a mask of positives [..., N], and a, b, alpha [...].

    The class-prior form (LibAUC's "v1") is p (1-p) times this, with p the share of positives.
    """
    plus, minus = positive.to(h.dtype), (~positive).to(h.dtype)
    plus, minus = plus / plus.sum(-1, keepdim=True), minus / minus.sum(-1, keepdim=True)
    spread = (plus * (h - a[..., None]) ** 2 + minus * (h - b[..., None]) ** 2).sum(-1)
    return spread + 2 * alpha * (margin + ((minus - plus) * h).sum(-1)) - alpha**2


def best_alpha(h: Tensor, positive: Tensor, margin: float = 1.0) -> Tensor:
    """alpha*, [...]."""
    plus, minus = positive.to(h.dtype), (~positive).to(h.dtype)
    return margin + (minus * h).sum(-1) / minus.sum(-1) - (plus * h).sum(-1) / plus.sum(-1)


def auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve by ranks, [...], for scores [..., N] and a mask [N]; ties count a half."""
    plus, minus = scores[..., positive], scores[..., ~positive]
    difference = plus[..., :, None] - minus[..., None, :]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean((-2, -1))


class AUCMaximisation:
    """The loss of a small network on an imbalanced set; the primal variable is [..., P + 2]: weights, a, b.

    Args:
        x_NI: training images.
        positive_N: which of them are positives.
    """

    def __init__(self, x_NI: Tensor, positive_N: Tensor) -> None:
        self.x, self.positive = x_NI, positive_N
        self.network = TanhNetwork(x_NI.shape[1], 16, 1)

    def scores(self, w: Tensor, x: Tensor) -> Tensor:
        """h in (0, 1), [..., N]."""
        return self.network.forward(w[..., :-2], x).squeeze(-1).sigmoid()

    def _loss(self, w: Tensor, alpha: Tensor, x: Tensor, positive: Tensor) -> Tensor:
        return aucm(self.scores(w, x), positive, w[..., -2], w[..., -1], alpha)

    def best_alpha(self, w: Tensor) -> Tensor:
        """alpha*(w), [...]."""
        return best_alpha(self.scores(w, self.x), self.positive)

    def grad_x(self, w: Tensor, alpha: Tensor) -> Tensor:
        """Exact gradient in (w, a, b), [..., P + 2]; at alpha* it is ∇Phi."""
        return gradient(lambda weights: self._loss(weights, alpha, self.x, self.positive), w)

    def oracle(self, w: Tensor, alpha: Tensor, rows_SB: Tensor) -> tuple[Tensor, Tensor]:
        """Mini-batch gradients in the primal, [S, P + 2], and in alpha, [S]; every seed has its own rows."""
        x_SBI, positive_SB = self.x[rows_SB], self.positive[rows_SB]
        w, alpha = w.detach().requires_grad_(), alpha.detach().requires_grad_()
        loss = self._loss(w, alpha, x_SBI, positive_SB).sum()
        grad_w, grad_alpha = torch.autograd.grad(loss, (w, alpha))
        return grad_w, grad_alpha

    def cross_entropy_oracle(self, w: Tensor, rows_SB: Tensor) -> Tensor:
        """The same mini-batch's binary cross-entropy gradient, [S, P + 2] (zero for a and b): the rival."""
        x_SBI, target_SB = self.x[rows_SB], self.positive[rows_SB].double()

        def loss(weights: Tensor) -> Tensor:
            logits_SB = self.network.forward(weights[..., :-2], x_SBI).squeeze(-1)
            return torch.nn.functional.binary_cross_entropy_with_logits(
                logits_SB, target_SB, reduction="none"
            ).mean(-1)

        return gradient(loss, w)
