"""hico-prepare: generate the quick scale's videos, or index and list the real ones.

Reads nothing (quick), or folders below `video_root` (`stages.hico.folders`). Writes `data/hico/<scale>/<seed>/` as
`stages.hico.footage` says. Videos that cannot be used (truncated, without frames ...) or that are shorter than two
clips are left out and named in `skipped.json`, or refused, as `on_bad` says. Real footage is the same for every seed.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.common.video.reading import VideoIndex, index_video
from stages.common.video.writing import encode_video
from stages.hico.folders import list_folders
from stages.hico.footage import Footage, Video, save_footage
from stages.hico.params import HicoParams
from stages.hico.world import ACTIONS, FPS, TOPIC_OF, TOPICS, Shot, shot_frames, untrimmed_video

VIDEOS, SECONDS, BACKGROUND = 240, 30.0, 0.5  # untrimmed ones for pre-training
TRAIN_CLIPS, TEST_CLIPS, CLIP_SECONDS = 15, 30, 1.0  # of each action
TRAIN_LOCALISED, TEST_LOCALISED = 12, 16  # further untrimmed ones, whose segments are known


def main() -> None:
    """Prepare the videos of every seed."""
    params = load_params(HicoParams, "hico")
    seed_everything(0)
    if params.untrimmed != "generated" and params.video_root is None:
        raise ParameterError("hico.video_root: missing; give the folder that has the sets of videos")
    with output_dir(Path("data/hico") / params.scale) as folder:
        if params.untrimmed == "generated":
            for _ in run_jobs(partial(generate, folder=folder), params.seeds):
                pass
            return
        indexes, footage, skipped = list_folders(params)
        for seed in params.seeds:
            with output_dir(folder / str(seed)) as output:
                save_footage(output, indexes, footage, skipped)


def generate(seed: int, folder: Path) -> None:
    """Write the world of one seed."""
    with output_dir(folder / str(seed)) as output:
        writer = _Writer(output)
        untrimmed: list[Video] = []
        trimmed: list[Video] = []
        for number in range(VIDEOS):
            video = writer.untrimmed("untrimmed", seed, number)
            untrimmed.append(video)
            actions = [segment for segment in video.segments if segment[1] - segment[0] >= 2 * CLIP_SECONDS]
            if actions:  # one cut a video, as trimmed sets have it
                start, end, action = actions[number % len(actions)]
                trimmed.append(Video(video.files, start, end, action, video.topic))
        sets = {"untrimmed": untrimmed, "trimmed": trimmed}
        for split, count in (("train", TRAIN_CLIPS), ("test", TEST_CLIPS)):
            sets[f"generated/{split}"] = [
                writer.clip(split, seed, action, number)
                for action in range(ACTIONS)
                for number in range(count)
            ]
        for split, count in (("train", TRAIN_LOCALISED), ("test", TEST_LOCALISED)):
            sets[f"generated/untrimmed/{split}"] = [
                writer.untrimmed(f"localised-{split}", seed, number) for number in range(count)
            ]
        classes = {"generated": [str(action) for action in range(ACTIONS)]}
        save_footage(output, writer.indexes, Footage(sets, classes), [])


class _Writer:
    """Encodes videos into a folder; each has a generator of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.indexes: list[VideoIndex] = []

    def untrimmed(self, kind: str, seed: int, number: int) -> Video:
        rng = np.random.default_rng([seed, *kind.encode(), number])
        topic = number % len(TOPICS)
        frames_FCHW, shots = untrimmed_video(rng, topic, SECONDS, BACKGROUND)
        file = self._write(f"{kind}/{number:04d}.mp4", frames_FCHW)
        return Video((file,), 0.0, len(frames_FCHW) / FPS, topic=topic, segments=_segments(shots))

    def clip(self, split: str, seed: int, action: int, number: int) -> Video:
        rng = np.random.default_rng([seed, *split.encode(), action, number])
        frames_FCHW = shot_frames(rng, round(CLIP_SECONDS * FPS), action)
        file = self._write(f"{split}/{action:02d}-{number:02d}.mp4", frames_FCHW)
        return Video((file,), 0.0, CLIP_SECONDS, action, TOPIC_OF[action])

    def _write(self, name: str, frames_FCHW: np.ndarray) -> int:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_video(torch.from_numpy(frames_FCHW), FPS))
        self.indexes.append(index_video(path, expect_fps=FPS))
        return len(self.indexes) - 1


def _segments(shots: list[Shot]) -> tuple[tuple[float, float, int], ...]:
    """The shots that show an action."""
    return tuple((shot.start, shot.end, shot.action) for shot in shots if shot.action is not None)


if __name__ == "__main__":
    run(main)
