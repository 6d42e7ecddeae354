"""A two-layer tanh network whose weights are one vector, so that a batch of runs trains many of them at once.

Shapes: w [..., P] holds W1 [inputs, hidden], b1, W2 [hidden, outputs], b2; x is [..., N, inputs] and broadcasts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor


class TanhNetwork:
    """The network; it holds no weights."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        self.sizes = (inputs, hidden, outputs)
        self.lengths = (inputs * hidden, hidden, hidden * outputs, outputs)
        self.count = sum(self.lengths)

    def start(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights of every seed, [S, P]: normal with variance 1/inputs of the layer, biases zero."""
        inputs, hidden, _ = self.sizes
        rows = []
        for seed in seeds:
            w_P = torch.randn(self.count, generator=Generator().manual_seed(seed), dtype=torch.float64)
            W1, b1, W2, b2 = w_P.split(self.lengths)
            rows.append(torch.cat([W1 / inputs**0.5, b1 * 0, W2 / hidden**0.5, b2 * 0]))
        return torch.stack(rows)

    def forward(self, w: Tensor, x: Tensor) -> Tensor:
        """Outputs [..., N, outputs]."""
        inputs, hidden, outputs = self.sizes
        W1, b1, W2, b2 = w.split(self.lengths, dim=-1)
        h = torch.tanh(x @ W1.unflatten(-1, (inputs, hidden)) + b1[..., None, :])
        return h @ W2.unflatten(-1, (hidden, outputs)) + b2[..., None, :]


def gradient(loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
    """Gradients [..., P] of losses [...], each of its own run's weights."""
    w = w.detach().requires_grad_()
    return torch.autograd.grad(loss(w).sum(), w)[0]
