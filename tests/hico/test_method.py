"""The maths of HiCo: clip draws, losses, heads, optimiser, schedule, simulation, measures, the generated world."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.hico.cells import METHODS
from stages.hico.gradual_theory import SCHEDULES, excess_losses
from stages.hico.localisation.detection import (
    Segment,
    average_precision,
    detection_map,
    merge_windows,
    recall_curve,
    tiou,
)
from stages.hico.method.clip_sampling import ClipRule, gradual_distance, sample_clips
from stages.hico.method.encoders import build_encoder, pooled
from stages.hico.method.heads import HiCoHead, TopicPredictor
from stages.hico.method.lars import LARS, parameter_groups
from stages.hico.method.learning_rate import cosine_warmup_lr, scaled_lr
from stages.hico.method.losses import hico_loss, simclr_loss, tcl_loss, vcl_loss
from stages.hico.method.s3dg import S3DG
from stages.hico.metrics import retrieval_recall, standardised, topic_pairs
from stages.hico.params import METHOD_NAMES
from stages.hico.world import ACTIONS, FPS, SIZE, TOPIC_OF, TOPICS, shot_frames, untrimmed_video

SECONDS = 64 / 30


def units(count: int, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def test_distance_widens_and_stops() -> None:
    assert [gradual_distance(p, 0.0, 1.0) for p in (-0.5, 0.0, 0.25, 1.0, 1.5)] == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert gradual_distance(0.5, 2.0, 1.0) == 1.5


@given(
    st.floats(0.2, 600), st.floats(0, 1), st.integers(0, 1000), st.booleans(), st.none() | st.floats(0, 20)
)
def test_clips_lie_in_the_video(
    duration: float, progress: float, seed: int, topical: bool, limit: float | None
) -> None:
    rule = ClipRule(3, None if limit is None else (0.0, limit), topical)
    windows = sample_clips(duration, progress, random.Random(seed).random, rule, SECONDS)
    assert len(windows) == 3
    for start, end in windows:
        assert 0 <= start < end <= duration
    if duration > 2 * SECONDS:
        assert all(end - start == pytest.approx(SECONDS) for start, end in windows)
        if limit is not None:
            assert abs(windows[1][0] - windows[0][0]) <= gradual_distance(progress, 0.0, limit) + 1e-9


def test_a_topical_clip_is_far_and_costs_a_draw_more() -> None:
    draws = [0.0, 0.5, 0.5, 1.0]
    found = sample_clips(100.0, 1.0, iter(draws).__next__, ClipRule(3, (0.0, 1.0), True), 2.0)
    assert [start + 1 for start, _ in found] == pytest.approx(
        [2.0, 2.5, 98.0]
    )  # of 2 .. 3: a clip is kept free


def naive_vcl(z: np.ndarray, n: int, tau: float) -> float:
    """The card's formula, written out."""
    e, videos = np.exp(z @ z.T / tau), len(z) // n
    terms = []
    for v, a in itertools.product(range(videos), (0, 1)):
        row, positive = v * n + a, e[v * n + a, v * n + 1 - a]
        others = sum(e[row, u * n + k] for u in range(videos) if u != v for k in range(n))
        terms.append(-math.log(positive / (positive + others)))
    return float(np.mean(terms))


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(2, 4), st.integers(0, 50))
def test_vcl_is_the_formula(videos: int, n: int, seed: int) -> None:
    z = units(videos * n, seed=seed)
    assert float(vcl_loss(z, n)) == pytest.approx(naive_vcl(z.double().numpy(), n, 0.1), rel=1e-4)


def test_topical_clips_are_negatives_of_other_videos_and_no_anchors() -> None:
    z = torch.eye(9).requires_grad_()  # three videos of three clips, the last one topical
    gradient_Nd = torch.autograd.grad(vcl_loss(z, 3), z)[0]
    # an entry says which clips a clip meets in the loss: a topical one the anchors of the other videos, and nothing else
    assert gradient_Nd[2].nonzero()[:, 0].tolist() == [3, 4, 6, 7]
    assert gradient_Nd[0].nonzero()[:, 0].tolist() == [1, 3, 4, 5, 6, 7, 8]


