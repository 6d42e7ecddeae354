"""PSNR, MS-SSIM and Bjontegaard differences between rate-distortion curves."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import Akima1DInterpolator, PchipInterpolator
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MS_SSIM_SHORT_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1)  # pictures must be larger than this

Fit = Literal["pchip", "cubic", "akima"]


def psnr(a: Tensor, b: Tensor) -> float:
    """10 log10(255^2 / MSE) of two pictures in 0 .. 255, over all channels; infinite for equal ones."""
    mse = float((a.double() - b.double()).square().mean())
    return float(10 * np.log10(255**2 / mse)) if mse else float("inf")


def ms_ssim(a_B3HW: Tensor, b_B3HW: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003) in 0 .. 255, per picture, mean of channels: `[B]`.

    Raises:
        ValueError: the short side is not above 160 pixels.
    """
    if min(a_B3HW.shape[-2:]) <= MS_SSIM_SHORT_SIDE:
        raise ValueError(
            f"MS-SSIM needs more than {MS_SSIM_SHORT_SIDE} pixels a side, not {tuple(a_B3HW.shape[-2:])}"
        )
    a, b = a_B3HW.double(), b_B3HW.double()
    result = torch.ones((), dtype=torch.float64)
    for scale, weight in enumerate(WEIGHTS):
        ssim_BC, contrast_BC = _ssim(a, b)
        last = scale == len(WEIGHTS) - 1
        result = result * (ssim_BC if last else contrast_BC).clamp_min(0) ** weight
        padding = [size % 2 for size in a.shape[-2:]]
        a, b = (F.avg_pool2d(x, 2, padding=padding) for x in (a, b))
    return result.mean(1)


def _ssim(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure part, each averaged over positions: `[B, C]`."""
    x = torch.arange(WINDOW, dtype=a.dtype) - WINDOW // 2
    kernel = torch.exp(-(x**2) / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()

    def blur(v: Tensor) -> Tensor:
        channels = v.shape[1]
        v = F.conv2d(v, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(v, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, covariance = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    contrast = (2 * covariance + C2) / (var_a + var_b + C2)
    ssim = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1) * contrast
    return ssim.mean((2, 3)), contrast.mean((2, 3))


def bd_rate(
    rate_a: np.ndarray, psnr_a: np.ndarray, rate_b: np.ndarray, psnr_b: np.ndarray, fit: Fit = "pchip"
) -> float:
    """Mean rate change of curve b against the anchor a at equal PSNR, in percent; negative: b needs fewer bits.

    Raises:
        ValueError: fewer than four points, a curve that does not rise, or no common range of PSNR.
    """
    difference = _mean_difference((psnr_a, np.log(rate_a)), (psnr_b, np.log(rate_b)), fit)
    return float(100 * np.expm1(difference))


def bd_psnr(
    rate_a: np.ndarray, psnr_a: np.ndarray, rate_b: np.ndarray, psnr_b: np.ndarray, fit: Fit = "pchip"
) -> float:
    """Mean PSNR change of curve b against the anchor a at equal rate, in dB.

    Raises:
        ValueError: as `bd_rate`.
    """
    return _mean_difference((np.log10(rate_a), psnr_a), (np.log10(rate_b), psnr_b), fit)


def _mean_difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], fit: Fit) -> float:
    for x, y in (a, b):
        if len(x) < 4 or len(x) != len(y):
            raise ValueError(f"a rate-distortion curve needs at least 4 points, not {len(x)}")
        if (np.diff(x) <= 0).any() or (np.diff(y) <= 0).any():
            raise ValueError("a rate-distortion curve has to rise: sort its points, drop those that do not")
    low, high = max(a[0][0], b[0][0]), min(a[0][-1], b[0][-1])
    if low >= high:
        raise ValueError("the two rate-distortion curves have no common range")
    return (_integral(*b, low, high, fit) - _integral(*a, low, high, fit)) / (high - low)


def _integral(x: np.ndarray, y: np.ndarray, low: float, high: float, fit: Fit) -> float:
    if fit == "cubic":
        integral = np.polynomial.Polynomial.fit(x, y, 3).integ()
        return float(integral(high) - integral(low))
    interpolate = PchipInterpolator if fit == "pchip" else Akima1DInterpolator
    return float(interpolate(x, y).integrate(low, high))
