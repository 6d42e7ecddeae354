"""Fixed random matrices of the test problems, float64."""

import torch
from torch import Generator, Tensor


def random_orthogonal(d: int, seed: int = 0) -> Tensor:
    """A rotation [d, d], uniform up to signs."""
    q, r = torch.linalg.qr(_normal((d, d), seed))
    return q * r.diagonal().sign()


def unit_norm(m: int, d: int, seed: int = 0) -> Tensor:
    """A matrix [m, d] of spectral norm 1."""
    A_md = _normal((m, d), seed)
    return A_md / torch.linalg.matrix_norm(A_md, 2)


def with_eigenvalues(values_m: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix [m, m] with these eigenvalues."""
    Q_mm = random_orthogonal(len(values_m), seed)
    return Q_mm.T @ (values_m[:, None] * Q_mm)


def normal_vector(m: int, seed: int = 0) -> Tensor:
    """Standard normal entries, [m]."""
    return _normal((m,), seed)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)
