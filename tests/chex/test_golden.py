"""Parity with the authors' code: every case of tests/golden/chex (its README describes the files)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.chex.detection.networks import SSD_SPECS
from stages.chex.detection.ssd import SSDSpec, decode, default_boxes, match, offsets, ssd_loss
from stages.chex.method.allocation import allocate_channels
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.column_subset import (
    leverage_scores,
    reconstruction_residual,
    select_channels,
    svd_bound,
)
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.flops import MacModel, count_macs, count_params, masked_macs
from stages.chex.method.learning_rate import warmup_cosine
from stages.chex.method.regrow import (
    projection_residual,
    regrow_counts,
    regrow_factor,
    regrow_probabilities,
)
from stages.chex.method.resnet import ResNet, ResNetSpec, build, resnet_spec
from stages.chex.method.slim import slim
from stages.chex.official import from_official
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("chex", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def indices(case: Mapping[str, np.ndarray], key: str) -> Iterator[int]:
    i = 0
    while f"{key}{i}" in case:
        yield i
        i += 1


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def state(case: Case, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor(case[key]) for key in case if key.startswith(prefix)}


def bottleneck(weights: Mapping[str, Tensor], mids: np.ndarray, outs: np.ndarray, groups: int = 0) -> ResNet:
    """The bottleneck net of a case: depths from the names, everything else from the shapes."""
    depths = tuple(
        len({key.split(".")[1] for key in weights if key.startswith(f"layer{s}.")})
        for s in range(1, len(mids) + 1)
    )
    spec = ResNetSpec(
        block="bottleneck",
        stem=weights["conv1.weight"].shape[0],
        large_stem=False,
        depths=depths,
        outs=tuple(int(out) for out in outs),
        mids=tuple(int(mid) for mid, depth in zip(mids, depths, strict=True) for _ in range(depth)),
        strides=(1,) + (2,) * (len(depths) - 1),
        num_classes=weights["fc.weight"].shape[0],
        in_channels=weights["conv1.weight"].shape[1],
        groups=groups,
    )
    model = ResNet(spec).eval()
    read(model, weights)
    return model


def read(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def assert_close(actual: Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        actual.detach().double(), tensor(expected).double(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("path", cases("leverage"))
def test_golden_leverage(path: Path) -> None:
    case = load(path)
    for i in indices(case, "w"):
        weight, n = tensor(case[f"w{i}"]), int(case[f"num_keep{i}"])
        assert_close(leverage_scores(weight, n, wide="l1"), case[f"score{i}"])
        keep = select_channels(weight, n, "css", wide="l1")
        assert keep.tolist() == case[f"keep{i}"].tolist()
        if case[f"wide{i}"]:
            assert_close(leverage_scores(weight, n, wide="l1"), case[f"l1norm{i}"])
        if f"recon_err{i}" in case:
            assert reconstruction_residual(weight, keep) == pytest.approx(
                float(case[f"recon_err{i}"]), rel=1e-5
            )
            assert svd_bound(weight, n) == pytest.approx(float(case[f"svd_bound{i}"]), rel=1e-5)


@pytest.mark.parametrize("path", cases("allocation"))
def test_golden_allocation(path: Path) -> None:
    case = load(path)
    sizes = case["sizes"].tolist()
    scales = list(tensor(case["gamma"]).split(sizes))
    for sparsity, expected in zip(case["sparsity"], case["keep_counts"], strict=True):
        # the official code has no lower limit
        assert allocate_channels(scales, float(sparsity), min_channels=0) == expected.tolist()
    kept = allocate_channels(scales, float(case["regrow_sparsity"]), min_channels=0)
    for delta, expected in zip(case["regrow_delta"], case["final_counts_uniform_regrow"], strict=True):
        grown = regrow_counts(kept, sizes, float(delta), exact=False)
        assert [n + g for n, g in zip(kept, grown, strict=True)] == expected.tolist()


@pytest.mark.parametrize("path", cases("regrow_probs"))
def test_golden_regrow_probs(path: Path) -> None:
    case = load(path)
    for i in indices(case, "w"):
        eps = projection_residual(tensor(case[f"w{i}"]), tensor(case[f"keep{i}"]), tensor(case[f"cand{i}"]))
        assert_close(eps, case[f"resid_norm{i}"])
        assert_close(regrow_probabilities(eps, power=1), case[f"prob{i}"])
        assert_close(regrow_probabilities(eps, power=2), case[f"prob_squared{i}"])


@pytest.mark.parametrize("path", cases("prune_regrow_step"))
def test_golden_prune_regrow_step(path: Path) -> None:
    case = load(path)
    model = bottleneck(state(case, "init/"), case["mids"], case["outs"])
    x = tensor(case["x"])
    groups, dense = find_channel_groups(model, x)
    assert not dense
    sizes = case["sizes"].tolist()
    assert [g.units for g in groups] == sizes

    def joined(masks: Mapping[str, Tensor]) -> list[int]:
        return torch.cat([masks[g.name] for g in groups]).int().tolist()

    config = ExplorerConfig(
        t_max=int(case["T_max"]),
        period=1,
        sparsity=float(case["S"]),
        delta0=float(case["delta0"]),
        regrow_allocation="global_norm",
        residual_power=1,
    )
    explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(0))
    explorer.initialise()
    assert joined(explorer.masks) == case["init_mask"].tolist()

    read(model, state(case, "before/"))
    kept_masks = tensor(case["kept_mask"]).bool().split(sizes)
    for group, n, kept in zip(groups, case["num_keep"], kept_masks, strict=True):
        weight = model.get_parameter(f"{group.name}.weight")
        selected = select_channels(weight, int(n), "css", wide="l1")
        assert selected.tolist() == kept.nonzero()[:, 0].tolist()

    report = explorer.step(int(case["t"]))
    assert report.delta == pytest.approx(float(case["delta_t"]), abs=1e-9)
    assert [report.kept[g.name] for g in groups] == case["num_keep"].tolist()
    assert [report.regrown[g.name] for g in groups] == case["num_grow"].tolist()
    after = explorer.state_dict()
    restored = state(case, "restored/")
    for name, value in restored.items():  # what no mask touches is not in the memory
        assert_close(after.get(f"memory/{name}", model.state_dict()[name]), value.numpy())

    read(model, restored)
    cuts = np.cumsum(case["probs_len"])[:-1]
    for layer, candidates, expected in zip(
        case["probs_layers"],
        np.split(case["cand_order"], cuts),
        np.split(case["probs_exact"], cuts),
        strict=True,
    ):
        weight = model.get_parameter(f"{groups[layer].name}.weight")
        eps = projection_residual(weight, kept_masks[layer].nonzero()[:, 0], tensor(candidates))
        assert_close(regrow_probabilities(eps, power=1), expected)

    final = tensor(case["final_mask"]).bool().split(sizes)
    after |= {f"mask/{g.name}": mask for g, mask in zip(groups, final, strict=True)}
    explorer.load_state_dict(after)
    explorer.apply_masks()
    assert 1 - np.mean(joined(explorer.masks)) == pytest.approx(float(case["final_sparsity"]), abs=1e-5)
    assert_close(model.eval()(x), case["y_masked_eval"])
    slimmed = slim(model, groups, explorer.masks)
    assert_close(slimmed(x), case["y_masked_eval"])
    macs = masked_macs(model, groups, explorer.masks, x)
    assert count_macs(slimmed, x) == macs
    assert macs / 1e9 == pytest.approx(float(case["gmacs_masked"]), rel=1e-5)


@pytest.mark.parametrize("path", cases("schedules"))
def test_golden_schedules(path: Path) -> None:
    case = load(path)
    for i in indices(case, "params"):
        sparsity, delta0, t_max = case[f"params{i}"][:3]
        for t, delta, target in zip(case[f"t{i}"], case[f"delta{i}"], case[f"sparsity{i}"], strict=True):
            ours = regrow_factor(int(t), float(t_max), float(delta0))
            assert ours == pytest.approx(delta, abs=1e-9)
            assert sparsity - ours == pytest.approx(target, abs=1e-9)
    base, warmup, total = case["lr_base_warmup_epochs"]
    for epoch, rate in enumerate(case["lr"]):
        assert warmup_cosine(epoch, base, int(warmup), int(total)) == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize("path", cases("flops"))
def test_golden_flops(path: Path) -> None:
    case = load(path)
    x = torch.zeros(1, 3, 224, 224, device="meta")
    for key in case:
        name = key.removesuffix("_gmacs")
        if key == f"{name}_gmacs" and f"{name}_params" in case and not name.endswith("_slim"):
            with torch.device("meta"):
                model = build(name, 1000)
            assert count_macs(model, x) / 1e9 == pytest.approx(float(case[key]), rel=1e-6)
            assert count_params(model) == int(case[f"{name}_params"])

    with torch.device("meta"):
        model = build("resnet50", 1000)
    groups, _ = find_channel_groups(model, x)
    macs = MacModel(model, groups, x)
    for i in indices(case, "resnet50_counts"):
        counts = case[f"resnet50_counts{i}"].tolist()
        assert macs(counts) / 1e9 == pytest.approx(float(case[f"resnet50_gmacs{i}"]), rel=1e-6)
        masks = {g.name: torch.arange(g.units) < n for g, n in zip(groups, counts, strict=True)}
        slimmed = slim(model, groups, masks)
        assert count_macs(slimmed, x) == macs(counts)
        weights = sum(
            module.weight.numel() for module in slimmed.modules() if isinstance(module, nn.Conv2d | nn.Linear)
        )
        assert weights == pytest.approx(int(case[f"resnet50_conv_fc_params_left{i}"]), rel=1e-6)

    spec = resnet_spec("resnet18", 1000)
    narrow = ResNetSpec(**{**vars(spec), "mids": tuple(case["resnet18_conv1_widths"].tolist())})
    with torch.device("meta"):
        model = ResNet(narrow)
    assert count_macs(model, x) / 1e9 == pytest.approx(float(case["resnet18_slim_gmacs"]), rel=1e-6)
    assert count_params(model) == int(case["resnet18_slim_params"])


@pytest.mark.parametrize("path", cases("cls_losses"))
def test_golden_cls_losses(path: Path) -> None:
    case = load(path)
    logits, target, soft = (tensor(case[key]) for key in ("logits", "target", "soft_target"))
    smoothing = float(case["smoothing"])
    onehot = F.one_hot(target, logits.shape[1]).float()
    for labels, key in ((soft, "loss_mixup"), (onehot, "loss_onehot"), (target, "loss_label_smoothing")):
        assert_close(F.cross_entropy(logits, labels, label_smoothing=smoothing), case[key])


@pytest.mark.parametrize("path", cases("gn_masked"))
def test_golden_gn_masked(path: Path) -> None:
    case = load(path)
    model = bottleneck(state(case, "state/"), case["mids"], case["outs"], int(case["groups"]))
    x = tensor(case["x"])
    groups, _ = find_channel_groups(model, x)
    masks = {name: mask.bool() for name, mask in state(case, "mask/").items()}
    assert [g.name for g in groups] == list(masks)
    assert_close(model(x), case["y"])
    assert_close(slim(model, groups, masks)(x), case["y"])


@pytest.mark.parametrize("path", cases("collapsed_block"))
def test_golden_collapsed_block(path: Path) -> None:
    case = load(path)
    weights = state(case, "state/")
    x = tensor(case["x"])
    assert_close(bottleneck(weights, case["mids"], case["outs"])(x), case["y"])
    slimmed = from_official(weights)
    assert_close(slimmed(x), case["y"])


@pytest.mark.parametrize("path", cases("ssd_pieces"))
def test_golden_ssd_pieces(path: Path) -> None:
    case = load(path)
    boxes_A4 = default_boxes(SSD_SPECS["resnet50"])
    assert len(boxes_A4) == int(case["dboxes300_count"])
    assert_close(boxes_A4[tensor(case["dboxes300_index"])], case["dboxes300_xywh"], 1e-6)
    assert_close(boxes_A4.double().sum(0), case["dboxes300_sum"], 1e-4)

    spec = SSDSpec(
        size=int(case["fig_size"]),
        maps=tuple(case["feat_size"].tolist()),
        steps=tuple(case["steps"].tolist()),
        scales=tuple(case["scales"].tolist()),
        ratios=tuple(tuple(json.loads(text)) for text in case["aspect_ratios"].tolist()),
        extras=(),
    )
    boxes_A4 = default_boxes(spec)
    assert_close(boxes_A4, case["dboxes_xywh"], 1e-6)
    matched = [
        match(boxes_A4, tensor(case[f"boxes_ltrb{i}"]), tensor(case[f"labels{i}"]))
        for i in indices(case, "boxes_ltrb")
    ]
    target_BA4, label_BA = (torch.stack(parts) for parts in zip(*matched, strict=True))
    assert_close(target_BA4, case["encoded_xywh"])
    assert label_BA.tolist() == case["encoded_label"].tolist()
    offset_B4A = offsets(boxes_A4, target_BA4).mT
    assert_close(offset_B4A, case["loc_target"], 1e-4)

    predicted_B4A, logit_BKA = tensor(case["ploc"]), tensor(case["pconf"])
    box_loss, class_loss = ssd_loss(predicted_B4A, logit_BKA, offset_B4A, label_BA)
    assert float(box_loss + class_loss) == pytest.approx(float(case["loss"]), rel=1e-5)

    for i in indices(case, "dec_boxes"):
        found = decode(
            boxes_A4, 0.5 * predicted_B4A[i], 3 * logit_BKA[i],
            nms_iou=float(case["decode_nms_iou"]), most=int(case["decode_max"]),
        )  # fmt: skip
        assert_close(found["scores"].flip(0), case[f"dec_scores{i}"], 1e-4)  # the authors' come worst first
        assert found["labels"].flip(0).tolist() == case[f"dec_labels{i}"].tolist()
        assert_close(found["boxes"].flip(0), case[f"dec_boxes{i}"], 1e-4)
