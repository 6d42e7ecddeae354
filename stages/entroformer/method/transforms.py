"""From picture to latents and back: convolutions with GDN (Balle et al.), and a fixed block DCT for tests of entropy models.

Pictures are `[B, 3, H, W]` in [0, 1] with H and W multiples of `stride`; latents `[B, S, H / stride, W / stride]`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Parameters of GDN are stored as p with value = max(p, bound)^2 - pedestal, which keeps them positive.
PEDESTAL = 2.0**-36
BETA_BOUND, GAMMA_BOUND = math.sqrt(1e-6 + PEDESTAL), 2.0**-18
DCT_BLOCK, DCT_STEP, DCT_DC_STEP = 8, 20.0, 80.0
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


class _LowerBound(torch.autograd.Function):
    """max(p, bound) whose gradient also passes below the bound where a step would raise p."""

    @staticmethod
    def forward(ctx, p: Tensor, bound: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(p)
        ctx.bound = bound
        return p.clamp_min(bound)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (p,) = ctx.saved_tensors
        return grad * ((p >= ctx.bound) | (grad < 0)), None


class GDN(nn.Module):
    """y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2); `inverse` multiplies instead."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.full((channels,), math.sqrt(1 + PEDESTAL)))
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + PEDESTAL).sqrt())

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Normalise across channels."""
        beta_C = _LowerBound.apply(self.beta, BETA_BOUND) ** 2 - PEDESTAL
        gamma_CC = _LowerBound.apply(self.gamma, GAMMA_BOUND) ** 2 - PEDESTAL
        norm = F.conv2d(x_BChw**2, gamma_CC[:, :, None, None], beta_C)
        return x_BChw * (norm.sqrt() if self.inverse else norm.rsqrt())


class AnalysisTransform(nn.Module):
    """Four 5x5 convolutions of stride 2, GDN after the first three."""

    def __init__(self, channels: int, latents: int) -> None:
        super().__init__()
        widths = (3, channels, channels, channels, latents)
        layers: list[nn.Module] = []
        for i in range(4):
            layers.append(nn.Conv2d(widths[i], widths[i + 1], 5, 2, 2))
            if i < 3:
                layers.append(GDN(channels))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise_convolution)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Picture to latents."""
        return self.layers(2 * x_B3HW - 1)


class SynthesisTransform(nn.Module):
    """Four transposed 5x5 convolutions of stride 2, inverse GDN after the first three; not clamped."""

    def __init__(self, channels: int, latents: int) -> None:
        super().__init__()
        widths = (latents, channels, channels, channels, 3)
        layers: list[nn.Module] = []
        for i in range(4):
            layers.append(nn.ConvTranspose2d(widths[i], widths[i + 1], 5, 2, 2, output_padding=1))
            if i < 3:
                layers.append(GDN(channels, inverse=True))
        self.layers = nn.Sequential(*layers)
        self.apply(initialise_convolution)

    def forward(self, y_BShw: Tensor) -> Tensor:
        """Latents to picture."""
        return self.layers(y_BShw) / 2 + 0.5


class BlockDCTAnalysis(nn.Module):
    """Luma, orthonormal 8x8 block DCT, the first `latents` zig-zag coefficients, divided by fixed steps."""

    basis_SHW: Tensor
    luma_3: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.register_buffer("basis_SHW", dct_basis(latents), persistent=False)
        self.register_buffer("luma_3", torch.tensor(LUMA), persistent=False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Picture to latents."""
        luma_B1HW = torch.einsum("bchw,c->bhw", x_B3HW, self.luma_3.to(x_B3HW))[:, None] * 255 - 128
        return F.conv2d(luma_B1HW, self.basis_SHW[:, None].to(luma_B1HW), stride=DCT_BLOCK) / _steps(
            self.basis_SHW
        )


class BlockDCTSynthesis(nn.Module):
    """The grey picture of the coefficients that were kept."""

    basis_SHW: Tensor

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.register_buffer("basis_SHW", dct_basis(latents), persistent=False)

    def forward(self, y_BShw: Tensor) -> Tensor:
        """Latents to picture."""
        scaled = y_BShw * _steps(self.basis_SHW)
        luma = F.conv_transpose2d(scaled, self.basis_SHW[:, None].to(scaled), stride=DCT_BLOCK)
        return ((luma + 128) / 255).expand(-1, 3, -1, -1)


def _steps(basis_SHW: Tensor) -> Tensor:
    steps_S11 = basis_SHW.new_full((len(basis_SHW), 1, 1), DCT_STEP)
    steps_S11[0] = DCT_DC_STEP
    return steps_S11


def dct_basis(latents: int) -> Tensor:
    """The first basis pictures `[S, 8, 8]` of the orthonormal 2-D DCT-II, in zig-zag order."""
    n = DCT_BLOCK
    i = torch.arange(n, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * i[None] + 1) * i[:, None] / (2 * n)) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    order = sorted(
        ((u, v) for u in range(n) for v in range(n)),
        key=lambda uv: (uv[0] + uv[1], uv[0] if (uv[0] + uv[1]) % 2 else uv[1]),
    )
    return torch.stack([torch.outer(rows[u], rows[v]) for u, v in order[:latents]]).float()


def initialise_convolution(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases, as the authors start."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
