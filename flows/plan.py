"""What has to run: DVC's own graph, in DVC's own order, with the reason why a stage is out of date.

A stage that only depends on one that runs is *pending*: whether it runs is known when that one has ended.
"""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from flows.errors import UsageError

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

Gpu = Literal[0, 1, "optional", "shared"]
GPU_VALUES = (0, 1, "optional", "shared")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
NEEDS = ("gpu", "cpus", "memory", "timeout")


@dataclass(frozen=True)
class Needs:
    """What a stage needs of a machine, from its `meta`."""

    gpu: Gpu = 0
    cpus: int = 1
    memory: int = 0  # bytes; 0: not said
    timeout: float | None = None  # seconds


@dataclass
class Step:
    """One stage of the plan."""

    name: str
    stage: "Stage"
    needs: Needs
    upstream: tuple[str, ...]  # names of the stages of this plan that it directly depends on
    reason: str = (
        ""  # why it is out of date; empty when it is not, as far as is known before its upstream has run
    )
    runs: bool = False  # out of date, or downstream of a stage that is
    away: bool = False  # to run on a worker of another clone


@dataclass
class Plan:
    """The stages of some targets in the order in which `dvc repro` would visit them."""

    targets: list[str]
    steps: dict[str, Step] = field(default_factory=dict)
    pipelines: list[str] = field(default_factory=list)  # one name per connected part of the graph

    @property
    def to_run(self) -> list[Step]:
        """Stages that run, or that are looked at again when their upstream has run."""
        return [step for step in self.steps.values() if step.runs]

    def describe(self) -> str:
        """One line per stage that is to run."""
        return "\n".join(f"{step.name}: {step.reason or 'after its upstream'}" for step in self.to_run)


def amount(value: Any, units: dict[str, int]) -> float | None:
    """Read `4G` or `90m`; None when it is no such thing."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]?)(?:i?B)?", str(value).strip())
    if not found or found[2] not in units:
        return None
    return float(found[1]) * units[found[2]]


def read_needs(name: str, meta: dict[str, Any] | None) -> Needs:
    """What the `meta` of the stage `name` asks for; other keys of `meta` are not ours."""
    meta = meta or {}

    def wrong(key: str, allowed: str) -> UsageError:
        return UsageError(f"dvc.yaml: stage '{name}': meta.{key} is {meta[key]!r}; allowed: {allowed}")

    gpu, cpus = meta.get("gpu", 0), meta.get("cpus", 1)
    if gpu not in GPU_VALUES or isinstance(gpu, bool):
        raise wrong("gpu", ", ".join(map(str, GPU_VALUES)))
    if not isinstance(cpus, int) or isinstance(cpus, bool) or cpus < 1:
        raise wrong("cpus", "a whole number from 1 on")
    memory = amount(meta.get("memory", 0), UNITS)
    if memory is None:
        raise wrong("memory", "a size such as 512M or 4G")
    timeout = amount(meta["timeout"], SECONDS) if "timeout" in meta else None
    if "timeout" in meta and not timeout:
        raise wrong("timeout", "a time such as 90s, 30m or 8h")
    return Needs(gpu=gpu, cpus=cpus, memory=int(memory), timeout=timeout)


def needs_together(stages: Iterable[Needs]) -> Needs:
    """What a machine must have that runs these stages one after another."""
    needs = list(stages)
    gpus = {one.gpu for one in needs} - {0}
    gpu: Gpu = gpus.pop() if len(gpus) == 1 else 1 if gpus else 0
    return Needs(gpu, cpus=max((one.cpus for one in needs), default=1))


def make_plan(repo: "Repo", targets: Iterable[str], force: bool = False, single: bool = False) -> Plan:
    """Plan the targets as `dvc repro` would; needs the lock of `repo`. Without targets: everything.

    `single`: the targets themselves and nothing else.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    plan = Plan(list(targets))
    known = {stage.addressing: stage for stage in repo.index.stages}
    try:
        found = (  # DVC would read the whole dvc.yaml again for each name
            [known[target]] if target in known else collect_stages(repo, [target])
            for target in plan.targets or ["dvc.yaml"]
        )
        stages = list(dict.fromkeys(itertools.chain.from_iterable(found)))
    except DvcException as error:
        names = sorted({stage.addressing.partition("@")[0] for stage in repo.index.stages})
        nearby = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
        raise UsageError(f"{first_line(error)}; stages: {nearby}") from error
    graph = get_active_graph(repo.index.graph)
    order: list[Stage] = stages if single else plan_repro(graph, stages)
    here = {stage.addressing for stage in order}
    hashes: dict[str, Any] = {}
    for stage in order:
        upstream = [up.addressing for up in graph.successors(stage)]
        step = Step(
            stage.addressing,
            stage,
            read_needs(stage.addressing, stage.meta),
            tuple(name for name in upstream if name in here),
        )
        step.reason = "forced" if force else out_of_date(stage, hashes)
        step.runs = bool(step.reason) or any(plan.steps[name].runs for name in step.upstream)
        plan.steps[step.name] = step
    for part in nx.weakly_connected_components(graph):
        members = {stage.addressing for stage in part}
        if members & here:
            plan.pipelines.append(min(members))
    return plan


def needs_of_papers(repo: "Repo") -> dict[str, list[Needs]]:
    """The stages that no other depends on, which are the papers, and what their pipelines' stages need."""
    import networkx as nx

    graph = repo.index.graph  # from a stage to what it depends on
    last = sorted(
        (stage for stage in graph if not graph.in_degree(stage)), key=lambda stage: stage.addressing
    )
    return {
        stage.addressing: [
            read_needs(member.addressing, member.meta) for member in (stage, *nx.descendants(graph, stage))
        ]
        for stage in last
    }


def out_of_date(stage: "Stage", hashes: dict[str, Any]) -> str:
    """Why DVC would run this stage now, or nothing; `hashes` remembers what paths hash to.

    The same checks as `Stage.changed`, but every path is hashed once per plan and not once per stage, and
    no lock file is written, so that a thousand stages are planned in seconds.
    """
    if stage.changed_stage():
        return "its command changed" if any(out.hash_info for out in stage.outs) else "it has never run"
    if not stage.frozen:
        if stage.is_callback or stage.always_changed:
            return "it always runs"
        for dep in stage.deps:
            if status := _status_of(dep, hashes):
                if status == "new" and not any(out.hash_info for out in stage.outs):
                    return "it has never run"
                return f"{dep} is {status}"
    for out in stage.outs:
        if status := _status_of(out, hashes):
            return f"{out} is {status}"
    return ""


def _status_of(item: "Output", hashes: dict[str, Any]) -> str:
    from dvc.dependency import Dependency
    from dvc.output import Output

    # parameters, other repositories, clouds
    if type(item) not in (Dependency, Output) or item.fs.version_aware:
        status = item.status()
        if not status:
            return ""
        change = next(iter(status.values()))
        if isinstance(change, dict):
            return "changed in " + ", ".join(change)
        return str(change)
    if type(item) is Output and item.hash_info and item.use_cache and item.changed_cache():
        return "not in cache"
    place = f"{item.hash_name}:{item.fs_path}"  # lock entries of older DVCs have another kind of hash
    if place not in hashes:
        hashes[place] = item.get_hash() if item.exists else None
    current = hashes[place]
    if current is None:
        return "deleted"
    if current != item.hash_info:
        return "modified" if item.hash_info else "new"
    return ""


def first_line(error: BaseException) -> str:
    """What an exception says, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
