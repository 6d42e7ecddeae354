"""The operator: backends agree in value and gradient, special cases are the operators that the paper names."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.common.stage.run import ROOT
from stages.elsa.method.aggregate import Backend, hadamard_ghost_aggregate, neighbour_products
from stages.elsa.method.taps import Grid, gather, inside, scatter, shifted

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def draw(
    batch: int, heads: int, channels: int, height: int, width: int, k: int, dtype: torch.dtype = torch.float64
) -> Inputs:
    """Values, attention, and positive multiplicative and additive ghost matrices."""
    generator = torch.Generator().manual_seed(height * 31 + width * 7 + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    v, h = (
        normal(batch, heads, channels, height, width),
        normal(batch, heads, k * k, height, width).softmax(2),
    )
    mul, add = normal(heads * channels, k, k).exp(), normal(heads * channels, k, k)
    return tuple(x.to(dtype).requires_grad_() for x in (v, h, mul, add))  # type: ignore[return-value]


def value_and_gradients(
    inputs: Inputs, k: int, dilation: int, lam: float, gamma: float, backend: Backend
) -> list[Tensor]:
    out = hadamard_ghost_aggregate(*inputs, k, dilation, lam, gamma, backend)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    used = [inputs[0], inputs[1], *([inputs[2]] if lam else []), *([inputs[3]] if gamma else [])]
    return [out.detach(), *torch.autograd.grad((out * cotangent).sum(), used)]


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    k=st.sampled_from([1, 3, 5, 7]),
    dilation=st.integers(1, 3),
    heads=st.integers(1, 3),
    ghost=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (2.0, 0.5), (0.5, 1.0)]),
)
@settings(max_examples=60, deadline=None)
def test_shift_equals_reference(
    height: int, width: int, k: int, dilation: int, heads: int, ghost: tuple[float, float]
) -> None:
    inputs = draw(2, heads, 3, height, width, k)
    pairs = zip(
        value_and_gradients(inputs, k, dilation, *ghost, "shift"),
        value_and_gradients(inputs, k, dilation, *ghost, "reference"),
        strict=True,
    )
    for ours, reference in pairs:
        torch.testing.assert_close(ours, reference, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("lam", "gamma"), [(0.0, 1.0), (1.0, 1.0), (2.0, 0.5), (0.0, 0.0)])
def test_gradients_are_the_derivatives(lam: float, gamma: float) -> None:
    v, h, mul, add = draw(1, 2, 2, 4, 3, 3)

    def operator(v: Tensor, h: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        return hadamard_ghost_aggregate(v, h, mul, add, 3, 1, lam, gamma, "shift")

    assert torch.autograd.gradcheck(operator, (v, h, mul, add))


def test_neighbour_products_are_differentiable() -> None:
    q, k, _, _ = draw(1, 2, 3, 4, 5, 3)
    k = q.detach().flip(-1).requires_grad_()
    grid = Grid(3, 2, 4, 5)
    unfolded = F.unfold(k.flatten(1, 2), 3, 2, grid.reach).view(1, 2, 3, 9, 4, 5)
    expected = (q[:, :, :, None] * unfolded).sum(2)
    assert torch.allclose(neighbour_products(q, k, 3, 2), expected)
    assert torch.autograd.gradcheck(lambda q, k: neighbour_products(q, k, 3, 2), (q, k))


@pytest.mark.parametrize("backend", ["reference", "shift"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_near_double(backend: Backend, dtype: torch.dtype) -> None:
    """Half types are summed in float32: the error is that of rounding inputs and output, not of 49 sums."""
    exact = draw(2, 2, 4, 9, 8, 7)
    inputs: Inputs = tuple(x.detach().to(dtype).requires_grad_() for x in exact)  # type: ignore[assignment]
    rounded: Inputs = tuple(x.detach().double().requires_grad_() for x in inputs)  # type: ignore[assignment]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    ours = value_and_gradients(inputs, 7, 1, 1.0, 1.0, backend)
    for mine, reference in zip(ours, value_and_gradients(rounded, 7, 1, 1.0, 1.0, "reference"), strict=True):
        assert mine.dtype == dtype
        scale = float(reference.abs().max())
        assert float((mine.double() - reference).abs().max()) <= tolerance * scale


def test_compiled_equals_reference() -> None:
    inputs = draw(2, 2, 3, 6, 5, 3, torch.float32)
    try:
        compiled = value_and_gradients(inputs, 3, 1, 1.0, 1.0, "compiled")
    except torch._inductor.exc.InductorError as error:  # no C++ compiler on this machine
        pytest.skip(f"torch.compile cannot build here: {str(error)[:80]}")
    for ours, reference in zip(
        compiled, value_and_gradients(inputs, 3, 1, 1.0, 1.0, "reference"), strict=True
    ):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


INTERPRETED = """
import torch
from stages.elsa.method.aggregate import hadamard_ghost_aggregate as aggregate
generator = torch.Generator().manual_seed(0)
normal = lambda *shape: torch.randn(*shape, generator=generator)
for k, dilation, lam, gamma in ((3, 1, 0, 1), (3, 2, 1, 1), (5, 1, 2, 0.5), (3, 1, 1, 0), (3, 1, 0, 0)):
    B, G, c, H, W = 2, 2, 3, 5, 6
    inputs = [normal(B, G, c, H, W), normal(B, G, k * k, H, W).softmax(2), normal(G * c, k, k).exp(), normal(G * c, k, k)]
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = aggregate(*leaves, k, dilation, lam, gamma, backend)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out] + [x.grad for x in leaves if x.grad is not None])
    assert len(results[0]) == len(results[1]) == 3 + bool(lam) + bool(gamma)
    for ours, reference in zip(*results):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
