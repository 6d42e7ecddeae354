"""Files: exact coding, every kind of picture, and everything that can be wrong with a file."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.common.stage.errors import InputError
from stages.common.stage.run import ROOT, run
from stages.entroformer import decode, encode
from stages.entroformer.cells import METHODS, Method, load_model, save_model
from stages.entroformer.file_format import CHECKED_UP_TO, HEADER, VERSION, FileCodec, latents_crc
from stages.entroformer.images import Picture, pad, read_picture, to_tensor
from stages.entroformer.method.attention import AttentionSpec
from stages.entroformer.method.codec import CodecSpec, ImageCodec, LatentCoder
from stages.entroformer.method.likelihood import (
    PRECISION,
    REACH,
    channel_frequencies,
    gaussian_frequencies,
    interval_mass,
)
from stages.entroformer.method.quantise import quantise
from stages.entroformer.method.range_coder import SymbolDecoder, SymbolEncoder
from stages.entroformer.official import load_official
from stages.entroformer.params import MethodName
from tests.golden_cases import golden_cases

TWO_PASS = Method("entroformer", "transformer", "two-pass")


def codec_of(method: Method, transform: Literal["conv", "dct"] = "conv", seed: int = 0) -> ImageCodec:
    """A small codec whose weights are large enough for every term to matter."""
    torch.manual_seed(seed)
    attention = AttentionSpec(16, 2, 8, 2, 5, -1 if method.dense else 4, method.position, method.score_scale)
    spec = CodecSpec(
        transform, 6, 5, 3, method.hyper, method.context, attention, 2, method.mixtures, method.prior
    )
    codec = ImageCodec(spec).eval()
    for parameter in codec.entropy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    if transform == "conv":  # latents of some size
        codec.analysis.layers[-1].weight.data *= 20  # type: ignore[index,union-attr]
    return codec


@pytest.fixture(scope="module")
def codec() -> FileCodec:
    return FileCodec(codec_of(TWO_PASS))


def picture(height: int, width: int, seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-140, 140), st.floats(-9, 8)), min_size=1, max_size=20))
def test_integer_frequencies(parameters: list[tuple[float, float]]) -> None:
    mean, log_sigma = torch.tensor(parameters, dtype=torch.float64).T
    frequencies = gaussian_frequencies(mean, log_sigma)
    rows = frequencies.tables[frequencies.table_N]
    assert (frequencies.tables.sum(1) == 2**PRECISION).all()
    assert (frequencies.tables >= 1).all()
    assert (frequencies.first_N <= -128).all()  # every latent has a symbol
    assert (frequencies.first_N + 2 * REACH >= 127).all()
    near = (mean.clamp(-129, 128) * 32 + 0.5).floor() / 32, (log_sigma.clamp(-7, 6) * 16 + 0.5).floor() / 16
    exact = interval_mass(torch.arange(-128, 128).double(), near[0][:, None], near[1][:, None]).numpy()
    for row, first, mass in zip(rows, frequencies.first_N, exact, strict=True):
        ours = row[-128 - first :][:256] / 2**PRECISION  # without the tails, which interval_mass folds in
        assert ours[1:-1] == pytest.approx(mass[1:-1], abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(-128, 127), st.floats(-130, 130), st.floats(-7, 6)), min_size=1, max_size=300
    )
)
def test_range_coder_gives_back_any_symbols(symbols: list[tuple[int, float, float]]) -> None:
    values = np.array([s[0] for s in symbols])
    mean, log_sigma = (torch.tensor([s[i] for s in symbols], dtype=torch.float64) for i in (1, 2))
    frequencies = gaussian_frequencies(mean, log_sigma)
    side = channel_frequencies(torch.ones(1, 256, dtype=torch.float64), len(values))
    encoder = SymbolEncoder()
    encoder.encode(values, side)
    encoder.encode(values, frequencies)
    decoder = SymbolDecoder(encoder.to_bytes())
    assert decoder.decode(side).tolist() == values.tolist()
    assert decoder.decode(frequencies).tolist() == values.tolist()
    shares = frequencies.tables[frequencies.table_N, values - frequencies.first_N] / 2**PRECISION
    ideal = -np.log2(shares).sum() + 8 * len(values)
    assert 8 * len(encoder.to_bytes()) <= 1.001 * ideal + 64


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.mixtures == 1])
@pytest.mark.parametrize("transform", ["conv", "dct"])
def test_every_method_decodes_its_own_latents_on_other_thread_counts(
    name: MethodName, transform: Literal["conv", "dct"]
) -> None:
    file_codec = FileCodec(codec_of(METHODS[name], transform))
    original = picture(40, 70)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        encoded = file_codec.encode(original)
        torch.set_num_threads(4)
        assert file_codec.encode(original).content == encoded.content
        assert torch.get_num_threads() == 4
        decoded = file_codec.decode(encoded.content)
    finally:
        torch.set_num_threads(before)
    assert (decoded.rgb == encoded.picture.rgb).all()
    x = pad(to_tensor(original.rgb), file_codec.codec.spec.multiple)
    y, z = file_codec.codec.latents(x)
    again = file_codec.coder.decode(encoded.content[HEADER.size :], *y.shape[2:])
    assert torch.equal(again[0].float(), y)
    assert latents_crc(*again) == latents_crc(y, z)


@pytest.mark.parametrize("context", ["serial", "two-pass"])
def test_files_are_as_long_as_estimated(context: str) -> None:
    codec = codec_of(Method("entroformer", "transformer", context))  # type: ignore[arg-type]
    coder = LatentCoder(codec.entropy)
    generator = torch.Generator().manual_seed(0)
    y, z = torch.zeros(1, 5, 16, 24), torch.zeros(1, 3, 4, 6)
    parameters = codec.entropy.distribution(y, z).detach()
    y = quantise(parameters[:, 5:] + parameters[:, :5].exp() * torch.randn(y.shape, generator=generator))
    with torch.no_grad():
        estimate = float(codec.entropy(y, z).bits()) / 8
    assert len(coder.encode(y, z)) == pytest.approx(estimate, rel=0.01, abs=8)


@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 140),
    st.integers(1, 140),
    st.sampled_from(["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"]),
)
def test_any_size_and_mode(height: int, width: int, mode: str) -> None:
    import tempfile

    file_codec = FileCodec(codec_of(TWO_PASS, "dct"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.tiff" if mode == "CMYK" else "x.png")
        rgba = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
        image = Image.fromarray(rgba).convert("RGBA" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(rgba[:, :, 0].astype(np.uint16))
        image.save(path)
        if mode == "I;16":
            with pytest.raises(InputError, match="8 bits per channel"):
                read_picture(path)
            return
        read = read_picture(path)
    out = file_codec.decode(file_codec.encode(read).content).to_image()
    assert out.size == (width, height)
    palette = (
        "RGBA" if image.has_transparency_data else "RGB"
    )  # Pillow gives some palettes transparent entries
    assert out.mode == {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA", "P": palette}.get(mode, "RGB")
    if "A" in mode:
        assert (np.asarray(out)[:, :, -1] == rgba[:, :, 3]).all()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_file_is_refused(codec: FileCodec, data: st.DataObject) -> None:
    content = bytearray(codec.encode(picture(64, 64)).content)
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InputError) as caught:
        codec.decode(bytes(content), "out.enc")
    assert str(caught.value).startswith("out.enc: ")
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_file_cut_short_or_with_more_behind_it_is_refused(codec: FileCodec, data: st.DataObject) -> None:
    content = codec.encode(picture(64, 64)).content
    shorter = content[: data.draw(st.integers(0, len(content) - 1))]
    for wrong in (shorter, content + data.draw(st.binary(min_size=1, max_size=9))):
        with pytest.raises(InputError, match=r"not an Entroformer file|cut short"):
            codec.decode(wrong)


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 200), st.integers(0, 200))
def test_any_bytes_with_a_right_checksum_never_crash(
    codec: FileCodec, body: bytes, kind: int, h: int, w: int
) -> None:
    head = HEADER.pack(b"ENTF", VERSION, kind, h, w, codec.id, 0, 0)[:CHECKED_UP_TO]
    content = head + struct.pack("<I", zlib.crc32(head + body)) + body
    with pytest.raises(InputError, match=r"holds no picture|other latents"):
        codec.decode(content)


def resealed(content: bytes, offset: int, part: bytes) -> bytes:
    """A file with other bytes somewhere and the checksum that belongs to them."""
    changed = content[:offset] + part + content[offset + len(part) :]
    crc = zlib.crc32(changed[:CHECKED_UP_TO] + changed[HEADER.size :])
    return changed[:CHECKED_UP_TO] + struct.pack("<I", crc) + changed[HEADER.size :]


def test_other_versions_models_and_latents_are_refused(codec: FileCodec) -> None:
    content = codec.encode(picture(64, 64)).content
    with pytest.raises(InputError, match=r"version 3 .* reads version 2"):
        codec.decode(resealed(content, 4, b"\x03"))
    other = FileCodec(codec_of(TWO_PASS, seed=1))
    with pytest.raises(InputError, match=f"model {codec.id.hex()}, the model given is {other.id.hex()}"):
        other.decode(content)
    with pytest.raises(InputError, match="other latents come out"):
        codec.decode(resealed(content, 16, b"\0\0\0\0"))


def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image, out, back = (tmp_path / name for name in ("m.safetensors", "in.png", "out.enc", "back.png"))
    save_model(codec_of(TWO_PASS), model)
    Image.fromarray(picture(50, 90).rgb).save(image)
    monkeypatch.setattr(sys, "argv", ["encode", str(image), str(out), "--model", str(model)])
    encode.main()
    assert f"{out.stat().st_size} bytes" in capsys.readouterr().out
    command = [sys.executable, "-m", "stages.entroformer.decode", str(out), str(back), "--model", str(model)]
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "3", "PATH": ""}
    assert subprocess.run(command, env=env, cwd=tmp_path).returncode == 0
    expected = FileCodec(load_model(model)).encode(read_picture(image)).picture
    assert (read_picture(back).rgb == expected.rgb).all()
    wrong = tmp_path / "wrong.png"
    monkeypatch.setattr(sys, "argv", ["decode", str(image), str(wrong), "--model", str(model)])
    with pytest.raises(SystemExit) as ended:
        run(decode.main)
    assert ended.value.code == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not an Entroformer file" in error
    assert not wrong.exists()
    monkeypatch.setattr(sys, "argv", ["decode", str(out), str(tmp_path / "x.nothing"), "--model", str(model)])
    with pytest.raises(Exception, match=r"no picture format.*use .png"):
        decode.main()
    model.write_bytes(model.read_bytes()[:200])
    with pytest.raises(InputError, match="not a codec of this project"):
        load_model(model)


@pytest.mark.parametrize(
    "path", [p.with_suffix(".pth") for p in golden_cases("entroformer", "official_format_tiny")]
)
def test_a_released_checkpoint_encodes_and_decodes(path: Path, tmp_path: Path) -> None:
    codec = load_official(path, topk=4)
    save_model(codec, tmp_path / "converted.safetensors")
    converted = FileCodec(load_model(tmp_path / "converted.safetensors"))
    encoded = FileCodec(codec).encode(picture(65, 70))
    assert (converted.decode(encoded.content).rgb == encoded.picture.rgb).all()


def test_a_checkpoint_that_names_other_code_is_refused(tmp_path: Path) -> None:
    torch.save({"encode": Path}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"names pathlib"):
        load_official(tmp_path / "evil.pth")
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not a released Entroformer"):
        load_official(tmp_path / "other.pth")


def test_several_gaussians_per_latent_are_for_estimates_only() -> None:
    with pytest.raises(ValueError, match="one Gaussian each"):
        LatentCoder(codec_of(METHODS["context-mixtures"]).entropy)
