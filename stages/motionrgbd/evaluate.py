"""motionrgbd-evaluate: test every network, average the unimodal ones, permute frames.

Reads `data/motionrgbd/<scale>/` and `runs/motionrgbd/<scale>/{pretrain,finetune}/`. Writes
`runs/motionrgbd/<scale>/evaluate/`: `results.parquet` (tidy), `samples-<modality>.gif` and `samples.png` (clips of the first
seed, one of each class).
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog
from stages.common.video.strips import write_gif, write_strip
from stages.motionrgbd.cells import (
    FUSION_ROWS,
    Job,
    key_of,
    stem,
    target_of,
    trained_fusion,
    trained_unimodal,
)
from stages.motionrgbd.data import Ask, Clips, View, Views, draws, open_clips
from stages.motionrgbd.method.baselines import shuffled_maps
from stages.motionrgbd.method.guidance import rank_pool_guidance
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.networks import ROWS, parameters_of
from stages.motionrgbd.params import MODALITIES, FusionRow, Modality, MotionrgbdParams
from stages.motionrgbd.training import predict
from stages.motionrgbd.world import factors_of

Row = dict[str, Any]
Numbers = dict[str, tuple[float, str]]  # metric -> (value, unit)
Scores = dict[str, Tensor]
BRANCH_NAMES = ("small", "medium", "large")


class Test(NamedTuple):
    """What is tested in one go: a cell's training, or everything about a seed's two full networks."""

    method: str
    name: str
    seed: int


class Measured(NamedTuple):
    """Numbers of one row of a table."""

    table: str
    row: str
    setting: str
    numbers: Numbers


def main() -> None:
    """Evaluate all trainings that the parameters name."""
    params = load_params(MotionrgbdParams, "motionrgbd")
    prepared, runs = Path("data/motionrgbd") / params.scale, Path("runs/motionrgbd") / params.scale
    cells = [runs / "pretrain" / f"{method}-{seed}" for method in params.methods for seed in params.seeds]
    cells += [runs / "finetune" / f"{fusion}-{seed}" for fusion in params.fusions for seed in params.seeds]
    with Stage("motionrgbd-evaluate", params, [prepared, *cells]):
        tests = list(tests_of(params))
        rows: list[Row] = []
        work = partial(evaluate, params=params, prepared=prepared, runs=runs)
        with progress("motionrgbd-evaluate", len(tests)) as bar:
            for test, measured in run_jobs(work, tests):
                rows += [row for found in measured for row in tidy(test, found, params)]
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            write_samples(params, prepared / str(params.seeds[0]), output)
    for modality in MODALITIES:
        key = key_of(params, "full", stem(("full", modality)), params.seeds[0])
        with RunLog("motionrgbd", "", key, kind="amend") as log:
            log.artifact(runs / "evaluate" / f"samples-{modality}.gif")
            log.artifact(runs / "evaluate" / "samples.png")


def tests_of(params: MotionrgbdParams) -> Iterator[Test]:
    """Everything that is tested."""
    for seed in params.seeds:
        yield Test("full", "", seed)
        if "ablation" in params.methods:
            yield from (Test("ablation", row, seed) for row in params.ablation.rows)
        for fusion in params.fusions:
            yield from (Test(fusion, row, seed) for row in FUSION_ROWS[fusion])


def evaluate(test: Test, params: MotionrgbdParams, prepared: Path, runs: Path) -> list[Measured]:
    """The rows of one test; they are also added to its MLflow run."""
    folder = prepared / str(test.seed)
    if test.method == "full":
        return evaluate_full(test, params, folder, runs / "pretrain" / f"full-{test.seed}")
    if test.method == "ablation":
        job: Job = (test.name, params.ablation.modality)  # type: ignore[assignment]
        cell = runs / "pretrain" / f"ablation-{test.seed}"
        return [evaluate_ablation(job, test, params, folder, cell)]
    cell = runs / "finetune" / f"{test.method}-{test.seed}"
    return [evaluate_fusion(test.name, test, params, folder, cell)]  # type: ignore[arg-type]


def evaluate_full(test: Test, params: MotionrgbdParams, folder: Path, cell: Path) -> list[Measured]:
    """Both full networks, with order test, and their averages."""
    device = start_device()
    found, scores = [], {}
    for modality in MODALITIES:
        job: Job = ("full", modality)
        net = trained_unimodal(params, "full", job, cell, test.seed, device)
        clips = open_clips(folder, "test", [modality], params.data, device)
        score = partial(unimodal_scores, modality=modality, params=params, job=job)
        scores[modality] = predict(net, clips, score)
        numbers = unimodal_numbers(scores[modality], clips.label_N)
        numbers |= {f"{name} accuracy": value for name, value in factor_numbers(
            scores[modality]["merged"].argmax(1), clips.label_N, params
        ).items()}  # fmt: skip
        numbers |= order_numbers(net, clips, score, modality, params, test.seed)
        numbers |= history_numbers(cell / f"{stem(job)}.json", params)
        numbers["parameters"] = (float(parameters_of(net)), "count")
        amend(params, "full", stem(job), test.seed, numbers)
        found.append(Measured("main", "full", modality, numbers))
    label_N = clips.label_N
    rgb, depth = (scores[modality]["merged"] for modality in MODALITIES)
    averages = {
        "averaged probabilities": rgb.softmax(1) + depth.softmax(1),
        "averaged log-probabilities": rgb.log_softmax(1) + depth.log_softmax(1),
    }
    for name, sums in averages.items():
        found.append(Measured("fusion", name, "rgb-d", {"top-1": accuracy(sums.argmax(1), label_N)}))
    return found


def evaluate_ablation(job: Job, test: Test, params: MotionrgbdParams, folder: Path, cell: Path) -> Measured:
    """A row that changes one thing."""
    device, (row, modality) = start_device(), job
    window = max(1, round(params.data.window * ROWS[row].window))
    data = params.data.model_copy(update={"window": window})
    net = trained_unimodal(params, "ablation", job, cell, test.seed, device)
    clips = open_clips(folder, "test", [modality], data, device)
    torch.manual_seed(test.seed)  # of shuffled maps
    scores = predict(net, clips, partial(unimodal_scores, modality=modality, params=params, job=job))
    label_N = target_of("ablation", params, clips.label_N)
    numbers = unimodal_numbers(scores, label_N) | history_numbers(cell / f"{stem(job)}.json", params)
    numbers["parameters"] = (float(parameters_of(net)), "count")
    amend(params, "ablation", stem(job), test.seed, numbers)
    return Measured("ablation", row, modality, numbers)


def evaluate_fusion(
    row: FusionRow, test: Test, params: MotionrgbdParams, folder: Path, cell: Path
) -> Measured:
    """A fusion: its fused scores, and the sum of all three."""
    device = start_device()
    net = trained_fusion(params, row, cell, test.seed, device)
    clips = open_clips(folder, "test", MODALITIES, params.data, device)
    scores = predict(net, clips, fusion_scores)
    fused = scores["fused"].argmax(1)
    numbers = {"top-1": accuracy(fused, clips.label_N)}
    numbers["top-1 of all three scores"] = accuracy(
        torch.stack(list(scores.values())).sum(0).argmax(1), clips.label_N
    )
    for side in MODALITIES:
        numbers[f"top-1 of the {side} scores"] = accuracy(scores[side].argmax(1), clips.label_N)
    numbers |= {
        f"{name} accuracy": value for name, value in factor_numbers(fused, clips.label_N, params).items()
    }
    numbers |= history_numbers(cell / f"{row}.json", params)
    numbers["parameters"] = (float(parameters_of(net)), "count")
    amend(params, test.method, row, test.seed, numbers)
    return Measured("fusion", row, "rgb-d", numbers)


def unimodal_scores(
    net: nn.Module, views: Views, modality: Modality, params: MotionrgbdParams, job: Job
) -> Scores:
    """Merged scores, and those of each branch where the network has some."""
    x_BTCHW, guidance_BTHW = views[modality]
    if ROWS[job[0]].shuffled_maps:
        guidance_BTHW = shuffled_maps(guidance_BTHW)
    if not isinstance(net, UnimodalNet):
        return {"merged": net(x_BTCHW, guidance_BTHW)}
    temperature = params.pretrain.sharpness.end if ROWS[job[0]].sharpness else 1.0
    logits, _ = net(x_BTCHW, guidance_BTHW, temperature)
    branches = {f"branch {n}": scores for n, scores in enumerate(logits.branches_BRK.unbind(1))}
    return {"merged": logits.merged_BK, **branches}


def fusion_scores(net: nn.Module, views: Views) -> Scores:
    """Fused scores and those of each side."""
    rgb, depth = views["rgb"], views["depth"]
    out = net(rgb.x_BTCHW, depth.x_BTCHW, rgb.guidance_BTHW, depth.guidance_BTHW)
    return {"fused": out.fused_BK, "rgb": out.rgb_BK, "depth": out.depth_BK}


def accuracy(predicted_N: Tensor, label_N: Tensor) -> tuple[float, str]:
    """Percent of clips."""
    return 100 * float((predicted_N == label_N).float().mean()), "%"


def unimodal_numbers(scores: Scores, label_N: Tensor) -> Numbers:
    """Top-1 of merged and branch scores, and of the best of the released protocol's four combinations.

    That rule takes the maximum over merged scores and the sums of two and of all branches *on the test set*: optimistic.
    """
    numbers = {"top-1": accuracy(scores["merged"].argmax(1), label_N)}
    branches = [values for name, values in scores.items() if name != "merged"]
    for name, values in zip(BRANCH_NAMES, branches, strict=False):
        numbers[f"top-1 of the {name} branch"] = accuracy(values.argmax(1), label_N)
    sums = [torch.stack(pair).sum(0) for pair in combinations(branches, 2)] if len(branches) == 3 else []
    best = max(accuracy(values.argmax(1), label_N)[0] for values in [scores["merged"], *sums])
    numbers["top-1 official protocol"] = (best, "%")
    return numbers


def factor_numbers(predicted_N: Tensor, label_N: Tensor, params: MotionrgbdParams) -> Numbers:
    """Accuracy of each part of a generated label; nothing for other data."""
    if params.data.name != "generated":
        return {}
    predicted, true = factors_of(predicted_N), factors_of(label_N)
    return {
        name: accuracy(getattr(predicted, name), getattr(true, name))
        for name in ("trajectory", "glove", "depth")
    }


class PermutedClips:
    """Clips with the frames of each in an order of its own; guidance is computed anew."""

    def __init__(self, clips: Clips, window: int, seed: int) -> None:
        self.clips, self.window, self.seed = clips, window, seed
        self.label_N = clips.label_N

    def batches(self, asks: Iterable[Ask]) -> Iterator[Views]:
        """Batches."""
        for number, views in enumerate(self.clips.batches(asks)):
            permuted: Views = {}
            for modality, (x_BTCHW, _) in views.items():
                batch, frames = x_BTCHW.shape[:2]
                order_BT = torch.rand(batch, frames, generator=draws(self.seed, number)).argsort(1)
                x_BTCHW = x_BTCHW[torch.arange(batch)[:, None], order_BT.to(x_BTCHW.device)]
                permuted[modality] = View(x_BTCHW, rank_pool_guidance(x_BTCHW, self.window))
            yield permuted


def order_numbers(
    net: nn.Module, clips: Clips, score: Callable[[nn.Module, Views], Scores], modality: Modality,
    params: MotionrgbdParams, seed: int,
) -> Numbers:  # fmt: skip
    """Accuracy when the frames of each clip are permuted before guidance is computed."""
    permuted = PermutedClips(clips, params.data.window, seed)
    predicted_N = predict(net, permuted, score)["merged"].argmax(1)
    numbers = {"top-1, frames permuted": accuracy(predicted_N, clips.label_N)}
    factors = factor_numbers(predicted_N, clips.label_N, params)
    return numbers | {f"{name} accuracy, frames permuted": value for name, value in factors.items()}


def history_numbers(path: Path, params: MotionrgbdParams) -> Numbers:
    """First active and last value of the distillation, where a row has one."""
    history = json.loads(path.read_text())
    if "distill" not in history[0]:
        return {}
    first = params.pretrain.recipe.warmup - 1 if path.parent.parent.name == "pretrain" else 0
    return {
        "distillation, first active epoch": (history[first]["distill"], "nats"),
        "distillation, last epoch": (history[-1]["distill"], "nats"),
    }


def amend(params: MotionrgbdParams, method: str, name: str, seed: int, numbers: Numbers) -> None:
    """Add test numbers to the run of a training."""
    with RunLog("motionrgbd", "", key_of(params, method, name, seed), kind="amend") as log:
        log.metrics({f"test {metric}": value for metric, (value, _) in numbers.items()})


def tidy(test: Test, found: Measured, params: MotionrgbdParams) -> list[Row]:
    """Rows of the results."""
    name = stem((found.row, found.setting)) if found.setting != "rgb-d" else found.row  # type: ignore[arg-type]
    common = {
        "paper": "motionrgbd", "table": found.table, "method": found.row, "setting": found.setting,
        "seed": test.seed, "scale": params.scale, "data": params.data.name,
        "run_id": key_of(params, test.method, name, test.seed), "git_rev": git_revision(),
    }  # fmt: skip
    return [
        {**common, "metric": metric, "value": value, "unit": unit}
        for metric, (value, unit) in found.numbers.items()
    ]


def write_samples(params: MotionrgbdParams, folder: Path, output: Path) -> None:
    """Test clips, one of each of the first classes: a GIF of each modality, and a strip with guidance below."""
    clips = open_clips(folder, "test", MODALITIES, params.data, torch.device("cpu"))
    labels = clips.label_N.unique()[:8].tolist()
    ids_B = torch.tensor([int(torch.nonzero(clips.label_N == label)[0, 0]) for label in labels])
    views = next(iter(clips.batches([(ids_B, None)])))
    strips: list[Tensor] = []
    for modality in MODALITIES:
        x_BTCHW, guidance_BTHW = views[modality]
        pixels = (x_BTCHW * 128 + 127.5).round().clamp(0, 255).to(torch.uint8)
        write_gif(torch.cat(list(pixels), -1), output / f"samples-{modality}.gif", fps=8, scale=2)
        maps = (127.5 * guidance_BTHW[:, :, None]).round().to(torch.uint8).expand_as(pixels)
        for clip, guide in zip(pixels[:4], maps[:4], strict=True):
            strips += [clip, guide]
    write_strip(strips, output / "samples.png")


if __name__ == "__main__":
    run(main)
