"""The paper's claims about detectors as checkable statements (card, "Claims to test", 5 and 8)."""

import pandas as pd

from stages.chex.detection.cells import setting_of
from stages.chex.detection.evaluate import KINDS, TABLES
from stages.chex.detection.params import DetectionParams, DetectorName
from stages.common.report.claims import Claim, at_least, exact, not_tested

CARD_FLOPS = 0.5  # the card's claim is about half of the body's multiply-accumulates
LOSS = 2.0  # points of AP that CHEX may lose there
NAMES: dict[DetectorName, str] = {"ssd": "SSD", "mask-rcnn": "Mask R-CNN"}
KIND_NAMES = {"bbox": "box", "segm": "mask"}
PUBLISHED = (  # claim, detector, metric, what the paper reaches at its own scale, target
    ("8c", "ssd", "bbox_AP", 25.9, 0.5),
    ("8d", "mask-rcnn", "bbox_AP", 37.3, 0.37),
    ("8e", "mask-rcnn", "segm_AP", 34.5, 0.37),
)


def check_claims(results: pd.DataFrame, params: DetectionParams) -> list[Claim]:
    """All claims about detectors at the active scale."""
    scale = params.scale
    claims: list[Claim] = []
    for detector, settings in params.detectors.items():
        rows = results[results["table"] == TABLES[detector]]
        for target in sorted(settings.prune.flops, reverse=True):
            card = target == CARD_FLOPS
            at = f"at {target:.0%} of the body's MACs" + (
                "" if card else " (beyond the card, which says about 50 %)"
            )
            for kind in KINDS[detector]:
                what = f"{NAMES[detector]}, {KIND_NAMES[kind]} AP"
                suffix = f"-{detector}-{KIND_NAMES[kind]}" + ("" if card else f"-{target:g}")
                loses = f"{what}: CHEX loses at most {LOSS:g} points against dense {at}"
                beats = f"{what}: CHEX beats the narrow detector from scratch {at}"
                claims += [
                    compare(f"8a{suffix}", loses, f"{kind}_AP", "dense", target, -LOSS, rows, scale),
                    compare(f"8b{suffix}", beats, f"{kind}_AP", "uniform", target, 0.0, rows, scale),
                ]
    return claims + published_claims(results, params) + equivalence(results, params)


def compare(
    claim_id: str, statement: str, metric: str, other: str, target: float, bound: float, rows: pd.DataFrame, scale: str
) -> Claim:  # fmt: skip
    """The claim that CHEX's AP minus another row's is at least `bound`, seed by seed."""
    if not {"chex", other} <= set(rows["method"]):
        return not_tested(claim_id, statement, scale, "a row is missing")
    ap = rows[rows["metric"] == metric].set_index(["method", "setting", "seed"])["value"]
    setting = setting_of(None if other == "dense" else target)
    differences = ap["chex", setting_of(target)] - ap[other, setting]
    return at_least(claim_id, statement, scale, differences.to_numpy(), bound, "points of AP")


def published_claims(results: pd.DataFrame, params: DetectionParams) -> list[Claim]:
    """What the paper reaches on COCO: for `paper` only."""
    claims = []
    for claim_id, detector, metric, value, target in PUBLISHED:
        kind = KIND_NAMES[metric.partition("_")[0]]
        text = f"{NAMES[detector]} on COCO reaches {value} {kind} AP at -{1 - target:.0%} of the body's MACs"  # type: ignore[index]
        rows = results[
            (results["method"] == "chex") & (results["metric"] == metric)
            & (results["setting"] == setting_of(target)) & (results["table"] == TABLES[detector])  # type: ignore[index]
        ]  # fmt: skip
        if params.scale != "paper" or rows.empty:
            claims.append(not_tested(claim_id, text, params.scale, "needs COCO at the paper's schedule"))
        else:
            claims.append(at_least(claim_id, text, params.scale, rows["value"].to_numpy(), value, "AP"))
    return claims


def equivalence(results: pd.DataFrame, params: DetectionParams) -> list[Claim]:
    """Claim 5: the slim detector is the masked one, and costs what is counted."""
    difference = results.loc[results["metric"] == "slim_masked_difference", "value"]
    wide = results[results["metric"].isin(["body_macs", "body_torch_macs"])].pivot_table(
        index=["table", "method", "setting", "seed"], columns="metric", values="value"
    )
    gap = float((wide["body_macs"] - wide["body_torch_macs"]).abs().max())
    worst, seeds = float(difference.max()), len(params.seeds)
    return [
        exact("5a", "The slim detector's maps equal the masked detector's to 1e-5", params.scale, worst <= 1e-5, worst,
              "largest absolute difference of SSD's offsets and logits and of Mask R-CNN's feature pyramid over all "
              f"{len(difference)} slim detectors, GroupNorm and BatchNorm", seeds),
        exact("5b", "The slim body's MACs equal the count of torch's own counter", params.scale, gap == 0, gap,
              f"largest difference over all {len(wide)} detectors; bodies have no biases", seeds),
    ]  # fmt: skip
