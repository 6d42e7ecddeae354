"""One training of one row, as the steps pretrain and finetune run it: network, data, log, checkpoint, weights."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.elsa.cells import Step, network, recipe_of, run_log
from stages.elsa.data import open_data
from stages.elsa.params import ElsaParams
from stages.elsa.training import fit
from stages.elsa.variants import VARIANTS


def pretrained_file(runs: Path, name: str, seed: int) -> Path:
    """Where elsa-pretrain leaves the weights of a row."""
    return runs / "pretrain" / f"{VARIANTS[name].mixer}-{seed}" / f"{name}.safetensors"


def train_row(
    name: str,
    step: Step,
    seed: int,
    params: ElsaParams,
    prepared: Path,
    folder: Path,
    start: Path | None = None,
) -> None:
    """Train the row `name`; leaves `<name>.safetensors` in `folder`.

    `start` is the `runs/elsa/<scale>` that has pre-trained weights: all but the classifier begin from them.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        return
    device, recipe = start_device(), recipe_of(params, step)
    model = network(params, step, name, seed, device)
    if start is not None:
        state = load_file(pretrained_file(start, name, seed))
        model.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=False)
    data = open_data(prepared, recipe, device)
    with run_log(params, step, name, seed) as log:
        fit(model, data, recipe, seed, log, Checkpoint(folder / f"{name}.ckpt"))
    if is_main():
        part = path.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, part)
        part.rename(path)
