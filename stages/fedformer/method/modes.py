"""Which frequencies a block keeps, and the way to them and back (card, "Mode selection").

Shapes: B batch, L length, D width, M selected modes.
"""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Policy = Literal["random", "low"]


def select_modes(length: int, modes: int, policy: Policy, rng: np.random.RandomState) -> list[int]:
    """Sorted indices of the `min(modes, length // 2)` frequencies that are kept; the Nyquist bin is never
    among them.

    `random` shuffles the candidates with `rng` and takes the first ones, as the official code does with
    numpy's global generator; `low` takes the lowest and draws nothing.
    """
    candidates = list(range(length // 2))
    if policy == "random":
        rng.shuffle(candidates)
    return sorted(candidates[:modes])


class SelectedModes(nn.Module):
    """Discrete Fourier transform of a signal of fixed length at a few frequencies only.

    Both directions are one real matrix product with a basis of 2 M rows, which is linear in the length and
    makes neither the full spectrum nor a copy of it. `index` is saved with the model: without it a
    checkpoint with random modes is worthless (card, "Official checkpoints").

    Args:
        length: L.
        index: M frequencies, at most L / 2.
        positions: frequencies that the way back writes to; by default `index` itself.
        orthonormal: scale both ways by 1 / sqrt(L) instead of 1 and 1 / L.
    """

    index: Tensor
    _to: Tensor
    _from: Tensor

    def __init__(
        self, length: int, index: list[int], positions: list[int] | None = None, orthonormal: bool = False
    ) -> None:
        super().__init__()
        self.length, self.orthonormal = length, orthonormal
        self.positions = positions
        self.register_buffer("index", torch.tensor(index, dtype=torch.long))
        self.register_buffer("_to", torch.empty(0), persistent=False)
        self.register_buffer("_from", torch.empty(0), persistent=False)
        self.set_index(index)

    def set_index(self, index: list[int]) -> None:
        """Use these M frequencies from now on."""
        back = index if self.positions is None else self.positions[: len(index)]
        scale = math.sqrt(self.length) if self.orthonormal else 1.0
        # every bin but the first and Nyquist's has a mirror image among the negative frequencies
        single_M = torch.tensor(back, dtype=torch.long) * 2 % self.length == 0
        weight_M = torch.where(single_M, 1.0, 2.0).double() * scale / self.length
        to_2ML, from_2ML = self._basis(index), self._basis(back) * weight_M.repeat(2)[:, None]
        self.index = torch.tensor(index, dtype=torch.long, device=self.index.device)
        self._to = (to_2ML / scale).float().to(self.index.device)
        self._from = from_2ML.t().float().contiguous().to(self.index.device)

    def _basis(self, index: list[int]) -> Tensor:
        steps_ML = torch.tensor(index, dtype=torch.long)[:, None] * torch.arange(self.length) % self.length
        angle_ML = steps_ML.double() * (2 * math.pi / self.length)
        return torch.cat([angle_ML.cos(), -angle_ML.sin()])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.set_index(self.index.tolist())

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Coefficients `[B, M, D]`, complex."""
        x_B2MD = torch.matmul(self._to, x_BLD)
        return torch.complex(*x_B2MD.chunk(2, dim=1))

    def inverse(self, x_BMD: Tensor) -> Tensor:
        """The signal `[B, L, D]` whose other coefficients are zero."""
        return torch.matmul(self._from, torch.cat([x_BMD.real, x_BMD.imag], dim=1))
