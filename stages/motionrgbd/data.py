"""Clips of both modalities as batches on the device: generated ones from memory, others from videos or frame folders.

Data flow: `prepare` writes `data/motionrgbd/<scale>/<seed>/`. Generated: `<split>.safetensors` with `rgb` `[N, T, 3, H, W]`,
`depth` `[N, T, 1, H, W]` (uint8) and `label` `[N]`. Otherwise `clips.json`, the usable clips of each split, and
`indexes.parquet`, the index of every video. `left_out.json` says how many clips are not used, and why.

Shapes: B clips, T frames, H x W pixels of the network's input.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from stages.common.video.augment import ClipAugment, centre_crop
from stages.common.video.reading import VideoError, VideoIndex, VideoReader, load_indexes
from stages.common.video.sampling import segment_frame_indices
from stages.motionrgbd.depth import coloured
from stages.motionrgbd.method.guidance import rank_pool_guidance
from stages.motionrgbd.params import Data, Modality

Split = Literal["train", "test"]
Ask = tuple[Tensor, Generator | None]  # which clips; with a generator they are augmented
MEAN, STD = 127.5 / 255, 128 / 255
GUIDANCE_BATCH = 32


class View(NamedTuple):
    """One modality of a batch: normalised frames `[B, T, 3, H, W]` and guidance `[B, T, H, W]`."""

    x_BTCHW: Tensor
    guidance_BTHW: Tensor


Views = dict[Modality, View]


class Clips(Protocol):
    """One split."""

    label_N: Tensor

    def batches(self, asks: Iterable[Ask]) -> Iterator[Views]:
        """The batches that are asked for, in order."""


def normalised(pixels: Tensor) -> Tensor:
    """`(x - 127.5) / 128`."""
    return (pixels.float() - 127.5) / 128


def draws(seed: int, draw: int) -> Generator:
    """The generator of one draw: it depends on (seed, draw) alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + draw)


class PackedClips:
    """Generated clips in memory. Guidance is computed once; a batch is rolled with its guidance."""

    def __init__(
        self, arrays: dict[str, Tensor], modalities: Iterable[Modality], data: Data, device: torch.device
    ) -> None:
        self.label_N, self.shift, self.device = arrays["label"], data.shift, device
        pixels: dict[Modality, Tensor] = {}
        for modality in modalities:
            depth = modality == "depth"
            pixels[modality] = coloured(arrays["depth"], data.depth_colour) if depth else arrays["rgb"]
        self.pixels = pixels
        self.guidance = {
            modality: torch.cat(
                [rank_pool_guidance(normalised(part), data.window) for part in clips.split(GUIDANCE_BATCH)]
            )
            for modality, clips in pixels.items()
        }

    def batches(self, asks: Iterable[Ask]) -> Iterator[Views]:
        """Batches; with a generator each clip is rolled by up to `shift` pixels, all modalities alike."""
        for ids_B, generator in asks:
            if generator is None:
                offsets_2B = torch.zeros(2, len(ids_B), dtype=torch.long)
            else:
                offsets_2B = torch.randint(-self.shift, self.shift + 1, (2, len(ids_B)), generator=generator)
            yield {
                modality: View(
                    normalised(rolled(clips[ids_B], offsets_2B)).to(self.device),
                    rolled(self.guidance[modality][ids_B][:, :, None], offsets_2B)[:, :, 0].to(self.device),
                )
                for modality, clips in self.pixels.items()
            }


def rolled(x_BTCHW: Tensor, offsets_2B: Tensor) -> Tensor:
    """Each clip rolled by its own (rows, columns)."""
    height, width = x_BTCHW.shape[-2:]
    row_BH1 = ((torch.arange(height) - offsets_2B[0, :, None]) % height)[:, :, None]
    column_B1W = ((torch.arange(width) - offsets_2B[1, :, None]) % width)[:, None]
    clip_B11 = torch.arange(len(x_BTCHW))[:, None, None]
    return x_BTCHW[clip_B11, :, :, row_BH1, column_B1W].permute(0, 3, 4, 1, 2)


