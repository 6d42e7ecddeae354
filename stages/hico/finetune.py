"""hico-finetune: what a pre-trained encoder is worth for classification.

Reads `data/hico/<scale>/<seed>/` and `runs/hico/<scale>/pretrain/<method>-<seed>/`. Writes
`runs/hico/<scale>/finetune/<method>-<seed>/`, for each target: `<target>.safetensors` with the frozen features of
its videos (`train`, `test`, and `windows_train`, `windows_test` of its untrimmed ones), the probabilities of every
trained classifier (`lft`, `full`) and the topic predictor's pair logits (`topic`) on the test videos, and the
classifiers `<target>-<mode>.safetensors`. With `bmn`, windows are the places of a boundary-matching network, which is
trained here (`<target>-bmn.safetensors`) and leaves its `proposals` of the untrimmed test videos.

`lft` is the official "linear" evaluation: only the last layer is trained, but BN statistics adapt. The linear
probe, on features of a frozen encoder in eval mode, is taken from the features in `hico-evaluate`.
"""

import copy
import shutil
from collections.abc import Sequence
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
from stages.common.stage.tracking import RunLog
from stages.hico.cells import METHODS, key_of, pretrained_model
from stages.hico.footage import Library, Video
from stages.hico.localise import windows_of
from stages.hico.method.encoders import VideoClassifier
from stages.hico.metrics import standardised
from stages.hico.params import HicoParams, MethodName, TargetName
from stages.hico.propose import propose, train_bmn
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
    """Features and networks of one target; leaves `<target>.safetensors` in `folder`."""
    path = folder / f"{target}.safetensors"
    if path.exists():
        return
    device = start_device()
    library = Library(prepared, params.clip, params.in_memory)
    sets = library.footage.sets
    model = pretrained_model(params, method, seed, pretrained / "model.safetensors").to(device)
    model = model.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # torch types it for tensors only
    result: dict[str, Tensor] = {}
    for split in ("train", "test"):
        if videos := sets.get(f"{target}/{split}"):
            views = params.finetune.views
            result[split] = frozen_features(model.encoder, library, videos, views, params, device)
        if untrimmed := sets.get(f"{target}/untrimmed/{split}"):
            windows = [window for video in untrimmed for window in windows_of(video, params)]
            result[f"windows_{split}"] = frozen_features(model.encoder, library, windows, 1, params, device)
    if model.head.predictor is not None and model.head.tcl is not None and "test" in result:
        model.head.eval()
        with torch.no_grad():
            result["topic"] = model.head.predictor(model.head.tcl(result["test"].to(device))).cpu()
    with RunLog("hico", "", key_of(params, method, seed), kind="amend") as log:
        for mode in params.finetune.modes if "train" in result else ():
            torch.manual_seed(seed)
            classes = len(library.footage.classes[target])
            classifier = VideoClassifier(copy.deepcopy(model.encoder), classes).to(device)
            checkpoint = Checkpoint(folder / f"{target}-{mode}.ckpt")
            train, test = sets[f"{target}/train"], sets[f"{target}/test"]
            finetune(classifier, mode, library, train, params, seed, device, log, checkpoint)
            classifier.eval()
            result[mode] = over_views(classifier, library, test, params.finetune.views, params, device)
            save_network(classifier, folder / f"{target}-{mode}.safetensors")
        if params.bmn and "windows_train" in result:
            train, test = sets[f"{target}/untrimmed/train"], sets[f"{target}/untrimmed/test"]
            train_NC, test_NC = standardised(result["windows_train"], result["windows_test"])
            checkpoint = Checkpoint(folder / f"{target}-bmn.ckpt")
            network = train_bmn(by_video(train_NC, train), train, params.bmn, seed, device, log, checkpoint)
            result["proposals"] = propose(network, by_video(test_NC, test), params.bmn, device)
            save_network(network, folder / f"{target}-bmn.safetensors")
    if is_main():  # last: its presence says that the target is done
        save_file({name: value.contiguous() for name, value in result.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


def by_video(features_NC: Tensor, videos: Sequence[Video]) -> Tensor:
    """Features of equally many windows of each video as `[videos, windows, C]`."""
    return features_NC.view(len(videos), -1, features_NC.shape[1])


def save_network(network: nn.Module, path: Path) -> None:
    """Its state dict, from any device and in any order of memory."""
    save_file({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}, path)


if __name__ == "__main__":
    run(main)
