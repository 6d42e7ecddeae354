"""Localisation: the boundary-matching network against its published formulation, targets, losses, proposals, training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.tracking import RunLog
from stages.hico import training
from stages.hico.footage import Video
from stages.hico.localisation.boundary_matching import (
    BMN,
    BoundaryMatching,
    Scores,
    balanced_logistic,
    bmn_loss,
    regression_loss,
    sampling_matrix,
    targets,
)
from stages.hico.localisation.detection import tiou
from stages.hico.localisation.proposals import boundaries, proposals, suppressed
from stages.hico.localise import localise_proposals, spread_windows
from stages.hico.params import Bmn
from stages.hico.propose import propose, train_bmn

RECIPE = Bmn(
    places=16, durations=12, points=8, width=16, epochs=30, batch=8, lr=0.003, decay_epoch=25,
    weight_decay=1e-4, proposals=5,
)  # fmt: skip


def sampled_by_hand(places: int, durations: int, points: int) -> np.ndarray:
    """Weights `[D, T, N, T]`, one proposal, point and interpolation after another."""
    weights = np.zeros((durations, places, points, places))
    for d in range(durations):
        for s in range(places - d):
            first, last = s - (d + 1) / 2, s + d + (d + 1) / 2
            for number in range(3 * points):
                at = first + (last - first) * number / (3 * points - 1)
                below = int(np.floor(at))
                for place, weight in ((below, below + 1 - at), (below + 1, at - below)):
                    if 0 <= place < places:
                        weights[d, s, number // 3, place] += weight / 3
    return weights


@given(st.integers(1, 9), st.data())
def test_sampling_is_what_loops_find(places: int, data: st.DataObject) -> None:
    durations, points = data.draw(st.integers(1, places)), data.draw(st.integers(1, 5))
    matrix = sampling_matrix(places, durations, points).to_dense()
    expected = sampled_by_hand(places, durations, points).reshape(durations * places, points * places)
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-6)


def test_layer_equals_the_published_formulation_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    places, durations, points, channels = 10, 7, 4, 3
    layer = BoundaryMatching(channels, 5, places, durations, points).double()
    layer.sampling = layer.sampling.double()
    nn.init.normal_(layer.bias_O)
    weights_DSNT = layer.sampling.to_dense().view(durations, places, points, places)
    x_BCT = torch.randn(2, channels, places, dtype=torch.float64, requires_grad=True)
    seen_BCNDS = torch.einsum("bct,dsnt->bcnds", x_BCT, weights_DSNT)
    expected = nn.functional.conv3d(seen_BCNDS, layer.weight_OCN[..., None, None], layer.bias_O)[:, :, 0]
    found = layer(x_BCT)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    wanted = (x_BCT, layer.weight_OCN, layer.bias_O)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_network_has_the_published_size() -> None:
    network = BMN(400, places=8, durations=8, points=32, width=128)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert count["base"] == 256 * 100 * 3 + 256 + 256 * 64 * 3 + 256
    assert count["start"] == count["end"] == 256 * 64 * 3 + 256 + 257
    assert count["reduce"] == 256 * 128 * 3 + 128
    assert count["matching"] == 512 * 128 * 32 + 512
    assert count["judge"] == 512 * 128 + 128 + 2 * (128 * 128 * 9 + 128) + 2 * 128 + 2
    scores = network(torch.randn(2, 400, 8))
    assert [tuple(part.shape) for part in scores] == [(2, 8), (2, 8), (2, 2, 8, 8)]


def test_targets_by_hand() -> None:
    found = targets([torch.tensor([[0.25, 0.5], [0.75, 1.0]]), torch.zeros(0, 2)], places=8, durations=4)
    assert found.iou[0, 1, 2] == 1  # places 2 and 3: 0.25 .. 0.5
    assert found.iou[0, 1, 6] == 1
    assert found.iou[0, 0, 2] == pytest.approx(0.5)
    assert found.iou[0, 3, 6] == 0  # over the end
    assert found.iou[0, 3, 0] == pytest.approx(0.5)
    # a boundary at an edge: full cover of the places beside it, a quarter of a place beyond is too little
    assert (found.start[0] > 0.5).nonzero()[:, 0].tolist() == [1, 2, 5, 6]
    assert (found.end[0] > 0.5).nonzero()[:, 0].tolist() == [3, 4, 7]
    assert not any(part[1].any() for part in found)


@given(st.lists(st.tuples(st.floats(0, 0.9), st.floats(0.05, 1)), min_size=1, max_size=4))
def test_iou_targets_are_the_best_overlap(parts: list[tuple[float, float]]) -> None:
    segments = [(start, min(start + length, 1.0)) for start, length in parts]
    iou = targets([torch.tensor(segments)], places=6, durations=6).iou[0]
    for d in range(6):
        for s in range(6):
            expected = max(tiou(s / 6, (s + d + 1) / 6, *segment) for segment in segments) if s + d < 6 else 0
            assert float(iou[d, s]) == pytest.approx(expected, abs=1e-5)


def test_logistic_loss_weighs_both_kinds_alike() -> None:
    p = torch.tensor([0.9, 0.2, 0.4, 0.99])
    positive, valid = torch.tensor([True, False, False, True]), torch.tensor([True, True, True, False])
    expected = -(np.log(0.9) + (np.log(0.8) + np.log(0.6)) / 2) / 2
    assert float(balanced_logistic(p, positive, valid)) == pytest.approx(expected, abs=1e-5)
    alone = balanced_logistic(p, torch.zeros(4, dtype=torch.bool), valid)  # a video with nothing in it
    assert float(alone) == pytest.approx(-np.mean(np.log([0.1, 0.8, 0.6])) / 2, abs=1e-4)


def test_regression_takes_as_many_of_each_kind() -> None:
    iou = torch.cat(
        [torch.full((40,), 0.9), torch.full((4000,), 0.5), torch.full((4000,), 0.1), torch.zeros(4000)]
    )
    said = torch.where(iou == 0.5, 0.7, iou)  # wrong by 0.2 in the middle only
    loss = regression_loss(said.view(1, 1, -1), iou.view(1, 1, -1), torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(0.5 * 0.04 / 3, rel=0.25)  # a third of what is looked at


def test_perfect_scores_have_the_smallest_loss() -> None:
    wanted = targets([torch.tensor([[0.25, 0.5]])], places=8, durations=8)
    perfect = Scores(
        (wanted.start > 0.5).float(),
        (wanted.end > 0.5).float(),
        torch.stack([(wanted.iou > 0.9).float(), wanted.iou], 1),
    )
    half = Scores(*(torch.full_like(part, 0.5) for part in perfect))
    losses = [float(bmn_loss(scores, wanted, torch.Generator().manual_seed(0))) for scores in (perfect, half)]
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[1] > 3 * np.log(2)


def test_boundaries_are_peaks_and_all_that_is_likely() -> None:
    assert boundaries(torch.tensor([0.1, 0.3, 0.2, 0.9, 0.8, 0.1])).tolist() == [1, 3, 4]
    assert boundaries(torch.tensor([0.2, 0.1])).tolist() == [0]


def test_proposals_by_hand() -> None:
    start, end = torch.tensor([0.8, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.0, 0.4])
    quality = torch.full((2, 3, 4), 0.1)
    quality[0, 1, 0], quality[1, 1, 0] = 0.9, 0.4
    found = proposals(start, end, quality, 3)
    assert found[0].tolist() == pytest.approx([0.0, 0.5, 0.8 * 0.5 * 0.6])
    assert found[1:].tolist() == [[0, 0, 0], [0, 0, 0]]  # 0 .. 3 is four places, longer than the longest


def test_suppression_lowers_what_overlaps() -> None:
    found = suppressed(torch.tensor([[0.0, 0.2, 0.9], [0.0, 0.21, 0.8], [0.6, 0.8, 0.5]]), 3)
    assert found[:, 0].tolist() == pytest.approx([0.0, 0.6, 0.0])
    assert float(found[2, 2]) == pytest.approx(0.8 * np.exp(-((0.2 / 0.21) ** 2) / 0.4), rel=1e-4)


@given(
    st.lists(st.tuples(st.floats(0, 0.9), st.floats(0.01, 0.1), st.floats(0.01, 1)), min_size=1, max_size=30)
)
def test_suppression_keeps_the_best_and_never_raises_a_score(parts: list[tuple[float, float, float]]) -> None:
    given_P3 = torch.tensor([(start, start + length, score) for start, length, score in parts])
    kept = suppressed(given_P3, 10)
    assert float(kept[0, 2]) == pytest.approx(float(given_P3[:, 2].max()))
    assert (kept[:-1, 2] >= kept[1:, 2]).all()
    known = {(start, end): 0.0 for start, end, _ in given_P3.tolist()}
    for start, end, score in given_P3.tolist():
        known[start, end] = max(known[start, end], score)
    for start, end, score in kept[: len(parts)].tolist():
        assert score <= known[start, end] + 1e-6


def world(count: int, seed: int) -> tuple[Tensor, list[Video]]:
    """Features that show what happens: noise, and a mark of the class within each segment."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(0, 0.3, (count, RECIPE.places, 8))).float()
    videos = []
    for number in range(count):
        first, length = int(rng.integers(0, 10)), int(rng.integers(2, 7))
        action = int(rng.integers(0, 2))
        features[number, first : first + length, action] += 1.5
        end = 2.0 * min(first + length, RECIPE.places)
        videos.append(Video((number,), 0.0, 2.0 * RECIPE.places, segments=((2.0 * first, end, action),)))
    return features, videos


