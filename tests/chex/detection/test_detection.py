"""Detectors: sizes against the card, coupling of bodies and heads, slim equals masked, SSD's boxes, matching and loss."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import box_convert

from stages.chex.detection.networks import BODY, SSD_SPECS, body_example, detector
from stages.chex.detection.params import DetectorName, NetName
from stages.chex.detection.ssd import SSD, decode, default_boxes, match, offsets, ssd_loss
from stages.chex.detection.training import METHODS, DetectorStudy, SSDAugmentation, maps_of
from stages.chex.measures import torch_macs
from stages.chex.method.allocation import uniform_channels
from stages.chex.method.channel_groups import ChannelGroup, find_channel_groups
from stages.chex.method.compact import CompactModel
from stages.chex.method.flops import count_macs, count_params
from stages.chex.method.narrow import SlimGroupNorm, tensor_masks
from stages.chex.method.slim import save_slim, slim
from stages.chex.params import Prune
from stages.chex.rows import explorer_of
from stages.chex.study import Explored, Job, explored, within
from stages.common.results import published
from tests.chex.test_channel_groups import mask_, random_masks, randomise
from tests.common.stages import preset, write_params
from tests.common.workspace import ROOT

CPU = torch.device("cpu")
PRUNE = Prune(flops=[0.5], explore=0.7, period=0.2, residual_power=2)
DETECTORS: tuple[DetectorName, ...] = ("ssd", "mask-rcnn")


def build(name: DetectorName, net: NetName, classes: int, device: torch.device = CPU) -> Explored:
    """An untrained detector and what is pruned of it."""
    model = detector(name, net, classes, 0).to(device)
    return explored(model, BODY[name], body_example(name, net).to(device))


def quick(name: DetectorName) -> Explored:
    """The quick detector, as after some training."""
    built = build(name, "quick", 6)
    randomise(built.model)
    return built


def pictures(count: int = 2, side: int = 64) -> list[Tensor]:
    return list(torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(5)))


def sizes(groups: list[ChannelGroup]) -> list[int]:
    return [group.units for group in groups]


# ------------------------------------------------------------------------- full size: the card's numbers, no training


def test_full_size_ssd_costs_what_the_card_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    built = build("ssd", "resnet50", 80, torch.device("meta"))
    rows = published("chex")
    known = rows[rows["table"].str.startswith("T2")].set_index(["method", "setting", "metric"])["value"]
    body = built.macs(sizes(built.groups))
    assert body == count_macs(built.body, built.example)
    assert body / 1e9 == pytest.approx(
        known["dense", "backbone at 300x300 (stride-1 stage 3)", "flops"], rel=1e-6
    )
    whole = count_macs(built.model.get_submodule("net"), built.example)
    assert whole / 1e9 == pytest.approx(known["dense", "whole detector at 300x300", "flops"], rel=1e-6)
    for sparsity in (0.5, 0.7):
        left = built.macs(uniform_channels(sizes(built.groups), sparsity))
        reduction = 100 * (1 - left / body)
        assert reduction == pytest.approx(
            known["uniform mask", f"backbone S={sparsity}", "flops_reduction"], abs=0.05
        )


def test_full_size_mask_rcnn_costs_what_the_card_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    built = build("mask-rcnn", "resnet50", 80, torch.device("meta"))
    rows = published("chex").set_index(["method", "setting", "metric"])["value"]
    left = built.macs(uniform_channels(sizes(built.groups), 0.5)) / built.macs(sizes(built.groups))
    setting = "ResNet-50 body with stride in the 1x1 conv, S=0.5"
    assert 100 * (1 - left) == pytest.approx(rows["uniform mask", setting, "flops_reduction"], abs=0.05)
    assert (len(built.groups), sum(sizes(built.groups))) == (36, 11_392)


def test_full_size_ssd_is_slimmed_whole() -> None:
    """Extra blocks and heads follow the body: all channels but the stream's and the heads' outputs can go."""
    model = build("ssd", "resnet50", 80).model
    net, x_B3HW = model.get_submodule("net").eval(), torch.rand(1, 3, 300, 300)
    randomise(net)
    groups, dense = find_channel_groups(net, x_B3HW)
    assert dense == []
    assert len(groups) == 29 + 10
    readers = {group.name: {span.module for span in group.consumers} for group in groups}
    for place in range(4):
        heads = {f"offsets.{place + 1}", f"logits.{place + 1}"}
        assert readers[f"extras.{place}.3"] == {f"extras.{place + 1}.0", *heads}
    assert readers["extras.4.3"] == {"offsets.5", "logits.5"}
    masks = random_masks(groups, 0.4)
    small = slim(net, groups, masks)
    mask_(net, groups, masks)
    with torch.no_grad():
        for ours, full in zip(small(x_B3HW), net(x_B3HW), strict=True):
            for narrow, masked in zip(ours, full, strict=True):
                torch.testing.assert_close(narrow, masked, atol=1e-4, rtol=1e-4)
    assert count_params(small) < 0.5 * count_params(net)


def test_full_size_mask_rcnn_body_is_slimmed() -> None:
    built = build("mask-rcnn", "resnet50", 80)
    randomise(built.body)
    body, x_B3HW = built.body.eval(), torch.rand(1, 3, 96, 64)
    groups, dense = find_channel_groups(body, x_B3HW)
    assert dense == []
    masks = random_masks(groups)
    small = slim(body, groups, masks)
    mask_(body, groups, masks)
    with torch.no_grad():
        maps, masked = small(x_B3HW), body(x_B3HW)
    assert list(maps) == ["0", "1", "2", "3"]
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(24, 16), (12, 8), (6, 4), (3, 2)]
    for name, x_BCHW in maps.items():
        torch.testing.assert_close(x_BCHW, masked[name], atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, SlimGroupNorm) for module in small.modules())


# ---------------------------------------------------------------------------------------- the detector, masked and slim


@pytest.mark.parametrize("name", DETECTORS)
def test_slim_detector_equals_masked(name: DetectorName) -> None:
    built = quick(name)
    model = built.model.eval()
    masks = random_masks(built.groups)
    small = slim(model, built.groups, masks)
    full = maps_of(model, pictures()[0])
    mask_(model, built.groups, masks)
    for narrow, masked, before in zip(
        maps_of(small, pictures()[0]), maps_of(model, pictures()[0]), full, strict=True
    ):
        torch.testing.assert_close(narrow, masked, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(masked, before, atol=1e-2)
    with torch.no_grad():
        for ours, theirs in zip(small(pictures()), model(pictures()), strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                torch.testing.assert_close(value, theirs[key], atol=1e-3, rtol=1e-3)
    body = small.get_submodule(BODY[name])
    counts = [int(masks[group.name].sum()) for group in built.groups]
    assert count_macs(body, built.example) == built.macs(counts) == torch_macs(body, built.example)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_of_the_slim_copy_is_a_step_of_the_masked_detector(name: DetectorName) -> None:
    """Losses and gradients of what is left agree, through GroupNorm and BatchNorm in training mode."""
    built = quick(name)
    model = built.model.train()
    masks = random_masks(built.groups)
    mask_(model, built.groups, masks)
    compact = CompactModel(model, built.groups, masks)
    boxes = torch.tensor([[8.0, 8, 30, 28], [34, 36, 60, 56]])
    target = {
        "boxes": boxes,
        "labels": torch.tensor([1, 4]),
        "masks": torch.ones(2, 64, 64, dtype=torch.uint8),
    }
    losses = []
    for network in (model, compact.module.train()):
        torch.manual_seed(1)
        loss = torch.stack(list(network(pictures(), [target, target]).values())).sum()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for weight, gradient in compact.slice_state(gradients).items():
        ours = dict(compact.module.named_parameters())[weight].grad
        assert ours is not None
        torch.testing.assert_close(ours, gradient, atol=2e-3 * float(gradient.abs().max()) + 1e-6, rtol=1e-2)


def test_files_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params("chex-detection", preset("chex-detection", "quick"))
    study = DetectorStudy()
    study.cell("chex", 3).mkdir(parents=True)
    for name in DETECTORS:
        built, job = quick(name), Job(name, "chex", 0.5, 3)
        small = slim(built.model.eval(), built.groups, random_masks(built.groups))
        save_slim(small, study.file(job))
        loaded = study.trained(job, CPU)
        pairs = zip(maps_of(loaded, pictures()[0]), maps_of(small, pictures()[0]), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_body_is_pruned_and_to_its_budget(method: str) -> None:
    row = METHODS[method]  # type: ignore[index]
    for name in DETECTORS:
        built = quick(name)
        full = built.macs(sizes(built.groups))
        explorer = explorer_of(row, built.model, built.groups, built.macs, 0.5 * full, 20, PRUNE, 0)
        explorer.step(6)
        explorer.finish()
        left = built.macs([int(explorer.masks[group.name].sum()) for group in built.groups])
        assert 0.4 * full < left <= 0.5 * full
        touched = tensor_masks(built.model, built.groups, explorer.masks)
        assert all(tensor.startswith(BODY[name]) for tensor in touched)


def test_groups_are_renamed_as_a_whole() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    outer = nn.ModuleDict({"a": inner})
    groups, _ = find_channel_groups(inner, torch.zeros(1, 3, 2, 2))
    (group,) = [within(group, "a") for group in groups]
    masks = {group.name: torch.tensor([True, False, True, False])}
    assert group.name == "a.0"
    narrow = slim(outer, [group], masks).get_submodule("a")
    assert narrow.get_parameter("0.weight").shape[0] == 2
    assert narrow.get_parameter("3.weight").shape[1] == 2


# -------------------------------------------------------------------------------------------------------------- SSD


def test_maps_and_default_boxes_fit() -> None:
    for net, classes in (("quick", 6), ("resnet50", 80)):
        built = build("ssd", net, classes, torch.device("meta"))  # type: ignore[arg-type]
        spec = SSD_SPECS[net]  # type: ignore[index]
        offset_maps, logit_maps = built.model.get_submodule("net").eval()(built.example)
        assert tuple(x.shape[-1] for x in offset_maps) == spec.maps
        boxes = sum(x.shape[1] // 4 * x.shape[2] * x.shape[3] for x in offset_maps)
        assert boxes == len(default_boxes(spec))
        assert boxes == sum(x.shape[1] // (classes + 1) * x.shape[2] * x.shape[3] for x in logit_maps)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_what_is_encoded_is_decoded(seed: int, objects: int) -> None:
    """Offsets of matched boxes lead back to the objects, and every object has a box."""
    generator = torch.Generator().manual_seed(seed)
    default_A4 = default_boxes(SSD_SPECS["quick"])
    centre_G2 = 0.2 + 0.6 * torch.rand(objects, 2, generator=generator)
    size_G2 = 0.1 + 0.25 * torch.rand(objects, 2, generator=generator)
    box_G4 = box_convert(torch.cat([centre_G2, size_G2], 1), "cxcywh", "xyxy")
    label_G = 1 + torch.randperm(6, generator=generator)[:objects]
    target_A4, label_A = match(default_A4, box_G4, label_G)
    logit_KA = torch.zeros(7, len(default_A4))
    logit_KA[label_A, torch.arange(len(default_A4))] = 12.0
    found = decode(default_A4, offsets(default_A4, target_A4).T, logit_KA)
    taken = set(label_A[label_A > 0].tolist())
    assert set(found["labels"].tolist()) == taken
    assert taken
    for box_4, label in zip(found["boxes"], found["labels"], strict=True):
        assert float((box_4 - box_G4[label_G == label]).abs().amax(1).min()) < 1e-4


def test_an_image_without_objects_costs_nothing() -> None:
    default_A4 = default_boxes(SSD_SPECS["quick"])
    target_A4, label_A = match(default_A4, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert not label_A.any()
    generator = torch.Generator().manual_seed(0)
    offset_B4A = torch.randn(1, 4, len(default_A4), generator=generator)
    logit_BKA = torch.randn(1, 7, len(default_A4), generator=generator)
    losses = ssd_loss(offset_B4A, logit_BKA, offsets(default_A4, target_A4[None]).mT, label_A[None])
    assert [float(loss) for loss in losses] == [0.0, 0.0]
    found = decode(
        default_A4,
        torch.zeros(4, len(default_A4)),
        torch.tensor([[9.0]] + [[0.0]] * 6).expand(7, len(default_A4)),
    )
    assert found["boxes"].shape == (0, 4)


def test_negatives_are_the_hardest_three_for_each_match() -> None:
    label_BA = torch.zeros(1, 10, dtype=torch.long)
    label_BA[0, 0] = 2
    logit_BKA = torch.zeros(1, 3, 10)
    logit_BKA[0, 1, 4:7] = torch.tensor([3.0, 2.0, 1.0])  # background taken for class 1
    _, loss = ssd_loss(torch.zeros(1, 4, 10), logit_BKA, torch.zeros(1, 4, 10), label_BA)
    expected = nn.functional.cross_entropy(logit_BKA, label_BA, reduction="none")[0, [0, 4, 5, 6]].sum()
    assert float(loss) == pytest.approx(float(expected))


def test_images_of_any_size_are_found_in_their_own_pixels() -> None:
    model = build("ssd", "quick", 6).model.eval()
    assert isinstance(model, SSD)
    tall, wide = torch.rand(3, 128, 64), torch.rand(3, 32, 96)
    with torch.no_grad():
        found = model([tall, wide])
    for image, detections in zip((tall, wide), found, strict=True):
        boxes_D4 = detections["boxes"]
        assert (boxes_D4[:, 0::2] <= image.shape[2]).all()
        assert (boxes_D4[:, 1::2] <= image.shape[1]).all()


def test_ssd_augmentation_gives_squares_with_boxes_inside() -> None:
    augment = SSDAugmentation(48)
    for seed in range(12):
        torch.manual_seed(seed)
        target: Mapping[str, Tensor] = {
            "boxes": torch.tensor([[5.0, 5, 40, 30], [50, 20, 90, 60]]), "labels": torch.tensor([1, 2])
        }  # fmt: skip
        image_CHW, changed = augment(torch.rand(3, 64, 96), dict(target))
        assert image_CHW.shape == (3, 48, 48)
        assert type(image_CHW) is Tensor
        assert len(changed["boxes"]) == len(changed["labels"])
        assert (changed["boxes"] >= 0).all()
        assert (changed["boxes"] <= 48).all()
