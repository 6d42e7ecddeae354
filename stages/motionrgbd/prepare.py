"""motionrgbd-prepare: generate the clips of every seed, or find and check the videos of a data set.

Reads nothing (quick) or `data.root`. Writes `data/motionrgbd/<scale>/<seed>/` as `stages.motionrgbd.data` says.

Layouts (list files are `data.train_list` and `data.test_list`, relative to the root; from memory for the first two):
    isogd       lines `train/001/M_00001.avi train/001/K_00001.avi 66`, labels from 1
    nvgesture   lines `path:./Video_data/class_01/subject13_r0 ... color:sk_color:140:220 depth:sk_depth:140:220 label:0`
    frames      lines `folder n_frames label`, frames in `rgb/<folder>/` and `depth/<folder>/` (the released code's form)
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from stages.common.stage.errors import InputError
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import run, seed_everything
from stages.common.video.bad_files import BadFiles
from stages.common.video.reading import VideoError, VideoIndex, index_video, save_indexes
from stages.motionrgbd.data import Split, draws, frame_files
from stages.motionrgbd.params import MODALITIES, Data, Modality, MotionrgbdParams
from stages.motionrgbd.world import generate

SPLITS: tuple[Split, ...] = ("train", "test")
NOTHING_LEFT_OUT: dict[str, object] = {"bad": [], "short": 0}
UNEVEN_FRAMES = 2  # that the two modalities of a clip may differ by


@dataclass(frozen=True)
class Pair:
    """One clip as a list file names it; `first` and `stop` are frames, None to the end."""

    paths: dict[Modality, Path]
    label: int
    first: dict[Modality, int]
    stop: dict[Modality, int | None]


@dataclass(frozen=True)
class FrameFolder:
    """A clip as a folder of frames: what of it is known without reading them all."""

    path: Path
    height: int
    width: int
    frames: int


Source = VideoIndex | FrameFolder


@dataclass(frozen=True)
class Found:
    """What of a data set can be used, and what is left out."""

    clips: dict[Split, list[dict[str, object]]]
    indexes: list[VideoIndex]
    left_out: dict[str, object]


def main() -> None:
    """Prepare the data of every seed."""
    params = load_params(MotionrgbdParams, "motionrgbd")
    seed_everything(0)
    data = params.data
    found = None if data.name == "generated" else find_clips(data)
    with output_dir(Path("data/motionrgbd") / params.scale) as folder:
        for seed in params.seeds:
            with output_dir(folder / str(seed)) as output:
                if found is None:
                    for number, split in enumerate(SPLITS):
                        count = data.train if split == "train" else data.test
                        clips = generate(count, data.frames, data.side, draws(seed, number))
                        save_file(clips, output / f"{split}.safetensors")
                    left_out = NOTHING_LEFT_OUT
                else:
                    write_atomic(output / "clips.json", json.dumps(found.clips))
                    save_indexes(output / "indexes.parquet", found.indexes)
                    left_out = found.left_out
                write_atomic(output / "left_out.json", json.dumps(left_out, indent=1) + "\n")


def find_clips(data: Data) -> Found:
    """Check every clip of a data set.

    Raises:
        InputError: a list file is missing or damaged, no clip is left, or `on_bad` is `refuse` and one is bad.
    """
    bad, short = BadFiles(data.on_bad), 0
    clips: dict[Split, list[dict[str, object]]] = {}
    indexes: dict[str, VideoIndex] = {}
    for split in SPLITS:
        pairs = list(listed(data, split))
        found: list[tuple[Pair, dict[Modality, Source]]] = []
        with progress(f"motionrgbd-prepare {split}", len(pairs)) as bar:
            for pair in pairs:
                with bad.tolerated():
                    found.append((pair, checked(pair, data)))
                bar.advance()
        if data.one_size:
            found = of_one_size(found, bad)
        clips[split] = []
        for pair, index in found:
            frames = min((pair.stop[m] or index[m].frames) - pair.first[m] for m in MODALITIES)
            if frames < data.min_frames:
                short += 1
                continue
            entry: dict[str, object] = {"label": pair.label, "frames": frames}
            for modality in MODALITIES:
                path = str(index[modality].path)
                entry |= {modality: path, f"{modality}_first": pair.first[modality]}
                if isinstance(source := index[modality], VideoIndex):
                    indexes[path] = source
            clips[split].append(entry)
        bad.demand(len(clips[split]), f"{data.root}, {split}")
    return Found(clips, list(indexes.values()), {"bad": bad.reasons, "short": short})


def listed(data: Data, split: Split) -> Iterator[Pair]:
    """The clips of a split's list file.

    Raises:
        InputError: the file is missing, or a line of it is not of the layout's form.
    """
    root = Path(str(data.root))
    path = root / (data.train_list if split == "train" else data.test_list)
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pair = parsed(line.split(), root, data)
        except (ValueError, KeyError):
            raise InputError(f"{path}, line {number}: not of the layout {data.name}: {line[:80]!r}") from None
        if not 0 <= pair.label < data.classes:
            raise InputError(f"{path}, line {number}: label {pair.label}; there are {data.classes} classes")
        yield pair


def parsed(words: list[str], root: Path, data: Data) -> Pair:
    """One line of a list file, split at spaces."""
    start: dict[Modality, int] = {"rgb": 0, "depth": 0}
    whole: dict[Modality, int | None] = {"rgb": None, "depth": None}
    match data.name:
        case "isogd":
            rgb, depth, label = words
            return Pair({"rgb": root / rgb, "depth": root / depth}, int(label) - 1, start, whole)
        case "nvgesture":
            fields = dict(word.split(":", 1) for word in words)
            paths: dict[Modality, Path] = {}
            for modality, key in zip(MODALITIES, ("color", "depth"), strict=True):
                stem, first, stop = fields[key].split(":")
                paths[modality] = root / fields["path"] / f"{stem}.avi"
                start[modality], whole[modality] = int(first), int(stop)
            return Pair(paths, int(fields["label"]), start, whole)
        case _:
            folder, _, label = words
            return Pair(
                {"rgb": root / "rgb" / folder, "depth": root / "depth" / folder}, int(label), start, whole
            )


def checked(pair: Pair, data: Data) -> dict[Modality, Source]:
    """Both files of a clip, opened.

    Raises:
        VideoError: one is missing or cannot be used, or they do not fit each other.
    """
    found: dict[Modality, Source] = {}
    for modality, path in pair.paths.items():
        if not path.exists():
            other = pair.paths["rgb" if modality == "depth" else "depth"]
            raise VideoError(f"{path}: missing; it is the {modality} partner of {other}")
        found[modality] = index_folder(path) if data.name == "frames" else index_video(path, data.expect_fps)
        stop = pair.stop[modality]
        if stop is not None and stop > found[modality].frames:
            raise VideoError(f"{path}: has {found[modality].frames} frames, the list names {stop}")
    counts = {modality: index.frames for modality, index in found.items()}
    if abs(counts["rgb"] - counts["depth"]) > UNEVEN_FRAMES:
        raise VideoError(
            f"{pair.paths['depth']}: has {counts['depth']} frames, its colour partner {counts['rgb']}"
        )
    return found


def index_folder(folder: Path) -> FrameFolder:
    """Look at a folder of frames.

    Raises:
        VideoError: no frame is in it, or the first and last are of two sizes or cannot be opened.
    """
    from PIL import Image

    files = frame_files(folder)
    if not files:
        raise VideoError(f"{folder}: has no frames")
    sizes = []
    for file in (files[0], files[-1]):
        try:
            with Image.open(file) as image:
                sizes.append(image.size)
        except OSError:
            raise VideoError(f"{file}: not an image") from None
    if sizes[0] != sizes[1]:
        raise VideoError(f"{folder}: mixes frames of {sizes[0]} and {sizes[1]} pixels")
    return FrameFolder(folder, sizes[0][1], sizes[0][0], len(files))


def of_one_size(
    found: list[tuple[Pair, dict[Modality, Source]]], bad: BadFiles
) -> list[tuple[Pair, dict[Modality, Source]]]:
    """The clips whose files have the size of most of their modality; the others are bad."""
    usual = {
        modality: Counter((index[modality].height, index[modality].width) for _, index in found)
        for modality in MODALITIES
    }
    kept = []
    for pair, index in found:
        with bad.tolerated():
            for modality in MODALITIES:
                size, most = (
                    (index[modality].height, index[modality].width),
                    usual[modality].most_common(1)[0][0],
                )
                if size != most:
                    raise VideoError(
                        f"{index[modality].path}: is {size[0]} x {size[1]} pixels, others {most}"
                    )
            kept.append((pair, index))
    return kept


if __name__ == "__main__":
    run(main)
