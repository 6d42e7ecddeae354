"""PartScenes: generated scenes in which classes share parts, so that appearance alone cannot separate them.

Things: 3 bodies (red stripes in a disc, green dots in a square, blue diagonals in a diamond) x 2 heads (yellow
striped disc, magenta plain square): every body belongs to two classes and every head to three. Stuff: 3
background textures, two per scene, split by a slanted line. Labels: 0..2 stuff, 3..8 things.

The pre-training images stand in for ImageNet: one large object on neutral grey noise, or stuff alone.

Colours of stuff and parts point away from each other (around the hue circle, dark, light). A tiny encoder's code is
nearly linear in colour and the CAM compares directions: stuff that is a paler form of a part's colour would be its twin.
"""

import math

import torch
from torch import Generator, Tensor

BODIES, HEADS, STUFF = 3, 2, 3
THINGS = BODIES * HEADS
CLASSES = (
    "dark bricks", "light waves", "teal checks",
    "red with disc", "red with square", "green with disc", "green with square", "blue with disc", "blue with square",
)  # fmt: skip
BODY_COLOURS = torch.tensor([[0.85, 0.2, 0.15], [0.2, 0.7, 0.25], [0.2, 0.3, 0.85]])
HEAD_COLOURS = torch.tensor([[0.9, 0.85, 0.2], [0.85, 0.25, 0.8]])
STUFF_COLOURS = torch.tensor([[0.24, 0.21, 0.2], [0.85, 0.83, 0.78], [0.2, 0.58, 0.6]])
DARK = 0.45  # brightness of a texture's dark half
SINGLE_SHARE = 0.75  # of the pre-training images, with an object
NOISE = 0.05
HEAD_SIZE, HEAD_PLACE = 0.8, 1.6  # in radii of the body, above its centre


