"""The paper's claims about detectors as checkable statements (card, "Claims to test", 5 and 8)."""

from typing import NamedTuple

import pandas as pd

from stages.chex.detection.params import DetectionParams, DetectorName
from stages.chex.detection.training import KINDS, TABLES
from stages.chex.study import setting_of
from stages.chex.verdicts import equivalence, keeps_up
from stages.common.dense.average_precision import Kind
from stages.common.report.claims import Claim, at_least, not_tested

NAMES: dict[DetectorName, str] = {"ssd": "SSD", "mask-rcnn": "Mask R-CNN"}
KIND_NAMES: dict[Kind, str] = {"bbox": "box", "segm": "mask"}


class Published(NamedTuple):
    """What the paper reaches on COCO."""

    claim: str
    detector: DetectorName
    kind: Kind
    ap: float
    target: float


PUBLISHED = (
    Published("8c", "ssd", "bbox", 25.9, 0.5),
    Published("8d", "mask-rcnn", "bbox", 37.3, 0.37),
    Published("8e", "mask-rcnn", "segm", 34.5, 0.37),
)


def check_claims(results: pd.DataFrame, params: DetectionParams) -> list[Claim]:
    """All claims about detectors at the active scale."""
    claims = [
        claim
        for detector, settings in params.detectors.items()
        for kind in KINDS[detector]
        for claim in keeps_up(
            results[results["table"] == TABLES[detector]], f"{kind}_AP", settings.prune.flops, params.scale,
            label=f"-{detector}-{KIND_NAMES[kind]}", subject=f"{NAMES[detector]}, {KIND_NAMES[kind]} AP",
            network="detector", macs="the body's MACs", unit="AP",
        )
    ]  # fmt: skip
    return [
        *claims,
        *(published_claim(row, results, params.scale) for row in PUBLISHED),
        *equivalence(
            results, params.scale, len(params.seeds), equal="The slim detector's maps equal the masked detector's to 1e-5",
            compared="SSD's offsets and logits and of Mask R-CNN's feature pyramid (BatchNorm and GroupNorm)",
            counted="The slim body's MACs equal the count of torch's own counter", biases="bodies have no biases", extra=0,
        ),
    ]  # fmt: skip


def published_claim(row: Published, results: pd.DataFrame, scale: str) -> Claim:
    """What the paper reaches on COCO: for `paper` only."""
    text = (
        f"{NAMES[row.detector]} on COCO reaches {row.ap} {KIND_NAMES[row.kind]} AP at -{1 - row.target:.0%} "
        "of the body's MACs"
    )
    found = results[
        (results["table"] == TABLES[row.detector]) & (results["method"] == "chex")
        & (results["setting"] == setting_of(row.target)) & (results["metric"] == f"{row.kind}_AP")
    ]  # fmt: skip
    if scale != "paper" or found.empty:
        return not_tested(row.claim, text, scale, "needs COCO at the paper's schedule")
    return at_least(row.claim, text, scale, found["value"].to_numpy(), row.ap, "AP")
