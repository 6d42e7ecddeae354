"""The generated videos of the quick scale: untrimmed, with topics, actions and background (card, "quick scale").

An action is a shape, a motion and a family of hues; no single one of them gives the action away, but shape and hue
together do: the world says nothing about learning motion. A topic is three actions. A video has one topic and is a
chain of shots, each either an action of the topic or background only; every shot has its own backdrop, clutter,
sprite size, place, phase, speed and colour.

Letters: F frames, H = W = 24, C = 3.
"""

import colorsys
from dataclasses import dataclass

import numpy as np

SIZE, FPS = 24, 8.0
SHAPES = ("bar", "square", "triangle", "cross")
MOTIONS = ("horizontal", "vertical", "circle", "pulsate", "rotate", "diagonal")
HUES = 6
ACTIONS = 12
TOPICS = ((0, 5, 10), (1, 6, 11), (2, 7, 8), (3, 4, 9))
TOPIC_OF = {action: topic for topic, actions in enumerate(TOPICS) for action in actions}
SHOT_SECONDS = (2.5, 5.0)
CLUTTER = 2
NOISE = 0.03

ROW_HW, COLUMN_HW = np.mgrid[:SIZE, :SIZE].astype(np.float32)


@dataclass(frozen=True)
class Shot:
    """A stretch of a video in seconds; `action` is None in background only."""

    start: float
    end: float
    action: int | None


def untrimmed_video(
    rng: np.random.Generator, topic: int, seconds: float, background: float
) -> tuple[np.ndarray, list[Shot]]:
    """Frames uint8 `[F, C, H, W]` and shots of one video; a shot is background with probability `background`."""
    frames, shots, total = [], [], round(seconds * FPS)
    done = 0
    while done < total:
        length = min(round(rng.uniform(*SHOT_SECONDS) * FPS), total - done)
        action = None if rng.random() < background else int(rng.choice(TOPICS[topic]))
        frames.append(shot_frames(rng, length, action))
        shots.append(Shot(done / FPS, (done + length) / FPS, action))
        done += length
    return np.concatenate(frames), shots


def shot_frames(rng: np.random.Generator, count: int, action: int | None) -> np.ndarray:
    """Frames uint8 `[F, C, H, W]` of one shot."""
    time_F = np.arange(count, dtype=np.float32)
    image_FCHW = backdrop(rng, time_F)
    for _ in range(CLUTTER):
        place = rng.uniform(2, SIZE - 2, 2)[:, None] + rng.uniform(-0.3, 0.3, (2, 1)) * time_F
        shape = SHAPES[rng.integers(len(SHAPES))]
        turn = np.full(count, rng.uniform(0, 2 * np.pi))
        colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.3, 0.9)))
        paint(image_FCHW, shape, place, np.full(count, rng.uniform(1.0, 1.8)), turn, colour)
    if action is not None:
        place, radius, turn = motion(rng, MOTIONS[action % len(MOTIONS)], time_F)
        hue = (5 * action % HUES) / HUES + rng.uniform(-0.05, 0.05)
        colour = np.array(colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0)))
        paint(image_FCHW, SHAPES[action % len(SHAPES)], place, radius, turn, colour)
    image_FCHW += NOISE * rng.standard_normal(image_FCHW.shape, dtype=np.float32)
    return np.round(255 * image_FCHW.clip(0, 1)).astype(np.uint8)


def backdrop(rng: np.random.Generator, time_F: np.ndarray) -> np.ndarray:
    """Three drifting waves on a tint, float32 `[F, C, H, W]`."""
    texture_FHW = np.zeros((len(time_F), SIZE, SIZE), dtype=np.float32)
    for _ in range(3):
        across, down = rng.uniform(-0.9, 0.9, 2)
        phase_F = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.3, 0.3) * time_F
        texture_FHW += np.sin(across * COLUMN_HW + down * ROW_HW + phase_F[:, None, None]).astype(np.float32)
    base_C = rng.uniform(0.3, 0.6) + rng.uniform(-0.08, 0.08, 3)
    tint_C = rng.uniform(-0.06, 0.06, 3)
    return (base_C[:, None, None] + tint_C[:, None, None] * texture_FHW[:, None]).astype(np.float32)


def motion(
    rng: np.random.Generator, name: str, time_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres `[2, F]` (x, y), radii `[F]` and angles `[F]` of a sprite in pixels and radians."""
    phase_F = rng.uniform(0, 2 * np.pi) + rng.choice([-1, 1]) * rng.uniform(0.5, 0.9) * time_F
    sine, cosine, still = np.sin(phase_F), np.cos(phase_F), np.zeros_like(phase_F)
    reach, radius = rng.uniform(3.0, 5.0), rng.uniform(3.5, 5.5)
    place = rng.uniform(9, SIZE - 9, 2)[:, None] + np.zeros_like(phase_F)
    moved = {
        "horizontal": (sine, still),
        "vertical": (still, sine),
        "circle": (0.7 * cosine, 0.7 * sine),
        "diagonal": (0.7 * sine, 0.7 * sine),
    }.get(name, (still, still))
    radius_F = radius * (1 + 0.4 * sine) if name == "pulsate" else np.full_like(phase_F, radius)
    turn_F = phase_F if name == "rotate" else np.full_like(phase_F, rng.uniform(-0.3, 0.3))
    return place + reach * np.stack(moved), radius_F, turn_F


def paint(
    image_FCHW: np.ndarray,
    shape: str,
    place_2F: np.ndarray,
    radius_F: np.ndarray,
    turn_F: np.ndarray,
    colour_C: np.ndarray,
) -> None:
    """Draw a sprite into every frame, its edge one pixel soft."""
    x_FHW = COLUMN_HW - place_2F[0].astype(np.float32)[:, None, None]
    y_FHW = ROW_HW - place_2F[1].astype(np.float32)[:, None, None]
    cos_F11, sin_F11 = (f(turn_F).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    r_F11 = radius_F.astype(np.float32)[:, None, None]
    u, v = cos_F11 * x_FHW + sin_F11 * y_FHW, cos_F11 * y_FHW - sin_F11 * x_FHW
    across, along = np.abs(u), np.abs(v)
    outside = {  # distance to the edge, positive outside
        "bar": lambda: np.maximum(across - 1.2 * r_F11, along - 0.4 * r_F11),
        "square": lambda: np.maximum(across, along) - 0.8 * r_F11,
        "triangle": lambda: np.maximum(0.866 * across + 0.5 * v, -v) - 0.55 * r_F11,
        "cross": lambda: np.minimum(
            np.maximum(across - r_F11, along - 0.35 * r_F11), np.maximum(along - r_F11, across - 0.35 * r_F11)
        ),
    }[shape]()
    cover_F1HW = np.clip(0.5 - outside, 0, 1)[:, None]
    image_FCHW += cover_F1HW * (colour_C.astype(np.float32)[:, None, None] - image_FCHW)
