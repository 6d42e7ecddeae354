"""The method's own laws: windows, clusters, maps, labels, restarts, scores; and degenerate input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.transfgu.maps import PseudoMaps
from stages.transfgu.method.augment import PseudoLabelAugment
from stages.transfgu.method.concept_cam import CamParts, cam_parts, carries_mass, combine, concept_cam
from stages.transfgu.method.dino import DINOLoss, MultiCropAugment, random_windows, update_teacher
from stages.transfgu.method.kmeans import kmeans
from stages.transfgu.method.losses import (
    IGNORE,
    bootstrap_loss,
    class_embedding_loss,
    mix_pseudo_labels,
    negative_weight,
    uncertainty_loss,
)
from stages.transfgu.method.mask_transformer import MaskTransformer, adam
from stages.transfgu.method.metrics import hungarian_match, many_to_one_scores, segmentation_scores
from stages.transfgu.method.restarts import RestartSchedule
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.method.windows import crop_windows, pixel_boxes, select_windows, sliding_windows
from stages.transfgu.scenes import CLASSES, scenes, shuffle_pixels, single_objects


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def encoder() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(4, 24, 2, 3, 4)
    for parameter in model.parameters():  # so that attention is not flat
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@given(st.integers(4, 24), st.integers(4, 24), st.sampled_from([0.2, 0.35, 0.5, 0.8]))
@settings(max_examples=30, deadline=None)
def test_windows_lie_on_the_grid(h: int, w: int, scale: float) -> None:
    boxes = sliding_windows(h, w, [scale])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] < w).all()
    assert (boxes[:, 3] < h).all()
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)


@given(st.integers(4, 14), st.integers(4, 14), st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_window_selection_is_the_share_of_cropped_pixels(h: int, w: int, patch: int, seed: int) -> None:
    boxes, masks = sliding_windows(h, w, [0.5, 0.3]), torch.rand(3, h, w, generator=seeded(seed)) > 0.5
    pixels = masks.double().repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    slices = pixel_boxes(boxes, patch).tolist()
    area = torch.tensor([max(1, (x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in slices])
    hit = torch.stack([pixels[:, y0:y1, x0:x1].sum((1, 2)) for x0, y0, x1, y1 in slices], 1)
    share = hit / area
    fg, bg = select_windows(boxes, masks, patch, 0.5, 0.4)
    assert torch.equal(fg, share > 0.5)
    assert torch.equal(bg, 1 - share > 0.4)


def test_window_crops_are_torchs_bilinear_resize() -> None:
    torch.manual_seed(0)
    image, boxes = torch.rand(3, 40, 32), sliding_windows(10, 8, [0.5, 0.3])
    crops = crop_windows(image, boxes, 4, (9, 7))
    for crop, (x0, y0, x1, y1) in zip(crops, pixel_boxes(boxes, 4).tolist(), strict=True):
        expected = nn.functional.interpolate(image[None, :, y0:y1, x0:x1], (9, 7), mode="bilinear")[0]
        torch.testing.assert_close(crop, expected, rtol=0, atol=1e-5)


def test_kmeans_finds_blobs_and_never_beats_the_one_cluster_bound() -> None:
    torch.manual_seed(0)
    truth = torch.arange(120) % 4
    x = 10 * torch.eye(4, 6)[truth] + 0.1 * torch.randn(120, 6)
    result = kmeans(x, 4)
    assert len({(a, b) for a, b in zip(truth.tolist(), result.labels_N.tolist(), strict=True)}) == 4
    means = torch.stack([x[result.labels_N == k].mean(0) for k in range(4)])
    torch.testing.assert_close(result.centroids_KD, means)
    assert result.inertia < kmeans(x, 3).inertia < kmeans(x, 1).inertia


def test_kmeans_with_more_clusters_than_points_reports_the_empty_ones() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    result = kmeans(x, 5)
    assert result.inertia == 0
    assert int((result.sizes_K == 0).sum()) == 3
    assert result.centroids_KD.isfinite().all()
    with pytest.raises(ValueError, match="not finite"):
        kmeans(torch.tensor([[math.nan]]), 1)
    with pytest.raises(ValueError, match="at least 1"):
        kmeans(torch.zeros(0, 2), 1)


@given(st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_closed_form_equals_autograd(concepts: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = VisionTransformer(4, 12, 2, 2, 3, layer_scale=seed % 2 == 1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, centroids = torch.randn(2, 3, 12, 16), torch.randn(concepts, 12)
    closed, auto = (cam_parts(model, x, centroids, method=method) for method in ("closed_form", "autograd"))
    torch.testing.assert_close(closed.gradient_BKn, auto.gradient_BKn, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(closed.attention_Bn, auto.attention_Bn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cam_of_an_image_does_not_depend_on_its_batch(encoder: VisionTransformer) -> None:
    torch.manual_seed(1)
    x, centroids = torch.randn(3, 3, 16, 16), torch.randn(4, 24)
    together = concept_cam(encoder, x, centroids)
    for index in range(3):
        torch.testing.assert_close(concept_cam(encoder, x[index : index + 1], centroids)[0], together[index])


def test_kept_mass_is_the_smallest_set_with_its_share() -> None:
    u = torch.tensor([[0.1, 0.5, 0.0, 0.4], [0.0, 0.0, 0.0, 0.0]])
    assert carries_mass(u, 0.8).tolist() == [[False, True, False, True], [False] * 4]


def test_maps_are_attention_where_owned_and_zero_elsewhere() -> None:
    parts = CamParts(torch.tensor([[0.2, 0.4, 0.1]]), torch.tensor([[[0.3, 0.0, -0.05]]]))
    torch.testing.assert_close(combine(parts), torch.tensor([[[0.0, 1.0, 0.3]]]))


@given(st.integers(1, 5), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_stored_maps_come_back(concepts: int, seed: int) -> None:
    import tempfile
    from pathlib import Path

    torch.manual_seed(seed)
    parts = CamParts(torch.rand(3, 12), 1e-6 * torch.randn(3, concepts, 12))
    maps = PseudoMaps(concepts, (3, 4))
    maps.add(CamParts(parts.attention_Bn[:2], parts.gradient_BKn[:2]), 0.8)
    maps.add(CamParts(parts.attention_Bn[2:], parts.gradient_BKn[2:]), 0.8)
    with tempfile.TemporaryDirectory() as folder:
        maps.save(Path(folder) / "maps")
        loaded = PseudoMaps.load(Path(folder) / "maps")
    expected = combine(parts).view(3, concepts, 3, 4)
    dense = loaded.dense(torch.tensor([2, 0, 1]))
    torch.testing.assert_close(dense, expected[[2, 0, 1]], rtol=0, atol=1e-3)
    assert ((dense > 0) == (expected[[2, 0, 1]] > 0)).all()


def test_constant_maps_ignore_or_follow_the_teacher() -> None:
    maps, teacher = torch.full((1, 3, 2, 2), 0.7), torch.zeros(1, 3, 2, 2)
    teacher[:, 2] = 5.0
    _, labels = mix_pseudo_labels(maps, None, False)
    assert (labels == IGNORE).all()
    assert (mix_pseudo_labels(maps, teacher, False)[1] == 2).all()
    loss = bootstrap_loss(torch.zeros(1, 3, 2, 2), labels, 0.1, torch.tensor([1, 2, 0]))
    assert (loss == 0).all()


def test_background_wins_below_a_twentieth() -> None:
    maps = torch.tensor([0.0, 0.049, 0.051, 1.0]).view(1, 1, 2, 2)
    assert mix_pseudo_labels(maps, None, True)[1].flatten().tolist() == [0, 0, 1, 1]


def test_identity_permutation_scales_the_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    plain = bootstrap_loss(logits, labels)
    torch.testing.assert_close(bootstrap_loss(logits, labels, 0.25, torch.arange(4)), 0.75 * plain)
    assert [round(negative_weight(epoch), 2) for epoch in (0, 1, 7, 50)] == [0.03, 0.04, 0.1, 0.1]


def test_losses_are_defined_without_foreground_and_with_one_class() -> None:
    logits = torch.randn(1, 4, 2, 2)
    assert float(uncertainty_loss(logits, torch.zeros(1, 3, 2, 2), True)) == 0
    assert float(uncertainty_loss(logits[:, :1], torch.zeros(1, 1, 2, 2), False).sum()) == 0
    assert float(class_embedding_loss(torch.randn(2, 1, 5))) == 0
    assert float(class_embedding_loss(torch.eye(3)[None])) == pytest.approx(1.0)


def test_restarts() -> None:
    schedule = RestartSchedule(3, [3, 2], epoch_step=6)
    assert [epoch for epoch in range(12) if schedule.restarts(epoch)] == [3, 6, 8, 10]
    assert [schedule.epochs_since(epoch) for epoch in range(9)] == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    assert [schedule.teacher_on(epoch) for epoch in (2, 3)] == [False, True]
    with pytest.raises(ValueError, match="untrained"):
        RestartSchedule(3, [2])


def test_class_embeddings_of_both_inits() -> None:
    torch.manual_seed(0)
    official = MaskTransformer(5, 8, 12, n_heads=2).cls_emb[0].detach()
    assert float(official.norm()) == pytest.approx(1, abs=1e-5)
    orthogonal = MaskTransformer(5, 8, 12, n_heads=2, class_init="orthogonal").cls_emb[0].detach()
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(5), rtol=0, atol=1e-5)


def test_decay_is_on_matrices_only() -> None:
    head = MaskTransformer(3, 8, 12, n_heads=2)
    decayed, others = adam(head, 1e-3, 5e-4).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_scores_of_any_number_of_clusters(classes: int, clusters: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, (classes, clusters))
    scores, merged = segmentation_scores(counts), many_to_one_scores(counts)
    match = hungarian_match(counts)
    assert (match >= 0).sum() == min(classes, clusters)
    if counts.sum():
        matched = sum(counts[c, m] for c, m in enumerate(match) if m >= 0)
        assert scores.pixel_accuracy == pytest.approx(100 * matched / counts.sum())
        assert merged.pixel_accuracy == pytest.approx(100 * counts.max(0).sum() / counts.sum())
        assert merged.pixel_accuracy >= scores.pixel_accuracy - 1e-9
    order = np.random.default_rng(seed).permutation(clusters)
    assert segmentation_scores(counts[:, order]).pixel_accuracy == pytest.approx(
        scores.pixel_accuracy, nan_ok=True
    )


def test_an_absent_class_counts_only_when_it_is_predicted() -> None:
    assert segmentation_scores(np.array([[5, 0], [0, 0]])).miou == 100
    assert segmentation_scores(np.array([[5, 2], [0, 0]])).miou == pytest.approx((500 / 7) / 2)


def test_dino_loss_is_least_where_the_student_agrees() -> None:
    torch.manual_seed(0)
    loss, teacher = DINOLoss(6), torch.randn(2, 4, 6)
    same = torch.cat([teacher.flip(0), teacher[:1]])
    agreeing = float(loss(same, teacher, 0.1))
    loss.centre.zero_()
    assert agreeing < float(loss(-same, teacher, 0.1))
    assert not torch.equal(loss.centre, torch.zeros(1, 6))


def test_teacher_moves_by_its_momentum() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach()
    update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), expected)


def test_multi_crops_have_their_shapes_and_seed() -> None:
    augment = MultiCropAugment(12, 8, 3, (0.5, 1.0), (0.1, 0.3), rotate=10)
    x = torch.rand(4, 3, 16, 16)
    wide, near = augment(x, seeded())
    assert (wide.shape, near.shape) == ((2, 4, 3, 12, 12), (3, 4, 3, 8, 8))
    assert torch.equal(augment(x, seeded())[0], wide)
    assert not torch.equal(augment(x, seeded(1))[0], wide)


def test_random_windows_are_square_inside_and_of_the_asked_sides() -> None:
    height, width, size = 20, 40, 5
    y_HW, x_HW = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp_BCHW = torch.stack([x_HW, y_HW]).float().expand(50, -1, -1, -1)
    windows_BCHW = random_windows(ramp_BCHW, [0.25, 0.5], size, torch.Generator().manual_seed(0))
    right_B = windows_BCHW[:, 0].diff(dim=2).mean((1, 2))  # pixels between neighbouring samples
    down_B = windows_BCHW[:, 1].diff(dim=1).mean((1, 2))
    torch.testing.assert_close(right_B, down_B)
    assert set((size * right_B).round(decimals=3).tolist()) == {5.0, 10.0}
    start_B, end_B = windows_BCHW[:, 0, 0, 0] - right_B / 2, windows_BCHW[:, 0, 0, -1] + right_B / 2
    assert start_B.min() >= -0.501
    assert end_B.max() <= width - 0.499
    assert start_B.max() - start_B.min() > width / 3


def test_pseudo_label_augmentation_keeps_maps_with_their_pixels() -> None:
    """Maps that are a channel of the image stay one (they are averaged, it is interpolated: nearly)."""
    ramp = torch.linspace(0, 255, 64).expand(1, 3, 64, 64).contiguous()
    maps = (ramp[:, :1, ::8, 4::8] / 255).contiguous()
    images, crops = PseudoLabelAugment(8)(ramp, maps, seeded(3))
    assert (images.shape, crops.shape) == ((1, 3, 32, 32), (1, 1, 4, 4))
    slope_image, slope_map = images[0, 0, 0].diff().mean(), crops[0, 0, 0].diff().mean()
    assert float(slope_image) * float(slope_map) > 0  # mirrored together or not at all


def test_scenes_have_every_class_and_a_seed() -> None:
    images, labels = scenes(60, 32, seeded())
    assert images.dtype == torch.uint8
    assert images.shape == (60, 3, 32, 32)
    assert set(labels.unique().tolist()) == set(range(len(CLASSES)))
    assert torch.equal(scenes(60, 32, seeded())[0], images)
    single, kinds = single_objects(40, 16, seeded())
    assert set(kinds.tolist()) <= set(range(len(CLASSES)))
    shuffled = shuffle_pixels(single, seeded())
    assert torch.equal(shuffled.flatten(2).sort(-1).values, single.flatten(2).sort(-1).values)
    assert not torch.equal(shuffled, single)


def test_one_colour_gives_finite_maps(encoder: VisionTransformer) -> None:
    flat: Tensor = torch.zeros(1, 3, 16, 16)
    maps = concept_cam(encoder, flat, torch.randn(3, 24))
    assert maps.isfinite().all()
