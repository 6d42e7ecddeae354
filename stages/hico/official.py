"""The authors' checkpoints (card, "Official checkpoints"); no code is unpickled.

A file is a dict with `model_state`, keys `backbone.*` and `head.*`, with or without `module.`. S3D-G's layers are
there twice, once as `backbone.Conv_1a` and once as `backbone.block1.0`; either or both will do, and both have to
agree. The model zoo's links are empty, so this has been tried on the golden cases' names and numbers only.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common.stage.errors import InputError
from stages.hico.method.encoders import EncoderName, HiCoModel, VideoClassifier, build_encoder

# the second names of S3D-G's layers: block, place in it
BLOCKS: dict[tuple[int, int], str] = {
    (1, 0): "Conv_1a", (2, 1): "Conv_2b", (2, 2): "Conv_2c", (3, 1): "Mixed_3b", (3, 2): "Mixed_3c", (4, 1): "Mixed_4b",
    (4, 2): "Mixed_4c", (4, 3): "Mixed_4d", (4, 4): "Mixed_4e", (4, 5): "Mixed_4f", (5, 1): "Mixed_5b", (5, 2):
    "Mixed_5c",
}  # fmt: skip
HEADS = {
    "mlp_vcl.": "vcl.",
    "mlp_tcl.mlp.": "tcl.",
    "mlp_tcl.topical_predictor.0.": "predictor.first.",
    "mlp_tcl.topical_predictor.2.": "predictor.second.",
    "mlp.": "vcl.",  # SimCLR
}


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official state with every layer once, under its first name and without `module.`.

    Raises:
        ValueError: a layer's two copies differ.
    """
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if found := re.fullmatch(r"backbone\.block(\d)\.(\d)\.(.+)", name):
            layer = BLOCKS.get((int(found[1]), int(found[2])))
            name = f"backbone.{layer}.{found[3]}" if layer else name
        if name in result and not torch.equal(result[name], value):
            raise ValueError(f"{name} is there twice, with different numbers")
        result[name] = value
    return result


def to_backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part, under this project's names."""
    return {
        re.sub(r"^(Conv|Mixed)_", lambda match: match[0].lower(), name.removeprefix("backbone.")): value
        for name, value in canonical(state).items()
        if name.startswith("backbone.")
    }


def to_head_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads' part, under this project's names."""
    result = {}
    for name, value in canonical(state).items():
        if name.startswith("head."):
            rest = name.removeprefix("head.")
            old = next((prefix for prefix in HEADS if rest.startswith(prefix)), None)
            result[HEADS[old] + rest.removeprefix(old) if old else rest] = value
    return result


def load_backbone(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the encoder's part of an official state.

    Raises:
        ValueError: one line naming what is missing, left over or of another shape (the official loader only logs it).
    """
    _load(encoder, to_backbone_state(state))


def from_official(state: Mapping[str, Tensor], net: EncoderName = "s3dg") -> HiCoModel | VideoClassifier:
    """A pre-trained model with its heads (HiCo, SimCLR), or a classifier (`head.out`), in eval mode.

    Raises:
        ValueError: the state is not one of these, or does not fit.
    """
    heads = to_head_state(state)
    if "out.weight" in heads:
        classifier = VideoClassifier(build_encoder(net), len(heads["out.weight"]))
        load_backbone(classifier.encoder, state)
        _load(classifier.out, {name.removeprefix("out."): value for name, value in heads.items()})
        return classifier.eval()
    if "vcl.linear_a.weight" not in heads:
        raise ValueError(
            "has no head of pre-training (head.mlp_vcl or head.mlp) and none of classification (head.out)"
        )
    topic = "predictor.first.weight" in heads
    hidden, out = len(heads["vcl.linear_a.weight"]), len(heads["vcl.logits_out_b2.weight"])
    predictor = len(heads["predictor.first.weight"]) if topic else 1
    model = HiCoModel(net, hidden, out, predictor, topic, "concat")
    load_backbone(model.encoder, state)
    _load(model.head, heads)
    return model.eval()


def load_official(path: Path, net: EncoderName = "s3dg") -> HiCoModel | VideoClassifier:
    """Read an official checkpoint file.

    Raises:
        InputError: the file is missing or not such a checkpoint.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        raise InputError(f"{path}: not a checkpoint ({' '.join(str(error).split())[:120]})") from None
    state = content.get("model_state", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: has no model_state")
    try:
        return from_official(state, net)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
