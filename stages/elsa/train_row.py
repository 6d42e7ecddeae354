"""One training of one row, as the steps pretrain and finetune run it: network, data, log, checkpoint, weights."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.elsa.cells import Step, network, pretrained_file, recipe_of, run_log
from stages.elsa.data import open_data
from stages.elsa.params import ElsaParams
from stages.elsa.training import fit


def train_row(
    name: str,
    step: Step,
    seed: int,
    params: ElsaParams,
    prepared: Path,
    folder: Path,
) -> None:
    """Train the row `name`; leaves `<name>.safetensors` in `folder`. Fine-tuning begins from pre-trained weights, but for
    the classifier.
    """
    path = folder / f"{name}.safetensors"
    if path.exists():
        return
    device, recipe = start_device(), recipe_of(params, step)
    model = network(params, step, name, seed, device)
    if step == "finetune":
        state = load_file(pretrained_file(params, name, seed))
        model.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")}, strict=False)
    data = open_data(prepared, recipe, device)
    with run_log(params, step, name, seed) as log:
        fit(model, data, recipe, seed, log, Checkpoint(folder / f"{name}.ckpt"))
    if is_main():
        part = path.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, part)
        part.rename(path)
