"""The paper's claims about point clouds as checkable statements (card, "Claims to test", 5 and 8)."""

import pandas as pd

from stages.chex.points.params import PointsParams
from stages.chex.verdicts import equivalence, keeps_up
from stages.common.report.claims import Claim


def check_claims(results: pd.DataFrame, params: PointsParams) -> list[Claim]:
    """All claims about point clouds at the active scale."""
    return [
        *keeps_up(
            results, "accuracy", params.prune.flops, params.scale, label="", subject="PointNet", network="network",
            macs="the MACs", unit="accuracy",
        ),
        *equivalence(
            results, params.scale, len(params.seeds),
            equal="PointNet: the slim network's outputs equal the masked network's to 1e-5", compared="logits",
            counted="PointNet: the slim network's MACs equal the count of torch's own counter (but for the biases)",
            biases="a bias adds one per output", extra=100,
        ),
    ]  # fmt: skip
