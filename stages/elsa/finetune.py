"""elsa-finetune: the main row of each mixer, from its pre-trained weights, on a second data set; one seed.

Reads `data/elsa/<scale>/` and `runs/elsa/<scale>/pretrain/`. Writes
`runs/elsa/<scale>/finetune/<seed>/<row>.safetensors`; nothing but the manifest where there is no second data set.
"""

import shutil
from functools import partial
from pathlib import Path

from stages.common.stage.device import is_main
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.elsa.cells import finetuned, recipe_of
from stages.elsa.params import ElsaParams
from stages.elsa.train_row import pretrained_file, train_row


def main() -> None:
    """Fine-tune the networks of one seed."""
    seed = cell_arguments("one seed", seed=int).seed
    params = load_params(ElsaParams, "elsa")
    prepared, runs = Path("data/elsa") / params.scale, Path("runs/elsa") / params.scale
    names = finetuned(params)
    inputs = [prepared, *(pretrained_file(runs, name, seed).parent for name in names)]
    with Stage("elsa-finetune", params, inputs, seed) as stage:
        if names:
            work = partial(
                train_row, step="finetune", seed=seed, params=params, prepared=prepared, folder=stage.work,
                start=runs,
            )  # fmt: skip
            with progress(
                f"elsa-finetune seed {seed}", len(names) * recipe_of(params, "finetune").steps
            ) as bar:
                for name, _ in run_jobs(work, names[::-1]):  # the dearest, which stand last, first
                    bar.note(name)
        if not is_main():
            return
        with output_dir(runs / "finetune" / str(seed)) as folder:
            for name in names:
                shutil.copy(stage.work / f"{name}.safetensors", folder)


if __name__ == "__main__":
    run(main)
