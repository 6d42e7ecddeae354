"""What the golden cases do not show: other sizes, the paper's variant, and that parts do what they are
for.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stages.fedformer.method.attention import FullAttention, ProbSparseAttention
from stages.fedformer.method.decomposition import SeriesDecomp
from stages.fedformer.method.fourier import complex_tanh
from stages.fedformer.method.linear import DLinear, NLinear, RepeatLast
from stages.fedformer.method.modes import SelectedModes, select_modes
from stages.fedformer.method.multiwavelet import Pyramid
from stages.fedformer.method.transformer import Transformer
from stages.fedformer.method.trunk import Config, FEDformer, Sizes

SIZES = Sizes(
    variates=3, features=4, seq_len=24, label_len=12, pred_len=10, width=16, heads=4, hidden=32, dropout=0.0
)
CONFIG = Config(
    SIZES, kernels=(6,), modes=5, polynomials=3, self_channels=4, cross_channels=4, alpha=4, skipped=1
)


def inputs(sizes: Sizes = SIZES, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = sizes.label_len + sizes.pred_len
    shapes = ((sizes.seq_len, 3), (sizes.seq_len, 4), (length, 3), (length, 4))
    return [torch.randn(batch, *shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("length", [24, 25])
@pytest.mark.parametrize("orthonormal", [False, True])
def test_selected_modes_are_the_fast_transform_s(length, orthonormal):
    x = torch.randn(2, length, 3)
    index = [0, 3, 7, length // 2]
    modes = SelectedModes(length, index, orthonormal=orthonormal)
    norm = "ortho" if orthonormal else "backward"
    spectrum = torch.fft.rfft(x, dim=1, norm=norm)
    torch.testing.assert_close(modes(x), spectrum[:, index], atol=1e-5, rtol=1e-5)
    kept = torch.zeros_like(spectrum)
    kept[:, index] = spectrum[:, index]
    expected = torch.fft.irfft(kept, n=length, dim=1, norm=norm)
    torch.testing.assert_close(modes.inverse(modes(x)), expected, atol=1e-5, rtol=1e-5)


def test_complex_tanh_is_torch_s():
    z = torch.complex(*(torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 3))
    ours, theirs = (z.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(complex_tanh(ours), theirs.tanh(), atol=1e-5, rtol=1e-4)
    complex_tanh(ours).abs().sum().backward()
    theirs.tanh().abs().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)


def test_low_modes_draw_nothing_and_random_ones_do():
    rng = np.random.RandomState(0)
    state = rng.get_state()[1].tolist()  # type: ignore[index]
    assert select_modes(20, 4, "low", rng) == [0, 1, 2, 3]
    assert rng.get_state()[1].tolist() == state  # type: ignore[index]
    assert select_modes(20, 64, "random", rng) == list(range(10))


@pytest.mark.parametrize("block", ["fourier", "wavelet", "auto-correlation", "fourier-attention"])
@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("label_len", [12, 6, 18])
def test_every_block_and_start_length_trains(block, variant, label_len):
    cross: Any = "fourier" if block == "fourier-attention" else block
    sizes = replace(SIZES, label_len=label_len)
    config = replace(CONFIG, sizes=sizes, self_block=block, cross_block=cross, variant=variant)
    model = FEDformer(config, np.random.RandomState(0))
    out = model(*inputs(sizes))
    assert out.shape == (2, 10, 3)
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:  # what is declared trainable is reached, so several GPUs agree on it
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="width 16 is not a multiple of 3 heads"):
        FEDformer(replace(CONFIG, sizes=replace(SIZES, heads=3)), np.random.RandomState(0))


def test_random_modes_are_saved_with_the_model():
    first, second = (FEDformer(CONFIG, np.random.RandomState(seed)).eval() for seed in (1, 2))
    assert first.encoder_block.modes.index.tolist() != second.encoder_block.modes.index.tolist()  # type: ignore[union-attr]
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(first(*inputs()), second(*inputs()), atol=0, rtol=0)


def test_one_kernel_equals_the_mixture_of_it_with_itself():
    x = torch.randn(2, 30, 3)
    for one, two in zip(SeriesDecomp([7])(x), SeriesDecomp([7, 7])(x), strict=True):
        torch.testing.assert_close(one, two)


def test_multiwavelet_levels_are_put_together_again():
    pyramid = Pyramid("legendre", 4, 32, 0)
    x = torch.randn(2, 32, 3, 4)
    details, averages = pyramid.split(x)
    torch.testing.assert_close(pyramid.merge(averages, details), x, atol=1e-5, rtol=1e-5)


def test_sparse_attention_of_all_queries_is_full_attention():
    q, k, v = (torch.randn(2, 6, 2, 4) for _ in range(3))
    for causal in (False, True):
        sparse = ProbSparseAttention(causal, factor=6, dropout=0.0).eval()
        torch.testing.assert_close(sparse(q, k, v), FullAttention(causal, 0.0).eval()(q, k, v))


@pytest.mark.parametrize("sparse", [False, True])
def test_transformers_do_not_see_the_future(sparse):
    model = Transformer(SIZES, sparse).eval()
    given = inputs()
    with torch.no_grad():
        out = model(*given)
        assert out.shape == (2, 10, 3)
        torch.testing.assert_close(model(*given), out, atol=0, rtol=0)


def test_floors():
    x, *rest = inputs()
    assert torch.equal(RepeatLast(10)(x, *rest), x[:, -1:].expand(-1, 10, -1))
    for model in (DLinear(24, 10), NLinear(24, 10)):
        assert model(x, *rest).shape == (2, 10, 3)
    shifted = NLinear(24, 10)
    torch.testing.assert_close(shifted(x + 5, *rest), shifted(x, *rest) + 5, atol=1e-5, rtol=1e-5)
