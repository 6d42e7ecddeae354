"""Digits: a small network with cross-entropy and weight decay, exact gradient over all training images (card, E6)."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from stages.adam.method.problems.mlp import TanhNetwork, gradient

DECAY = 5e-4


class DigitsMLP:
    """F(w) = mean cross-entropy over the N training images + DECAY/2 ‖w‖²; w is [..., P].

    Args:
        x_NI: training images.
        y_N: their digits.
    """

    def __init__(self, x_NI: Tensor, y_N: Tensor) -> None:
        self.x, self.y = x_NI, y_N
        self.network = TanhNetwork(x_NI.shape[1], 32, 10)

    def _loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits = self.network.forward(w, x)
        y = y.expand(logits.shape[:-1])
        entropy = cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").view(y.shape)
        return entropy.mean(-1) + DECAY / 2 * w.square().sum(-1)

    def value(self, w: Tensor) -> Tensor:
        """F, [...]."""
        return self._loss(w, self.x, self.y)

    def grad(self, w: Tensor) -> Tensor:
        """∇F, [..., P]."""
        return gradient(self.value, w)

    def oracle(self, w: Tensor, rows_SB: Tensor) -> Tensor:
        """Mini-batch gradients [..., S, P] for w [..., S, P]: every seed has its own rows."""
        x_SBI, y_SB = self.x[rows_SB], self.y[rows_SB]
        return gradient(lambda weights: self._loss(weights, x_SBI, y_SB), w)

    def accuracy(self, w: Tensor, x_NI: Tensor, y_N: Tensor) -> Tensor:
        """Share of right answers, [...]."""
        return (self.network.forward(w, x_NI).argmax(-1) == y_N).double().mean(-1)
