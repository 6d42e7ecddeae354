"""The maths: guidance against its definition, RCM, attention, DSN against 3-D convolutions, losses, schedules, the world."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.motionrgbd.depth import coloured, jet_table
from stages.motionrgbd.method import guidance
from stages.motionrgbd.method.blocks import SamePool, same_padding
from stages.motionrgbd.method.capf import CAPF, ConcatFusion, Interaction, fusion_loss
from stages.motionrgbd.method.distillation import recoupling_distillation
from stages.motionrgbd.method.dsn import inception_dsn, plain_dsn
from stages.motionrgbd.method.dtn import DTN, KNNAttention
from stages.motionrgbd.method.frp import FRP
from stages.motionrgbd.method.guidance import dilate, erode, rank_pool_guidance
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.sampling import segment_indices, segment_ranges
from stages.motionrgbd.method.schedules import SharpnessSchedule, distillation_weight, learning_rate
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.released_forward import attention_similarities, released_forward, released_tokens
from stages.motionrgbd.world import CLASSES, factors_of, generate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_map(frames_wCHW: Tensor) -> Tensor:
    """The definition, of one window."""
    window = len(frames_wCHW)
    pooled = F.relu(
        torch.stack([(2 * i - window - 1) * frames_wCHW[i - 1] for i in range(1, window + 1)]).sum(0)
    )
    pooled = pooled - pooled.min()
    pooled = pooled / (pooled.max() if pooled.max() != 0 else 1e-5)
    grey = 0.2989 * pooled[0] + 0.587 * pooled[1] + 0.114 * pooled[2]
    salient = torch.where(grey > grey.mean(), grey, torch.zeros_like(grey))
    salient = dilate(erode(salient[None, None], 2), 3)[0, 0]
    salient = salient - salient.min()
    salient = salient / (salient.max() if salient.max() != 0 else 1e-5)
    return (grey + salient) * salient


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 10_000))
def test_guidance_is_its_definition_at_every_window(frames: int, window: int, seed: int) -> None:
    x_BTCHW = torch.randn(2, frames, 3, 6, 7, generator=generator(seed))
    maps_BTHW = rank_pool_guidance(x_BTCHW, window)
    assert maps_BTHW.shape == (2, frames, 6, 7)
    assert torch.equal(maps_BTHW[:, : window - 1], torch.zeros(2, min(window - 1, frames), 6, 7))
    for clip in range(2):
        for last in range(window - 1, frames):
            expected = one_map(x_BTCHW[clip, last - window + 1 : last + 1])
            torch.testing.assert_close(maps_BTHW[clip, last], expected, rtol=0, atol=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 500), st.integers(1, 4), st.integers(0, 1000))
def test_guidance_is_the_same_in_pieces_of_any_size(numbers: int, window: int, seed: int) -> None:
    x_BTCHW = torch.randint(0, 256, (2, 9, 3, 5, 4), generator=generator(seed)).float().sub(127.5).div(128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guidance, "CHUNK_NUMBERS", numbers)
        in_pieces = rank_pool_guidance(x_BTCHW, window)
    assert torch.equal(in_pieces, rank_pool_guidance(x_BTCHW, window))


def test_guidance_sees_no_later_frame() -> None:
    x_BTCHW = torch.randn(1, 9, 3, 8, 8, generator=generator())
    changed = x_BTCHW.clone()
    changed[:, 5:] += 3
    before, after = rank_pool_guidance(x_BTCHW, 4), rank_pool_guidance(changed, 4)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_guidance_of_a_still_long_clip_is_zero() -> None:
    """Differences of long sums must not leave noise that the normalisation then blows up."""
    still = torch.randint(0, 256, (1, 1, 3, 8, 8), generator=generator()).float().sub(127.5).div(128)
    assert torch.equal(rank_pool_guidance(still.expand(1, 64, 3, 8, 8), 10), torch.zeros(1, 64, 8, 8))


def test_erosion_and_dilation_have_opencvs_anchor() -> None:
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 1
    assert torch.nonzero(dilate(dot, 2)[0, 0]).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert dilate(dot, 3)[0, 0, 1:4, 1:4].eq(1).all()
    hole = 1 - dot
    assert torch.nonzero(erode(hole, 2)[0, 0] == 0).tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 4))
def test_same_padding_gives_tensorflows_size(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert after - before in (0, 1)
    if kernel >= stride:
        assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


@settings(deadline=None)
@given(st.integers(1, 13), st.integers(1, 9), st.sampled_from([(2, 2), (3, 1), (3, 2), (3, 3)]))
def test_pooling_without_gradients_is_pooling(height: int, width: int, window: tuple[int, int]) -> None:
    """Negative features too (FRP can make them), next to which the zeros outside count."""
    pool, x_NCHW = SamePool(*window), torch.randn(2, 3, height, width) - 1
    before = x_NCHW.clone()
    expected = pool(x_NCHW)
    with torch.no_grad():
        assert torch.equal(pool(x_NCHW), expected)
        assert torch.equal(pool(x_NCHW.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(x_NCHW, before)


def test_frp_starts_as_identity_and_takes_odd_sizes() -> None:
    layer, x, guidance = FRP(), torch.randn(3, 4, 7, 7), torch.rand(3, 112, 112)
    assert torch.equal(layer(x, guidance), x)
    layer.taps.data = torch.tensor([0.0, 1.0])
    pooled = F.max_pool2d(guidance, 16)  # 112 = 16 * 7: the released repeated pooling
    torch.testing.assert_close(layer(x, guidance), x * (1 + pooled)[:, None])


def test_rcm_scores_are_those_of_the_full_channel_attention() -> None:
    """The mean over queries is taken first; the released order costs D^2."""
    torch.manual_seed(0)
    rcm, z_BTD = RCM(6, 8, 10), torch.randn(2, 6, 10)
    x_BDT = z_BTD.transpose(1, 2)
    scores_BDD = rcm.query(x_BDT) @ rcm.key(x_BDT).transpose(1, 2) / 6**0.5
    torch.testing.assert_close(rcm.weights(z_BTD)[1], torch.sigmoid(scores_BDD.mean(1)))


def test_rcm_gain_scales_tokens_alone() -> None:
    torch.manual_seed(0)
    rcm, z_BTD = RCM(6, 8, 10), torch.randn(1, 6, 10)  # a batch of one keeps its axis
    plain, student = rcm(z_BTD)
    rcm.gain = 4.0
    scaled, same = rcm(z_BTD)
    torch.testing.assert_close(scaled, 4 * plain)
    assert torch.equal(student, same)
    assert student.shape == (1, 10)


@pytest.mark.parametrize(("rho", "kept"), [(0.7, 6), (0.5, 4), (1.0, 9)])
def test_attention_keeps_the_largest_scores(rho: float, kept: int) -> None:
    torch.manual_seed(0)
    attention, x_BLD = KNNAttention(16, 2, 8, rho), torch.randn(3, 9, 16)
    weights_BHLL, _ = attention.attention(x_BLD)
    assert (weights_BHLL > 0).sum(-1).eq(kept).all()
    torch.testing.assert_close(weights_BHLL.sum(-1), torch.ones(3, 2, 9))
    dense = KNNAttention(16, 2, 8, 1.0)
    dense.load_state_dict(attention.state_dict())
    all_BHLL, _ = dense.attention(x_BLD)
    assert torch.equal(
        all_BHLL.topk(kept).indices.sort().values, weights_BHLL.topk(kept).indices.sort().values
    )


def test_attention_keeps_as_many_where_scores_tie() -> None:
    attention = KNNAttention(16, 2, 8, 0.5)
    weights_BHLL, _ = attention.attention(torch.zeros(1, 8, 16))
    assert (weights_BHLL > 0).sum(-1).eq(4).all()


@given(st.integers(1, 200), st.integers(1, 64))
def test_segments_cover_a_clip_in_order(frames: int, count: int) -> None:
    start, end = segment_ranges(frames, count).unbind(1)
    assert (end > start).all()
    assert (start[1:] >= start[:-1]).all()
    assert start[0] == 0
    assert end.max() == frames
    drawn = segment_indices(frames, count, "random", generator(frames))
    assert (drawn >= start).all()
    assert (drawn < end).all()


def test_frames_are_drawn_in_training_only() -> None:
    dtn = DTN((4, 8), 64, 1, 2, 8, 16, 0.7)
    torch.manual_seed(0)
    drawn = [dtn.picks(32)[0].tolist() for _ in range(4)]
    assert len({tuple(pick) for pick in drawn}) > 1
    dtn.eval()
    assert len({tuple(dtn.picks(32)[0].tolist()) for _ in range(4)}) == 1


def test_dsn_is_the_3d_network() -> None:
    torch.manual_seed(0)
    x_BTCHW, guidance_BTHW = torch.randn(1, 5, 3, 32, 32), torch.rand(1, 5, 32, 32)
    for strict in (False, True):
        dsn = inception_dsn(64, strict_spatial=strict).eval()
        assert dsn.frp is not None
        dsn.frp.taps.data = torch.tensor([0.7, 0.4])
        with torch.no_grad():
            ours, theirs = dsn(x_BTCHW, guidance_BTHW), released_tokens(dsn, x_BTCHW, guidance_BTHW)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_strict_dsn_sees_one_frame() -> None:
    torch.manual_seed(0)
    x_BTCHW, guidance_BTHW = torch.randn(1, 4, 3, 32, 32), torch.rand(1, 4, 32, 32)
    changed = x_BTCHW.clone()
    changed[:, 3] += 1
    for strict in (True, False):
        dsn = inception_dsn(64, strict_spatial=strict).eval()
        with torch.no_grad():
            same = torch.allclose(dsn(x_BTCHW, guidance_BTHW)[:, 2], dsn(changed, guidance_BTHW)[:, 2])
        assert same == strict


def test_parameter_counts_are_the_published_ones() -> None:
    dsn, rcm = inception_dsn(), RCM(64, 256, 512)
    net = UnimodalNet(dsn, rcm, DTN((16, 32, 48), 512, 6, 8, 64, 768, 0.7), 512, 60)
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (dsn, net)]
    assert counts == pytest.approx([4.079, 38.197], abs=5e-4)


def small_net(rcm: bool = True, frames: int = 6) -> UnimodalNet:
    torch.manual_seed(0)
    module = RCM(frames, 8, 64) if rcm else None
    return UnimodalNet(
        plain_dsn((4, 6), (2, 2), 64), module, DTN((2, 3, 4), 64, 1, 2, 8, 16, 0.7, 0.0), 64, 5
    )


def test_merged_scores_are_the_largest_and_sharpness_divides() -> None:
    net, x, guidance = small_net().eval(), torch.randn(2, 6, 3, 8, 8), torch.rand(2, 6, 8, 8)
    soft, _ = net(x, guidance, 1.0)
    sharp, _ = net(x, guidance, 0.1)
    torch.testing.assert_close(sharp.merged_BK, 10 * soft.merged_BK)
    assert torch.equal(soft.merged_BK, soft.branches_BRK.max(1).values)


def test_released_forward_gives_the_same_scores() -> None:
    torch.manual_seed(0)
    net = UnimodalNet(inception_dsn(64), RCM(6, 8, 64), DTN((2, 3, 4), 64, 1, 2, 8, 16, 0.7), 64, 5).eval()
    x, guidance = torch.randn(1, 6, 3, 32, 32), torch.rand(1, 6, 32, 32)
    with torch.no_grad():
        ours, theirs = net(x, guidance, 0.05)[0], released_forward(net, x, guidance, 0.05)
        similar = attention_similarities(net, x)
    torch.testing.assert_close(ours.merged_BK, theirs.merged_BK, rtol=1e-4, atol=1e-4)
    assert similar.shape == (1, 6, 6)
    torch.testing.assert_close(similar.diagonal(dim1=1, dim2=2), torch.ones(1, 6))


def test_distillation_trains_the_student_alone() -> None:
    student = torch.randn(3, 8, requires_grad=True)
    classes = torch.randn(3, 2, 8, requires_grad=True)
    total = recoupling_distillation(student, classes, 0.5, "sum")
    mean = recoupling_distillation(student, classes, 0.5, "batchmean")
    torch.testing.assert_close(total, 3 * mean)
    total.backward()
    assert classes.grad is None
    assert student.grad is not None
    torch.testing.assert_close(
        recoupling_distillation(classes.mean(1), classes, 0.5, "sum"), torch.zeros(()), atol=1e-6, rtol=0
    )


def test_interaction_transposes_where_the_released_code_reshapes() -> None:
    """Each frame's share depends on its own tokens, unless the released reshape mixes time and channels."""
    torch.manual_seed(0)
    rgb, depth = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    changed = rgb.clone()
    changed[:, 3] += 1
    for official in (False, True):
        phi = Interaction(8, official).eval()
        with torch.no_grad():
            phi.bn.get_buffer("running_mean").normal_()
            same = torch.allclose(phi(rgb, depth)[:, :3], phi(changed, depth)[:, :3])
        assert same != official


