"""A study: what one of the three pipelines (images, point clouds, detectors) has of its own, and how its runs are named.

A study has parts (data sets, or detectors). Of every part a network is trained for each row of its table, FLOPs target and
seed, by the same stages: `pretraining.py`, `pruning.py`, `evaluation.py`. The three studies are in `training.py`,
`points/training.py` and `detection/training.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.chex.loop import Task
from stages.chex.method.channel_groups import ChannelGroup, Span, find_channel_groups
from stages.chex.method.flops import MacModel
from stages.chex.method.slim import load_slim
from stages.chex.params import Prune
from stages.chex.rows import Row, Schedule
from stages.common.stage.params import Scale, Section
from stages.common.stage.tracking import RunLog, run_key

Part = TypeVar("Part", bound=str)
Numbers = dict[str, tuple[float, str]]  # metric -> value, unit


class Job(NamedTuple, Generic[Part]):
    """One network of a study; without a target it is the dense one."""

    part: Part
    method: str
    target: float | None
    seed: int

    @property
    def setting(self) -> str:
        """How results name the FLOPs target."""
        return setting_of(self.target)


def setting_of(target: float | None) -> str:
    """How results name a FLOPs target; None is the dense network."""
    return "dense" if target is None else f"FLOPs {target:g}"


@dataclass(frozen=True)
class Explored:
    """An untrained network, and what exploring it needs.

    Attributes:
        model: the network.
        groups: channel groups of the part that is pruned, named as in the network.
        macs: cost of that part by widths of the groups.
        example: its input at batch 1.
        path: of that part within the network; "" is all of it.
    """

    model: nn.Module
    groups: list[ChannelGroup]
    macs: MacModel
    example: Tensor
    path: str

    @property
    def body(self) -> nn.Module:
        """The part that is pruned."""
        return self.model.get_submodule(self.path)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of that part at full width."""
        return self.macs([group.units for group in self.groups])


def explored(model: nn.Module, path: str, example: Tensor) -> Explored:
    """Find what can be pruned of `model` at `path`, which takes inputs like `example`."""
    body = model.get_submodule(path)
    groups, _ = find_channel_groups(body, example)
    named = [within(group, path) for group in groups]
    return Explored(model, named, MacModel(body, groups, example), example, path)


def within(group: ChannelGroup, path: str) -> ChannelGroup:
    """A group of a network that is the submodule `path` of another one, as a group of that one."""
    if not path:
        return group

    def spans(of: tuple[Span, ...]) -> tuple[Span, ...]:
        return tuple(span._replace(module=f"{path}.{span.module}") for span in of)

    return replace(
        group, name=f"{path}.{group.name}", producers=spans(group.producers), norms=spans(group.norms),
        depthwise=spans(group.depthwise), consumers=spans(group.consumers),
        exits=tuple(f"{path}.{name}" for name in group.exits),
    )  # fmt: skip


@dataclass(frozen=True)
class PartSettings:
    """What a study says about one of its parts.

    Attributes:
        steps: optimizer steps of every row.
        prune: the pruning schedule and the FLOPs targets.
        settings: all that a run depends on, by name.
        table, data: how results name the table and the data set.
        path: what of the network is pruned, a submodule; "" is all of it.
    """

    steps: int
    prune: Prune
    settings: dict[str, Any]
    table: str
    data: str
    path: str = ""


class Study(ABC, Generic[Part]):
    """One pipeline of this paper.

    Attributes:
        name: of the pipeline, as in `dvc repro <name>`.
        rows: how the methods choose channels.
        section: all parameters. scale, seeds, methods: of them.
        parts: data sets, or detectors.
        prepared, runs: folders of the data and of what the stages write.
    """

    name: ClassVar[str]
    rows: ClassVar[Mapping[Any, Row]]

    def __init__(
        self,
        section: Section,
        scale: Scale,
        seeds: Sequence[int],
        methods: Sequence[str],
        parts: dict[Part, PartSettings],
    ) -> None:
        self.section, self.scale, self.seeds, self.methods, self.parts = section, scale, seeds, methods, parts
        self.prepared, self.runs = Path("data") / self.name / scale, Path("runs") / self.name / scale

    # ------------------------------------------------------------------------------------- what differs

    @abstractmethod
    def network(self, part: Part, seed: int) -> nn.Module:
        """The untrained network of a seed, on the CPU."""

    @abstractmethod
    def example(self, part: Part, batch: int = 1) -> Tensor:
        """An input of what is pruned, zeros."""

    @abstractmethod
    def task(self, part: Part, schedule: Schedule, seed: int, device: torch.device) -> Task:
        """Training on the prepared data."""

    @abstractmethod
    def outputs(self, part: Part, network: nn.Module, device: torch.device) -> list[Tensor]:
        """What the network says about the first test inputs."""

    @abstractmethod
    def quality(self, job: Job[Part], network: nn.Module, device: torch.device) -> Numbers:
        """What is measured of a trained network on the test data."""

    def table(self, part: Part, metric: str) -> str:
        """The table that a metric belongs to."""
        return self.parts[part].table

    # --------------------------------------------------------------------------------- what is the same

    def jobs(self, method: str, seed: int) -> list[Job[Part]]:
        """All networks of a row and seed; the row "dense" has one of each part."""
        if method == "dense":
            return [Job(part, method, None, seed) for part in self.parts]
        return [
            Job(part, method, target, seed) for part, of in self.parts.items() for target in of.prune.flops
        ]

    def explored(self, part: Part, seed: int, device: torch.device) -> Explored:
        """The untrained network of a seed and what can be pruned of it."""
        model = self.network(part, seed).to(device)
        return explored(model, self.parts[part].path, self.example(part).to(device))

    def cell(self, method: str, seed: int) -> Path:
        """The folder of a row and seed."""
        return (
            self.runs / "pretrain" / str(seed)
            if method == "dense"
            else self.runs / "prune" / f"{method}-{seed}"
        )

    def file(self, job: Job[Part]) -> Path:
        """The trained network of a job."""
        last = "dense" if job.target is None else f"{job.target:g}"
        return self.cell(job.method, job.seed) / f"{job.part}-{last}.safetensors"

    def trained(self, job: Job[Part], device: torch.device) -> nn.Module:
        """The trained network of a job, dense or slim, in eval mode."""
        network = self.network(job.part, job.seed)
        if job.target is None:
            network.load_state_dict(load_file(self.file(job)))
        else:
            network = load_slim(self.file(job), network)
        return network.to(device).eval()

    def key(self, job: Job[Part]) -> str:
        """The run's `run_id` in the results and its tag in MLflow."""
        return run_key(self.name, self.scale, *job, self.parts[job.part].settings)

    def run_log(self, job: Job[Part], name: str = "") -> RunLog:
        """The MLflow run of one training."""
        named: dict[str, str] = {"method": job.method, "part": job.part, "data": self.parts[job.part].data}
        return RunLog(
            paper=self.name,
            name=name or f"{job.method} {job.part} {job.setting} seed {job.seed}",
            key=self.key(job),
            params={**named, "setting": job.setting, "seed": job.seed, **self.parts[job.part].settings},
            tags={"scale": self.scale, **named},
        )
