"""Parity with the authors' code: every case of tests/golden/entroformer (its README describes the files)."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.entroformer.images import crop, pad
from stages.entroformer.method.attention import (
    AttentionSpec,
    Layout,
    SelfAttention,
    causal_layout,
    diamond_bucket_index,
    full_layout,
    visible_layout,
)
from stages.entroformer.method.codec import ImageCodec
from stages.entroformer.method.context import BidirectionalContext, SerialContext, checkerboard
from stages.entroformer.method.hyperprior import TransformerHyperDecoder, TransformerHyperEncoder
from stages.entroformer.method.learning_rate import learning_rate
from stages.entroformer.method.likelihood import (
    ChannelGaussianPrior,
    DeepFactorisedPrior,
    interval_mass,
    nats,
)
from stages.entroformer.method.metrics import Fit, bd_psnr, bd_rate, ms_ssim, psnr
from stages.entroformer.method.quantise import quantise, straight_through
from stages.entroformer.method.transforms import GDN
from stages.entroformer.official import PARTS, convert, from_official, load_official
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("entroformer", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def subcases(case: Case) -> list[Case]:
    """The cases `case0_...`, `case1_...` of one file."""
    names = dict.fromkeys(key.partition("_")[0] for key in case if key.startswith("case"))
    return [
        {k.removeprefix(f"{name}_"): v for k, v in case.items() if k.startswith(f"{name}_")} for name in names
    ]


def weights(case: Case, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): tensor(v) for k, v in case.items() if k.startswith(prefix)}


def load_weights(module: nn.Module, official: dict[str, Tensor], part: str, ours: str) -> nn.Module:
    """Official tensors of one part into our module, which stands at `ours` of a codec."""
    converted = convert({f"{part}.{name}": value for name, value in official.items()})
    module.load_state_dict({name.removeprefix(ours): value for name, value in converted.items()})
    return module.eval()


def spec_of(case: Case, dim: int) -> AttentionSpec:
    heads, dim_head, num, topk = (int(case[k]) for k in ("heads", "dim_head", "position_num", "topk"))
    return AttentionSpec(dim, heads, dim_head, int(case.get("mlp_ratio", np.array(2))), num, topk)


@pytest.mark.parametrize("path", cases("rpe_diamond"))
def test_golden_positions(path: Path) -> None:
    for case in subcases(load(path)):
        index = diamond_bucket_index(int(case["shape"][0]), int(case["shape"][1]), int(case["position_num"]))
        assert (index.numpy() == case["bucket_index"]).all()
        assert (tensor(case["table"])[index].numpy() == case["position_embedding"]).all()


@pytest.mark.parametrize("path", cases("attention_topk"))
def test_golden_attention(path: Path) -> None:
    for case in subcases(load(path)):
        x = tensor(case["input"])
        spec, (h, w) = spec_of(case, x.shape[-1]), map(int, case["shape"])
        assert spec.scale == pytest.approx(float(case["scale_value"]))
        attention = SelfAttention(spec).eval()
        qkv = tensor(case["sd/qkv.weight"])
        for offset, layer in enumerate((attention.query, attention.key, attention.value)):
            layer.weight.data = qkv[offset::3]
        attention.output.weight.data = tensor(case["sd/o.weight"])
        table = tensor(case["sd/relative_attention_bias.weight"])
        layout = Layout((h, w), diamond_bucket_index(h, w, spec.position_num), tensor(case["mask"]))
        with torch.no_grad():
            q, k, _ = attention.split(x)
            attn = attention.weights(q, k, layout, table, spec.topk)
            out = attention(x, layout, table, spec.topk)
            kept = str(case["mask_kind"])
            fast = {
                "full": full_layout(h, w, spec.position_num),
                "causal": causal_layout(h, w, spec.position_num),
                "checkerboard": visible_layout(checkerboard(h, w), spec.position_num),
            }
            assert attention(x, fast[kept], table, spec.topk).numpy() == pytest.approx(
                case["output"], abs=1e-5
            )
        assert attn.numpy() == pytest.approx(case["attn"], abs=1e-5)
        assert out.numpy() == pytest.approx(case["output"], abs=1e-5)


@pytest.mark.parametrize("path", cases("context_masks"))
def test_golden_masks(path: Path) -> None:
    for case in subcases(load(path)):
        h, w = map(int, case["shape"])
        mask = causal_layout(h, w, 3).mask_nm
        assert mask is not None
        assert (mask.numpy() == case["serial_attn_mask"]).all()
        visible = checkerboard(h, w)
        assert (visible.numpy() == case["bidir_input_mask"]).all()
        assert ((~visible).numpy() == case["bidir_output_mask"]).all()
        layout = visible_layout(visible, 3)
        assert layout.keys_m is not None
        assert layout.mask_nm is not None
        allowed = torch.eye(h * w, dtype=torch.bool)
        allowed[:, layout.keys_m] = layout.mask_nm[:, :-1]
        allowed |= torch.diag(layout.mask_nm[:, -1])
        assert (allowed.numpy() == case["bidir_attn_mask"]).all()
        order = torch.cat([visible.flatten().nonzero()[:, 0], (~visible).flatten().nonzero()[:, 0]])
        assert order.tolist() == case["bidir_position_order"].tolist()
        assert int(visible.sum()) == int(case["bidir_first_pass_len"])


@pytest.mark.parametrize("path", cases("context_transformer"))
def test_golden_context(path: Path) -> None:
    for case in subcases(load(path)):
        y_hat = tensor(case["y_hat"])
        official = weights(case, "sd/")
        dim = len(official["to_patch_embedding.bias"])
        kind = SerialContext if str(case["kind"]) == "serial" else BidirectionalContext
        module = kind(y_hat.shape[1], spec_of(case, dim), int(case["depth"]))
        load_weights(module, official, "cit_ar", "entropy.context.")
        with torch.no_grad():
            assert module(y_hat).numpy() == pytest.approx(case["feature"], abs=1e-4)
            if isinstance(module, SerialContext):
                decoding = module.decoding(*y_hat.shape[2:])
                for row in range(y_hat.shape[2]):
                    for column in range(y_hat.shape[3]):
                        feature = decoding.feature(y_hat, row, column)
                        assert feature.numpy() == pytest.approx(case["feature"][:, :, row, column], abs=1e-4)


@pytest.mark.parametrize("path", cases("hyper_transforms"))
def test_golden_hyperprior(path: Path) -> None:
    case = load(path)
    encoder_weights, decoder_weights = weights(case, "he/"), weights(case, "hd/")
    dim, latents = encoder_weights["to_patch_embedding.weight"].shape
    spec, hyper = spec_of(case, dim), decoder_weights["to_patch_embedding.weight"].shape[1]
    encoder = TransformerHyperEncoder(latents, hyper, spec, int(case["depth"]))
    decoder = TransformerHyperDecoder(hyper, spec, int(case["depth"]))
    load_weights(encoder, encoder_weights, "cit_he", "entropy.hyper_encoder.")
    load_weights(decoder, decoder_weights, "cit_hd", "entropy.hyper_decoder.")
    with torch.no_grad():
        z = encoder(tensor(case["y"]))
        assert z.numpy() == pytest.approx(case["z"], abs=1e-4)
        assert (quantise(z).numpy() == case["z_hat"]).all()
        assert decoder(quantise(z)).numpy() == pytest.approx(case["feature"], abs=1e-4)


@pytest.mark.parametrize("path", cases("gdn"))
def test_golden_gdn(path: Path) -> None:
    for case in subcases(load(path)):
        gdn = GDN(len(case["beta"]), inverse=bool(case["inverse"]))
        gdn.beta.data, gdn.gamma.data = tensor(case["beta"]), tensor(case["gamma"])
        x = tensor(case["input"]).requires_grad_()
        out = gdn(x)
        out.backward(tensor(case["grad_output"]))
        assert out.detach().numpy() == pytest.approx(case["output"], abs=1e-5)
        for ours, name in ((x.grad, "input"), (gdn.beta.grad, "beta"), (gdn.gamma.grad, "gamma")):
            assert ours is not None
            assert ours.numpy() == pytest.approx(case[f"grad_{name}"], abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("path", cases("quantisers"))
def test_golden_quantisers(path: Path) -> None:
    case = load(path)
    x = tensor(case["x"]).requires_grad_()
    assert (quantise(x.detach()).numpy() == case["hard_floor"]).all()
    rounded = straight_through(x)
    rounded.sum().backward()
    assert (rounded.detach().numpy() == case["ste"]).all()
    assert x.grad is not None
    assert (x.grad.numpy() == case["ste_grad"]).all()


@pytest.mark.parametrize("path", cases("factorised_gaussian"))
def test_golden_channel_prior(path: Path) -> None:
    case = load(path)
    prior = ChannelGaussianPrior(case["sd/mu"].size)
    prior.mean_C.data, prior.log_sigma_C.data = (
        tensor(case[f"sd/{k}"]).flatten() for k in ("mu", "log_sigma")
    )
    with torch.no_grad():
        assert prior.mass(tensor(case["z_hat"])).numpy() == pytest.approx(case["probability"], abs=1e-5)
        # the official outermost bins are wrong on purpose (README): everything between agrees
        assert prior.masses().numpy()[:, 1:-1] == pytest.approx(case["pmf_table"][:, 1:-1], abs=1e-5)


DENSITIES = {"MixGauss": "gaussian", "MixLogistic": "logistic", "MixLaplace": "laplace"}


@pytest.mark.parametrize("path", cases("likelihoods"))
def test_golden_likelihoods(path: Path) -> None:
    file = load(path)
    for case in subcases(file):
        (density,) = [ours for theirs, ours in DENSITIES.items() if theirs in str(case["dist"])]
        ours = nats(
            tensor(case["x"]),
            tensor(case["params"]),
            int(case["K"]),
            int(case["num_parameter"]),
            density,  # type: ignore[arg-type]
        )
        assert ours.numpy() == pytest.approx(case["nll_nats"], abs=1e-5, rel=1e-5)
    means, log_scales = (tensor(file[f"table_{k}"])[:, None] for k in ("means", "log_scales"))
    masses = interval_mass(torch.arange(-128, 128).double(), means, log_scales).numpy()
    exact = file["table_pmf_exact64"]
    assert masses == pytest.approx(exact, abs=2e-12)
    assert masses.sum(1) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("path", cases("model_"))
def test_golden_model(path: Path) -> None:
    case = load(path)
    cfg = ast.literal_eval(str(case["cfg"]))
    parts = {part: weights(case, f"{part}/") for part in PARTS}
    codec = from_official(parts, cfg["attn_topk"])
    assert codec.spec.attention.heads == cfg["heads"]
    x = tensor(case["image_u8"]).float() / 255
    padded = pad(x, codec.spec.multiple)
    assert tuple(padded.shape) == tuple(case["image_padded_shape"])
    with torch.no_grad():
        assert codec.analysis(padded).numpy() == pytest.approx(case["y"], abs=1e-4)
        y, z = codec.latents(padded)
        assert z is not None
        assert (y.numpy() == case["y_hat"]).all()
        assert (z.numpy() == case["z_hat"]).all()
        assert codec.entropy.distribution(y, z).numpy() == pytest.approx(case["params"], abs=1e-4, rel=1e-4)
        rates = codec.entropy(y, z)
        assert rates.z is not None
        assert rates.y.numpy() == pytest.approx(case["nll_nats"], abs=1e-4, rel=1e-4)
        pixels = x.shape[2] * x.shape[3]
        for nat, name in ((rates.y, "bpp_y"), (rates.z, "bpp_z")):
            assert float(nat.sum()) / np.log(2) / pixels == pytest.approx(float(case[name]), abs=1e-4)
        x_hat = crop(codec.synthesis(y).clamp(0, 1), *x.shape[2:])
        assert x_hat.numpy() == pytest.approx(case["x_hat"], abs=1e-4)


@pytest.mark.parametrize("path", cases("official_format_tiny"))
def test_golden_official_file(path: Path) -> None:
    codec = load_official(path.with_suffix(".pth"), topk=4)
    parts = {part: weights(load(path), f"{part}/") for part in PARTS}
    expected = from_official(parts, 4).state_dict()
    for name, value in codec.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert isinstance(codec, ImageCodec)


@pytest.mark.parametrize("path", cases("lr_schedule"))
def test_golden_learning_rate(path: Path) -> None:
    case = load(path)
    images, batch = int(case["num_images"]), int(case["batch_size"])
    ours = [
        learning_rate(
            step * batch,
            images,
            int(case["epochs"]),
            float(case["base_lr"]),
            case["stages"].tolist(),
            float(case["decay"]),
        )
        for step in range(1, len(case["lr_after_each_step"]) + 1)
    ]
    assert ours == pytest.approx(case["lr_after_each_step"].tolist(), rel=1e-9)


@pytest.mark.parametrize("path", cases("ms_ssim"))
def test_golden_ms_ssim(path: Path) -> None:
    case = load(path)
    a, b = tensor(case["a"]), tensor(case["b"])
    assert float(ms_ssim(a, b)) == pytest.approx(float(case["ms_ssim_standard"]), abs=1e-5)
    assert psnr(a, b) == pytest.approx(float(case["psnr"]), abs=1e-5)


@pytest.mark.parametrize("path", cases("bd_rate"))
def test_golden_bd_rate(path: Path) -> None:
    case = load(path)
    for name in sorted(key.removesuffix("_rate_a") for key in case if key.endswith("_rate_a")):
        a, psnr_a, b, psnr_b = (case[f"{name}_{part}"] for part in ("rate_a", "psnr_a", "rate_b", "psnr_b"))
        fits: tuple[Fit, ...] = ("cubic", "pchip", "akima")
        for fit in fits:
            assert bd_rate(a, psnr_a, b, psnr_b, fit) == pytest.approx(
                float(case[f"{name}_bdrate_{fit}"]), abs=1e-6
            )
            assert bd_psnr(a, psnr_a, b, psnr_b, fit) == pytest.approx(
                float(case[f"{name}_bdpsnr_{fit}"]), abs=1e-6
            )


@pytest.mark.parametrize("path", cases("deep_factorised_density"))
def test_golden_deep_factorised(path: Path) -> None:
    case = load(path)
    prior = DeepFactorisedPrior(len(case["x"]), tuple(case["filters"].tolist()))
    for i, matrix in enumerate(prior.matrices):
        matrix.data, prior.biases[i].data = tensor(case[f"sd/_matrix{i}"]), tensor(case[f"sd/_bias{i}"])
    for i, factor in enumerate(prior.factors):
        factor.data = tensor(case[f"sd/_factor{i}"])
    x = tensor(case["x"])
    with torch.no_grad():
        assert prior.logits(x).numpy() == pytest.approx(case["logits_cumulative"], abs=1e-4, rel=1e-5)
        assert prior.interval(x).numpy() == pytest.approx(case["likelihood"], abs=1e-6)
