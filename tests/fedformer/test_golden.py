"""Parity with the authors' code: every case of tests/golden/fedformer (its README describes the files)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.fedformer.data import read_benchmark, window, windows_of
from stages.fedformer.method.autocorrelation import AutoCorrelation
from stages.fedformer.method.decomposition import CenteredLayerNorm, SeriesDecomp
from stages.fedformer.method.embedding import DataEmbedding
from stages.fedformer.method.fourier import FourierBlock, FourierCrossAttention
from stages.fedformer.method.modes import select_modes
from stages.fedformer.method.multiwavelet import MultiWaveletCross, MultiWaveletTransform, levels_of
from stages.fedformer.method.multiwavelet_filters import multiwavelet_filters
from stages.fedformer.method.time_features import time_features
from stages.fedformer.method.trunk import BlockLayer, Config, FEDformer, Sizes
from stages.fedformer.official import _blocks, _pairs, from_official
from tests.fedformer.mirror import in_mirror_or_skip
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]
BLOCK, MODEL = 1e-5, 1e-4


def cases(name: str) -> list[Any]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("fedformer", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def arguments(value: np.ndarray) -> dict[str, Any]:
    return json.loads(str(value))


def numbered(case: Case, prefix: str, suffix: str) -> Iterator[str]:
    i = 0
    while f"{prefix}{i}{suffix}" in case:
        yield f"{prefix}{i}"
        i += 1


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def tensors(case: Case, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor(case[key]) for key in case if key.startswith(prefix)}


def close(actual: Tensor, expected: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    torch.testing.assert_close(actual, tensor(expected), atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("path", cases("mode_selection"))
def test_golden_mode_selection(path: Path) -> None:
    case = load(path)
    for key in [key for key in case if key.startswith("case") and key.endswith("_args")]:
        a = arguments(case[key])
        rng = np.random.RandomState(a["numpy_seed"])
        index = select_modes(a["seq_len"], a["modes"], a["method"], rng)
        assert index == case[key.replace("_args", "_index")].tolist()
    if "consecutive_args" in case:
        a = arguments(case["consecutive_args"])
        rng = np.random.RandomState(a["numpy_seed"])
        for i, (length, modes, policy) in enumerate(a["calls"]):
            assert select_modes(length, modes, policy, rng) == case[f"consecutive{i}"].tolist()


@pytest.mark.parametrize("path", cases("decomposition"))
def test_golden_decomposition(path: Path) -> None:
    case = load(path)
    x = tensor(case["x"])
    for key in [key for key in case if key.startswith("single_k") and key.endswith("_seasonal")]:
        seasonal, trend = SeriesDecomp([int(key.split("_")[1][1:])])(x)
        close(seasonal, case[key], BLOCK)
        close(trend, case[key.replace("seasonal", "trend")], BLOCK)
    mixture = SeriesDecomp(case["multi_kernels"].tolist())
    mixture.load_state_dict(
        {f"layer.{k.removeprefix('layer.')}": v for k, v in tensors(case, "multi_state/").items()}
    )
    seasonal, trend = mixture(x)
    close(seasonal.detach(), case["multi_seasonal"], BLOCK)
    close(trend.detach(), case["multi_trend"], BLOCK)
    norm = CenteredLayerNorm(x.shape[2])
    norm.load_state_dict(tensors(case, "layernorm_state/"))
    close(norm(x).detach(), case["layernorm_out"], BLOCK)


@pytest.mark.parametrize("path", cases("time_features_embedding"))
def test_golden_time_features_and_embedding(path: Path) -> None:
    case = load(path)
    for key in [key for key in case if key.endswith("_dates")]:
        frequency: Any = key.removesuffix("_dates")
        features = time_features(case[key].astype("datetime64[s]"), frequency)
        np.testing.assert_allclose(features, case[f"{frequency}_features"], atol=1e-12)
    x, mark = tensor(case["embed_x"]), tensor(case["embed_mark"])
    embedding = DataEmbedding(x.shape[2], mark.shape[2], case["embed_out"].shape[2], dropout=0.0)
    embedding.load_state_dict(tensors(case, "embed_state/"))
    close(embedding(x, mark).detach(), case["embed_out"], BLOCK)


@pytest.mark.parametrize("path", cases("fourier_block"))
def test_golden_fourier_block(path: Path) -> None:
    case = load(path)
    for c in numbered(case, "c", "_args"):
        a = arguments(case[f"{c}_args"])
        width = a["n_heads"] * a["head_dim"]
        index = select_modes(a["seq_len"], a["modes"], a["method"], np.random.RandomState(a["numpy_seed"]))
        assert index == case[f"{c}_index"].tolist()
        block = FourierBlock(width, a["n_heads"], a["seq_len"], index, "official")
        block.mix.weight_HMIO2.data = _pairs(tensor(case[f"{c}_weights1"]).permute(0, 3, 1, 2))
        out = block(tensor(case[f"{c}_q"]), None, None)
        close(out.detach(), case[f"{c}_out_BHEL"], BLOCK)
        (out**2).sum().backward()
        gradient = block.mix.weight_HMIO2.grad
        assert gradient is not None
        grad = torch.view_as_complex(gradient).permute(0, 2, 3, 1)
        close(grad, case[f"{c}_grad_weights1"], BLOCK)
        layer = BlockLayer(width, a["n_heads"], block.reads)
        layer.load_state_dict(
            {
                f"out.{kind}"
                if name == "out_projection"
                else f"projections.{name.removesuffix('_projection')}.{kind}": v
                for (name, kind), v in (
                    (k.split("."), v) for k, v in tensors(case, f"{c}_layer_state/").items()
                )
            }
        )
        x = tensor(case[f"{c}_layer_x"])
        close(layer(block, x, x).detach(), case[f"{c}_layer_out"], BLOCK)


@pytest.mark.parametrize("path", cases("fourier_cross_attention"))
def test_golden_fourier_cross_attention(path: Path) -> None:
    case = load(path)
    for c in numbered(case, "c", "_args"):
        a = arguments(case[f"{c}_args"])
        block = FourierCrossAttention(
            a["n_heads"] * a["head_dim"], a["n_heads"], a["seq_len_q"], a["seq_len_kv"],
            case[f"{c}_index_q"].tolist(), case[f"{c}_index_kv"].tolist(), a["activation"], "official",
        )  # fmt: skip
        block.mix.weight_HMIO2.data = _pairs(tensor(case[f"{c}_weights1"]).permute(0, 3, 1, 2))
        out = block(*(tensor(case[f"{c}_{name}"]) for name in "qkv"))
        close(out.detach(), case[f"{c}_out_BHEL"], BLOCK)


@pytest.mark.parametrize("path", cases("multiwavelet_filters"))
def test_golden_multiwavelet_filters(path: Path) -> None:
    for key, expected in load(path).items():
        family, name = key.split("_")
        base = family.rstrip("0123456789")
        filters = multiwavelet_filters(base, int(family.removeprefix(base)))
        np.testing.assert_allclose(getattr(filters, name.lower()), expected, atol=1e-8)


def read_block(block: nn.Module, state: dict[str, Tensor], where: str, config: Config) -> None:
    items = dict(_blocks({f"{where}.{name}": value for name, value in state.items()}, config))
    own = {name: value for name, value in block.state_dict().items() if name.endswith(".index")}
    block.load_state_dict(own | {name.removeprefix(f"{where}."): value for name, value in items.items()})


@pytest.mark.parametrize("path", cases("multiwavelet_transform"))
def test_golden_multiwavelet_transform(path: Path) -> None:
    case = load(path)
    for c in numbered(case, "c", "_args"):
        a = arguments(case[f"{c}_args"])
        width = a["n_heads"] * a["head_dim"]
        block = MultiWaveletTransform(
            width, a["seq_len"], a["c"], a["k"], a["alpha"], a["L"], a["base"], "official"
        )
        state = tensors(case, f"{c}_state/")
        close(
            block.pyramid.split_matrix,
            torch.cat([state["MWT_CZ.0.ec_d"], state["MWT_CZ.0.ec_s"]], 1).numpy(),
            1e-6,
        )
        close(
            block.pyramid.merge_matrix,
            torch.cat([state["MWT_CZ.0.rc_e"], state["MWT_CZ.0.rc_o"]], 1).numpy(),
            1e-6,
        )
        read_block(block, state, "encoder_block", Config(Sizes(1, 1, 1, 1, 1)))
        x = tensor(case[f"{c}_x"])
        close(block(x, x, x).detach().reshape(x.shape), case[f"{c}_out"], BLOCK)


@pytest.mark.parametrize("path", cases("multiwavelet_cross"))
def test_golden_multiwavelet_cross(path: Path) -> None:
    case = load(path)
    for c in numbered(case, "c", "_args"):
        a = arguments(case[f"{c}_args"])
        width = a["n_heads"] * a["head_dim"]

        def block_of(length: int, a: dict[str, Any] = a, width: int = width) -> MultiWaveletCross:
            return MultiWaveletCross(
                width, length, a["c"], a["k"], a["modes"], a["L"], a["base"], a["activation"], "official"
            )

        block = block_of(a["len_q"])
        read_block(block, tensors(case, f"{c}_state/"), "cross_block", Config(Sizes(1, 1, 1, 1, 1)))
        q, k, v = (tensor(case[f"{c}_{name}"]) for name in "qkv")
        close(block(q, k, v).detach().reshape(case[f"{c}_out"].shape), case[f"{c}_out"], BLOCK)
        q, k = tensor(case[f"{c}_attnw_q"]), tensor(case[f"{c}_attnw_k"])
        finest = levels_of(block_of(2 * q.shape[1]).modes)[0]
        close(block.attend([q, k], finest), case[f"{c}_attnw_out"], BLOCK)


@pytest.mark.parametrize("path", cases("autocorrelation"))
def test_golden_autocorrelation(path: Path) -> None:
    case = load(path)
    for c in numbered(case, "c", "_args"):
        block = AutoCorrelation(arguments(case[f"{c}_args"])["factor"])
        inputs = [tensor(case[f"{c}_{name}"]) for name in "qkv"]
        for mode, name in ((True, "train_out"), (False, "eval_out")):
            close(block.train(mode)(*inputs), case[f"{c}_{name}"], BLOCK)


def config_of(c: dict[str, Any], block: Any) -> Config:
    sizes = Sizes(
        variates=c["enc_in"], features=4, seq_len=c["seq_len"], label_len=c["label_len"],
        pred_len=c["pred_len"],
        width=c["d_model"], heads=c["n_heads"], hidden=c["d_ff"], encoder_layers=c["e_layers"],
        decoder_layers=c["d_layers"], dropout=0.0, factor=c["factor"],
    )  # fmt: skip
    w = c.get("wavelet", {"c": 128, "k": 8, "alpha": 16, "cc": 64})
    return Config(
        sizes, self_block=block, cross_block=block, kernels=tuple(c["moving_avg"]), modes=c["modes"],
        policy=c["mode_select"], activation=c["cross_activation"], base=c["base"], polynomials=w["k"],
        self_channels=w["c"], cross_channels=w["cc"], alpha=w["alpha"], skipped=c["L"],
    )  # fmt: skip


def restore(case: Case, block: str) -> tuple[FEDformer, list[Tensor]]:
    config = config_of(arguments(case["config"]), block)
    names = ("encoder_index", "decoder_self_index", "cross_index_q", "cross_index_kv")
    indices = [case[name].tolist() for name in names] if names[0] in case else None
    model = from_official(tensors(case, "state/"), config, indices)
    return model, [tensor(case[name]) for name in ("x_enc", "x_mark_enc", "x_dec", "x_mark_dec")]


@pytest.mark.parametrize("path", cases("fedformer"))
def test_golden_fedformer(path: Path) -> None:
    case = load(path)
    block = "fourier" if arguments(case["config"])["version"] == "Fourier" else "wavelet"
    model, inputs = restore(case, block)
    close(model(*inputs).detach(), case["out"], MODEL)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = nn.functional.mse_loss(model(*inputs), tensor(case["y"]))
    close(loss.detach(), case["loss"], MODEL)
    loss.backward()
    ours = sorted(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    names, norms = case["grad_norms_names"], case["grad_norms"]
    # a one-kernel mixture has a constant softmax: its gradient is zero there and absent here
    learned = [
        n
        for name, n in zip(names, norms, strict=True)
        if ".layer." not in f".{name}" or len(ours) == len(norms)
    ]
    np.testing.assert_allclose(ours, sorted(learned), rtol=1e-3, atol=1e-5)
    optimizer.step()
    with torch.no_grad():
        close(model(*inputs), case["out_after_adam_step"], MODEL)


@pytest.mark.parametrize("path", cases("autoformer_tiny"))
def test_golden_autoformer(path: Path) -> None:
    case = load(path)
    model, inputs = restore(case, "auto-correlation")
    with torch.no_grad():
        close(model(*inputs), case["out_eval"], MODEL)
        close(model.train()(*inputs), case["out_train_mode_dropout0"], MODEL)


FILES: dict[str, Any] = {"ili": "ili", "exchange": "exchange", "ETTh1": "etth1", "ETTh2": "etth2"}


@pytest.mark.parametrize("path", cases("data_windows"))
def test_golden_data_windows(path: Path) -> None:
    case = load(path)
    for c in numbered(case, "c", "_args"):
        a = arguments(case[f"{c}_args"])
        data = read_benchmark(in_mirror_or_skip(FILES[a["dataset"]]), a["freq"])
        data = data.only_target() if a["features"] == "S" else data
        np.testing.assert_allclose(data.mean_C, case[f"{c}_mean"], rtol=1e-9)
        np.testing.assert_allclose(data.std_C, case[f"{c}_std"], rtol=1e-9)
        for split in ("train", "val", "test"):
            key = f"{c}_{split}"
            starts = windows_of(data.borders, split, a["seq_len"], a["pred_len"])
            assert len(starts) == case[f"{key}_windows"]
            assert len(starts) + a["seq_len"] + a["pred_len"] - 1 == case[f"{key}_rows"]
            assert len(starts) // 32 * 32 == case[f"{key}_windows_kept_droplast32"]
            for which, i in (("first", 0), ("last", -1)):
                x, _, y, mark_y = window(data, starts[i], a["seq_len"], a["label_len"], a["pred_len"])
                for name, value in (("x_head", x[:2]), ("x_tail", x[-2:]), ("y_tail", y[-2:])):
                    np.testing.assert_allclose(value, case[f"{key}_{which}_{name}"], atol=2e-6, rtol=1e-6)
                assert float(y.double().sum()) == pytest.approx(float(case[f"{key}_{which}_y_sum"]), rel=1e-6)
                np.testing.assert_allclose(mark_y[-1], case[f"{key}_{which}_ymark_tail"], atol=1e-6)
