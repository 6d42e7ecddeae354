"""elsa-pretrain: one mixer and seed, its main row and its variants, all in the same trunk for equal steps.

Reads `data/elsa/<scale>/`. Writes `runs/elsa/<scale>/pretrain/<mixer>-<seed>/<row>.safetensors`.
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
from stages.elsa.params import ElsaParams, MixerName
from stages.elsa.train_row import train_row
from stages.elsa.variants import rows_of


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one mixer and seed", mixer=get_args(MixerName), seed=int)
    params = load_params(ElsaParams, "elsa")
    prepared = Path("data/elsa") / params.scale
    with Stage("elsa-pretrain", params, [prepared], cell.seed, cell.mixer) as stage:
        names = rows_of(cell.mixer, params.ablations)
        work = partial(
            train_row, step="pretrain", seed=cell.seed, params=params, prepared=prepared, folder=stage.work
        )
        label = f"elsa-pretrain {cell.mixer} seed {cell.seed}"
        with progress(label, len(names) * params.pretrain.steps) as bar:
            for name, _ in run_jobs(work, names):
                bar.note(name)
        if not is_main():
            return
        output = Path("runs/elsa") / params.scale / "pretrain" / f"{cell.mixer}-{cell.seed}"
        with output_dir(output) as folder:
            for name in names:
                shutil.copy(stage.work / f"{name}.safetensors", folder)


if __name__ == "__main__":
    run(main)