def test_fusions_have_the_parts_that_their_switches_leave() -> None:
    rgb, depth = torch.randn(2, 6, 3, 8, 8), torch.randn(2, 6, 3, 8, 8)
    maps, target = torch.rand(2, 6, 8, 8), torch.tensor([0, 3])
    for switches, parts in (({}, {"ce", "bce", "mse", "distill"}), ({"auxiliary": False}, {"ce", "distill"})):
        capf = CAPF(small_net(), small_net(), 64, 5, **switches)
        loss = fusion_loss(capf(rgb, depth, maps, maps), target, 0.1, 0.4, "batchmean")
        assert set(loss) == parts
        torch.stack(list(loss.values())).sum().backward()
        unused = [name for name, p in capf.named_parameters() if p.grad is None]
        assert unused == []
    concat = ConcatFusion(small_net(), small_net(), 64, 5)
    out = concat(rgb, depth, maps, maps)
    assert set(fusion_loss(out, target, 0.1, 0.4, "batchmean")) == {"ce", "distill"}
    without = CAPF(small_net(), small_net(), 64, 5, spatial=False, temporal=False)
    tokens = torch.randn(2, 6, 64), torch.randn(2, 6, 64)
    assert all(torch.equal(a, b) for a, b in zip(without.interact(*tokens), tokens, strict=True))


