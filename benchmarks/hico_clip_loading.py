"""HiCo's clip loading: the share of a training's time that is spent waiting for data, by number of loader processes.

Generated videos (stages/hico/world.py) as files; a step draws HiCo's three clips of 24 videos, augments and trains the quick
encoder, as `hico-pretrain` does. Files are read each time (as at real scale), or decoded once and kept (quick); the first
steps are not counted.

    python -m benchmarks.hico_clip_loading [--videos 48] [--steps 30] [--workers 0 1 2]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from stages.common.video.reading import index_video
from stages.common.video.writing import encode_video
from stages.hico.batches import ClipBatches, load_ahead, step_generator
from stages.hico.cells import METHODS, build_model
from stages.hico.footage import Footage, Library, Video, save_footage
from stages.hico.method.losses import hico_loss
from stages.hico.params import HicoParams
from stages.hico.training import clip_augment
from stages.hico.world import FPS, untrimmed_video

SKIPPED = 5  # steps in which the loaders start


def write_videos(folder: Path, count: int) -> None:
    indexes, videos = [], []
    for number in range(count):
        frames, _ = untrimmed_video(np.random.default_rng(number), number % 4, 30.0, 0.5)
        path = folder / f"{number:03d}.mp4"
        path.write_bytes(encode_video(torch.from_numpy(frames), FPS))
        indexes.append(index_video(path))
        videos.append(Video((number,), 0.0, indexes[-1].duration))
    save_footage(folder, indexes, Footage({"untrimmed": videos}, {}), [])


def measure(
    folder: Path, params: HicoParams, in_memory: bool, workers: int, steps: int
) -> tuple[float, float]:
    """Seconds a step, and the share of them spent waiting for the batch."""
    library = Library(folder, params.clip, in_memory)
    videos, device = library.footage.sets["untrimmed"], torch.device("cpu")
    if in_memory:
        for video in videos:
            library.views(video, 1)
    model = build_model(params, "hico", 0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    augment = clip_augment(params.pretrain.augmentation, params.clip.size)
    rule, total = METHODS["hico"].rule(params), steps + SKIPPED
    batches = ClipBatches(library, videos, rule, params.pretrain.batch, total, 0, "refuse")
    waited, begin = 0.0, 0.0
    asked = time.perf_counter()
    for step, batch in enumerate(load_ahead(batches, 0, workers, device)):
        waited += time.perf_counter() - asked
        if step == SKIPPED:
            waited, begin = 0.0, time.perf_counter()
        x = augment(batch.clips, augment.draw(len(batch.clips), step_generator(0, step)))
        z, logits = model(x)
        assert logits is not None
        loss, _, _ = hico_loss(z, logits, 3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        asked = time.perf_counter()
    spent = time.perf_counter() - begin
    return spent / steps, waited / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    params = HicoParams.model_validate(yaml.safe_load(Path("conf/hico/quick.yaml").read_text()))
    with tempfile.TemporaryDirectory() as name:
        write_videos(Path(name), options.videos)
        print("files             workers   ms a step   waiting for data")
        for in_memory in (False, True):
            for workers in options.workers:
                seconds, share = measure(Path(name), params, in_memory, workers, options.steps)
                kind = "decoded once" if in_memory else "read each time"
                print(f"{kind:17s} {workers:7d} {1e3 * seconds:11.0f} {share:18.0%}")


if __name__ == "__main__":
    main()
