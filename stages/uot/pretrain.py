"""uot-pretrain: the starts of one seed, trained on the source or imported from released weights.

Reads `data/uot/<scale>/<seed>/`, and the released checkpoints where the parameters name them. Writes
`runs/uot/<scale>/pretrain/<seed>/<start>.safetensors`: `backbone.*`, and `projection.*` where class means are
taken behind one.

Starts: `fine` sees all source labels (supervised). `merged` sees them merged in pairs within a concept and
stands in for self-supervision, which never saw the fine labels. `supervised` and `moco` are the paper's:
torchvision's ResNet-18 and MoCo-v2.
"""

import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.common.stage.tracking import RunLog, run_key
from stages.uot.data import PreparedData
from stages.uot.method.backbones import WIDTHS, build_backbone
from stages.uot.official import load_start
from stages.uot.params import PretrainName, UotParams
from stages.uot.training import pretrain


def main() -> None:
    """Make every start of one seed."""
    seed = cell_arguments("starts of one seed", seed=int).seed
    params = load_params(UotParams, "uot")
    prepared = Path("data/uot") / params.scale / str(seed)
    with Stage("uot-pretrain", params, [prepared], seed) as stage:
        work = partial(make_start, params=params, prepared=prepared, seed=seed, folder=stage.work)
        with progress(f"uot-pretrain seed {seed}", len(params.pretraining)) as bar:
            for name, _ in run_jobs(work, list(params.pretraining)):
                bar.advance(note=name)
        if not is_main():
            return
        with output_dir(Path("runs/uot") / params.scale / "pretrain" / str(seed)) as output:
            for name in params.pretraining:
                shutil.copy(stage.work / f"{name}.safetensors", output)


def make_start(name: PretrainName, params: UotParams, prepared: Path, seed: int, folder: Path) -> None:
    """Make one start; leaves `<name>.safetensors` in `folder`."""
    path = folder / f"{name}.safetensors"
    if path.exists():
        return
    start = params.pretraining[name]
    if start.weights is not None:
        state = load_start(Path(start.weights), start.net)
    else:
        device = start_device()
        data = PreparedData(prepared, device)
        label_map = labels_of(name, data.source_groups)
        torch.manual_seed(seed)
        head = nn.Linear(WIDTHS[start.net], int(label_map.max()) + 1)
        model = nn.Sequential(build_backbone(start.net), head).to(device)
        recipe = params.pretrain
        log = RunLog(
            "uot",
            f"pretrain {name} seed {seed}",
            run_key("uot", params.scale, "pretrain", name, seed, recipe.model_dump()),
            params={"start": name, "seed": seed, **recipe.model_dump()},
            tags={"scale": params.scale, "method": name},
        )
        with log:
            pretrain(model, data.source(), label_map, recipe, seed, log, Checkpoint(folder / f"{name}.ckpt"))
        state = {f"backbone.{key}": value.cpu() for key, value in model[0].state_dict().items()}
    if is_main():
        save_file(state, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


def labels_of(name: PretrainName, groups: list[str]) -> Tensor:
    """The label `[C]` that each source class has in pre-training.

    Its own, or one shared by two classes of its group.
    """
    if name == "fine":
        return torch.arange(len(groups))
    place = {
        group: [i for i, other in enumerate(groups) if other == group] for group in dict.fromkeys(groups)
    }
    pairs = [(group, place[group].index(i) // 2) for i, group in enumerate(groups)]
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    return torch.tensor([numbers[pair] for pair in pairs])


if __name__ == "__main__":
    run(main)
