"""Filter banks of multiwavelets: how a piecewise polynomial splits into averages and details, and is put
together again.

k polynomials phi_i on [0, 1] span a scale; their copies on both halves span the next finer one, and psi_i
what the halves have beyond the whole (card, "FEB-w"; Gupta et al. 2021, arXiv 2109.13459). Polynomials are
arrays of coefficients of rising powers.

The order of operations is the released code's. It matters: Gram-Schmidt in powers of x runs out of float64
digits at k = 8, the default, where the released psi are no orthonormal set any more (rows of [g0 g1] overlap
by up to 0.3), and trained weights belong to the filters they were trained with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.polynomial import Polynomial, chebyshev, legendre
from numpy.polynomial.polynomial import polyval

Base = Literal["legendre", "chebyshev"]
Piecewise = tuple[np.ndarray, np.ndarray]  # on the left and on the right half of [0, 1]
TINY = 1e-8  # coefficients below it are taken for rounding errors


@dataclass(frozen=True)
class Filters:
    """Matrices `[k, k]`, float64: h to the averages, g to the details, of the left (0) and right (1) half.

    phi0 and phi1 undo what a base that is not orthonormal does; they are the identity for Legendre.
    """

    h0: np.ndarray
    h1: np.ndarray
    g0: np.ndarray
    g1: np.ndarray
    phi0: np.ndarray
    phi1: np.ndarray


@cache
def multiwavelet_filters(base: Base, k: int) -> Filters:
    """The filters of `k` polynomials; built once per process."""
    return _legendre(k) if base == "legendre" else _chebyshev(k)


def _clean(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < TINY, 0.0, values)


def _substitute(polynomial: np.ndarray, slope: float) -> np.ndarray:
    """p(slope x - 1) in powers of x, of p with integer values there: the rounding removes what the
    arithmetic added.
    """
    return np.round(Polynomial(polynomial)(Polynomial([-1.0, slope])).coef)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Coefficients of a product, each summed in rising powers of the longer polynomial, one term at a time.

    `np.convolve` sums in an order, and with fused operations, that depend on the processor: at k = 8 that decides psi.
    """
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    product = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(longer.tolist()):
        for j, y in enumerate(shorter.tolist()):
            product[i + j] += x * y
    return np.array(product)


def _details(
    phi: list[np.ndarray],
    doubled: list[np.ndarray],
    share: Callable[[int, np.ndarray, bool], float],
    norm: Callable[[Piecewise], float],
) -> list[Piecewise]:
    """psi_i: sqrt(2) phi_i(2x) on the left half, minus its shares of the phi and of earlier psi, normalised.

    Args:
        phi: the polynomials of the scale.
        doubled: sqrt(2) phi_i(2x).
        share: inner product of `doubled[i]` with the left piece of a function; whether that is a phi.
        norm: of a piecewise polynomial.
    """
    psi: list[Piecewise] = []
    for i, start in enumerate(doubled):
        left, right = np.zeros(len(phi)), np.zeros(len(phi))
        left[: len(start)] = start
        for a, b, whole in [*((p, p, True) for p in phi), *((a, b, False) for a, b in psi)]:
            part = share(i, a, whole)
            left[: len(a)] -= part * a
            right[: len(b)] -= part * b
        size = norm((left, right))
        psi.append((_clean(left / size), _clean(right / size)))
    return psi


def _bank(
    functions: list[np.ndarray], points: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Inner products `[k, k]` of functions at `points` with targets at the quadrature's nodes."""
    values = np.array([polyval(points, p) for p in functions])
    return _clean((values * weights) @ targets.T / np.sqrt(2))


def _legendre(k: int) -> Filters:
    """Integrals are exact but for rounding; k Gauss-Legendre nodes for the filters."""
    scales = np.sqrt(2 * np.arange(k) + 1)
    basis = [legendre.leg2poly([0] * i + [1]) for i in range(k)]
    phi = [scale * _substitute(p, 2.0) for scale, p in zip(scales, basis, strict=True)]
    doubled = [np.sqrt(2) * scale * _substitute(p, 4.0) for scale, p in zip(scales, basis, strict=True)]

    def integral(a: np.ndarray, b: np.ndarray, left: bool = True) -> float:
        product = _clean(_product(a, b))
        power = np.arange(len(product)) + 1
        return float((product / power * (0.5**power if left else 1 - 0.5**power)).sum())

    psi = _details(
        phi,
        doubled,
        share=lambda i, a, _: integral(doubled[i], a),
        norm=lambda psi: float(np.sqrt(integral(psi[0], psi[0]) + integral(psi[1], psi[1], left=False))),
    )
    nodes, weights = legendre.leggauss(k)
    return _filters(phi, psi, (nodes + 1) / 2, weights / 2, np.eye(k), np.eye(k))


def _chebyshev(k: int) -> Filters:
    """2 k nodes of equal weight for integrals and filters; every function is zero outside its interval."""
    scales = [np.sqrt(2 / np.pi)] + [2 / np.sqrt(np.pi)] * (k - 1)
    basis = [chebyshev.cheb2poly([0] * i + [1]) for i in range(k)]
    phi = [scale * _substitute(p, 2.0) for scale, p in zip(scales, basis, strict=True)]
    doubled = [np.sqrt(2) * scale * _substitute(p, 4.0) for scale, p in zip(scales, basis, strict=True)]
    x = (np.cos((2 * np.arange(2 * k) + 1) * np.pi / (4 * k)) + 1) / 2
    w = np.full(2 * k, np.pi / (4 * k))

    def at(p: np.ndarray, points: np.ndarray, low: float, high: float) -> np.ndarray:
        return np.where((points < low) | (points > high), 0.0, polyval(points, p))

    psi = _details(
        phi,
        doubled,
        share=lambda i, a, whole: float(
            (w * at(a, x, 0, 1 if whole else 0.5) * at(doubled[i], x, 0, 0.5)).sum()
        ),
        norm=lambda psi: float(
            np.sqrt((w * (at(psi[0], x, 0, 0.5) ** 2 + at(psi[1], x, 0.5, 1) ** 2)).sum())
        ),
    )
    halves = [np.array([at(p, points, 0, 1) for p in phi]) for points in (2 * x, 2 * x - 1)]
    return _filters(phi, psi, x, w, *(_clean(2 * (values * w) @ values.T) for values in halves))


def _filters(
    phi: list[np.ndarray],
    psi: list[Piecewise],
    x: np.ndarray,
    w: np.ndarray,
    phi0: np.ndarray,
    phi1: np.ndarray,
) -> Filters:
    targets = np.array([polyval(x, p) for p in phi])
    return Filters(
        h0=_bank(phi, x / 2, targets, w),
        h1=_bank(phi, (x + 1) / 2, targets, w),
        g0=_bank([left for left, _ in psi], x / 2, targets, w),
        g1=_bank([right for _, right in psi], (x + 1) / 2, targets, w),
        phi0=phi0,
        phi1=phi1,
    )