def test_pairs_agree_for_two_clips() -> None:
    z = units(10)
    assert float(simclr_loss(z, 2)) == pytest.approx(float(vcl_loss(z, 2)))


def test_losses_do_not_overflow_where_exponentials_would() -> None:
    z = units(2).repeat(3, 1).half()
    assert torch.isfinite(vcl_loss(z, 2, temperature=0.005))
    assert torch.isfinite(tcl_loss(torch.full((6, 6), 200.0), 3))


def test_topic_loss_weighs_positives_as_much_as_negatives() -> None:
    logits = torch.zeros(12, 12)
    expected = 2 * 0.5**0.5 * -math.log(0.5 + 1e-5)
    assert float(tcl_loss(logits, 3, 0.5)) == pytest.approx(expected, rel=1e-5)
    assert float(tcl_loss(logits.T, 3)) == pytest.approx(float(tcl_loss(logits, 3)))
    same = torch.block_diag(*[torch.ones(3, 3)] * 4)
    assert float(tcl_loss(20 * (2 * same - 1), 3)) < 1e-3
    total, visual, topical = hico_loss(units(12), logits, 3, topic_weight=0.5, world_size=4)
    assert float(total) == pytest.approx(float(4 * visual + 0.5 * topical))


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 9), st.integers(0, 20))
def test_two_matmuls_are_the_perceptron_on_all_pairs(count: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    predictor, t = TopicPredictor(width, 7), units(count, width, seed)
    pairs = torch.cat([t[:, None].expand(-1, count, -1), t[None].expand(count, -1, -1)], -1)
    naive = predictor.second(torch.relu(predictor.first(pairs)))[..., 0]
    torch.testing.assert_close(predictor(t), naive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(predictor.pairs(t[:1], t), predictor(t)[:1])


def test_pair_combinations() -> None:
    for combine in ("difference", "dot"):
        logits = TopicPredictor(8, 5, combine)(units(6))
        assert logits.shape == (6, 6)
        torch.testing.assert_close(logits, logits.T)
    z, none = HiCoHead(12, 8, 4, 4, topic=False)(torch.randn(6, 12))
    assert none is None
    torch.testing.assert_close(z.norm(dim=1), torch.ones(6))


def test_lars_freezes_zeros_unless_they_are_excluded() -> None:
    for exclude in (False, True):
        layer = nn.Linear(3, 2)
        nn.init.zeros_(layer.bias)
        optimizer = LARS(parameter_groups(layer, 1e-6, exclude), 0.1)
        layer(torch.ones(4, 3)).sum().backward()
        before = layer.weight.detach().clone()
        optimizer.step()
        assert bool((layer.bias == 0).all()) != exclude
        assert not torch.equal(layer.weight, before)


@given(st.floats(0, 119.9), st.floats(1, 60))
def test_rate_meets_the_cosine_where_the_warmup_ends(epoch: float, warmup: float) -> None:
    rate = cosine_warmup_lr(epoch, 0.3, 0.001, warmup, 120)
    assert 0 <= rate <= 0.3
    assert cosine_warmup_lr(warmup, 0.3, 0.001, warmup, 120) == pytest.approx(
        cosine_warmup_lr(warmup - 1e-9, 0.3, 0.001, warmup, 120), abs=1e-6
    )
    assert scaled_lr(0.3, 1024, 3) == pytest.approx(3.6)


def test_simulation_shares_start_and_noise() -> None:
    losses = excess_losses(200, seed=0)
    assert set(losses) == set(SCHEDULES)
    assert float(excess_losses(200, seed=0)["gradual"][-1]) == float(losses["gradual"][-1])
    assert float(losses["near only"][-1]) > float(
        losses["gradual"][-1]
    )  # half of the directions are never seen
    assert all(len(loss) == 200 and bool(torch.isfinite(loss).all()) for loss in losses.values())


def test_retrieval_by_hand() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[2.0, 0.1], [0.5, 0.01]])
    found = retrieval_recall(query, torch.tensor([0, 1]), gallery, labels, (1, 2, 3))
    assert found == {1: 50.0, 2: 100.0, 3: 100.0}  # length does not count; ranks beyond the first do


