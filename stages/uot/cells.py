"""What names a run of this paper, which runs a cell of the matrix has, and what every run starts with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn

from stages.common.stage.tracking import RunLog, run_key
from stages.uot.data import PreparedData
from stages.uot.method.backbones import WIDTHS, build_backbone
from stages.uot.method.dual_head import DualHeadModel
from stages.uot.params import PretrainName, SelectionName, TargetName, UotParams


@dataclass(frozen=True)
class Row:
    """A row of the tables: what it trains, and from where.

    `start` "pretrained" or "random"; `source` how source images take part; `length` in multiples of the
    common training; `l2_sp` whether the backbone is held near its start.
    """

    start: Literal["pretrained", "random"] = "pretrained"
    source: Literal["none", "labelled", "unlabelled"] = "labelled"
    length: int = 1
    l2_sp: bool = False


JOINT = Row()
# a cell of the matrix is a selection and a seed; most selections have one row, of the same name
ROWS: dict[str, Row] = {
    "scratch": Row(start="random", source="none"),
    "vanilla": Row(source="none"),
    "vanilla-2x": Row(source="none", length=2),
    "l2-sp": Row(source="none", l2_sp=True),
    "uot-unlabelled": Row(source="unlabelled"),
}
CELLS: dict[SelectionName, tuple[str, ...]] = {
    "none": ("scratch", "vanilla", "vanilla-2x", "l2-sp"),
    "uot": ("uot", "uot-unlabelled"),
}
SWEPT_FRACTIONS = (
    "scratch",
    "vanilla",
    "uot",
)  # rows of the gain by target size, for every start (scratch has none)
SWEPT_SIZES = ("uot", "random")  # rows of the sweep over K; this and the next for the first start
SWEPT_WEIGHTS = ("uot", "all")  # rows of the sweep over lambda


@dataclass(frozen=True)
class Job:
    """One fine-tuning. `k` is 0 where no number of classes is chosen (no source, or all of it).

    Then `weight` may be 0 too.
    """

    pretraining: PretrainName
    target: TargetName
    row: str
    fraction: float
    k: int
    weight: float

    @property
    def setting(self) -> str:
        """How results name it, beside its row and target."""
        parts = [self.pretraining, f"fraction {self.fraction:g}"]
        parts += [f"K {self.k}"] if self.k else []
        parts += [f"lambda {self.weight:g}"] if self.weight else []
        return ", ".join(parts)

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.row}-{self.target}-{self.setting}".replace(", ", "-").replace(" ", "")


def jobs_of(selection: SelectionName, params: UotParams) -> list[Job]:
    """The fine-tunings of one cell: the main setting of each of its rows, and its part of the sweeps."""
    fine, jobs = params.finetune, []
    for number, (pretraining, start) in enumerate(params.pretraining.items()):
        for target in params.targets:
            for row in CELLS.get(selection, (selection,)):
                source = ROWS.get(row, JOINT).source != "none"
                k = params.select.k if source and selection != "all" else 0
                weight = start.source_weight if source else 0.0
                points = [(fine.fraction, k, weight)]
                if row in SWEPT_FRACTIONS and (number == 0 or row != "scratch"):
                    points += [(fraction, k, weight) for fraction in fine.fractions]
                if number == 0 and row in SWEPT_SIZES:
                    points += [(fine.fraction, other, weight) for other in fine.k_sweep]
                if number == 0 and row in SWEPT_WEIGHTS:
                    points += [(fine.fraction, k, other) for other in fine.source_weights]
                jobs += [Job(pretraining, target, row, *point) for point in points]
    return list(dict.fromkeys(jobs))


def key_of(params: UotParams, job: Job, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    start = params.pretraining[job.pretraining].model_dump()
    shared = params.finetune.model_dump(exclude={"fractions", "k_sweep", "source_weights"})
    select = params.select.model_dump()
    return run_key("uot", params.scale, job.target, job.row, job.setting, seed, start, shared, select)


def run_log(params: UotParams, job: Job, seed: int) -> RunLog:
    """The MLflow run of one fine-tuning."""
    return RunLog(
        paper="uot",
        name=f"{job.row} {job.target} {job.setting} seed {seed}",
        key=key_of(params, job, seed),
        params={
            "method": job.row,
            "data": job.target,
            "setting": job.setting,
            "seed": seed,
            "fraction": job.fraction,
            "k": job.k,
            "source_weight": job.weight,
            **params.pretraining[job.pretraining].model_dump(exclude={"source_weight"}),
            **params.finetune.model_dump(exclude={"fraction", "fractions", "k_sweep", "source_weights"}),
        },
        tags={"scale": params.scale, "data": job.target, "method": job.row},
    )


def pretrained_backbone(path: Path, params: UotParams, pretraining: PretrainName) -> nn.Module:
    """The backbone that `uot-pretrain` left in the file `path`."""
    backbone = build_backbone(params.pretraining[pretraining].net)
    state = load_file(path)
    prefix = "backbone."
    backbone.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return backbone


def dual_head(
    job: Job, params: UotParams, data: PreparedData, seed: int, pretrained: Path, device: torch.device
) -> DualHeadModel:
    """The model that a fine-tuning of this seed starts from.

    Fresh heads, and a fresh or the pre-trained backbone.
    """
    torch.manual_seed(seed)
    net = params.pretraining[job.pretraining].net
    backbone = build_backbone(net)  # built in any case, so that the heads are the same in every row of a seed
    model = DualHeadModel(backbone, WIDTHS[net], len(data.source_groups), data.target_classes(job.target))
    if ROWS.get(job.row, JOINT).start == "pretrained":
        path = pretrained / f"{job.pretraining}.safetensors"
        backbone.load_state_dict(pretrained_backbone(path, params, job.pretraining).state_dict())
    return model.to(device)
