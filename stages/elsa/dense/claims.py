"""What the paper claims of dense tasks, as checkable statements: claims 2, 3, 4 and 8 of the card, carried over to them.

The card has no bound for dense tasks at small scales. It asks of the drop-in gain (claim 3) that the gap be positive beyond
its scatter over seeds; the same is asked here of box AP, mask AP and mIoU.
"""

import pandas as pd

from stages.common.report.claims import Claim, at_least, exact, not_tested
from stages.common.results import published
from stages.elsa.dense.cells import FULL_SIZE
from stages.elsa.dense.params import ElsaDenseParams

SCATTER = 0.2  # of the authors' retrainings (card, claim 8)
METRICS = {  # of the results: table, name, published table
    "box_ap": ("T2", "box AP", "coco2017_val"),
    "mask_ap": ("T2", "mask AP", "coco2017_val"),
    "miou": ("T3", "mIoU", "ade20k_val"),
}
PUBLISHED = {  # claim, our metric, published metric and setting of ELSA-Swin-T
    "D4a": ("box_ap", "box_ap", "Mask R-CNN, 1x"),
    "D4b": ("mask_ap", "mask_ap", "Mask R-CNN, 1x"),
    "D4c": ("miou_ms_flip", "miou", "UPerNet, 160k, 512, ms+flip, released weights"),
}


def per_seed(results: pd.DataFrame, method: str, metric: str) -> pd.Series:
    """Values of a trained row by seed; empty when it was not trained."""
    rows = results[
        (results["method"] == method) & (results["metric"] == metric) & (results["setting"] != FULL_SIZE)
    ]
    return rows.set_index("seed")["value"].sort_index()


def check_claims(results: pd.DataFrame, params: ElsaDenseParams) -> list[Claim]:
    """All claims at the active scale."""
    claims = [sizes(results, params)]
    for letter, (metric, (_, name, _)) in zip("abc", METRICS.items(), strict=True):
        statement = f"Drop-in gain: {name} is higher with ELSA than with window attention in the same trunk"
        claims.append(_better(f"D2{letter}", statement, results, "elsa", "window", metric, params))
    for letter, (metric, (_, name, _)) in zip("abc", METRICS.items(), strict=True):
        statement = f"Depthwise convolution is no worse than window attention in {name}"
        claims.append(_better(f"D3{letter}", statement, results, "depthwise", "window", metric, params))
    return [*claims, *at_paper_scale(results, params)]


def _better(
    claim: str,
    statement: str,
    results: pd.DataFrame,
    better: str,
    other: str,
    metric: str,
    params: ElsaDenseParams,
) -> Claim:
    gaps = (per_seed(results, better, metric) - per_seed(results, other, metric)).dropna()
    if gaps.empty:
        return not_tested(claim, statement, params.scale, f"{better} or {other} is not trained here")
    if not gaps.any():  # as where neither finds anything
        return not_tested(claim, statement, params.scale, "no seed tells the rows apart")
    return at_least(claim, statement, params.scale, gaps.to_numpy(), 0.0, "points")


def sizes(results: pd.DataFrame, params: ElsaDenseParams) -> Claim:
    """D1: the published networks, rebuilt, are as large as published, to the million that is printed."""
    statement = "Mask R-CNN and UPerNet on Swin-T/S and ELSA-Swin-T/S have the published numbers of parameters (to 1 M)"
    off = []
    for row in results[results["setting"] == FULL_SIZE].itertuples():
        table = "coco2017_val" if row.table == "T2" else "ade20k_val"
        theirs = published("elsa-dense").query(f"table == '{table}' and metric == 'params'")
        theirs = theirs[(theirs["method"] == row.method) & ~theirs["setting"].str.startswith("Cascade")]
        off.append(abs(round(float(str(row.value))) - theirs["value"].iloc[0]))
    worst = float(max(off))
    test = "largest difference of the rounded counts, in M, is 0"
    return exact("D1", statement, params.scale, worst == 0, worst, test, len(off))


def at_paper_scale(results: pd.DataFrame, params: ElsaDenseParams) -> list[Claim]:
    """D4: the published numbers of ELSA-Swin-T, reached within the authors' scatter."""
    theirs = published("elsa-dense").set_index(["method", "metric", "setting"])["value"]
    reason = "needs COCO or ADE20K, and a Swin-T pre-trained on ImageNet"
    claims = []
    for claim, (metric, name, setting) in PUBLISHED.items():
        bound = theirs["ELSA-Swin-T", name, setting]
        statement = f"ELSA-Swin-T reaches the published {bound:g} {METRICS[name][1]} ({setting})"
        if params.scale == "paper":
            values = per_seed(results, "elsa", metric)
            claims.append(at_least(claim, statement, params.scale, values, bound - SCATTER, "points"))
        else:
            claims.append(
                not_tested(
                    claim,
                    statement,
                    params.scale,
                    reason,
                )
            )
    return claims
