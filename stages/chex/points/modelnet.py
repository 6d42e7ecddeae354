"""ModelNet as it is distributed: meshes in OFF files, or clouds in HDF5 files.

ModelNet10 (`ModelNet10.zip`): `<class>/{train,test}/*.off`. ModelNet40 as PointNet's authors sampled it
(`modelnet40_ply_hdf5_2048`): `{train,test}_files.txt` with one path a line, of which the name counts;
`shape_names.txt`; files with `data [N, 2048, 3]` and `label [N, 1]`.
"""

import itertools
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stages.chex.points.solids import unit_ball
from stages.common.stage.errors import InputError

Split = Literal["train", "test"]


def read_meshes(root: Path, split: Split, points: int) -> tuple[Tensor, Tensor, list[str]]:
    """Points drawn on the surfaces of a folder of meshes: clouds [N, 3, P], labels [N], names of the classes.

    Raises:
        InputError: the folder has no meshes, or one is damaged.
    """
    classes = sorted(path.name for path in root.glob("*") if (path / split).is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name / split).glob("*.off"))
    ]
    if not files:
        raise InputError(f"{root}: no meshes; ModelNet10 has <class>/{split}/*.off")
    generator = torch.Generator().manual_seed(0)
    clouds = [surface_points(*read_off(path), points, generator) for path, _ in files]
    return unit_ball(torch.stack(clouds)), torch.tensor([label for _, label in files]), classes


def read_off(path: Path) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and triangles [F, 3] of an OFF file; polygons become fans.

    Raises:
        InputError: the file is no OFF file, or ends early.
    """
    text = path.read_text(errors="replace")
    if not text.startswith("OFF"):
        raise InputError(f"{path}: does not start with OFF")
    numbers = text[3:].split()  # some files have the counts right behind the word
    try:
        vertices, faces = int(numbers[0]), int(numbers[1])
        xyz_V3 = np.array(numbers[3 : 3 + 3 * vertices], dtype=np.float32).reshape(vertices, 3)
        triangles, place = [], 3 + 3 * vertices
        for _ in range(faces):
            corners = [int(number) for number in numbers[place + 1 : place + 1 + int(numbers[place])]]
            triangles += [(corners[0], *pair) for pair in itertools.pairwise(corners[1:])]
            place += 1 + len(corners)
        corner_F3 = np.array(triangles).reshape(-1, 3)
        if not 0 <= corner_F3.min() <= corner_F3.max() < vertices:
            raise ValueError("a face names a vertex that is not there")
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not a whole OFF mesh ({error})") from None
    return torch.from_numpy(xyz_V3), torch.from_numpy(corner_F3)


def surface_points(xyz_V3: Tensor, corner_F3: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """Points [3, P] drawn on a mesh, uniformly in area."""
    a_F3, b_F3, c_F3 = (xyz_V3[corner_F3[:, i]] for i in range(3))
    area_F = torch.linalg.cross(b_F3 - a_F3, c_F3 - a_F3).norm(dim=1)
    face_P = torch.multinomial(area_F, points, replacement=True, generator=generator)
    root_P1, other_P1 = torch.rand(2, points, 1, generator=generator)
    root_P1 = root_P1.sqrt()
    a_P3, b_P3, c_P3 = a_F3[face_P], b_F3[face_P], c_F3[face_P]
    return ((1 - root_P1) * a_P3 + root_P1 * ((1 - other_P1) * b_P3 + other_P1 * c_P3)).T


def read_clouds(root: Path, split: Split, points: int) -> tuple[Tensor, Tensor, list[str]]:
    """The first `points` points of every cloud of the HDF5 files: [N, 3, P], labels [N], names of the classes.

    Raises:
        InputError: a file is missing or damaged, or has too few points.
    """
    import h5py

    listing, names = root / f"{split}_files.txt", root / "shape_names.txt"
    for path in (listing, names):
        if not path.is_file():
            raise InputError(f"{path}: not found; {root} must be modelnet40_ply_hdf5_2048")
    classes = names.read_text().split()
    clouds, labels = [], []
    for line in listing.read_text().split():
        path = root / Path(line).name
        try:
            with h5py.File(path) as file:
                x_NP3, y_N = file["data"][:, :points], file["label"][:].reshape(-1)
        except (OSError, KeyError) as error:
            raise InputError(f"{path}: not an HDF5 file with data and label ({error})") from None
        if x_NP3.shape[1:] != (points, 3):
            raise InputError(
                f"{path}: data has the shape {x_NP3.shape}; needed are {points} points of 3 numbers"
            )
        if y_N.max() >= len(classes):
            raise InputError(f"{path}: label {y_N.max()}, but {names.name} names {len(classes)} classes")
        clouds.append(torch.from_numpy(x_NP3).float().transpose(1, 2))
        labels.append(torch.from_numpy(y_N).long())
    return unit_ball(torch.cat(clouds)), torch.cat(labels), classes
