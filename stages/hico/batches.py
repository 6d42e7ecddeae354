"""Training batches that depend on (seed, step) alone, made ahead by worker processes.

Letters: V videos of a batch (of this process), n clips each.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.common.stage.device import process_share
from stages.common.video.bad_files import OnBad
from stages.common.video.reading import VideoError
from stages.hico.footage import Library, Video
from stages.hico.method.clip_sampling import ClipRule, Window, sample_clips, window

EPOCH_SEED = 1_000_003  # every epoch of every seed has a shuffle of its own


@dataclass(frozen=True)
class Batch:
    """Clips uint8 `[V * n, T, C, H, W]`, the videos' labels `[V]`, and why videos were replaced by the next one."""

    clips: Tensor
    labels: Tensor
    bad: tuple[str, ...]


class ClipBatches(torch.utils.data.Dataset[Batch]):
    """The batch of every step of a training.

    The clips of a step depend on the seed, the step and nothing else: progress for gradual sampling is step /
    steps, so that resuming or another number of workers changes nothing (the official code passes it through a
    file, card, pitfall 3).

    `rule` draws several clips of a video; None draws one anywhere (fine-tuning).
    """

    def __init__(
        self,
        library: Library,
        videos: Sequence[Video],
        rule: ClipRule | None,
        batch: int,
        steps: int,
        seed: int,
        on_bad: OnBad,
    ) -> None:
        self.library, self.videos, self.rule = library, videos, rule
        self.batch, self.steps, self.seed, self.on_bad = batch, steps, seed, on_bad
        self.share = process_share()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        rank, world = self.share
        places = self._places(step)[rank::world]
        bad: list[str] = []
        clips, labels = zip(*(self._example(place, step, bad) for place in places), strict=True)
        return Batch(torch.cat(clips), torch.tensor(labels), tuple(bad))

    def _places(self, step: int) -> list[int]:
        """Which videos: every epoch is a new order; what does not fill a batch is left out of it."""
        per_epoch = max(len(self.videos) // self.batch, 1)
        epoch, number = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(self.seed * EPOCH_SEED + epoch)
        order = torch.randperm(len(self.videos), generator=generator).tolist()
        return order[number * self.batch : (number + 1) * self.batch]

    def _example(self, place: int, step: int, bad: list[str]) -> tuple[Tensor, int]:
        """Clips and action of a video; of the next one that can be read, if this one cannot and `on_bad` is to skip."""
        for following in range(len(self.videos)):
            number = (place + following) % len(self.videos)
            video = self.videos[number]
            rng = random.Random(f"{self.seed} {step} {number}")
            try:
                return self.library.windows(video, self._windows(video, step, rng)), video.action
            except VideoError as error:
                if self.on_bad == "refuse":
                    raise
                bad.append(str(error))
        raise VideoError(f"{len(self.videos)} videos: none can be decoded; the last: {bad[-1]}")

    def _windows(self, video: Video, step: int, rng: random.Random) -> list[Window]:
        seconds = self.library.clip.seconds
        if self.rule is None:
            return [window(rng.uniform(seconds / 2, video.duration - seconds / 2), video.duration, seconds)]
        return sample_clips(video.duration, step / self.steps, rng.random, self.rule, seconds)


def load_ahead(batches: ClipBatches, start: int, workers: int, device: torch.device) -> Iterator[Batch]:
    """Batches from step `start` on; `workers` processes prepare the next ones, 0 makes each when it is asked for."""
    loader: Any = torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
    )
    yield from loader


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one step's augmentation, on the CPU; each process of several has its own."""
    name = f"{seed} {step} augment {process_share()[0]}"
    return torch.Generator().manual_seed(random.Random(name).getrandbits(63))
