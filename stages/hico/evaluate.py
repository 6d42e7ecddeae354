"""hico-evaluate: every measure of every method, seed and target.

Reads `data/hico/<scale>/`, `runs/hico/<scale>/pretrain/` and `finetune/`. Writes
`runs/hico/<scale>/evaluate/results.parquet` (tidy): table A accuracies (linear probe and nearest neighbour on
frozen features, `LFT`, `fine-tuned`) and the topic predictor's AUC, F retrieval, G localisation, `data` what was
left out. Numbers and sample clips are also added to the MLflow runs.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.common.results import results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog
from stages.hico.cells import key_of
from stages.hico.footage import UNKNOWN, Library, Video
from stages.hico.localise import localise_proposals, localise_windows
from stages.hico.metrics import retrieval_recall, standardised, topic_pairs
from stages.hico.params import HicoParams, MethodName, TargetName

RANKS = (1, 5, 10, 20, 50)
MODES = {"lft": "LFT", "full": "fine-tuned"}
Cell = tuple[MethodName, int]
Row = dict[str, Any]


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(HicoParams, "hico")
    prepared, runs = Path("data/hico") / params.scale, Path("runs/hico") / params.scale
    cells: list[Cell] = [(method, seed) for seed in params.seeds for method in params.methods]
    folders = [runs / part / f"{m}-{seed}" for part in ("pretrain", "finetune") for m, seed in cells]
    with Stage("hico-evaluate", params, [prepared, *folders]):
        rows: list[Row] = []
        with progress("hico-evaluate", len(cells)) as bar:
            work = partial(evaluate, params=params, prepared=prepared, runs=runs)
            for _, found in run_jobs(work, cells):
                rows += found
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def evaluate(cell: Cell, params: HicoParams, prepared: Path, runs: Path) -> list[Row]:
    """Rows of one method and seed."""
    method, seed = cell
    folder = prepared / str(seed)
    library = Library(folder, params.clip, params.in_memory)
    record = json.loads((runs / "pretrain" / f"{method}-{seed}" / "record.json").read_text())
    rows: list[Row] = []

    def add(table: str, data: str, values: dict[str, float], unit: str = "%") -> None:
        for metric, value in values.items():
            rows.append(
                {
                    "paper": "hico",
                    "table": table,
                    "method": method,
                    "setting": params.net,
                    "metric": metric,
                    "value": value,
                    "unit": unit,
                    "seed": seed,
                    "scale": params.scale,
                    "data": data,
                    "run_id": key_of(params, method, seed),
                    "git_rev": git_revision(),
                }
            )

    for target in params.targets:
        result = load_file(runs / "finetune" / f"{method}-{seed}" / f"{target}.safetensors")
        if "train" in result:
            train, test = (library.footage.sets[f"{target}/{split}"] for split in ("train", "test"))
            add("A", target, accuracies(result, train, test))
            known, truth = (torch.tensor([video.action for video in videos]) for videos in (train, test))
            recall = retrieval_recall(result["test"], truth, result["train"], known, RANKS)
            add("F", target, {f"R@{rank}": value for rank, value in recall.items()})
        if "windows_test" in result:
            add("G", target, located(library, target, result, params))
    skipped = json.loads((folder / "skipped.json").read_text())
    counts = {"left out in preparation": len(skipped), "not decoded in training": len(record["bad"])}
    add("data", str(params.untrimmed), {name: float(count) for name, count in counts.items()}, "videos")
    with RunLog("hico", "", key_of(params, method, seed), kind="amend") as log:
        tables = ("A", "F", "G")
        log.metrics({mlflow_name(row): row["value"] for row in rows if row["table"] in tables})
        for name in ("model.safetensors", "clips.png"):
            log.artifact(runs / "pretrain" / f"{method}-{seed}" / name)
    return rows


def mlflow_name(row: Row) -> str:
    """MLflow takes no @ in a metric's name."""
    return f"{row['data']} {row['metric']}".replace("@", " at ")


def accuracies(result: dict[str, Tensor], train: list[Video], test: list[Video]) -> dict[str, float]:
    """Top-1 in percent: linear probe and nearest neighbour for actions and topics, trained classifiers, topic AUC."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    fitted_NC, tested_NC = standardised(result["train"], result["test"])
    nearest_N = torch.cdist(tested_NC, fitted_NC).argmin(1).numpy()
    values: dict[str, float] = {}
    for kind in ("action", "topic"):
        known, truth = (np.array([getattr(video, kind) for video in videos]) for videos in (train, test))
        if (known == UNKNOWN).any():
            continue
        classifier = LogisticRegression(max_iter=1000).fit(fitted_NC.numpy(), known)
        values[f"{kind} linear"] = 100 * float((classifier.predict(tested_NC.numpy()) == truth).mean())
        values[f"{kind} 1-NN"] = 100 * float((known[nearest_N] == truth).mean())
    action_N = torch.tensor([video.action for video in test])
    for mode, name in MODES.items():
        if mode in result:
            values[f"action {name}"] = 100 * float((result[mode].argmax(1) == action_N).float().mean())
    topic_N = torch.tensor([video.topic for video in test])
    if "topic" in result and (topic_N != UNKNOWN).all():
        file_N = torch.tensor([video.files[0] for video in test])
        score_P, same_P = topic_pairs(result["topic"], topic_N, file_N)
        values["topic AUC"] = 100 * float(roc_auc_score(same_P.numpy(), score_P.numpy()))
    return values


def located(
    library: Library, target: TargetName, result: dict[str, Tensor], params: HicoParams
) -> dict[str, float]:
    """Localisation on the target's untrimmed videos."""
    train, test = (library.footage.sets[f"{target}/untrimmed/{split}"] for split in ("train", "test"))
    features = result["windows_train"], result["windows_test"]
    classes = len(library.footage.classes[target])
    if "proposals" not in result:
        return localise_windows(train, test, *features, classes, params.clip.seconds)
    train_VC, test_VC = (
        x_NC.view(len(videos), -1, x_NC.shape[1]).mean(1)
        for x_NC, videos in zip(features, (train, test), strict=True)
    )
    return localise_proposals(train, test, train_VC, test_VC, result["proposals"], classes)


if __name__ == "__main__":
    run(main)
