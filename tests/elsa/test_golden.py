"""Parity with the authors' code: every case of tests/golden/elsa (its README describes the files)."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.elsa.method import swin, volo
from stages.elsa.method.aggregate import Backend, hadamard_ghost_aggregate
from stages.elsa.method.attention import ELSAAttention
from stages.elsa.method.block import Block, elsa_block
from stages.elsa.method.dense import DenseBackbone
from stages.elsa.method.macs import count_macs, count_parameters
from stages.elsa.method.mixers import WindowAttention
from stages.elsa.official import dense_names, from_official
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # of the README, for float32


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("elsa", name)]


def sizes(name: str) -> list[object]:
    root = Path(os.environ.get("ENCORE_GOLDEN", Path(__file__).parents[1] / "golden")) / "elsa"
    return [pytest.param(path, id=path.stem) for path in sorted(root.glob(f"{name}*.json"))]


def parts(path: Path) -> dict[str, Case]:
    """The cases `c0`, `c1` ... of a file."""
    found: dict[str, Case] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            case, _, name = key.partition(".")
            found.setdefault(case, {})[name] = file[key]
    return found


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def config_of(case: Case) -> dict[str, Any]:
    return json.loads(str(case["config"]))


def state_of(case: Case) -> dict[str, Tensor]:
    return {key.removeprefix("sd."): tensor(value) for key, value in case.items() if key.startswith("sd.")}


def assert_near(actual: Tensor | None, expected: np.ndarray) -> None:
    assert actual is not None
    torch.testing.assert_close(actual.detach(), tensor(expected), **TOLERANCE)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["reference", "shift"])
@pytest.mark.parametrize("path", cases("elsa_op"))
def test_golden_operator(path: Path, backend: Backend) -> None:
    """A case's batch of B*G maps is taken as that many heads, each with ghost matrices of its own."""
    for case in parts(path).values():
        v, h, mul, add = (
            tensor(case[name])[None].requires_grad_()
            for name in ("features", "h_attn", "ghost_mul", "ghost_add")
        )
        out = hadamard_ghost_aggregate(
            v, h, mul[0].flatten(0, 1), add[0].flatten(0, 1), int(case["kernel_size"]), int(case["dilation"]),
            float(case["lam"]), float(case["gamma"]), backend,
        )  # fmt: skip
        assert_near(out[0], case["out"])
        (out[0] * tensor(case["cotangent"])).sum().backward()
        inputs = {"features": v, "h_attn": h, "ghost_mul": mul, "ghost_add": add}
        gradients = [key for key in case if key.startswith("grad_")]
        assert gradients
        for key in gradients:
            gradient = inputs[key.removeprefix("grad_")].grad
            assert gradient is not None
            assert_near(gradient[0], case[key])


def check_module(module: nn.Module, attention: ELSAAttention, case: Case, seen: Tensor | None = None) -> None:
    """Output, intermediate maps and all gradients of a module with the case's weights."""
    module.load_state_dict(state_of(case))
    module.eval()
    x = tensor(case["x"]).requires_grad_()
    mixed = module.norm1(x) if isinstance(module, Block) else x
    p, _ = attention.products(mixed)
    assert_near(p, case["hadamard"])
    assert_near(attention.attn(p), case["logits"])
    out = module(x)
    assert_near(out, case["out"])
    (out * tensor(case["cotangent"])).sum().backward()
    assert_near(x.grad, case["grad.x"])
    for name, parameter in module.named_parameters():
        assert_near(parameter.grad, case[f"grad.{name}"])


@pytest.mark.parametrize("path", cases("elsa_attention"))
def test_golden_attention(path: Path) -> None:
    for case in parts(path).values():
        attention = ELSAAttention(**config_of(case))
        check_module(attention, attention, case)


@pytest.mark.parametrize("path", cases("elsa_block"))
def test_golden_block(path: Path) -> None:
    for case in parts(path).values():
        block = elsa_block(**config_of(case))
        assert isinstance(block.attn, ELSAAttention)
        check_module(block, block.attn, case)


def buffers_agree(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            assert module.relative_id.tolist() == state[f"{name}.relative_id"].tolist()


@pytest.mark.parametrize("path", cases("elsa_swin_mini"))
def test_golden_swin(path: Path) -> None:
    case = load(path)
    model = swin.elsa_swin(**config_of(case)).eval()
    state = state_of(case)
    model.load_state_dict(from_official({f"module.{name}": value for name, value in state.items()}))
    buffers_agree(model, state)
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[name] = output.flatten(1, 2)

    model.patch_embed.register_forward_hook(partial(keep, "patch_embed"))
    for i, stage in enumerate(model.layers):
        for j, block in enumerate(stage.blocks):  # type: ignore[arg-type]
            block.register_forward_hook(partial(keep, f"layer{i}_block{j}"))
    with torch.no_grad():
        assert_near(model(tensor(case["x"])), case["out"])
    for name, output in seen.items():
        assert_near(output, case[name])


@pytest.mark.parametrize("path", cases("elsa_swin_dense"))
def test_golden_dense(path: Path) -> None:
    case = load(path)
    config = config_of(case)
    indices = config.pop("out_indices")
    backbone = DenseBackbone(swin.elsa_swin(**config, img_size=None), indices).eval()
    backbone.load_state_dict(
        dense_names(from_official({f"backbone.{k}": v for k, v in state_of(case).items()}))
    )
    with torch.no_grad():
        maps = backbone(tensor(case["x"]))
    assert backbone.out_channels == [case[f"out{index}"].shape[1] for index in indices]
    for index in indices:
        assert_near(maps[str(index)], case[f"out{index}"])


@pytest.mark.parametrize("path", cases("elsa_volo_mini"))
def test_golden_volo(path: Path) -> None:
    case = load(path)
    config, elsa = config_of(case), config_of(case)["elsa"]
    model = volo.ELSAVOLO(
        config["layers"],
        (config["embed_dims"][0], config["embed_dims"][1]),
        (config["num_heads"][0], config["num_heads"][1]),
        config["mlp_ratios"][0],
        config["stem_hidden_dim"],
        config["patch_size"],
        config["img_size"],
        config["num_classes"],
        elsa["k"],
        elsa["gw"],
        lam=elsa["lam"],
        gamma=elsa["gamma"],
    ).eval()
    model.load_state_dict(from_official(state_of(case)))
    x = tensor(case["x"])
    with torch.no_grad():
        assert_near(model.patch_embed(x), case["embeddings"])
        assert_near(model.tokens(x), case["tokens"])
        image, token = model.logits(x)
        assert_near(image, case["cls_logits"])
        assert_near(token, case["aux_logits"])
        assert_near(model(x), case["out"])


@pytest.mark.parametrize("path", [*sizes("elsa_swin"), *sizes("elsa_volo")])
def test_golden_size(path: Path) -> None:
    case = json.loads(path.read_text())
    build = getattr(swin if "swin" in case["name"] else volo, case["name"])
    with torch.device("meta"):
        model = build()
    assert count_parameters(model) == case["n_params"]
    expected = {name: shape for name, shape, _ in case["state_dict"]}
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    derived = {name for name in expected if name.endswith(("relative_id", "attn_mask"))}
    assert ours == {name: shape for name, shape in expected.items() if name not in derived}
    macs = sum(count_macs(build, case["input"][-1]).values()) / 1e9
    assert macs == pytest.approx(case["macs_g"]["total"], rel=0.02)