def test_a_network_without_rcm_has_no_distillation() -> None:
    capf = CAPF(small_net(rcm=False), small_net(rcm=False), 64, 5).eval()
    x, maps = torch.randn(2, 6, 3, 8, 8), torch.rand(2, 6, 8, 8)
    loss = fusion_loss(capf(x, x, maps, maps), torch.tensor([0, 1]), 0.1, 0.4, "batchmean")
    assert loss["distill"] == 0


@given(st.integers(2, 120), st.integers(1, 5))
def test_learning_rate_reaches_the_base_and_ends_low(epochs: int, warmup: int) -> None:
    rates = [learning_rate(epoch, epochs, 0.01, 1e-5, warmup) for epoch in range(epochs)]
    if warmup <= epochs:
        assert max(rates) == pytest.approx(0.01)
    assert min(rates) > 0
    assert distillation_weight(max(0, warmup - 2), warmup) == float(warmup == 1)
    assert distillation_weight(warmup - 1, warmup) == 1


@pytest.mark.parametrize("epochs", [1, 2, 10, 29, 30, 31, 100])
def test_a_short_training_shortens_the_ramp(epochs: int) -> None:
    schedule = SharpnessSchedule(epochs)
    values = [schedule(epoch) for epoch in range(epochs)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.07)
    assert epochs == 1 or values[0] == 0.04


