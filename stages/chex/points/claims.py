"""The paper's claims about point clouds as checkable statements (card, "Claims to test", 5 and 8)."""

import pandas as pd

from stages.chex.points.cells import setting_of
from stages.chex.points.params import PointsParams
from stages.common.report.claims import Claim, at_least, exact, not_tested

CARD_FLOPS = 0.5  # the card's claim is about half of the multiply-accumulates
LOSS = 2.0  # points of accuracy that CHEX may lose there


def check_claims(results: pd.DataFrame, params: PointsParams) -> list[Claim]:
    """All claims about point clouds at the active scale."""
    scale = params.scale
    claims: list[Claim] = []
    for target in sorted(params.prune.flops, reverse=True):
        card = target == CARD_FLOPS
        suffix = "" if card else f"-{target:g}"
        at = f"at {target:.0%} of the MACs" + ("" if card else " (beyond the card, which says about 50 %)")
        loses = f"PointNet: CHEX loses at most {LOSS:g} points against dense {at}"
        beats = f"PointNet: CHEX beats the narrow network from scratch {at}"
        claims += [
            compare(f"8a{suffix}", loses, "dense", target, -LOSS, results, scale),
            compare(f"8b{suffix}", beats, "uniform", target, 0.0, results, scale),
        ]
    return claims + equivalence(results, params)


def compare(
    claim_id: str, statement: str, other: str, target: float, bound: float, results: pd.DataFrame, scale: str
) -> Claim:
    """The claim that CHEX's accuracy minus another row's is at least `bound`, seed by seed."""
    accuracy = results[results["metric"] == "accuracy"].set_index(["method", "setting", "seed"])["value"]
    if not {"chex", other} <= set(results["method"]):
        return not_tested(claim_id, statement, scale, "a row is missing")
    setting = setting_of(None if other == "dense" else target)
    differences = accuracy["chex", setting_of(target)] - accuracy[other, setting]
    return at_least(claim_id, statement, scale, differences.to_numpy(), bound, "points of accuracy")


def equivalence(results: pd.DataFrame, params: PointsParams) -> list[Claim]:
    """Claim 5: the slim network is the masked one, and costs what is counted."""
    difference = results.loc[results["metric"] == "slim_masked_difference", "value"]
    wide = results[results["metric"].isin(["macs", "torch_macs"])].pivot_table(
        index=["method", "setting", "seed"], columns="metric", values="value"
    )
    gap = float((wide["macs"] - wide["torch_macs"]).abs().max())
    worst, seeds = float(difference.max()), len(params.seeds)
    return [
        exact("5a", "PointNet: the slim network's outputs equal the masked network's to 1e-5", params.scale, worst <= 1e-5,
              worst, f"largest absolute logit difference over all {len(difference)} slim networks", seeds),
        exact("5b", "PointNet: the slim network's MACs equal the count of torch's own counter (but for the biases)",
              params.scale, gap <= 100, gap, "largest difference over all networks; a bias adds one per output", seeds),
    ]  # fmt: skip