def test_features_are_standardised_on_the_training_part() -> None:
    train, test = standardised(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[2.0, 7.0]]))
    assert train.mean(0).abs().max() < 1e-6
    assert test.tolist() == [[0.0, 0.0]]


def test_topic_pairs_are_of_different_videos() -> None:
    logits = torch.tensor([[0.0, 2.0, 5.0], [4.0, 0.0, 1.0], [5.0, 3.0, 0.0]])
    scores, same = topic_pairs(logits, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert scores.tolist() == [3.0, 5.0]  # (0, 1) and (0, 2); 1 and 2 are of one video
    assert same.tolist() == [True, False]


def test_detection_by_hand() -> None:
    truths = [Segment(0, 0, 10, 0), Segment(0, 20, 30, 0), Segment(1, 0, 10, 1)]
    assert tiou(0, 10, 5, 15) == pytest.approx(1 / 3)
    assert tiou(0, 1, 2, 3) == 0
    found = [Segment(0, 0, 10, 0, 0.9), Segment(0, 1, 10, 0, 0.8), Segment(0, 20, 30, 0, 0.7)]
    # right, a second match of a taken truth, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    assert average_precision(found, truths[:2], 0.5) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision([], truths[:2], 0.5) == 0
    perfect = [Segment(t.video, t.start, t.end, t.label, 0.5) for t in truths]
    assert detection_map(perfect, truths) == {"mAP@0.5": 100, "mAP@0.75": 100, "mAP@0.95": 100, "mAP": 100}
    assert detection_map(found, truths)["mAP@0.95"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3) / 2)
    assert recall_curve(perfect, truths, 3) == pytest.approx(
        [100 * 2 / 3, 100, 100]
    )  # one a video, two, three
    assert recall_curve([], truths, 2).tolist() == [0, 0]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20), st.floats(0.1, 0.9))
def test_merged_windows_cover_what_is_above_the_threshold(scores: list[float], threshold: float) -> None:
    starts = np.arange(len(scores)) * 0.5
    rows = np.stack([scores, 1 - np.array(scores)], axis=1)
    segments = merge_windows(0, starts, 1.0, rows, threshold)
    covered = sum(segment.end - segment.start for segment in segments)
    assert covered == pytest.approx(0.5 * sum(score >= threshold for score in scores))
    assert all(segment.score >= threshold - 1e-9 for segment in segments)


def test_every_method_is_in_the_table() -> None:
    assert set(METHODS) == set(METHOD_NAMES)
    assert len({row.label for row in METHODS.values()}) == len(METHODS)


def test_encoders_have_the_width_that_they_say() -> None:
    for name, width in (("s3d-tiny", 64), ("mixed-resnet18", 256)):
        encoder = build_encoder(name).eval()  # type: ignore[arg-type]
        assert encoder.width == width
        with torch.no_grad():
            assert pooled(encoder, torch.randn(1, 3, 8, 32, 32)).shape == (1, width)
    narrow = S3DG(width=0.125, gating=False).eval()
    with torch.no_grad():
        assert narrow(torch.randn(1, 3, 8, 48, 48)).shape == (1, narrow.width, 1, 1, 1)


def test_the_world_is_the_cards() -> None:
    for factor in (
        lambda a: a % 4,
        lambda a: a % 6,
        lambda a: 5 * a % 6,
    ):  # shape, motion, hue: none gives it away
        values = [factor(action) for action in range(ACTIONS)]
        assert min(values.count(value) for value in values) >= 2
    assert sorted(action for actions in TOPICS for action in actions) == list(range(ACTIONS))
    frames, shots = untrimmed_video(np.random.default_rng(0), 2, 30.0, 0.5)
    assert frames.shape == (240, 3, SIZE, SIZE)
    assert frames.dtype == np.uint8
    assert shots[0].start == 0
    assert shots[-1].end == 240 / FPS
    assert all(a.end == b.start for a, b in itertools.pairwise(shots))
    assert {TOPIC_OF[s.action] for s in shots if s.action is not None} == {2}
    again, _ = untrimmed_video(np.random.default_rng(0), 2, 30.0, 0.5)
    assert (again == frames).all()
    with_sprite, without = (
        shot_frames(np.random.default_rng(1), 8, action).astype(int) for action in (3, None)
    )
    assert (with_sprite != without).any()