print("equal")
"""


def test_triton_kernels_equal_reference() -> None:
    """On a CPU the kernels run in Triton's interpreter, which has to be asked for before Triton is imported."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout == "equal\n", ran.stderr[-2000:]


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: Triton's kernels as they are compiled"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ghost", [(0.0, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_compiled_triton_kernels_are_near_double(dtype: torch.dtype, ghost: tuple[float, float]) -> None:
    exact = draw(2, 3, 32, 28, 28, 7)
    inputs: Inputs = tuple(x.detach().to("cuda", dtype).requires_grad_() for x in exact)  # type: ignore[assignment]
    rounded: Inputs = tuple(x.detach().cpu().double().requires_grad_() for x in inputs)  # type: ignore[assignment]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    ours = value_and_gradients(inputs, 7, 1, *ghost, "triton")
    for mine, reference in zip(ours, value_and_gradients(rounded, 7, 1, *ghost, "reference"), strict=True):
        assert mine.dtype == dtype
        assert float((mine.cpu().double() - reference).abs().max()) <= tolerance * float(
            reference.abs().max()
        )


@given(height=st.integers(1, 6), width=st.integers(1, 6), k=st.sampled_from([3, 5]))
@settings(max_examples=25, deadline=None)
def test_scatter_is_the_transpose_of_gather(height: int, width: int, k: int) -> None:
    v, h, _, _ = (x.detach() for x in draw(1, 2, 2, height, width, k))
    g, grid = v.flip(-1, -2), Grid(k, 1, height, width)
    assert (gather(v, h, grid) * g).sum() == pytest.approx(float((scatter(g, h, grid) * v).sum()))


def test_additive_ghost_alone_is_a_depthwise_convolution() -> None:
    v, h, _, add = draw(2, 2, 3, 7, 6, 5)
    out = hadamard_ghost_aggregate(v, 0 * h, None, add, 5, 2, 0.0, 0.7)
    expected = F.conv2d(v.flatten(1, 2), 0.7 * add[:, None], padding=4, dilation=2, groups=6)
    assert torch.allclose(out.flatten(1, 2), expected)


def unfolded(v: Tensor, k: int) -> Tensor:
    return F.unfold(v.flatten(1, 2), k, padding=k // 2).view(*v.shape[:3], k * k, *v.shape[3:])


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_special_cases(lam: float, gamma: float) -> None:
    """Involution without ghost head, DDF-mul with (1, 0), DDF-add with (0, 1) (card, claim 1)."""
    v, h, mul, add = draw(2, 2, 3, 6, 5, 3)
    filters = h[:, :, None].expand(2, 2, 3, 9, 6, 5)
    static = (mul.view(1, 2, 3, 9, 1, 1), add.view(1, 2, 3, 9, 1, 1))
    filters = filters * static[0] if lam else filters
    filters = filters + static[1] if gamma else filters
    expected = (filters * unfolded(v, 3)).sum(3)
    assert torch.allclose(hadamard_ghost_aggregate(v, h, mul, add, 3, 1, lam, gamma), expected)


def test_lambda_of_zero_drops_the_factor_also_where_it_is_zero_or_negative() -> None:
    v, h, mul, add = draw(1, 1, 2, 4, 4, 3)
    plain = hadamard_ghost_aggregate(v, h, None, add, 3)
    assert torch.equal(hadamard_ghost_aggregate(v, h, -0 * mul, add, 3, 1, 0.0, 1.0), plain)


def test_taps_outside_the_map() -> None:
    grid = Grid(3, 1, 2, 3)
    assert (
        inside(grid, torch.device("cpu"))[:, 0, 0].tolist() == [False] * 4 + [True] * 2 + [False] + [True] * 2
    )
    u = torch.arange(54.0).view(1, 1, 9, 2, 3)
    moved = shifted(u, grid)
    assert moved[0, 0, 4].tolist() == u[0, 0, 4].tolist()
    assert moved[0, 0, 5].tolist() == [[31, 32, 0], [34, 35, 0]]


@pytest.mark.parametrize(
    ("k", "taps", "message"), [(4, 16, "must be odd"), (3, 8, r"must be \[1, 2, 9, 4, 4\]")]
)
def test_wrong_shapes(k: int, taps: int, message: str) -> None:
    v, h = torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 2, taps, 4, 4)
    with pytest.raises(ValueError, match=message):
        hadamard_ghost_aggregate(v, h, None, None, k, gamma=0)


def test_missing_ghost_matrix() -> None:
    v, h, _, _ = draw(1, 2, 3, 4, 4, 3)
    with pytest.raises(ValueError, match=r"ghost_add must be \[6, 3, 3\]"):
        hadamard_ghost_aggregate(v, h, None, None, 3)