class FolderClips:
    """Clips of video files or of folders of frames, read by threads while the device works on the batch before."""

    def __init__(
        self, clips: list[dict[str, Any]], indexes: dict[str, VideoIndex], modalities: Iterable[Modality],
        data: Data, device: torch.device,
    ) -> None:  # fmt: skip
        self.clips, self.indexes, self.modalities = clips, indexes, tuple(modalities)
        self.data, self.device = data, device
        self.label_N = torch.tensor([clip["label"] for clip in clips], dtype=torch.long)
        height, width = data.resize
        share = data.side**2 / (height * width)
        probability, degrees = data.rotation
        self.augment = ClipAugment(
            data.side, (share, share), flip=data.flip, rotation=(probability, degrees), mean=MEAN, std=STD
        )

    def batches(self, asks: Iterable[Ask]) -> Iterator[Views]:
        """Batches, one of which is always being read ahead."""
        with ThreadPoolExecutor(self.data.workers) as pool:
            ahead: list[tuple[list[Future[dict[Modality, Tensor]]], Generator | None]] = []
            for ids_B, generator in asks:
                ahead.append(
                    ([pool.submit(self._read, *job) for job in self._jobs(ids_B, generator)], generator)
                )
                if len(ahead) > 1:
                    yield self._finished(*ahead.pop(0))
            for reads, generator in ahead:
                yield self._finished(reads, generator)

    def _jobs(self, ids_B: Tensor, generator: Generator | None) -> list[tuple[dict[str, Any], Tensor]]:
        """Each clip with the places, 0 .. frames - 1, that are taken of it."""
        chosen = [self.clips[index] for index in ids_B.tolist()]
        return [
            (clip, torch.from_numpy(segment_frame_indices(clip["frames"], self.data.frames, generator)))
            for clip in chosen
        ]

    def _read(self, clip: dict[str, Any], places_T: Tensor) -> dict[Modality, Tensor]:
        return {
            modality: self._read_one(Path(clip[modality]), modality, places_T + clip[f"{modality}_first"])
            for modality in self.modalities
        }

    def _read_one(self, path: Path, modality: Modality, numbers_T: Tensor) -> Tensor:
        size = (self.data.resize[0], self.data.resize[1])
        if self.data.name == "frames":
            frames_TCHW = read_frames(path, numbers_T, size)
        else:
            colour: Literal["gray", "rgb"] = "gray" if modality == "depth" else "rgb"
            with VideoReader(self.indexes[str(path)], size, colour) as reader:
                frames_TCHW = reader.read(numbers_T.numpy())
        return frames_TCHW if frames_TCHW.shape[1] == 3 else coloured(frames_TCHW, self.data.depth_colour)

    def _finished(self, reads: list[Future[dict[Modality, Tensor]]], generator: Generator | None) -> Views:
        """On the device: one crop, flip and angle a clip, the same for both modalities; then guidance."""
        clips = [read.result() for read in reads]
        chosen = None if generator is None else self.augment.draw(len(clips), generator)
        views: Views = {}
        for modality in self.modalities:
            pixels = torch.stack([clip[modality] for clip in clips]).to(self.device)
            if chosen is None:
                share = self.data.side / min(self.data.resize)
                x_BCTHW = centre_crop(pixels, self.data.side, share, MEAN, STD)
            else:
                x_BCTHW = self.augment(pixels, chosen)
            x_BTCHW = x_BCTHW.transpose(1, 2)
            views[modality] = View(x_BTCHW, rank_pool_guidance(x_BTCHW, self.data.window))
        return views


def frame_files(folder: Path) -> list[Path]:
    """The frames of a clip in a folder, in order."""
    return sorted(path for path in folder.glob("*") if path.suffix in (".jpg", ".png"))


def read_frames(folder: Path, numbers_T: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames of a folder as uint8 `[T, C, H, W]`, resized to (height, width).

    Raises:
        VideoError: a frame is missing or damaged.
    """
    import numpy as np
    from PIL import Image

    files, frames = frame_files(folder), []
    for number in numbers_T.tolist():
        try:
            with Image.open(files[number]) as file:
                image = file.convert("L" if file.mode in ("L", "I;16", "I") else "RGB")
                frames.append(np.atleast_3d(np.asarray(image.resize(size[::-1]))))
        except (OSError, IndexError) as error:
            raise VideoError(f"{folder}: damaged at frame {number} ({type(error).__name__})") from None
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def open_clips(
    folder: Path, split: Split, modalities: Iterable[Modality], data: Data, device: torch.device
) -> Clips:
    """A split of what `prepare` left in `folder`."""
    if data.name == "generated":
        return PackedClips(load_file(folder / f"{split}.safetensors"), modalities, data, device)
    clips = json.loads((folder / "clips.json").read_text())[split]
    indexes = {str(index.path): index for index in load_indexes(folder / "indexes.parquet")}
    return FolderClips(clips, indexes, modalities, data, device)


def few(label_N: Tensor, per_class: int) -> Tensor:
    """The first `per_class` clips of each class, in order; 0 takes all."""
    if per_class == 0:
        return torch.arange(len(label_N))
    kept = [torch.nonzero(label_N == label)[:per_class, 0] for label in label_N.unique().tolist()]
    return torch.cat(kept).sort().values