def test_jet_runs_from_blue_to_red() -> None:
    table = jet_table()
    assert table[0].tolist() == [128, 0, 0]
    assert table[255].tolist() == [0, 0, 128]
    assert table[128].argmax() == 1
    depth = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert coloured(depth, "jet").shape == (1, 3, 16, 16)
    assert torch.equal(coloured(depth, "gray")[:, 1], depth[:, 0])


def test_the_world_hides_what_it_should() -> None:
    """Two clips that differ in the hidden factor alone are the same in the modality that must not see it."""
    clips = generate(8, 8, 32, generator(1))
    assert clips["rgb"].shape == (8 * CLASSES, 8, 3, 32, 32)
    assert clips["depth"].dtype == torch.uint8
    assert clips["label"].bincount().tolist() == [8] * CLASSES
    factors = factors_of(clips["label"])
    rgb, depth = clips["rgb"].float(), clips["depth"].float()
    # push ends near (bright), pull starts near; colour brightness says nothing about it
    drift = depth[:, -1].flatten(1).sort().values[:, -20:].mean(1) - depth[:, 0].flatten(1).sort().values[
        :, -20:
    ].mean(1)
    push, pull = drift[factors.depth == 0], drift[factors.depth == 1]
    assert push.mean() > pull.mean() + 20
    bright = rgb[:, -1].flatten(1).mean(1) - rgb[:, 0].flatten(1).mean(1)
    assert abs(bright[factors.depth == 0].mean() - bright[factors.depth == 1].mean()) < 2


def test_a_trajectory_and_its_partner_share_their_frames() -> None:
    """Played backwards, sweep right is sweep left: which frames there are does not tell the two apart."""
    clips = generate(40, 12, 32, generator(2))
    factors = factors_of(clips["label"])
    columns = torch.arange(32.0)

    def centre(frame: int) -> Tensor:
        moving = (clips["depth"].float() - clips["depth"].float().median(1, keepdim=True).values).abs()
        mass = moving[:, frame, 0].clamp(min=30) - 30
        return (mass.sum(1) * columns).sum(1) / mass.sum((1, 2)).clamp(min=1)

    first, last = centre(0), centre(-1)
    right, left = factors.trajectory == 0, factors.trajectory == 1
    assert (last - first)[right].mean() > 4
    assert (last - first)[left].mean() < -4
    spread = [torch.cat([first[side], last[side]]).mean() for side in (right, left)]
    assert abs(spread[0] - spread[1]) < 2
