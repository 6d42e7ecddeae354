"""Claims that studies share (card, "Claims to test"): 5, the slim network is the masked one, and 8, other tasks keep up."""

from collections.abc import Sequence

import pandas as pd

from stages.chex.study import setting_of
from stages.common.report.claims import Claim, at_least, exact, not_tested

CARD_FLOPS = 0.5  # claim 8 is about half of the multiply-accumulates
LOSS = 2.0  # points that CHEX may lose there


def keeps_up(
    results: pd.DataFrame, metric: str, targets: Sequence[float], scale: str, *, label: str, subject: str, network: str,
    macs: str, unit: str,
) -> list[Claim]:  # fmt: skip
    """Claim 8: CHEX stays near the dense network, and above the narrow one trained from scratch.

    Args:
        results: rows of one table.
        metric: what is compared, in points of `unit`.
        targets: FLOPs targets; those that the card does not name are marked.
        scale: the active one.
        label: end of the claims' ids.
        subject: what the statement is about, a `network` with the multiply-accumulates `macs`.
    """
    claims = []
    for target in sorted(targets, reverse=True):
        card = target == CARD_FLOPS
        suffix = label + ("" if card else f"-{target:g}")
        at = f"at {target:.0%} of {macs}" + ("" if card else " (beyond the card, which says about 50 %)")
        for letter, text, other, setting, bound in (
            ("a", f"loses at most {LOSS:g} points against dense", "dense", setting_of(None), -LOSS),
            ("b", f"beats the narrow {network} from scratch", "uniform", setting_of(target), 0.0),
        ):
            claim, statement = f"8{letter}{suffix}", f"{subject}: CHEX {text} {at}"
            if not {"chex", other} <= set(results["method"]):
                claims.append(not_tested(claim, statement, scale, "a row is missing"))
                continue
            values = results[results["metric"] == metric].set_index(["method", "setting", "seed"])["value"]
            differences = (values["chex", setting_of(target)] - values[other, setting]).to_numpy()
            claims.append(at_least(claim, statement, scale, differences, bound, f"points of {unit}"))
    return claims


def equivalence(
    results: pd.DataFrame, scale: str, seeds: int, *, equal: str, compared: str, counted: str, biases: str, extra: int
) -> list[Claim]:  # fmt: skip
    """Claim 5: the slim network is the masked one (statement `equal`), and costs what is counted (statement `counted`).

    Args:
        results: all rows.
        scale, seeds: the active scale and how many seeds it has.
        equal, counted: the statements.
        compared: which outputs. biases: why counts may differ, by at most `extra`.
    """
    difference = results.loc[results["metric"] == "slim_masked_difference", "value"]
    wide = results[results["metric"].isin(["macs", "torch_macs"])].pivot_table(
        index=["table", "data", "method", "setting", "seed"], columns="metric", values="value"
    )
    worst, gap = float(difference.max()), float((wide["macs"] - wide["torch_macs"]).abs().max())
    test = f"largest absolute difference of {compared} over all {len(difference)} slim networks"
    count = f"largest difference in MACs over all {len(wide)} networks; {biases}"
    return [
        exact("5a", equal, scale, worst <= 1e-5, worst, test, seeds),
        exact("5b", counted, scale, gap <= extra, gap, count, seeds),
    ]
