"""elsa-pretrain: the rows of one cell (a mixer's own and its variants, or all rows) and seed, in one trunk for equal steps.

Reads `data/elsa/<scale>/`. Writes `runs/elsa/<scale>/pretrain/<cell>-<seed>/<row>.safetensors`.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import get_args

from stages.common.stage.device import is_main
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.elsa.cells import pretrained_file
from stages.elsa.params import CellName, ElsaParams
from stages.elsa.train_row import train_row
from stages.elsa.variants import rows_in


def main() -> None:
    """Train one cell of the matrix."""
    arguments = cell_arguments("one cell of rows and seed", cell=get_args(CellName), seed=int)
    cell, seed = arguments.cell, arguments.seed
    params = load_params(ElsaParams, "elsa")
    prepared = Path("data/elsa") / params.scale
    with Stage("elsa-pretrain", params, [prepared], seed, cell) as stage:
        names = rows_in(params, cell)
        work = partial(
            train_row, step="pretrain", seed=seed, params=params, prepared=prepared, folder=stage.work
        )
        label = f"elsa-pretrain {cell} seed {seed}"
        with progress(label, len(names) * params.pretrain.steps) as bar:
            for name, _ in run_jobs(work, names[::-1]):  # the dearest, which stand last, must not start last
                bar.note(name)
        if not is_main():
            return
        with output_dir(pretrained_file(params, names[0], seed).parent) as folder:
            for name in names:
                shutil.copy(stage.work / f"{name}.safetensors", folder)


if __name__ == "__main__":
    run(main)
