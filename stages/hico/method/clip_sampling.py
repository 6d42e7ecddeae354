"""Which clips of a video form a training example (card, "Clip geometry and draws")."""

from collections.abc import Callable
from dataclasses import dataclass

Window = tuple[float, float]  # start and end in seconds


@dataclass(frozen=True)
class ClipRule:
    """How the clips of a video are drawn.

    Args:
        clips: how many.
        distance: largest distance in seconds between the centres of a clip and the one before it, at the start and
        at the end of training (equal: fixed); None draws every clip anywhere.
        topical: whether the last clip is drawn anywhere, whatever the distance.

    The paper's modes: `ClipRule(3, (0, 1), True)` is HiCo, `ClipRule(2, (0, 1), False)` gradual sampling alone,
    `ClipRule(3, (1, 1), True)` a fixed distance, `ClipRule(2, None, False)` SimCLR.
    """

    clips: int
    distance: tuple[float, float] | None
    topical: bool


def gradual_distance(progress: float, start: float, end: float) -> float:
    """Distance limit d(p) in seconds at the training progress p, from `start` to `end`."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def sample_clips(
    duration: float, progress: float, uniform: Callable[[], float], rule: ClipRule, clip_seconds: float
) -> list[Window]:
    """Windows of one example of a video of `duration` seconds.

    A whole clip length is kept free at both ends of the video. `uniform` gives numbers in 0 .. 1; as in the
    official code a topical clip is first drawn near the one before it and then anew, and a range whose upper bound
    is below its lower one gives the lower one, a number being consumed all the same.

    Videos shorter than two clips have no freedom: all their clips are equal. One shorter than half a clip is a
    window of its own, where the official code ends before it starts.
    """

    def draw(low: float, high: float) -> float:
        return (max(high, low) - low) * uniform() + low

    first, last = clip_seconds, duration - clip_seconds
    centres = [draw(first, last)]
    limit = None if rule.distance is None else gradual_distance(progress, *rule.distance)
    for _ in range(rule.clips - 1):
        if limit is None:
            centres.append(draw(first, last))
        else:
            centres.append(draw(max(centres[-1] - limit, first), min(centres[-1] + limit, last)))
    if rule.topical:
        centres[-1] = draw(first, last)
    return [window(centre, duration, clip_seconds) for centre in centres]


def window(centre: float, duration: float, clip_seconds: float) -> Window:
    """The clip around `centre`, cut to the video."""
    start, end = max(centre - clip_seconds / 2, 0.0), min(centre + clip_seconds / 2, duration)
    return (start, end) if start < end else (0.0, duration)
