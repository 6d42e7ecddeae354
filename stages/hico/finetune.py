"""hico-finetune: what a pre-trained encoder is worth for classification.

Reads `data/hico/<scale>/<seed>/` and `runs/hico/<scale>/pretrain/<method>-<seed>/`. Writes
`runs/hico/<scale>/finetune/<method>-<seed>/`, for each target: `<target>.safetensors` with the frozen features of
its videos (`train`, `test`, and `windows_train`, `windows_test` of its untrimmed ones), the probabilities of every
trained classifier (`lft`, `full`) and the topic predictor's pair logits (`topic`) on the test videos, and the
classifiers `<target>-<mode>.safetensors`.

`lft` is the official "linear" evaluation: only the last layer is trained, but BN statistics adapt. The linear
probe, on features of a frozen encoder in eval mode, is taken from the features in `hico-evaluate`.
"""

import copy
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.common.stage.tracking import RunLog
from stages.hico.cells import METHODS, key_of, pretrained_model
from stages.hico.footage import Library
from stages.hico.localise import sliding_windows
from stages.hico.method.encoders import VideoClassifier
from stages.hico.params import HicoParams, MethodName, TargetName
from stages.hico.training import MEMORY_FORMAT, finetune, frozen_features, over_views


def main() -> None:
    """Fine-tune one cell of the matrix on every target."""
    cell = cell_arguments("one method and seed", method=tuple(METHODS), seed=int)
    params = load_params(HicoParams, "hico")
    prepared, runs = Path("data/hico") / params.scale / str(cell.seed), Path("runs/hico") / params.scale
    pretrained = runs / "pretrain" / f"{cell.method}-{cell.seed}"
    with Stage("hico-finetune", params, [prepared, pretrained], cell.seed, cell.method) as stage:
        work = partial(
            transfer,
            method=cell.method,
            seed=cell.seed,
            params=params,
            prepared=prepared,
            pretrained=pretrained,
            folder=stage.work,
        )
        with progress(f"hico-finetune {cell.method} seed {cell.seed}", len(params.targets)) as bar:
            for target, _ in run_jobs(work, params.targets):
                bar.advance(note=target)
        if not is_main():
            return
        with output_dir(runs / "finetune" / f"{cell.method}-{cell.seed}") as output:
            for path in sorted(stage.work.glob("*.safetensors")):
                shutil.copy(path, output)


def transfer(
    target: TargetName,
    method: MethodName,
    seed: int,
    params: HicoParams,
    prepared: Path,
    pretrained: Path,
    folder: Path,
) -> None:
    """Features and classifiers of one target; leaves `<target>.safetensors` in `folder`."""
    path = folder / f"{target}.safetensors"
    if path.exists():
        return
    device = start_device()
    library = Library(prepared, params.clip, params.in_memory)
    sets, classes = library.footage.sets, len(library.footage.classes[target])
    train, test = sets[f"{target}/train"], sets[f"{target}/test"]
    model = pretrained_model(params, method, seed, pretrained / "model.safetensors").to(device)
    model = model.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # torch types it for tensors only
    result: dict[str, Tensor] = {
        split: frozen_features(model.encoder, library, videos, params, device)
        for split, videos in (("train", train), ("test", test))
    }
    for split in ("train", "test"):
        untrimmed = sets.get(f"{target}/untrimmed/{split}", [])
        windows = [w for video in untrimmed for w in sliding_windows(video, params.clip.seconds)]
        if windows:
            result[f"windows_{split}"] = frozen_features(model.encoder, library, windows, params, device)
    if model.head.predictor is not None and model.head.tcl is not None:
        model.head.eval()
        with torch.no_grad():
            result["topic"] = model.head.predictor(model.head.tcl(result["test"].to(device))).cpu()
    for mode in params.finetune.modes:
        torch.manual_seed(seed)
        classifier = VideoClassifier(copy.deepcopy(model.encoder), classes).to(device)
        checkpoint = Checkpoint(folder / f"{target}-{mode}.ckpt")
        with RunLog("hico", "", key_of(params, method, seed), kind="amend") as log:
            finetune(classifier, mode, library, train, params, seed, device, log, checkpoint)
        classifier.eval()
        views = params.finetune.views
        result[mode] = over_views(classifier, library, test, views, params, device)
        state = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
        save_file(state, folder / f"{target}-{mode}.safetensors")
    if is_main():  # last: its presence says that the target is done
        save_file({name: value.contiguous() for name, value in result.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    run(main)
