"""What names the runs of this paper: the searches and the trainings of a cell of the matrix."""

from dataclasses import dataclass

from stages.common.stage.tracking import RunLog, run_key
from stages.zendet.method.cost import count_flops, count_layers
from stages.zendet.method.entropy import DETECTION_ALPHAS
from stages.zendet.method.evolution import Mutation
from stages.zendet.method.published import PUBLISHED
from stages.zendet.method.structure import Structure, dump_structure, resnet_structure
from stages.zendet.params import HeadName, Strategy, ZendetParams

MIN_FLOPS = 0.95  # share of the FLOPs that the minimum-entropy control must spend (card, claim 5)


@dataclass(frozen=True)
class SearchJob:
    """One search: the strategy's own ("main"), or a row of the ablation (card, T2)."""

    name: str = "main"
    mutation: Mutation = "coarse"
    alphas: tuple[float, ...] = DETECTION_ALPHAS
    closed_form: bool = False


ABLATION = (
    SearchJob("fine", mutation="fine"),
    SearchJob("coarse-to-fine", mutation="coarse_to_fine"),
    SearchJob("alpha 0 0 0 0 1", alphas=(0.0, 0.0, 0.0, 0.0, 1.0)),
    SearchJob("alpha 0 0 1 1 1", alphas=(0.0, 0.0, 1.0, 1.0, 1.0)),
    SearchJob("alpha 1 1 1 1 1", alphas=(1.0, 1.0, 1.0, 1.0, 1.0)),
    SearchJob("closed form", closed_form=True),
)


def search_jobs(strategy: Strategy) -> list[SearchJob]:
    """The searches of a cell."""
    return [SearchJob(), *(ABLATION if strategy == "entropy" else ())]


def reference(params: ZendetParams) -> Structure:
    """The ResNet whose FLOPs and layers are everyone's budget."""
    return resnet_structure(params.reference.stem, params.reference.mids, params.reference.depths)


def small_start(params: ZendetParams) -> Structure:
    """The reference with one bottleneck a stage at half its widths: what searches start from."""
    halved = [max(8, mid // 2) for mid in params.reference.mids]
    return resnet_structure(max(8, params.reference.stem // 2), halved, [1] * len(halved))


def limits(params: ZendetParams) -> tuple[float, int]:
    """FLOPs and layers of the reference."""
    structure = reference(params)
    return count_flops(structure, params.image_size), count_layers(structure)


def fixed_structure(strategy: Strategy, params: ZendetParams) -> Structure | None:
    """The structure of a strategy that is not a search; None for one that is."""
    return reference(params) if strategy == "resnet" else PUBLISHED.get(strategy)


def key_of(params: ZendetParams, backbone: Strategy, structure: Structure, head: HeadName, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    setting = params.model_dump(include={"data", "detector", "train"})
    return run_key("zendet", params.scale, backbone, head, seed, dump_structure(structure), setting)


def run_log(
    params: ZendetParams, backbone: Strategy, structure: Structure, head: HeadName, seed: int
) -> RunLog:
    """The MLflow run of one training."""
    return RunLog(
        paper="zendet",
        name=f"{backbone} {head} seed {seed}",
        key=key_of(params, backbone, structure, head, seed),
        params={
            "method": backbone,
            "head": head,
            "seed": seed,
            "data": params.data.kind,
            **params.detector.model_dump(),
            **params.train.model_dump(),
        },
        tags={"scale": params.scale, "data": params.data.kind, "method": backbone},
    )
