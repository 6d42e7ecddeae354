"""Rounding latents to the integers -128 .. 127."""

import torch
from torch import Tensor

LOW, HIGH = -128, 127


def quantise(v: Tensor) -> Tensor:
    """floor(v + 1/2), clamped: what a file holds."""
    return (v + 0.5).floor().clamp(LOW, HIGH)


def straight_through(v: Tensor) -> Tensor:
    """Rounded (half to even) and clamped; the gradient is the identity's strictly inside the range, else zero."""
    inside = (v > LOW) & (v < HIGH)
    return v.detach().round().clamp(LOW, HIGH) + (v - v.detach()) * inside


def add_noise(v: Tensor, generator: torch.Generator) -> Tensor:
    """v plus uniform noise of (-1/2, 1/2), clamped: the differentiable stand-in for rounding in the rate."""
    noise = torch.rand(v.shape, generator=generator) - 0.5
    return (v + noise.to(v)).clamp(LOW, HIGH)
