"""chex-points-prepare: draw or read the clouds of the active scale.

Reads nothing (quick) or ModelNet's folder (real, paper). Writes `data/chex-points/<scale>/` as
`stages.chex.points.data` says.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.chex.points.modelnet import read_clouds, read_meshes
from stages.chex.points.params import Data, PointsParams
from stages.chex.points.solids import SOLIDS, make_solids
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything

TRAIN, TEST = 1600, 1000  # solids


def main() -> None:
    """Prepare the data set that the parameters name."""
    params = load_params(PointsParams, "chex-points")
    seed_everything(0)
    tensors, classes = read(params.data)
    clouds, batch = len(tensors["train_x"]), params.recipe.batch
    if clouds < batch:
        raise ParameterError(
            f"chex-points.recipe.batch = {batch}: must not exceed the {clouds} training clouds"
        )
    with output_dir(Path("data/chex-points") / params.scale) as folder:
        save_file(tensors, folder / "points.safetensors")
        (folder / "classes.json").write_text(json.dumps(classes))


def read(data: Data) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Clouds and labels of both splits, and the names of the classes."""
    if data.name == "solids":
        generator = torch.Generator().manual_seed(0)
        train_x, train_y = make_solids(TRAIN, data.points, generator)
        test_x, test_y = make_solids(TEST, data.points, generator)
        classes = list(SOLIDS)
    else:
        if data.root is None:
            raise ParameterError(f"chex-points.data.root: missing; give the folder of {data.name}")
        root, reader = Path(data.root), read_meshes if data.name == "modelnet10" else read_clouds
        if not root.is_dir():
            raise InputError(f"{root}: no such folder (chex-points.data.root)")
        train_x, train_y, classes = reader(root, "train", data.points)
        test_x, test_y, _ = reader(root, "test", data.points)
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}, classes


if __name__ == "__main__":
    run(main)