def scenes(count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Target scenes: images `[N, 3, size, size]` uint8 and labels `[N, size, size]` uint8, 1 to 3 objects each."""
    image_NCHW, label_NHW = _backgrounds(count, size, generator)
    objects_N = torch.randint(1, 4, (count,), generator=generator)
    # places on a jittered 2 x 2 grid, so that objects seldom cover each other whole
    place_N4 = torch.rand(count, 4, generator=generator).argsort(1)
    for number in range(3):
        cell_N = place_N4[:, number]
        jitter_N2 = _uniform((count, 2), -0.07, 0.07, generator)
        centre_N2 = torch.stack([0.28 + 0.44 * (cell_N % 2), 0.31 + 0.44 * (cell_N // 2)], 1) + jitter_N2
        radius_N = _uniform((count,), 0.115, 0.155, generator)
        shown_N = number < objects_N
        _paint_objects(image_NCHW, label_NHW, centre_N2 * size, radius_N * size, shown_N, generator)
    return _finish(image_NCHW, generator), label_NHW


def single_objects(count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pre-training images `[N, 3, size, size]` uint8, and the class of each `[N]` (only for probes)."""
    image_NCHW, label_NHW = _backgrounds(count, size, generator, split=False)
    shown_N = torch.rand(count, generator=generator) < SINGLE_SHARE
    grey_N = _uniform((count,), 0.35, 0.65, generator)
    noise_NCHW = 0.1 * torch.randn(image_NCHW.shape, generator=generator)
    neutral_NCHW = grey_N[:, None, None, None] + noise_NCHW
    image_NCHW = torch.where(shown_N[:, None, None, None], neutral_NCHW, image_NCHW)
    centre_N2 = torch.stack(
        [_uniform((count,), 0.4, 0.6, generator), _uniform((count,), 0.54, 0.7, generator)], 1
    )
    radius_N = _uniform((count,), 0.2, 0.28, generator)
    _paint_objects(image_NCHW, label_NHW, centre_N2 * size, radius_N * size, shown_N, generator)
    return _finish(image_NCHW, generator), label_NHW.flatten(1).amax(1)


def shuffle_pixels(images_NCHW: Tensor, generator: Generator) -> Tensor:
    """The same pixels, those of each image in an order of its own: colours without shapes or textures."""
    count, channels, height, width = images_NCHW.shape
    order_NP = torch.rand(count, height * width, generator=generator).argsort(1)
    flat_NCP = images_NCHW.flatten(2).gather(2, order_NP[:, None].expand(-1, channels, -1))
    return flat_NCP.view(count, channels, height, width)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    line = torch.arange(size, dtype=torch.float32) + 0.5
    y_HW, x_HW = torch.meshgrid(line, line, indexing="ij")
    return y_HW[None], x_HW[None]


def _stuff_texture(kind_N: Tensor, size: int, generator: Generator) -> Tensor:
    """Light (1) and dark (DARK) pixels `[N, H, W]` of the background kinds, at a random phase."""
    y_HW, x_HW = _grid(size)
    phase_N11 = _uniform((len(kind_N), 1, 1), 0, 12, generator)
    y_NHW, x_NHW = y_HW + phase_N11, x_HW + 1.7 * phase_N11
    bricks = (y_NHW % 5 < 1) | ((x_NHW + 4 * (y_NHW // 5 % 2)) % 8 < 1)
    waves = (y_NHW + 1.5 * torch.sin(x_NHW / 2.5)) % 6 < 3
    checks = (y_NHW // 3 + x_NHW // 3) % 2 < 1
    dark_3NHW = torch.stack([bricks, waves, checks])
    dark_NHW = dark_3NHW[kind_N, torch.arange(len(kind_N))]
    return torch.where(dark_NHW, (1 + DARK) / 2, 1.0)


def _backgrounds(count: int, size: int, generator: Generator, split: bool = True) -> tuple[Tensor, Tensor]:
    """Stuff: two kinds on either side of a slanted line, or one."""
    y_HW, x_HW = _grid(size)
    kinds_N2 = torch.rand(count, STUFF, generator=generator).argsort(1)[:, :2]
    angle_N11 = _uniform((count, 1, 1), 0, 2 * math.pi, generator)
    shift_N11 = _uniform((count, 1, 1), -0.15, 0.15, generator) * size
    side_NHW = (x_HW - size / 2) * angle_N11.cos() + (y_HW - size / 2) * angle_N11.sin() > shift_N11
    if not split:
        side_NHW = torch.zeros_like(side_NHW)
    image_2NCHW = torch.stack(
        [
            STUFF_COLOURS[kind_N][:, :, None, None] * _stuff_texture(kind_N, size, generator)[:, None]
            for kind_N in kinds_N2.T
        ]
    )
    image_NCHW = torch.where(side_NHW[:, None], image_2NCHW[1], image_2NCHW[0])
    label_NHW = torch.where(side_NHW, kinds_N2[:, 1, None, None], kinds_N2[:, 0, None, None])
    return image_NCHW, label_NHW.to(torch.uint8)


def _paint_objects(
    image_NCHW: Tensor,
    label_NHW: Tensor,
    centre_N2: Tensor,
    radius_N: Tensor,
    shown_N: Tensor,
    generator: Generator,
) -> None:
    """Paint one object of a random class into each image in place, where `shown_N`."""
    count, _, size, _ = image_NCHW.shape
    kind_N = torch.randint(0, THINGS, (count,), generator=generator)
    body_N, head_N = kind_N // HEADS, kind_N % HEADS
    y_HW, x_HW = _grid(size)
    tilt_N11 = _uniform((count, 1, 1), -0.3, 0.3, generator)
    aspect_N11 = _uniform((count, 1, 1), 0.85, 1.15, generator)
    dx_NHW = (x_HW - centre_N2[:, 0, None, None]) / radius_N[:, None, None]
    dy_NHW = (y_HW - centre_N2[:, 1, None, None]) / radius_N[:, None, None]
    u_NHW = (dx_NHW * tilt_N11.cos() + dy_NHW * tilt_N11.sin()) * aspect_N11
    v_NHW = -dx_NHW * tilt_N11.sin() + dy_NHW * tilt_N11.cos()
    each = torch.arange(count)
    disc, square, diamond = (
        u_NHW.square() + v_NHW.square() < 1,
        torch.maximum(u_NHW.abs(), v_NHW.abs()) < 0.88,
        u_NHW.abs() + v_NHW.abs() < 1.25,
    )
    stripes = (v_NHW * 1.5) % 1 < 0.5
    dots = ((u_NHW * 1.6) % 1 - 0.5).square() + ((v_NHW * 1.6) % 1 - 0.5).square() < 0.1
    diagonals = ((u_NHW + v_NHW) * 1.1) % 1 < 0.5
    body_NHW = torch.stack([disc, square, diamond])[body_N, each]
    body_dark_NHW = torch.stack([stripes, dots, diagonals])[body_N, each]
    p_NHW, q_NHW = u_NHW / HEAD_SIZE, (v_NHW + HEAD_PLACE) / HEAD_SIZE
    head_NHW = torch.stack(
        [p_NHW.square() + q_NHW.square() < 1, torch.maximum(p_NHW.abs(), q_NHW.abs()) < 0.88]
    )[head_N, each]
    head_dark_NHW = ((p_NHW * 1.5) % 1 < 0.5) & (head_N == 0)[:, None, None]
    bright_N111 = _uniform((count, 1, 1, 1), 0.85, 1.15, generator)
    for part_NHW, dark_NHW, colour_NC in (
        (body_NHW, body_dark_NHW, BODY_COLOURS[body_N]),
        (head_NHW, head_dark_NHW, HEAD_COLOURS[head_N]),
    ):
        paint_NHW = part_NHW & shown_N[:, None, None]
        pixel_NCHW = colour_NC[:, :, None, None] * torch.where(dark_NHW, DARK, 1.0)[:, None] * bright_N111
        image_NCHW.copy_(torch.where(paint_NHW[:, None], pixel_NCHW, image_NCHW))
        label_NHW.copy_(torch.where(paint_NHW, (STUFF + kind_N)[:, None, None].to(torch.uint8), label_NHW))


def _finish(image_NCHW: Tensor, generator: Generator) -> Tensor:
    """Brightness of the whole image, pixel noise, eight bits."""
    bright_N111 = _uniform((len(image_NCHW), 1, 1, 1), 0.85, 1.15, generator)
    noise_NCHW = NOISE * torch.randn(image_NCHW.shape, generator=generator)
    return ((image_NCHW * bright_N111 + noise_NCHW) * 255).round().clamp(0, 255).to(torch.uint8)
