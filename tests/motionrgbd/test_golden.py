"""Parity with the authors' code: every case of tests/golden/motionrgbd (its README describes the files)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.motionrgbd.method.blocks import SamePool, SpatialInception, TemporalInception, pool_time
from stages.motionrgbd.method.capf import CAPF, fusion_loss
from stages.motionrgbd.method.distillation import recoupling_distillation
from stages.motionrgbd.method.dsn import inception_dsn
from stages.motionrgbd.method.dtn import DTN, KNNAttention
from stages.motionrgbd.method.frp import FRP
from stages.motionrgbd.method.guidance import rank_pool_guidance
from stages.motionrgbd.method.losses import multi_branch_loss
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.sampling import segment_indices, segment_ranges
from stages.motionrgbd.method.schedules import SharpnessSchedule, distillation_weight, learning_rate
from stages.motionrgbd.method.unimodal import Logits, Temporal, UnimodalNet
from stages.motionrgbd.official import official_name, to_official, unimodal_from_official
from tests.golden_cases import golden_cases
from tests.motionrgbd.filling import filled, filled_state, inputs

Case = dict[str, np.ndarray]


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("motionrgbd", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def near(actual: Tensor | np.ndarray | float, expected: np.ndarray, atol: float = 1e-5) -> None:
    value = actual.detach().numpy() if isinstance(actual, Tensor) else actual
    np.testing.assert_allclose(value, expected, rtol=0, atol=atol)


def relatively_near(actual: Tensor, expected: np.ndarray) -> None:
    """1e-4 of the largest output: logits are divided by a temperature near 0.05."""
    near(actual, expected, 1e-4 * float(np.abs(expected).max()))


def numbers(case: Case, pattern: str = "c") -> list[str]:
    """`c0`, `c1` ... of a file."""
    return sorted({key.partition("_")[0] for key in case if key.startswith(pattern) and key[1:2].isdigit()})


@pytest.mark.parametrize("path", cases("frp_guidance"))
def test_golden_guidance(path: Path) -> None:
    case = load(path)
    for name in numbers(case):
        x_BTCHW = ((tensor(case[f"{name}_frames_uint8"]).float() - 127.5) / 128).permute(0, 3, 1, 2)[None]
        near(x_BTCHW[0, :2].permute(1, 2, 3, 0), case[f"{name}_clip"])
        near(rank_pool_guidance(x_BTCHW, int(case[f"{name}_w"])), case[f"{name}_guidance"])


@pytest.mark.parametrize("path", cases("frp_module"))
def test_golden_frp_layer(path: Path) -> None:
    case = load(path)
    for name in numbers(case):
        layer = FRP()
        layer.taps.data = tensor(case[f"{name}_rpconv1d_weight"])
        x_BCTHW, guidance_B1THW = tensor(case[f"{name}_x"]), tensor(case[f"{name}_guidance"])
        out = layer(x_BCTHW.transpose(1, 2).flatten(0, 1), guidance_B1THW[:, 0].flatten(0, 1))
        near(out.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2), case[f"{name}_out"])


@pytest.mark.parametrize("path", cases("rcm"))
def test_golden_rcm(path: Path) -> None:
    case = load(path)
    seed = int(case["seed"])
    for name in numbers(case):
        z_BTD = tensor(case[f"{name}_x"]).transpose(1, 2)
        hidden = 128 if str(case[f"{name}_dataset"]) == "THU" else 256
        rcm = RCM(z_BTD.shape[1], hidden, case[f"{name}_student"].shape[1])
        rcm.load_state_dict(
            {
                key: filled(official_name(f"rcm.{key}")[0].removeprefix("dtn."), tuple(value.shape), seed)
                for key, value in rcm.state_dict().items()
            }
        )
        out_BTD, student_BD = rcm(z_BTD)
        u_BT, v_BD = rcm.weights(z_BTD)
        near(out_BTD.transpose(1, 2), case[f"{name}_out"])
        near(student_BD, case[f"{name}_student"])
        near(u_BT[:, :, None] * v_BD[:, None], case[f"{name}_weight_map"])


@pytest.mark.parametrize("path", cases("knn_attention"))
def test_golden_attention(path: Path) -> None:
    case = load(path)
    for name in numbers(case):
        x_BLD = tensor(case[f"{name}_x"])
        heads, head_dim = int(case[f"{name}_heads"]), int(case[f"{name}_dim_head"])
        attention = KNNAttention(x_BLD.shape[-1], heads, head_dim, float(case[f"{name}_knn"])).eval()
        attention.load_state_dict(
            {
                "to_qkv.weight": tensor(case[f"{name}_w/to_qkv.weight"]),
                "to_out.weight": tensor(case[f"{name}_w/to_out.0.weight"]),
                "to_out.bias": tensor(case[f"{name}_w/to_out.0.bias"]),
            }
        )
        near(attention.attention(x_BLD)[0], case[f"{name}_scores"])
        near(attention(x_BLD), case[f"{name}_out"])


@pytest.mark.parametrize("path", cases("inception_and_pool"))
def test_golden_blocks(path: Path) -> None:
    case = load(path)
    for kind in ("spatial", "temporal"):
        x_BCTHW = tensor(case[f"{kind}_x"])
        batch, channels, frames, height, width = x_BCTHW.shape
        widths = case[f"{kind}_channels"].tolist()
        block = (
            SpatialInception(channels, widths, strict_spatial=False)
            if kind == "spatial"
            else TemporalInception(channels, widths)
        )
        weights = {
            key.partition("/")[2].replace("conv3d", "conv"): tensor(value)
            for key, value in case.items()
            if key.startswith(f"{kind}_w/")
        }
        own = block.state_dict()
        block.load_state_dict({key: value.reshape(own[key].shape) for key, value in weights.items()})
        for mode in ("train", "eval"):  # eval last would see the moved averages: so it is reloaded
            block.load_state_dict({key: value.reshape(own[key].shape) for key, value in weights.items()})
            block.train(mode == "train")
            if kind == "spatial":
                folded = x_BCTHW.transpose(1, 2).flatten(0, 1)
                out = block(folded, frames).unflatten(0, (batch, frames)).transpose(1, 2)
            else:
                sequences = x_BCTHW.permute(0, 3, 4, 1, 2).flatten(0, 2)
                out = block(sequences).unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2)
            near(out, case[f"{kind}_{mode}"])
    for name in sorted({key.partition("_")[0] for key in case if key.startswith("pool")}):
        x_BCTHW = tensor(case[f"{name}_x"])
        (k_time, kernel, _), (_, stride, _) = case[f"{name}_k"].tolist(), case[f"{name}_s"].tolist()
        x_BTCHW = x_BCTHW.transpose(1, 2)
        if k_time == 3:
            out = pool_time(x_BTCHW)
        else:
            out = SamePool(kernel, stride)(x_BTCHW.flatten(0, 1)).unflatten(0, x_BTCHW.shape[:2])
        near(out.transpose(1, 2), case[f"{name}_out"])


def temporal_network(pairs: np.ndarray, seed: int, rho: float) -> UnimodalNet:
    """A unimodal network whose temporal part is filled; its spatial part is not used."""
    state = filled_state(pairs, seed)
    spatial = UnimodalNet(inception_dsn(frp=False), None, DTN((1,), 64, 1, 1, 64, 1, 1.0), 64, 1)
    own = to_official(spatial)
    return unimodal_from_official(
        {**{name: value for name, value in own.items() if not name.startswith("dtn.")}, **state}, rho
    )


@pytest.mark.parametrize("path", cases("dtn_full"))
def test_golden_temporal_network(path: Path) -> None:
    case = load(path)
    seed = int(case["seed"])
    for name in numbers(case):
        config = dict(text.split("=") for text in case[f"{name}_config"].tolist())
        net = temporal_network(case[f"{name}_state_keys"], seed, float(config["knn_attention"]))
        z_BTD = inputs(f"dtn_input_{name[1:]}", (2, 64, 512), seed)
        sizes = [branch.frames for branch in net.dtn.branches]
        for pick in ("first", "middle"):
            picks = list(tensor(case[f"{name}_{pick}_indices"]).split(sizes))
            if pick == "middle":
                assert [p.tolist() for p in picks] == [p.tolist() for p in net.dtn.picks(64)]
            with torch.no_grad():
                temporal = net.temporal(z_BTD, picks)
            assert temporal.student_BD is not None
            tau = float(config["temper"])
            distill = recoupling_distillation(temporal.student_BD, temporal.classes_BRD, tau, "sum")
            for epoch in (0, 15, 60):
                stem = f"{name}_{pick}_e{epoch}"
                logits = net.classify(temporal.classes_BRD, SharpnessSchedule(100)(epoch))
                relatively_near(logits.merged_BK, case[f"{stem}_merged"])
                for branch, size in enumerate(("small", "medium", "large")):
                    relatively_near(logits.branches_BRK[:, branch], case[f"{stem}_{size}"])
                relatively_near(distill, case[f"{stem}_distill"])


@pytest.mark.parametrize("path", cases("dsn_full"))
def test_golden_unimodal_network(path: Path) -> None:
    case = load(path)
    seed, rho = int(case["seed"]), 0.7
    state = filled_state(case["state_keys"], seed)
    state["frp_module.rpconv1d.weight"] = tensor(case["rpconv1d"]).view(1, 2, 1)
    shape = tuple(case["input_shape"].tolist())
    x_BTCHW = inputs("clip", shape, seed, 0.5).transpose(1, 2)
    guidance_BTHW = inputs("guidance", (shape[0], 1, *shape[2:]), seed, 0.5).abs()[:, 0]
    temperature = SharpnessSchedule(100)(int(case["epoch"]))
    first = [segment_ranges(64, n)[:, 0] for n in case["frames"].tolist()]
    for prefix in ("", "no_frp_"):
        if prefix:
            del state["frp_module.rpconv1d.weight"]
        net = unimodal_from_official(state, rho)
        with torch.no_grad():
            z_BTD = net.dsn(x_BTCHW, guidance_BTHW)
            temporal = net.temporal(z_BTD, first)
            logits = net.classify(temporal.classes_BRD, temperature)
        relatively_near(logits.merged_BK, case[f"{prefix}merged"])
        assert temporal.student_BD is not None
        distill = recoupling_distillation(
            temporal.student_BD, temporal.classes_BRD, float(case["temper"]), "sum"
        )
        relatively_near(distill, case[f"{prefix}distill"])
        if not prefix:
            relatively_near(z_BTD[:, ::8, ::4], case["spatial_features"])
            for branch, size in enumerate(("small", "medium", "large")):
                relatively_near(logits.branches_BRK[:, branch], case[size])


@pytest.mark.parametrize("path", cases("capf"))
def test_golden_capf(path: Path) -> None:
    case = load(path)
    state = filled_state(case["state_keys"], int(case["seed"]))
    classes, width = int(case["num_classes"]), case["temporal_rgb"].shape[1]
    rgb, depth = (
        UnimodalNet(inception_dsn(64), None, DTN((1,), 64, 1, 1, 64, 1, 1.0), 64, classes) for _ in range(2)
    )
    capf = CAPF(rgb, depth, width, classes, official_reshape=True).eval()
    own = capf.state_dict()
    loaded = {
        key: state[f"capf.{official_name(key)[0]}"].reshape(own[key].shape)
        for key in own
        if not key.startswith(("rgb.", "depth."))
    }
    assert len(loaded) == len(state)
    capf.load_state_dict(loaded, strict=False)
    with torch.no_grad():
        rgb_BTD, depth_BTD = capf.interact(tensor(case["spatial_rgb"]), tensor(case["spatial_depth"]))
        near(rgb_BTD, case["recoupled_rgb"])
        near(depth_BTD, case["recoupled_depth"])
        out = capf.fuse(
            *(Temporal(tensor(case[f"temporal_{side}"])[:, None], None) for side in ("rgb", "depth"))
        )
    near(out.fused_BK, case["fused_logits"])
    near(out.rgb_BK, case["rgb_logits"])
    near(out.depth_BK, case["depth_logits"])
    parts = fusion_loss(out, tensor(case["target"]), 0.1, 0.5, "sum")
    for part in ("ce", "bce", "mse"):
        near(parts[part], case[part])


@pytest.mark.parametrize("path", cases("schedules"))
def test_golden_schedules(path: Path) -> None:
    case = load(path)
    for key, value in case.items():
        if not key.endswith("_cfg"):
            continue
        kind, config = key.removesuffix("_cfg").rstrip("0123456789"), value.tolist()
        expected = case[key.removesuffix("_cfg")]
        match kind:
            case "temp":
                schedule = SharpnessSchedule(int(config[0]), config[1], config[2])
                near(np.array([schedule(epoch) for epoch in range(schedule.epochs)]), expected, 1e-12)
            case "lr":
                epochs, base, minimum, warmup = int(config[0]), config[1], config[2], int(config[3])
                rates = [learning_rate(e, epochs, base, minimum, warmup, True) for e in range(epochs)]
                near(np.array(rates), expected, 1e-12)
                weights = [distillation_weight(epoch, warmup) for epoch in range(epochs)]
                near(np.array(weights), case[key.removesuffix("_cfg").replace("lr", "distill_w")], 0)
            case "valsl":
                assert segment_indices(config[0], config[1], "mean").tolist() == expected.tolist()
            case "trainrange":
                assert segment_ranges(config[0], config[1]).tolist() == expected.tolist()
            case _:
                raise AssertionError(key)


@pytest.mark.parametrize("path", cases("label_smoothing"))
def test_golden_label_smoothing(path: Path) -> None:
    case = load(path)
    logits, target = tensor(case["logits"]), tensor(case["target"])
    for key, value in case.items():
        if key.startswith("loss_"):
            smoothing = int(key.removeprefix("loss_")) / 10
            near(F.cross_entropy(logits, target, label_smoothing=smoothing), value)
            merged = Logits(logits, logits[:, None])
            near(multi_branch_loss(merged, target, smoothing), 1.5 * value, 2e-5)
