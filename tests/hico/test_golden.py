"""Parity with the authors' code: every case of tests/golden/hico (its README describes the files)."""

import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.common.video.augment import brightness, contrast, hue, luma, saturation
from stages.common.video.sampling import interval_frame_indices, timestamp_frame_indices
from stages.hico.method.clip_sampling import ClipRule, sample_clips
from stages.hico.method.encoders import HiCoModel, VideoClassifier, pooled
from stages.hico.method.heads import HiCoHead
from stages.hico.method.lars import LARS
from stages.hico.method.learning_rate import cosine_warmup_lr
from stages.hico.method.losses import hico_loss, simclr_loss, tcl_loss, vcl_loss
from stages.hico.method.residual import mixed_resnet18, r2plus1d10
from stages.hico.method.s3dg import InceptionBlock
from stages.hico.official import from_official, load_backbone, to_head_state
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]
SATURATED_CLIPS = 3  # of a video in the saturated case, which does not say so


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("hico", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def close(found: Tensor | float, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), tensor(expected).double(), rtol=0, atol=tolerance
    )


def filled(key: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The golden README's filling rule."""
    rng = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if key.endswith("running_var"):
        value = 0.5 + rng.random_sample(shape)
    elif key.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        value = np.sqrt(2 / np.prod(shape[1:])) * rng.standard_normal(shape)
    elif key.endswith("weight"):
        value = 1 + 0.1 * rng.standard_normal(shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def filled_state(case: Case) -> dict[str, Tensor]:
    state = {}
    for entry in case["state_keys"].tolist():
        name, shape = re.fullmatch(r"(\S+) \((.*)\)", entry).groups()  # type: ignore[union-attr]
        sizes = tuple(int(size) for size in shape.split(",") if size.strip())
        state[name] = filled(name, sizes, int(case["seed"]))
    return state


def video(case: Case) -> Tensor:
    shape = tuple(case["input_shape"].tolist())
    rng = np.random.RandomState((zlib.crc32(b"video") + int(case["seed"])) % 2**32)
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).view(-1, *shape[-4:])


@pytest.mark.parametrize("path", cases("color_ops"))
def test_golden_colour(path: Path) -> None:
    case = load(path)
    clip = tensor(case["clip"]).transpose(0, 1)[None]
    functions = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for (name, function), factor in zip(functions.items(), case["factors"], strict=True):
        close(function(clip, torch.tensor([float(factor)]))[0].transpose(0, 1), case[name])
    close(luma(clip).expand_as(clip)[0].transpose(0, 1), case["gray"])
    close(clip[0].transpose(0, 1), case["blur_kernel1"])  # the official blur is none


@pytest.mark.parametrize("path", cases("sampling"))
def test_golden_sampling(path: Path) -> None:
    case = load(path)
    low, high = map(float, case["gradual_max_dis"])
    fixed = float(case["vcl_max_dis"])
    rules = {
        "hico": ClipRule(3, (low, high), True),
        "gs_only": ClipRule(2, (low, high), False),
        "fixed_vcl": ClipRule(3, (fixed, fixed), True),
        "uniform": ClipRule(2, None, False),
        "hico_fixed3": ClipRule(3, None, True),
    }
    for row in case["rows"]:
        mode, duration, progress, clips = str(case["mode_names"][int(row[0])]), row[1], row[2], int(row[3])
        draws: Iterator[float] = iter(row[4:9][~np.isnan(row[4:9])].tolist())
        assert rules[mode].clips == clips
        clip_seconds = float(case["clip_seconds"])
        found = sample_clips(duration, progress, partial(next, draws), rules[mode], clip_seconds)
        assert np.array(found) == pytest.approx(row[9 : 9 + 2 * clips].reshape(clips, 2), abs=1e-9)
        assert next(draws, None) is None  # every draw is consumed
    for (frames, fps, start, end), expected in zip(case["timestamp_in"], case["timestamp_out"], strict=True):
        assert (timestamp_frame_indices(int(frames), fps, start, end, 16) == expected).all()
    for (frames, fps, view, views), expected in zip(case["interval_in"], case["interval_out"], strict=True):
        assert (interval_frame_indices(int(frames), fps, int(view), int(views), 16, 4, 30) == expected).all()


def gradients(total: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, inputs)


@pytest.mark.parametrize("path", cases("hico_loss"))
def test_golden_hico_loss(path: Path) -> None:
    case = load(path)
    for number in range(int(case["n_cases"])):
        key = f"c{number}_"
        z = tensor(case[f"{key}embeddings"]).requires_grad_()
        logits = tensor(case[f"{key}topic_logits"]).requires_grad_()
        n, tau, gamma = (
            int(case[f"{key}n_clips"]),
            float(case[f"{key}temperature"]),
            float(case[f"{key}gamma"]),
        )
        # both channels of given logits, which need not be transposes here: the mean over them is that of two losses
        tcl = both_channels(logits, n, gamma)
        vcl = vcl_loss(z, n, tau)
        close(vcl.detach(), case[f"{key}vcl_loss"])
        close(tcl.detach(), case[f"{key}tcl_loss"])
        close((vcl + tcl).detach(), case[f"{key}total_loss"])
        grad_z, grad_logits = gradients(vcl + tcl, z, logits)
        close(grad_z, case[f"{key}grad_embeddings"])
        close(grad_logits, case[f"{key}grad_topic_logits"])
        total, visual, topical = hico_loss(z, logits[..., 0], n, tau, gamma)
        torch.testing.assert_close(total, visual + topical)
    close(vcl_loss(tensor(case["sat_embeddings"]), SATURATED_CLIPS), case["sat_vcl_loss"])
    close(both_channels(tensor(case["sat_topic_logits"]), SATURATED_CLIPS, 0.5), case["sat_tcl_loss"])


def both_channels(logits_NN2: Tensor, n_clips: int, gamma: float) -> Tensor:
    """The official loss on two channels: means over both, which are means of the channels' means."""
    return (tcl_loss(logits_NN2[..., 0], n_clips, gamma) + tcl_loss(logits_NN2[..., 1], n_clips, gamma)) / 2


@pytest.mark.parametrize("path", cases("simclr_loss"))
def test_golden_simclr_loss(path: Path) -> None:
    case = load(path)
    for key in sorted({name.partition("_")[0] for name in case}):
        z = tensor(case[f"{key}_embeddings"]).requires_grad_()
        loss = simclr_loss(z, int(case[f"{key}_n_clips"]), float(case[f"{key}_temperature"]))
        close(loss.detach(), case[f"{key}_loss"])
        close(gradients(loss, z)[0], case[f"{key}_grad"])


@pytest.mark.parametrize("path", cases("topic_head"))
def test_golden_topic_head(path: Path) -> None:
    case = load(path)
    weights = {f"head.{name[2:]}": tensor(value) for name, value in case.items() if name.startswith("w/")}
    state = to_head_state(weights)
    hidden, out = len(state["vcl.linear_a.weight"]), len(state["vcl.logits_out_b2.weight"])
    head = HiCoHead(case["x"].shape[1], hidden, out, len(state["predictor.first.weight"]))
    head.load_state_dict(state)
    h = tensor(case["x"]).mean((2, 3, 4))
    for mode in ("eval", "train"):
        z, logits = head.train(mode == "train")(h)
        assert logits is not None
        close(z.detach(), case[f"{mode}_embeddings"])
        close(torch.stack([logits, logits.T], -1).detach(), case[f"{mode}_topic_logits"])
    after = to_head_state(
        {
            f"head.{name.removeprefix('after/')}": tensor(v)
            for name, v in case.items()
            if name.startswith("after/")
        }
    )
    for name, value in after.items():
        close(head.state_dict()[name], value.numpy())


@pytest.mark.parametrize("path", cases("inception_block"))
def test_golden_inception_block(path: Path) -> None:
    case = load(path)
    state = {name[2:]: tensor(value) for name, value in case.items() if name.startswith("w/")}
    convs = ("0.0.conv", "1.0.conv", "1.1.conv1", "2.0.conv", "2.1.conv1", "3.1.conv")
    widths = [len(state[f"branch{name}.weight"]) for name in convs]
    b0, b1_in, b1, b2_in, b2, b3 = widths
    block = InceptionBlock(case["x"].shape[1], (b0, b1_in, b1, b2_in, b2, b3))
    block.load_state_dict(state)
    with torch.no_grad():
        close(block.eval()(tensor(case["x"])), case["out_eval"])
        close(block.train()(tensor(case["x"])), case["out_train"])


@pytest.mark.parametrize(
    ("path", "build"),
    [
        *((path, r2plus1d10) for path in golden_cases("hico", "r2plus1d10_tiny")),
        *((path, mixed_resnet18) for path in golden_cases("hico", "r2d3d18_tiny")),
    ],
)
def test_golden_residual_networks(path: Path, build: object) -> None:
    case = load(path)
    state = filled_state(case)
    encoder = build(tuple(case["channels"].tolist()))  # type: ignore[operator]
    classifier = VideoClassifier(encoder, len(state["head.out.weight"]))
    load_backbone(classifier.encoder, state)
    classifier.out.load_state_dict({"weight": state["head.out.weight"], "bias": state["head.out.bias"]})
    x = video(case)
    with torch.no_grad():
        classifier.eval()
        assert classifier.encoder(x).shape == tuple(case["feature_shape"].tolist())
        relative(pooled(classifier.encoder, x), case["pooled"])
        relative(classifier(x), case["eval_probs"])
        relative(classifier.train()(x), case["train_logits"])


def relative(found: Tensor, expected: np.ndarray) -> None:
    """To 1e-4 of the largest output."""
    close(found, expected, 1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("path", cases("s3dg_full"))
def test_golden_s3dg(path: Path) -> None:
    case = load(path)
    state = filled_state(case)
    model = from_official({f"module.{name}": value for name, value in state.items()})
    assert isinstance(model, HiCoModel)
    found: dict[str, Tensor] = {}
    for name in (key.removeprefix("probe/") for key in case if key.startswith("probe/")):
        module = model.encoder.get_submodule(name[0].lower() + name[1:])
        module.register_forward_hook(lambda module, x, y, name=name: found.update({name: y}))
    x = video(case)
    with torch.no_grad():
        features = model.encoder(x)
        relative(features.mean((2, 3, 4)), case["pooled"])
        z, logits = model.head(features.mean((2, 3, 4)))
    assert features.shape == tuple(case["feature_shape"].tolist())
    assert logits is not None
    relative(z, case["embeddings"])
    relative(torch.stack([logits, logits.T], -1), case["topic_logits"])
    for name, output in found.items():
        mean, std, largest, *shape = case[f"probe/{name}"].tolist()
        assert list(output.shape) == [int(size) for size in shape]
        assert [output.mean().item(), output.std().item(), output.abs().max().item()] == pytest.approx(
            [mean, std, largest], rel=1e-4, abs=1e-4 * largest
        )
    backbone = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert round(backbone / 1e6, 3) == 9.098
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == 13.633


@pytest.mark.parametrize("path", cases("lars"))
def test_golden_lars(path: Path) -> None:
    case = load(path)
    for key in sorted({name.partition("_")[0] for name in case}):
        params = [nn.Parameter(tensor(case[f"{key}_p{number}_0"])) for number in range(3)]
        optimizer = LARS(
            params,
            float(case[f"{key}_lr"]),
            weight_decay=float(case[f"{key}_wd"]),
            nesterov=bool(case[f"{key}_nesterov"]),
            exclude=bool(case[f"{key}_exclude"]),
        )
        for step in range(3):
            for number, parameter in enumerate(params):
                parameter.grad = tensor(case[f"{key}_g{number}_{step}"])
            optimizer.step()
            for number, parameter in enumerate(params):
                close(parameter.detach(), case[f"{key}_p{number}_{step + 1}"])


@pytest.mark.parametrize("path", cases("lr_schedule"))
def test_golden_learning_rate(path: Path) -> None:
    case = load(path)
    for key in (name.removesuffix("_cfg") for name in case if name.endswith("_cfg")):
        base, start, warmup, total = case[f"{key}_cfg"].tolist()
        found = [cosine_warmup_lr(epoch, base, start, warmup, total) for epoch in case[f"{key}_epoch"]]
        assert found == pytest.approx(case[f"{key}_lr"], abs=1e-9)
