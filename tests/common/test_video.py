"""The shared video layer: reading by frame number, damaged files, writing, sampling, augmentation."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.common.video.augment import ClipAugment, Draws, Jitter, centre_crop
from stages.common.video.augment import hue as turn_hue
from stages.common.video.bad_files import BadFiles
from stages.common.video.reading import VideoError, VideoReader, index_video, load_indexes, save_indexes
from stages.common.video.sampling import (
    interval_frame_indices,
    segment_frame_indices,
    timestamp_frame_indices,
)
from stages.common.video.strips import write_gif, write_strip
from stages.common.video.writing import encode_video


def noise(frames: int = 50, channels: int = 3, height: int = 24, width: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, channels, height, width), generator=generator, dtype=torch.uint8)


def numbered(path: Path, codec: str, format_: str, options: dict[str, str] | None = None) -> Path:
    """A lossy file as the data sets have them, whose 40 frames, 15 a second, have the grey values 0, 6, 12 ..."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format_) as container:
        stream = container.add_stream(codec, 15, options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, "yuv420p", 12
        stream.codec_context.thread_count = 1
        for number in range(40):
            image = np.full((32, 48, 3), 6 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("channels", [3, 1])
def test_written_files_are_lossless_and_repeatable(channels: int, tmp_path: Path) -> None:
    frames = noise(channels=channels)
    content = encode_video(frames, fps=8)
    assert content == encode_video(frames, fps=8)
    (tmp_path / "a.mp4").write_bytes(content)
    index = index_video(tmp_path / "a.mp4", expect_fps=8)
    assert (index.frames, index.fps, index.height, index.width) == (50, 8.0, 24, 20)
    assert index.duration == 6.25
    assert index.key_K.tolist() == [0, 16, 32, 48]
    with VideoReader(index, colour="rgb" if channels == 3 else "gray") as reader:
        wanted = [49, 0, 17, 17, 31, 33, 2]  # back and forth, over key frames, twice the same
        assert torch.equal(reader.read(wanted), frames[wanted])
        assert torch.equal(reader.read([5]), frames[[5]])
        assert torch.equal(reader.read(range(50)), frames)


@pytest.mark.parametrize(
    ("codec", "format_", "options"),
    [
        ("mpeg4", "avi", {}),
        ("mpeg4", "avi", {"bf": "2"}),
        ("libx264", "mp4", {}),
        ("libx264", "matroska", {}),
        ("mpeg4", "mp4", {"bf": "2"}),
    ],
)
def test_files_of_other_makers(codec: str, format_: str, options: dict[str, str], tmp_path: Path) -> None:
    path = numbered(tmp_path / "a", codec, format_, options)
    index = index_video(path)
    assert index.frames == 40
    assert index.fps == pytest.approx(15)
    with av.open(str(path)) as container:  # decoded from the start, in one go
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [image.mean() for image in decoded] == pytest.approx([6 * n for n in range(40)], abs=8)
    with VideoReader(path) as reader:
        for wanted in ([38, 3, 25, 12], [13], [11, 12], [39]):
            found = reader.read(wanted).permute(0, 2, 3, 1).numpy()
            assert (found == np.stack([decoded[number] for number in wanted])).all()
    with VideoReader(path, size=16) as reader:
        assert (reader.height, reader.width) == (16, 24)
        assert reader.read([7]).shape == (1, 3, 16, 24)
    with VideoReader(path, size=(10, 12), colour="gray") as reader:
        assert reader.read([7]).shape == (1, 1, 10, 12)


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_video(noise(64), fps=8))
    with VideoReader(tmp_path / "a.mp4") as reader:
        seeks = []

        class Counting:
            def __init__(self, container: object) -> None:
                self.container = container

            def seek(self, *arguments: object, **options: object) -> None:
                seeks.append(arguments[0])
                self.container.seek(*arguments, **options)  # type: ignore[attr-defined]

            def __getattr__(self, name: str) -> object:
                return getattr(self.container, name)

        monkeypatch.setattr(reader, "_container", Counting(reader._container))
        reader.read([1, 3, 14, 50, 60])
        assert len(seeks) == 2  # to the start, and over two groups of pictures; 60 is in the group of 50
        reader.read([62])
        assert len(seeks) == 2


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = encode_video(noise(), fps=8)
    avi = numbered(tmp_path / "whole.avi", "mpeg4", "avi").read_bytes()
    files = {
        "cut.mp4": (whole[: len(whole) // 2], "not a video, or truncated"),
        "cut.avi": (avi[: int(0.7 * len(avi))], r"truncated \(\d+ of 40 frames\)|not a video, or truncated"),
        "text.mp4": (b"not a video at all" * 20, "not a video"),
        "empty.mp4": (b"", "not a video"),
        "none.mp4": (encode_video(noise(0), fps=8), "no frames|not a video|has no video"),
    }
    for name, (content, reason) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(VideoError, match=reason) as error:
            index_video(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
    with pytest.raises(VideoError, match="no such file"):
        index_video(tmp_path / "nowhere.mp4")
    (tmp_path / "a.mp4").write_bytes(whole)
    with pytest.raises(VideoError, match="has 8 frames a second, 30 are expected"):
        index_video(tmp_path / "a.mp4", expect_fps=30)
    audio = io.BytesIO()
    with av.open(audio, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    (tmp_path / "sound.wav").write_bytes(audio.getvalue())
    with pytest.raises(VideoError, match="no video in it"):
        index_video(tmp_path / "sound.wav")


def test_truncated_file_with_its_header_in_front(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.mkv", "libx264", "matroska")
    path.write_bytes(path.read_bytes()[: int(0.5 * path.stat().st_size)])
    with pytest.raises(VideoError, match=r"truncated \(\d+ of 40 frames\)"):
        index_video(path)


def test_a_file_damaged_since_it_was_indexed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_video(noise(), fps=8))
    index = index_video(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(bytes(content))
    with VideoReader(index) as reader, pytest.raises(VideoError, match="damaged at frame"):
        reader.read(range(50))
    with VideoReader(index) as reader, pytest.raises(IndexError, match="no frame 50; there are 50"):
        reader.read([50])


def test_indexes_in_a_file(tmp_path: Path) -> None:
    for name, frames in (("a", 20), ("b", 33)):
        (tmp_path / f"{name}.mp4").write_bytes(encode_video(noise(frames), fps=8))
    indexes = [index_video(tmp_path / "a.mp4"), index_video(tmp_path / "b.mp4")]
    save_indexes(tmp_path / "index.parquet", indexes)
    loaded = load_indexes(tmp_path / "index.parquet")
    assert [index.path for index in loaded] == [index.path for index in indexes]
    assert loaded[1].pts_F.tolist() == indexes[1].pts_F.tolist()
    with VideoReader(loaded[1]) as reader:
        assert torch.equal(reader.read([30]), noise(33)[[30]])
    first = (tmp_path / "index.parquet").read_bytes()
    save_indexes(tmp_path / "index.parquet", loaded)
    assert (tmp_path / "index.parquet").read_bytes() == first


def test_bad_files_are_skipped_and_counted_or_refused(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(encode_video(noise(), fps=8))
    (tmp_path / "bad.mp4").write_bytes(b"x")
    bad, good = BadFiles("skip"), []
    for name in ("bad.mp4", "good.mp4"):
        with bad.tolerated():
            good.append(index_video(tmp_path / name))
    assert [index.path.name for index in good] == ["good.mp4"]
    assert len(bad.reasons) == 1
    assert "bad.mp4" in bad.reasons[0]
    bad.demand(len(good), "train")
    with pytest.raises(InputError, match=r"train: no usable video \(1 skipped; the first: .*bad\.mp4"):
        bad.demand(0, "train")
    with pytest.raises(VideoError, match=r"bad\.mp4.*set on_bad to skip"), BadFiles("refuse").tolerated():
        index_video(tmp_path / "bad.mp4")


@given(st.integers(1, 500), st.floats(1, 60), st.floats(0, 40), st.floats(0.01, 10), st.integers(1, 32))
def test_timestamps_stay_in_the_file(
    frames: int, fps: float, start: float, length: float, count: int
) -> None:
    found = timestamp_frame_indices(frames, fps, start, start + length, count)
    assert found.shape == (count,)
    assert (found >= 0).all()
    assert (found < frames).all()
    assert (np.diff(found) >= 0).all()


@given(st.integers(1, 500), st.floats(1, 60), st.integers(1, 10), st.integers(2, 32), st.data())
def test_views_stay_in_the_file(frames: int, fps: float, views: int, count: int, data: st.DataObject) -> None:
    view = data.draw(st.integers(0, views - 1))
    found = interval_frame_indices(frames, fps, view, views, count, 4, 30)
    assert (found >= 0).all()
    assert (found < frames).all()
    assert (np.diff(found) >= 0).all()


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 100))
def test_segments_have_one_frame_each(frames: int, count: int, seed: int) -> None:
    middle = segment_frame_indices(frames, count)
    drawn = segment_frame_indices(frames, count, torch.Generator().manual_seed(seed))
    first = np.floor(frames * np.arange(count) / count)
    last = np.maximum(np.floor(frames * np.arange(1, count + 1) / count) - 1, first)
    for found in (middle, drawn):
        assert (found >= first).all()
        assert (found <= last).all()
    assert middle.max() < frames


def test_views_by_hand() -> None:
    # 100 frames at 30: 4 frames at rate 5 cover 20; starts 0, 40 of 80 for two views, the middle for one
    assert interval_frame_indices(100, 30, 0, 2, 4, 5, 30).tolist() == [0, 6, 12, 19]
    assert interval_frame_indices(100, 30, 1, 2, 4, 5, 30).tolist() == [40, 46, 52, 59]
    assert interval_frame_indices(100, 30, 0, 1, 4, 5, 30).tolist() == [40, 46, 52, 59]
    assert segment_frame_indices(8, 4).tolist() == [0, 2, 4, 6]


FULL = ClipAugment(
    size=12,
    area=(0.3, 0.6),
    aspect=(6 / 7, 7 / 6),
    flip=0.5,
    rotation=(0.5, 20),
    jitter=Jitter(0.8, 0.8, 0.8, 0.8, 0.2),
    gray=0.2,
    blur=(0.5, 0.3, 1.5),
)


def clips(batch: int = 6) -> Tensor:
    return noise(batch * 4).view(batch, 4, 3, 24, 20)


def test_augmentation_is_one_draw_for_all_frames_of_a_clip() -> None:
    still = clips()[:, :1].expand(-1, 4, -1, -1, -1)  # a clip of four equal frames
    out = FULL(still, FULL.draw(6, torch.Generator().manual_seed(1)))
    assert out.shape == (6, 3, 4, 12, 12)
    assert out.dtype == torch.float32
    for frame in range(1, 4):
        torch.testing.assert_close(out[:, :, frame], out[:, :, 0], rtol=1e-4, atol=1e-5)


def test_augmentation_of_a_batch_is_that_of_its_clips() -> None:
    draws = FULL.draw(6, torch.Generator().manual_seed(2))
    together = FULL(clips(), draws)
    for row in range(6):
        alone = FULL(
            clips()[row : row + 1], Draws(draws.uniform_BK[row : row + 1], draws.order_B4[row : row + 1])
        )
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, FULL(clips(), FULL.draw(6, torch.Generator().manual_seed(3))))


def test_nothing_drawn_changes_nothing() -> None:
    plain = ClipAugment(size=24, mean=0.0, std=1.0)
    square = noise(8, 3, 24, 24).view(2, 4, 3, 24, 24)
    out = plain(square, plain.draw(2, torch.Generator()))
    torch.testing.assert_close(out, square.transpose(1, 2).float() / 255, rtol=0, atol=1e-5)
    mirrored = ClipAugment(size=24, flip=1.0, mean=0.0, std=1.0)
    torch.testing.assert_close(
        mirrored(square, plain.draw(2, torch.Generator())), out.flip(-1), rtol=0, atol=1e-5
    )
    turned = ClipAugment(size=24, rotation=(1.0, 90.0), mean=0.0, std=1.0)
    draws = turned.draw(2, torch.Generator())
    draws.uniform_BK[:, 6] = 1.0  # the largest angle
    found = turned(square, draws)
    assert min(float((found - out.rot90(k, (-2, -1))).abs().max()) for k in (1, 3)) < 1e-4


def test_a_partner_shares_the_geometry() -> None:
    colour = ClipAugment(size=12, area=(0.3, 0.6), flip=0.5, jitter=Jitter(1.0, 0.8, 0.8, 0.8, 0.2))
    depth = ClipAugment(size=12, area=(0.3, 0.6), flip=0.5)
    draws = colour.draw(6, torch.Generator().manual_seed(4))
    gray = clips()[:, :, :1]
    only_geometry = ClipAugment(size=12, area=(0.3, 0.6), flip=0.5)(gray.expand(-1, -1, 3, -1, -1), draws)
    torch.testing.assert_close(depth(gray, draws), only_geometry[:, :1])
    assert not torch.allclose(colour(clips(), draws), depth(clips(), draws))


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(-0.5, 0.5))
def test_hue_goes_round(seed: int, shift: float) -> None:
    x = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    there = turn_hue(x, torch.full((2,), shift))
    torch.testing.assert_close(turn_hue(there, torch.full((2,), -shift)), x, rtol=0, atol=1e-4)
    torch.testing.assert_close(there.amax(2), x.amax(2))
    torch.testing.assert_close(turn_hue(x, torch.ones(2)), x, rtol=0, atol=1e-4)


def test_blur_keeps_the_mean_and_lowers_the_variance() -> None:
    blur = ClipAugment(size=24, blur=(1.0, 1.0, 1.0), mean=0.0, std=1.0)
    plain = ClipAugment(size=24, mean=0.0, std=1.0)
    draws = blur.draw(6, torch.Generator())
    blurred, x = blur(clips(), draws), plain(clips(), draws)
    assert blurred.mean().item() == pytest.approx(x.mean().item(), abs=0.01)
    assert blurred.std() < 0.5 * x.std()


def test_centre_crop() -> None:
    out = centre_crop(clips(), size=10, share=0.5, mean=0.0, std=1.0)
    torch.testing.assert_close(out, clips()[..., 7:17, 5:15].transpose(1, 2).float() / 255)
    assert centre_crop(clips(), size=16).shape == (6, 3, 4, 16, 16)


def test_pictures_of_clips(tmp_path: Path) -> None:
    write_gif(noise(5), tmp_path / "clip.gif", fps=8, scale=2)
    write_strip([noise(5), noise(5)], tmp_path / "clips.png")
    with Image.open(tmp_path / "clip.gif") as gif:
        assert (gif.size, getattr(gif, "n_frames")) == ((40, 48), 5)  # noqa: B009
    with Image.open(tmp_path / "clips.png") as strip:
        assert strip.size == (5 * 20, 2 * 24)
    write_gif(noise(5, channels=1), tmp_path / "depth.gif", fps=8)
    first = (tmp_path / "clip.gif").read_bytes()
    write_gif(noise(5), tmp_path / "clip.gif", fps=8, scale=2)
    assert (tmp_path / "clip.gif").read_bytes() == first
