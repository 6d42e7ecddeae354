"""Real videos by folder, below `video_root`: what is where, and which of it can be used.

* breakfast: `breakfast/<person>/<camera>/<person>_<recipe>.avi`, and beside it `.avi.labels` with lines `first-last unit`
  (frames from 1; `SIL` is background). People P03 to P15 are the test split.
* hacs, uk400: `<set>/training.txt` with lines `id,start_ms,end_ms` (7 digits each), and the pieces of each video,
  `<set>/train/v_<id>_<start>_<end>.mp4`.
* k400: `k400/kinetics400_train_list.txt` with lines `path label`, paths below `k400/`.
* activitynet: `activitynet/activity_net.v1-3.min.json`, the official annotations, and `activitynet/videos/v_<id>.<suffix>`.
  Videos of the subset `validation` are the test split; those that are not there are left out, and counted.
* ucf101, hmdb51: `<set>/<set>_train_list.txt` and `<set>_test_list.txt` with lines `path label`, paths below `<set>/`
  (split 1).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stages.common.stage.errors import InputError
from stages.common.video.bad_files import BadFiles
from stages.common.video.reading import VideoError, VideoIndex, index_video
from stages.hico.footage import UNKNOWN, Footage, Video
from stages.hico.params import HicoParams

BREAKFAST_TEST = {f"P{number:02d}" for number in range(3, 16)}  # the first of the four official splits
BACKGROUND = "SIL"
ACTIVITYNET_SPLITS = {"train": "training", "test": "validation"}


@dataclass
class Files:
    """The files that were indexed so far, and what was left out."""

    bad: BadFiles
    indexes: list[VideoIndex] = field(default_factory=list)
    numbers: dict[Path, int] = field(default_factory=dict)

    def add(self, path: Path) -> int:
        """The number of a file.

        Raises:
            VideoError: it cannot be used.
        """
        if path not in self.numbers:
            index = index_video(path)
            self.numbers[path] = len(self.indexes)
            self.indexes.append(index)
        return self.numbers[path]

    def whole(self, path: Path, action: int = UNKNOWN, topic: int = UNKNOWN) -> Video:
        """A video that is one file."""
        number = self.add(path)
        return Video((number,), 0.0, self.indexes[number].duration, action, topic)


def list_folders(params: HicoParams) -> tuple[list[VideoIndex], Footage, list[str]]:
    """Index and list all sets that the parameters name; also the reasons for what was left out.

    Raises:
        InputError: a folder or list is missing, a set has no usable video, or (`on_bad` refuse) a video is bad.
    """
    root = Path(str(params.video_root)).resolve()
    files = Files(BadFiles(params.on_bad))
    shortest = 2 * params.clip.seconds
    footage = Footage({}, {})
    if "breakfast" in {params.untrimmed, params.trimmed, *params.targets}:
        _breakfast(root / "breakfast", files, footage, params.targets)
    if params.untrimmed in ("hacs", "uk400"):
        footage.sets["untrimmed"] = _pieces(root / params.untrimmed, files)
    elif params.untrimmed == "breakfast":
        footage.sets["untrimmed"] = footage.sets["breakfast/untrimmed/train"]
    if params.trimmed == "k400":
        listing = root / "k400" / "kinetics400_train_list.txt"
        footage.sets["trimmed"] = _listed(listing, files)[0]
    elif params.trimmed == "breakfast":
        footage.sets["trimmed"] = footage.sets["breakfast/train"]
    for target in params.targets:
        if target == "activitynet":
            _activitynet(root / target, files, footage)
        if target in ("ucf101", "hmdb51"):
            labels: dict[str, int] = {}
            for split in ("train", "test"):
                listing = root / target / f"{target}_{split}_list.txt"
                footage.sets[f"{target}/{split}"], names = _listed(listing, files)
                labels |= names
            footage.classes[target] = [name for name, _ in sorted(labels.items(), key=lambda item: item[1])]
    for name in ("untrimmed", "trimmed"):
        if name in footage.sets:
            footage.sets[name] = [
                video for video in footage.sets[name] if _long_enough(video, shortest, files)
            ]
    for name, videos in footage.sets.items():
        files.bad.demand(len(videos), name)
    return files.indexes, footage, files.bad.reasons


def _long_enough(video: Video, shortest: float, files: Files) -> bool:
    """Videos shorter than two clips leave no freedom for their clips: they are left out of pre-training, and counted."""
    if video.duration >= shortest:
        return True
    path = files.indexes[video.files[0]].path
    where = f" at {video.start:.1f} s" if video.start else ""
    files.bad.reasons.append(
        f"{path}{where}: {video.duration:.2f} s, shorter than two clips ({shortest:.2f} s)"
    )
    return False


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; `stages/hico/folders.py` says how each set is laid out")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _parsed(path: Path, parse: Callable[[str], None]) -> None:
    """Give every line to `parse`; a line that it cannot take is named."""
    for number, line in enumerate(_lines(path), 1):
        try:
            parse(line)
        except VideoError:
            raise
        except (ValueError, IndexError):
            raise InputError(f"{path}:{number}: {line!r} is not what is expected there") from None


def _listed(listing: Path, files: Files) -> tuple[list[Video], dict[str, int]]:
    """Videos of a list of `path label` lines; class names are the folders that the paths name."""
    videos: list[Video] = []
    names: dict[str, int] = {}

    def parse(line: str) -> None:
        name, label = line.rsplit(maxsplit=1)
        names.setdefault(Path(name).parent.name, int(label))
        with files.bad.tolerated():
            videos.append(files.whole(listing.parent / name, int(label)))

    _parsed(listing, parse)
    return videos, names


def _pieces(folder: Path, files: Files) -> list[Video]:
    """Long videos that are cut into files of a few seconds; a video with a piece that cannot be used is left out."""
    pieces: dict[str, list[tuple[int, Path]]] = {}

    def parse(line: str) -> None:
        name, start, end = line.rsplit(",", 2)
        path = folder / "train" / f"v_{name}_{start}_{end}.mp4"
        pieces.setdefault(name, []).append((int(start), path))

    _parsed(folder / "training.txt", parse)
    videos = []
    for parts in pieces.values():
        with files.bad.tolerated():
            numbers = tuple(files.add(path) for _, path in sorted(parts))
            _same_rate(numbers, files)
            duration = sum(files.indexes[number].duration for number in numbers)
            videos.append(Video(numbers, 0.0, duration))
    return videos


def _same_rate(numbers: tuple[int, ...], files: Files) -> None:
    rates = {round(files.indexes[number].fps, 2) for number in numbers}
    if len(rates) > 1:
        raise VideoError(
            f"{files.indexes[numbers[0]].path}: its pieces have other frame rates: {sorted(rates)}"
        )


def _breakfast(folder: Path, files: Files, footage: Footage, targets: Sequence[str]) -> None:
    """Untrimmed videos with topic (recipe) and segments, and their units as trimmed ones, split by person."""
    paths = sorted(folder.glob("*/*/*.avi"))
    if not paths:
        raise InputError(f"{folder}: has no <person>/<camera>/<person>_<recipe>.avi")
    recipes = sorted({path.stem.split("_", 1)[-1] for path in paths})
    units = {path: _units(path.with_name(f"{path.name}.labels")) for path in paths}
    names = sorted({name for lines in units.values() for _, _, name in lines if name != BACKGROUND})
    sets: dict[str, list[Video]] = {
        f"breakfast/{part}{split}": [] for part in ("", "untrimmed/") for split in ("train", "test")
    }
    for path in paths:
        split = "test" if path.parts[-3] in BREAKFAST_TEST else "train"
        with files.bad.tolerated():
            topic = recipes.index(path.stem.split("_", 1)[-1])
            video = files.whole(path, topic=topic)
            fps = files.indexes[video.files[0]].fps
            segments = tuple(
                ((first - 1) / fps, min(last / fps, video.duration), names.index(name))
                for first, last, name in units[path]
                if name != BACKGROUND and (first - 1) / fps < video.duration
            )
            sets[f"breakfast/untrimmed/{split}"].append(
                Video(video.files, 0.0, video.duration, UNKNOWN, topic, segments)
            )
            sets[f"breakfast/{split}"] += [
                Video(video.files, start, end, action, topic) for start, end, action in segments
            ]
    footage.sets.update(sets if "breakfast" in targets else {n: v for n, v in sets.items() if "train" in n})
    footage.classes["breakfast"] = names


def _activitynet(folder: Path, files: Files, footage: Footage) -> None:
    """Untrimmed videos with their segments, by the official split."""
    listing = folder / "activity_net.v1-3.min.json"
    if not listing.is_file():
        raise InputError(f"{listing}: no such file; `stages/hico/folders.py` says how each set is laid out")
    paths = {path.stem: path for path in sorted((folder / "videos").glob("v_*"))}
    try:
        videos = {
            name: (
                video["subset"],
                [(*map(float, found["segment"]), found["label"]) for found in video["annotations"]],
            )
            for name, video in json.loads(listing.read_text())["database"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{listing}: not ActivityNet's annotations ({error!r})") from None
    names = sorted({label for _, segments in videos.values() for *_, label in segments})
    footage.classes["activitynet"] = names
    for split, subset in ACTIVITYNET_SPLITS.items():
        kept = footage.sets[f"activitynet/untrimmed/{split}"] = []
        for name in sorted(name for name, (own, _) in videos.items() if own == subset):
            with files.bad.tolerated():
                path = paths.get(f"v_{name}", folder / "videos" / f"v_{name}.mp4")
                video = files.whole(path)
                segments = tuple(
                    (max(start, 0.0), min(end, video.duration), names.index(label))
                    for start, end, label in videos[name][1]
                    if start < min(end, video.duration)
                )
                kept.append(replace(video, segments=segments))


def _units(path: Path) -> list[tuple[int, int, str]]:
    """Lines `first-last unit`, in frames from 1."""
    units: list[tuple[int, int, str]] = []

    def parse(line: str) -> None:
        frames, name = line.split()
        first, last = frames.split("-")
        units.append((int(first), int(last), name))

    _parsed(path, parse)
    return units