def log() -> RunLog:
    return RunLog("hico", "", "test", kind="amend")


def test_training_finds_segments_and_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    (features, videos), (others, held_out) = world(48, 0), world(24, 1)
    cpu = torch.device("cpu")
    with log() as run:
        whole = train_bmn(features, videos, RECIPE, 0, cpu, run, Checkpoint(tmp_path / "whole.ckpt"))
        found = propose(whole, others, RECIPE, cpu)
        untrained = propose(BMN(8, 16, 12, 8, 16).eval(), others, RECIPE, cpu)
        measured, chance = (
            localise_proposals(videos, held_out, features.mean(1), others.mean(1), some, 2)
            for some in (found, untrained)
        )
        assert measured["mAP@0.5"] > 80 > 40 > chance["mAP@0.5"], json.dumps([measured, chance])
        assert measured["AR@100"] > 70

        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        real, calls = BMN.forward, []

        def killed(network: BMN, x_BCT: Tensor) -> Scores:
            calls.append(1)
            if len(calls) == 20:
                raise KeyboardInterrupt
            return real(network, x_BCT)

        monkeypatch.setattr(BMN, "forward", killed)
        checkpoint = Checkpoint(tmp_path / "killed.ckpt")
        with pytest.raises(KeyboardInterrupt):
            train_bmn(features, videos, RECIPE, 0, cpu, run, checkpoint)
        again = train_bmn(features, videos, RECIPE, 0, cpu, run, checkpoint)
    assert len(calls) == 20 + 30 * 6 - 19
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def _rank(rank: int, path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    features, videos = world(8, 0)
    recipe = RECIPE.model_copy(update={"epochs": 1})
    with log() as run:
        network = train_bmn(
            features, videos, recipe, 0, torch.device("cpu"), run, Checkpoint(Path(path) / "ckpt")
        )
    torch.save(network.state_dict(), f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_windows_are_spread_over_a_video_and_stay_within_it() -> None:
    windows = spread_windows(Video((0,), 10.0, 30.0), 4.0, 5)
    assert [window.start for window in windows] == [10, 14, 18, 22, 26]
    assert [window.end for window in windows] == [14, 18, 22, 26, 30]
    windows = spread_windows(Video((0,), 0.0, 10.0), 4.0, 10)
    assert windows[0].start == 0
    assert windows[-1].end == 10
    assert {round(window.duration, 9) for window in windows} == {4.0}
    assert {(w.start, w.end) for w in spread_windows(Video((0,), 0.0, 3.0), 4.0, 4)} == {(0.0, 3.0)}
