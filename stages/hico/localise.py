"""Temporal localisation from features of an untrimmed video's windows (card, "Metrics").

With `bmn`, as in the paper on ActivityNet-1.3: the proposals of a boundary-matching network on windows at evenly spread
places. Without, at small cost: a linear classifier on sliding windows, merged into segments.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stages.hico.footage import Video
from stages.hico.localisation.detection import Segment, detection_map, merge_windows, recall_curve
from stages.hico.metrics import standardised
from stages.hico.params import HicoParams

STEP = 0.5  # of a window's length
THRESHOLD = 0.5  # of a class's probability
MOST_WINDOWS = 200  # of a video; longer ones get a larger step
RECALLED = 100  # proposals of a video that count for its recall
LIKELIEST = 2  # classes of a video that each proposal is detected as


def windows_of(video: Video, params: HicoParams) -> list[Video]:
    """The windows of an untrimmed video whose features localisation wants."""
    if params.bmn is None:
        return sliding_windows(video, params.clip.seconds)
    return spread_windows(video, params.clip.seconds, params.bmn.places)


def spread_windows(video: Video, seconds: float, count: int) -> list[Video]:
    """`count` windows of `seconds` in the middle of as many equal parts of a video, moved in where they run over."""
    middles = [video.duration * (number + 0.5) / count for number in range(count)]
    latest = max(video.duration - seconds, 0.0)
    starts = [video.start + min(max(middle - seconds / 2, 0.0), latest) for middle in middles]
    return [Video(video.files, start, min(start + seconds, video.end)) for start in starts]


def sliding_windows(video: Video, seconds: float) -> list[Video]:
    """Windows of `seconds` over an untrimmed video."""
    step = max(STEP * seconds, (video.duration - seconds) / (MOST_WINDOWS - 1))
    count = max(int((video.duration - seconds) / step + 1e-6) + 1, 1)
    starts = [video.start + number * step for number in range(count)]
    return [Video(video.files, start, min(start + seconds, video.end)) for start in starts]


def window_labels(video: Video, seconds: float, background: int) -> list[int]:
    """The action in the middle of each window, or `background`."""
    labels = []
    for part in sliding_windows(video, seconds):
        middle = (part.start + part.end) / 2
        inside = [action for start, end, action in video.segments if start <= middle < end]
        labels.append(inside[0] if inside else background)
    return labels


def localise_windows(
    train: Sequence[Video],
    test: Sequence[Video],
    train_NC: Tensor,
    test_NC: Tensor,
    classes: int,
    seconds: float,
) -> dict[str, float]:
    """mAP, AR@100 and AUC in percent, from the features of the sliding windows of all videos."""
    from sklearn.linear_model import LogisticRegression

    labels = [label for video in train for label in window_labels(video, seconds, classes)]
    fitted_NC, tested_NC = standardised(train_NC, test_NC)
    classifier = LogisticRegression(max_iter=1000).fit(fitted_NC.numpy(), labels)
    probability_NK = np.zeros((len(tested_NC), classes + 1))
    probability_NK[:, classifier.classes_] = classifier.predict_proba(tested_NC.numpy())
    found: list[Segment] = []
    truths: list[Segment] = []
    first = 0
    for number, video in enumerate(test):
        starts = np.array([window.start for window in sliding_windows(video, seconds)])
        rows_NK = probability_NK[first : first + len(starts)]
        first += len(starts)
        found += merge_windows(number, starts, seconds, rows_NK, THRESHOLD)
        truths += [Segment(number, start, end, action) for start, end, action in video.segments]
    return measures(found, found, truths)


def localise_proposals(
    train: Sequence[Video],
    test: Sequence[Video],
    train_VC: Tensor,
    test_VC: Tensor,
    proposals_VP3: Tensor,
    classes: int,
) -> dict[str, float]:
    """mAP, AR@100 and AUC in percent of a network's proposals.

    They have no class: each counts as the two that a linear classifier on the features of the whole video finds
    likeliest, as is usual on ActivityNet, whose videos hardly ever show two actions.
    """
    from sklearn.linear_model import LogisticRegression

    labelled = [number for number, video in enumerate(train) if video.segments]
    labels = [_main_class(train[number], classes) for number in labelled]
    fitted_VC, tested_VC = standardised(train_VC[labelled], test_VC)
    classifier = LogisticRegression(max_iter=1000).fit(fitted_VC.numpy(), labels)
    probability_VK = classifier.predict_proba(tested_VC.numpy())
    found: list[Segment] = []
    detected: list[Segment] = []
    for number, (video, proposals_P3) in enumerate(zip(test, proposals_VP3.tolist(), strict=True)):
        likeliest = probability_VK[number].argsort(kind="stable")[::-1][:LIKELIEST]
        for start, end, score in proposals_P3:
            if not score:
                continue
            start, end = (video.start + share * video.duration for share in (start, end))
            found.append(Segment(number, start, end, 0, score))
            detected += [
                Segment(
                    number, start, end, int(classifier.classes_[k]), score * float(probability_VK[number, k])
                )
                for k in likeliest
            ]
    truths = [
        Segment(n, start, end, action)
        for n, video in enumerate(test)
        for start, end, action in video.segments
    ]
    return measures(detected, found, truths)


def measures(
    detected: Sequence[Segment], proposed: Sequence[Segment], truths: Sequence[Segment]
) -> dict[str, float]:
    """mAP of detections; AR@100 and AUC of proposals."""
    recall = recall_curve(proposed, truths, RECALLED)
    return {
        **detection_map(detected, truths),
        f"AR@{RECALLED}": float(recall[-1]),
        "AUC": float(recall.mean()),
    }


def _main_class(video: Video, classes: int) -> int:
    """The class that fills most of a video."""
    seconds = np.zeros(classes)
    for start, end, action in video.segments:
        seconds[action] += end - start
    return int(seconds.argmax())
