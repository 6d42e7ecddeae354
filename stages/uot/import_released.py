"""Convert what the authors released, from your clone of their repository: `python -m stages.uot.import_released CLONE`.

Clone ziquanliu/NeurIPS2022_UOT_fine_tuning (Apache-2.0) at the commit that `data/registry.yaml` names. Writes
into `$ENCORE_MIRROR/uot`, or `data/raw/uot` where no mirror is set (then set ENCORE_MIRROR=data/raw):

- `class_means.safetensors`: float32 `<start>/<set>` `[classes, features]`, starts supervised (512) and moco (128),
  sets imagenet and the eight targets;
- `imagenet_classes.csv`: WordNet id, the authors' concept group and name of ImageNet's classes in their order;
- `selections.json`: sorted ids of the 100 classes that the official loop selects from the float64 originals.
"""

import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import Tensor

from stages.common.datasets import RAW
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import write_atomic
from stages.common.stage.run import run
from stages.uot.official import load_class_means, load_names
from stages.uot.released_files import CLASSES, DATASET, MEANS, SELECTIONS

FOLDERS = {"supervised": "Supervised_PT", "moco": "Self_Supervised_PT"}
TARGETS = ("CUB", "cars", "dogs", "aircraft", "pets", "DTD", "caltech", "SUN")


def main() -> None:
    """Convert the clone named on the command line."""
    if len(sys.argv) != 2:
        raise ParameterError("give one folder: a clone of ziquanliu/NeurIPS2022_UOT_fine_tuning")
    clone = Path(sys.argv[1])
    mirror = Path(os.environ.get("ENCORE_MIRROR") or RAW)
    tensors: dict[str, Tensor] = {}
    selections: dict[str, list[int]] = {}
    for start, folder in FOLDERS.items():
        means = clone / folder / "class_mean"
        name = "IN_class_mean_unnorm.pkl" if start == "moco" else "class_mean_unnorm.pkl"
        source = load_class_means(means / "ImageNet" / name)
        tensors[f"{start}/imagenet"] = source.float()
        for target in TARGETS:
            own = load_class_means(means / target / "class_mean_unnorm.pkl")
            tensors[f"{start}/{target}"] = own.float()
            selections[f"{start}/{target}"] = official_selection(source.numpy(), own.numpy())
    columns = [
        load_names(clone / "UOT_selection" / f"class_{name}.pkl") for name in ("path", "concept", "names")
    ]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["wnid", "concept", "name"])
    writer.writerows(zip(*columns, strict=True))
    lines = [
        f" {json.dumps(key)}: {json.dumps(ids, separators=(',', ':'))}" for key, ids in selections.items()
    ]
    (mirror / DATASET).mkdir(parents=True, exist_ok=True)
    write_atomic(mirror / DATASET / MEANS, save(tensors))
    write_atomic(mirror / DATASET / CLASSES, table.getvalue())
    write_atomic(mirror / DATASET / SELECTIONS, "{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {mirror / DATASET}; stages read it with ENCORE_MIRROR={mirror}")


def official_selection(source_SD: np.ndarray, target_TD: np.ndarray, k: int = 100) -> list[int]:
    """Sorted ids of the k source classes that the official plain-domain loop gives most mass (card, "Step 3").

    Written out here so that no code of the clone runs, and apart from `method/`, which is tested against it.
    """
    source_SD, target_TD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source_SD, target_TD))
    kernel_ST = np.exp(-(1 - source_SD @ target_TD.T) / 0.1)
    u_S, v_T = (np.full(n, 1 / n) for n in kernel_ST.shape)
    for _ in range(1000):
        before_u, before_v = u_S, v_T
        u_S = (1 / (kernel_ST @ v_T)) ** 0.5
        v_T = (1 / (kernel_ST.T @ u_S)) ** (100 / 101)
        change = [
            np.abs(new - old).max() / max(new.max(), old.max(), 1.0)
            for new, old in ((u_S, before_u), (v_T, before_v))
        ]
        if sum(change) / 2 < 1e-6:
            break
    importance_S = u_S * (kernel_ST @ v_T)
    return sorted(np.argsort(importance_S)[-k:].tolist())


if __name__ == "__main__":
    run(main)
