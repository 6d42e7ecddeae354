"""Generated point clouds for `quick`: points on the surface of eight solids, stretched, turned and noisy.

Source: card, "quick, 3D". Shapes: N clouds, P points.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

NOISE = 0.07
STRETCH = (0.7, 1.2)  # of each axis, before the rotation
TURNS = 3  # of the helix
Draw = Callable[..., Tensor]  # uniform numbers in 0 .. 1 of the given shape


def make_solids(count: int, points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clouds [N, 3, P] within the unit ball, centred, and their classes [N], every class equally often."""
    label_N = torch.arange(count) % len(SOLIDS)
    label_N = label_N[torch.randperm(count, generator=generator)]

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    x_N3P = torch.empty(count, 3, points)
    for label, surface in enumerate(SOLIDS.values()):
        chosen = (label_N == label).nonzero()[:, 0]
        x_N3P[chosen] = surface(draw, len(chosen), points).transpose(1, 2)
    low, high = STRETCH
    x_N3P *= low + (high - low) * draw(count, 3, 1)
    x_N3P = _rotations(count, generator) @ x_N3P
    x_N3P += NOISE * torch.randn(x_N3P.shape, generator=generator)
    return unit_ball(x_N3P), label_N


def unit_ball(x_N3P: Tensor) -> Tensor:
    """Clouds moved to their centre and scaled so that the farthest point has distance 1."""
    x_N3P = x_N3P - x_N3P.mean(2, keepdim=True)
    return x_N3P / x_N3P.norm(dim=1, keepdim=True).amax(2, keepdim=True)


def _rotations(count: int, generator: torch.Generator) -> Tensor:
    """Rotations [N, 3, 3], uniform over SO(3): of normalised Gaussian quaternions."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


# ------------------------------------------------------------------------- surfaces: [N, P, 3], uniform in area


def _circle(angle: Tensor, radius: Tensor | float, height: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height], 2)


def _sphere(draw: Draw, n: int, p: int) -> Tensor:
    height = 2 * draw(n, p) - 1  # Archimedes: uniform in height
    return _circle(2 * math.pi * draw(n, p), (1 - height**2).sqrt(), height)


def _cube(draw: Draw, n: int, p: int) -> Tensor:
    x_NP3 = 2 * draw(n, p, 3) - 1
    face_NP = (6 * draw(n, p)).long().clamp_max(5)
    side_NP1 = (2 * (face_NP % 2) - 1)[..., None].float()
    return x_NP3.scatter(2, (face_NP // 2)[..., None], side_NP1)


def _cylinder(draw: Draw, n: int, p: int) -> Tensor:
    # radius 1, height 2: the side has area 4 pi, each lid pi
    where, angle, other = draw(n, p), 2 * math.pi * draw(n, p), draw(n, p)
    side = where < 2 / 3
    lid = torch.where(where < 5 / 6, -1.0, 1.0)
    return _circle(angle, torch.where(side, 1.0, other.sqrt()), torch.where(side, 2 * other - 1, lid))


def _cone(draw: Draw, n: int, p: int) -> Tensor:
    # radius 1, height 2: the mantle has area sqrt(5) pi, the base pi; both are uniform in squared radius
    radius = draw(n, p).sqrt()
    base = draw(n, p) < 1 / (1 + math.sqrt(5))
    return _circle(2 * math.pi * draw(n, p), radius, torch.where(base, -1.0, 1 - 2 * radius))


def _torus(draw: Draw, n: int, p: int, tube: float = 0.4) -> Tensor:
    # area grows with 1 + tube cos(v): its distribution v + tube sin(v) is inverted by iteration
    uniform = 2 * math.pi * draw(n, p)
    v = uniform
    for _ in range(40):
        v = uniform - tube * v.sin()
    return _circle(2 * math.pi * draw(n, p), 1 + tube * v.cos(), tube * v.sin())


def _tetrahedron(draw: Draw, n: int, p: int) -> Tensor:
    corners_43 = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    missing_NP = (4 * draw(n, p)).long().clamp_max(3)
    root, other = draw(n, p).sqrt(), draw(n, p)
    weight_NP3 = torch.stack([1 - root, root * (1 - other), root * other], 2)
    triangles_433 = torch.stack([corners_43[[j for j in range(4) if j != i]] for i in range(4)])
    return torch.einsum("npk,npkd->npd", weight_NP3, triangles_433[missing_NP])


def _helix(draw: Draw, n: int, p: int) -> Tensor:
    t = draw(n, p)
    return _circle(2 * math.pi * TURNS * t, 1.0, 2 * t - 1)


def _wave(draw: Draw, n: int, p: int) -> Tensor:
    x, y = 2 * draw(n, p) - 1, 2 * draw(n, p) - 1
    return torch.stack([x, y, 0.4 * (2 * math.pi * x).sin()], 2)  # uniform in the sheet's plane


SOLIDS: dict[str, Callable[[Draw, int, int], Tensor]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "tetrahedron": _tetrahedron,
    "helix": _helix,
    "wave sheet": _wave,
}
