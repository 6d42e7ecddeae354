"""The authors' checkpoint layout: names twice or once, prefixes, heads; and what is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.hico.method.encoders import HiCoModel, VideoClassifier
from stages.hico.official import BLOCKS, canonical, from_official, load_official, to_backbone_state

HEADS = {
    "vcl.": "head.mlp_vcl.",
    "tcl.": "head.mlp_tcl.mlp.",
    "predictor.first.": "head.mlp_tcl.topical_predictor.0.",
    "predictor.second.": "head.mlp_tcl.topical_predictor.2.",
}


def official_state(model: HiCoModel) -> dict[str, Tensor]:
    """A model under the authors' names, layers once."""
    state = {}
    for name, value in model.encoder.state_dict().items():
        state[f"backbone.{name[0].upper()}{name[1:]}"] = value
    for name, value in model.head.state_dict().items():
        old = next(prefix for prefix in HEADS if name.startswith(prefix))
        state[HEADS[old] + name.removeprefix(old)] = value
    return state


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As saved: every layer of the backbone also under its block."""
    layers = {layer: place for place, layer in BLOCKS.items()}
    result = dict(state)
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "backbone":
            block, place = layers[parts[1]]
            result[".".join([f"backbone.block{block}.{place}", *parts[2:]])] = value
    return result


@pytest.fixture(scope="module")
def model() -> HiCoModel:
    torch.manual_seed(0)
    return HiCoModel("s3dg", 8, 4, 6, True, "concat")


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("names", ["once", "twice", "blocks only"])
def test_layers_under_either_name(prefix: str, names: str, model: HiCoModel, tmp_path: Path) -> None:
    once = official_state(model)
    both = doubled(once)
    state = {
        "once": once,
        "twice": both,
        "blocks only": {n: v for n, v in both.items() if ".block" in n or n.startswith("head")},
    }[names]
    content = {"epoch": 3, "model_state": {prefix + name: value for name, value in state.items()}}
    torch.save(content, tmp_path / "hico.pyth")
    loaded = load_official(tmp_path / "hico.pyth")
    assert isinstance(loaded, HiCoModel)
    assert not loaded.training
    assert same(loaded, model)


def test_a_classifier_and_a_baseline(model: HiCoModel) -> None:
    state = {n: v for n, v in official_state(model).items() if n.startswith("backbone.")}
    classifier = from_official(
        state | {"head.out.weight": torch.ones(5, 1024), "head.out.bias": torch.zeros(5)}
    )
    assert isinstance(classifier, VideoClassifier)
    assert same(classifier.encoder, model.encoder)
    simclr = {f"head.mlp.{name}": value for name, value in model.head.vcl.state_dict().items()}
    loaded = from_official(state | simclr)
    assert isinstance(loaded, HiCoModel)
    assert loaded.head.predictor is None
    assert same(loaded.head.vcl, model.head.vcl)


def test_what_does_not_fit_is_refused(model: HiCoModel, tmp_path: Path) -> None:
    state = official_state(model)
    both = doubled(state)
    both["backbone.block1.0.bn1.bias"] = both["backbone.block1.0.bn1.bias"] + 1
    with pytest.raises(ValueError, match=r"Conv_1a\.bn1\.bias is there twice"):
        canonical(both)
    missing = {n: v for n, v in state.items() if "Mixed_4c" not in n}
    with pytest.raises(ValueError, match=r"missing \['mixed_4c"):
        from_official(missing)
    with pytest.raises(ValueError, match="unexpected"):
        from_official({**state, "backbone.Conv_9z.bn1.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="no head"):
        from_official({n: v for n, v in state.items() if n.startswith("backbone.")})
    assert not any("." not in name for name in to_backbone_state(state))
    (tmp_path / "bad").write_bytes(b"x")
    torch.save({"model_state": {"a": 1}}, tmp_path / "numbers")
    for name, message in (
        ("bad", "not a checkpoint"),
        ("numbers", "no model_state"),
        ("none", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            load_official(tmp_path / name)
