"""What the operator equals in its special cases, and how far its backends are apart (claim 1).

Everything is computed from random tensors in double precision; numbers are the largest absolute differences.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.elsa.method.aggregate import Backend, hadamard_ghost_aggregate
from stages.elsa.method.mixers import Involution

KERNEL, HEADS, WIDTH, SIDE = 5, 2, 3, 9


def differences(seed: int) -> dict[str, float]:
    """Largest absolute difference of each equality, by its name."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dim = HEADS * WIDTH
    v = draw(2, HEADS, WIDTH, SIDE, SIDE)
    h = draw(2, HEADS, KERNEL**2, SIDE, SIDE).softmax(2)
    mul, add = draw(dim, KERNEL, KERNEL), draw(dim, KERNEL, KERNEL)
    out = hadamard_ghost_aggregate(v, torch.zeros_like(h), None, add, KERNEL)
    filters = add[:, None]
    depthwise = F.conv2d(v.flatten(1, 2), filters, padding=KERNEL // 2, groups=dim).view_as(v)
    found = {"depthwise convolution at h = 0": _largest(out - depthwise)}

    x_BHWC = draw(2, SIDE, SIDE, dim)
    involution = Involution(dim, HEADS, KERNEL, reduction=2).double()
    taps = involution.filters(F.relu(involution.reduce(x_BHWC))).permute(0, 3, 1, 2)
    out = hadamard_ghost_aggregate(
        x_BHWC.permute(0, 3, 1, 2).unflatten(1, (HEADS, -1)),
        taps.unflatten(1, (HEADS, -1)), None, None, KERNEL, gamma=0, backend="reference",
    )  # fmt: skip
    found["involution at (0, 0)"] = _largest(out.flatten(1, 2).permute(0, 2, 3, 1) - involution(x_BHWC))
    for combine, powers in (("mul", (1, 0)), ("add", (0, 1))):
        one = h[:, :1].expand(-1, HEADS, -1, -1, -1)  # DDF has one spatial filter for all channels
        out = hadamard_ghost_aggregate(v, one, mul, add, KERNEL, 1, *powers)
        static = (mul if combine == "mul" else add).view(1, dim, KERNEL**2, 1)
        spatial = h[:, :1].flatten(3)
        weights = spatial * static if combine == "mul" else spatial + static
        unfolded = F.unfold(v.flatten(1, 2), KERNEL, padding=KERNEL // 2).view(2, dim, KERNEL**2, -1)
        found[f"DDF-{combine} at {powers}"] = _largest(out - (weights * unfolded).sum(2).view_as(v))
    found |= _backends(v, h, mul, add)
    return found


def _backends(v: Tensor, h: Tensor, mul: Tensor, add: Tensor) -> dict[str, float]:
    """Value and gradients of the shift backend against the reference."""
    results = []
    backends: tuple[Backend, ...] = ("reference", "shift")
    for backend in backends:
        inputs = [x.clone().requires_grad_() for x in (v, h, mul, add)]
        out = hadamard_ghost_aggregate(
            inputs[0], inputs[1], inputs[2], inputs[3], KERNEL, lam=1, gamma=1, backend=backend
        )
        gradients = torch.autograd.grad(out.square().sum(), inputs)
        results.append([out.detach(), *gradients])
    names = ("value", "gradient of v", "gradient of h", "gradient of o", "gradient of s")
    return {
        f"backends, {name}": _largest(one - other) for name, one, other in zip(names, *results, strict=True)
    }


def _largest(x: Tensor) -> float:
    return float(x.detach().abs().max())
