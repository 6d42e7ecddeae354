"""Verdicts from results that are made up."""

import pandas as pd

from stages.common.report.claims import Claim
from stages.elsa.dense.claims import check_claims
from stages.elsa.dense.params import ElsaDenseParams
from tests.common.stages import preset


def verdicts(
    values: dict[str, dict[str, list[float]]], scale: str = "quick", size: float = 48.2
) -> dict[str, Claim]:
    """Claims of these values: metric -> row -> one value per seed."""
    rows = [
        {
            "table": "T2",
            "method": "Swin-T",
            "setting": "full size",
            "metric": "params",
            "seed": 0,
            "value": size,
        }
    ]
    for metric, methods in values.items():
        for method, numbers in methods.items():
            for seed, value in enumerate(numbers):
                rows.append(
                    {
                        "table": "T3" if "miou" in metric else "T2", "method": method, "setting": "Mask R-CNN",
                        "metric": metric, "seed": seed, "value": value,
                    }
                )  # fmt: skip
    params = ElsaDenseParams.model_validate(preset("elsa-dense", scale))
    return {claim.id: claim for claim in check_claims(pd.DataFrame(rows), params)}


def test_gains_are_judged_by_their_scatter() -> None:
    found = verdicts(
        {
            "box_ap": {"elsa": [40, 42, 44], "window": [38, 39.9, 42.1]},
            "mask_ap": {"elsa": [30, 42, 34], "window": [38, 36, 37]},
            "miou": {"elsa": [20, 21, 22], "window": [25, 26.1, 27]},
        }
    )
    assert found["D2a"].verdict == "supported"
    assert found["D2b"].verdict == "inconclusive"
    assert found["D2c"].verdict == "not supported"
    assert all(found[f"D3{letter}"].verdict == "not tested at this scale" for letter in "abc")


def test_rows_that_find_nothing_support_nothing() -> None:
    found = verdicts({"box_ap": {"elsa": [0, 0, 0], "window": [0, 0, 0]}})
    assert found["D2a"].verdict == "not tested at this scale"


def test_sizes_must_round_to_the_published() -> None:
    assert verdicts({}, size=48.49)["D1"].verdict == "supported"
    assert verdicts({}, size=48.51)["D1"].verdict == "not supported"


def test_published_numbers_are_reached_within_the_authors_scatter() -> None:
    found = verdicts(
        {
            "box_ap": {"elsa": [45.6, 45.7, 45.65], "window": [43, 43, 43]},
            "mask_ap": {"elsa": [40.0, 40.1, 40.2], "window": [39, 39, 39]},
            "miou_ms_flip": {"elsa": [47.9]},
        },
        "paper",
    )
    assert found["D4a"].verdict == "supported"
    assert found["D4b"].verdict == "not supported"
    assert found["D4c"].verdict == "inconclusive"  # one seed
