"""Mixers against plain formulas, the trunk against timm's Swin, and the dense adapter."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from stages.elsa.method import mixers
from stages.elsa.method.attention import ELSAAttention
from stages.elsa.method.block import DropPath
from stages.elsa.method.dense import DenseBackbone
from stages.elsa.method.swin import SwinTransformer, elsa_swin, window_mixer
from stages.elsa.method.volo import ELSAVOLO, token_label_loss
from stages.elsa.official import swin_to_official


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def all_mixers() -> dict[str, nn.Module]:
    return {
        "window": mixers.WindowAttention(8, 2, 3),
        "shifted": mixers.WindowAttention(8, 2, 3, shift=1, terms=True),
        "neighborhood": mixers.NeighborhoodAttention(8, 2, 3, terms=True),
        "depthwise": mixers.DepthwiseConv(8, 3),
        "dynamic": mixers.DynamicFilter(8, 2, 3, "filter"),
        "ddf-mul": mixers.DDF(8, 3, "mul"),
        "ddf-add": mixers.DDF(8, 3, "add"),
        "involution": mixers.Involution(8, 2, 3),
        "elsa": ELSAAttention(8, 2, 3),
    }


@pytest.mark.parametrize("name", all_mixers())
def test_one_interface(name: str) -> None:
    mixer = all_mixers()[name]
    x = torch.randn(2, 5, 7, 8, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize("name", sorted(set(all_mixers()) - {"window", "shifted"}))
def test_sliding_mixers_do_not_know_where_they_are(name: str) -> None:
    """Moving the input moves the output, away from the border: what windows break."""
    mixer = all_mixers()[name].double()
    x = torch.zeros(1, 12, 12, 8, dtype=torch.float64)
    x[:, 4:7, 4:7] = torch.randn(1, 3, 3, 8, dtype=torch.float64)
    moved = mixer(x.roll((1, 2), (1, 2)))
    assert torch.allclose(mixer(x).roll((1, 2), (1, 2))[:, 3:9, 4:10], moved[:, 3:9, 4:10])


def dense_attention(x: Tensor, module: mixers.NeighborhoodAttention) -> Tensor:
    """Neighbourhood attention as full attention with everything beyond the neighbourhood masked."""
    _, height, width, dim = x.shape
    heads, k = module.num_heads, module.kernel_size
    v, q, key = module.pre_proj(x.flatten(1, 2)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1)
    step = place[:, None, :] - place[:, :, None]  # of key from query
    near = (step.abs() <= k // 2).all(0)
    tap = ((step[0] + k // 2) * k + step[1] + k // 2).clamp(0, k * k - 1)
    scale = (dim // heads) ** -0.5
    logits = scale * q @ key.transpose(-1, -2)
    assert module.rk is not None
    assert module.rq is not None
    assert module.rb is not None
    ids = tap.expand_as(logits)
    logits = logits + (q @ module.rk).gather(-1, ids)
    logits = logits + (key @ module.rq).gather(-1, ids.transpose(-1, -2)).transpose(-1, -2)
    logits = (logits + module.rb[:, tap]).masked_fill(~near, float("-inf"))
    return module.post_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).view_as(x)


def test_neighborhood_attention_is_masked_full_attention() -> None:
    module = mixers.NeighborhoodAttention(8, 2, 3, terms=True)
    for parameter in (module.rk, module.rq, module.rb):
        assert parameter is not None
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 6, 8)
    torch.testing.assert_close(module(x), dense_attention(x, module), atol=1e-5, rtol=1e-4)


def test_window_and_neighbourhood_agree_where_both_see_everything() -> None:
    """On a 3 x 3 map with kernel 5 and window 3 both supports are the whole map."""
    sliding, window = (
        mixers.NeighborhoodAttention(8, 2, 5, terms=True),
        mixers.WindowAttention(8, 2, 3, terms=True),
    )
    window.load_state_dict(sliding.state_dict())
    x = torch.randn(2, 3, 3, 8)
    torch.testing.assert_close(window(x), sliding(x), atol=1e-5, rtol=1e-4)


def test_filter_norm_is_ddfs() -> None:
    filters = torch.randn(2, 9, 4)
    ours = mixers.normalise(filters, "filter", 1)
    assert torch.allclose(ours.mean(1), torch.zeros(2, 4), atol=1e-6)
    assert torch.allclose(ours.std(1, unbiased=True), torch.full((2, 4), 1 / 3))


def test_trunk_is_swin() -> None:
    """timm's Swin with its random weights, converted, gives the same logits."""
    reference = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, window_size=7, embed_dim=12, depths=(2, 2), num_heads=(2, 4),
        num_classes=5,
    ).eval()  # fmt: skip
    for name, parameter in reference.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(parameter)
    ours = SwinTransformer(
        [window_mixer] * 2, img_size=56, embed_dim=12, depths=(2, 2), num_heads=(2, 4), num_classes=5
    ).eval()
    ours.load_state_dict(swin_to_official(reference.state_dict()))
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), reference(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (37, 50)])
def test_dense_backbone_feeds_torchvisions_pyramid(size: tuple[int, int]) -> None:
    trunk = elsa_swin(8, (1, 1, 1, 2), (1, 2, 4, 8), 4, img_size=None, elsa_kernel=3, window_size=3)
    backbone = DenseBackbone(trunk)
    maps = backbone(torch.randn(1, 3, *size))
    for index, channels in enumerate(backbone.out_channels):
        expected = [-(-side // 2 ** (2 + index)) for side in size]
        assert list(maps[str(index)].shape[1:]) == [channels, *expected]
    pyramid = FeaturePyramidNetwork(backbone.out_channels, 16)(maps)
    assert [level.shape[1] for level in pyramid.values()] == [16] * 4


def test_gradients_reach_every_parameter_of_elsa_swin() -> None:
    model = elsa_swin(
        8, (1, 1), (2, 2), 4, img_size=12, patch_size=2, elsa_kernel=3, window_size=3, num_classes=3
    )
    F.cross_entropy(model(torch.randn(2, 3, 12, 12)), torch.tensor([0, 2])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 2, 2))
    kept = out.flatten(1)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (kept == kept[:, :1]).all()
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(out), out)


def test_token_label_loss() -> None:
    model = ELSAVOLO(
        (1, 1, 1, 1), (8, 12), (2, 3), 2, 4, img_size=32, num_classes=3, kernel_size=3, group_width=4
    )
    x = torch.randn(2, 3, 32, 32)
    image, token = logits = model.logits(x)
    target, token_target = F.one_hot(torch.tensor([0, 2]), 3).float(), torch.full((2, 4, 3), 1 / 3)
    expected = F.cross_entropy(image, target) + 0.5 * F.cross_entropy(
        token.flatten(0, 1), token_target.flatten(0, 1)
    )
    assert torch.allclose(token_label_loss(logits, target, token_target), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel_size": 4}, "odd"), ({"lam": 0.5}, "whole number"), ({"num_heads": 3}, "must divide")],
)
def test_attention_says_what_is_wrong(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ELSAAttention(**{"dim": 8, "num_heads": 2, "kernel_size": 3, **options})  # type: ignore[arg-type]


def test_widths_of_query_and_key() -> None:
    """`dim // 3 * 2`, rounded up to whole groups (card, "Pitfalls")."""
    assert ELSAAttention(128, 4, 7, group_width=8).dim_qk == 88
    assert ELSAAttention(12, 2, 3, group_width=8).dim_qk == 8
    assert ELSAAttention(16, 4, 3, qk_scale=0).scale == 4**-0.5
