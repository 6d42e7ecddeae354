"""The paper's claims as checkable statements (card, "Claims to test"); bounds are the card's."""

import numpy as np
import pandas as pd

from stages.common.report.claims import Claim, at_least, not_tested
from stages.common.results import published
from stages.motionrgbd.params import MODALITIES, MotionrgbdParams

POINTS = "points of top-1"
FUSION_GAIN, ONE_MODALITY = (
    20.0,
    50.0,
)  # points; percent, the most that a modality can see of the generated label
SEEN, UNSEEN, AROUND = (
    95.0,
    50.0,
    10.0,
)  # percent: a factor that a modality sees; one that it does not, and how near
PERMUTED = 60.0  # percent, of trajectory accuracy without order
OVER_AVERAGE, NON_INFERIOR, DISTILLED, FASTER = 2.0, -5.0, 50.0, 2.0
COMPONENTS = {
    "no-rcm": "RCM", "no-frp": "FRP", "branch-3": "three branches against the longest", "no-sharpness": "sharpness",
}  # fmt: skip
PUBLISHED_NAMES = {"nvgesture": "main: NvGesture", "isogd": "main: IsoGD"}


def per_seed(
    results: pd.DataFrame, table: str, method: str, setting: str, metric: str = "top-1"
) -> pd.Series:
    """Values by seed; empty when the row was not run."""
    chosen = (
        (results["table"] == table)
        & (results["method"] == method)
        & (results["setting"] == setting)
        & (results["metric"] == metric)
    )
    return results[chosen].groupby("seed")["value"].mean()


def fused(results: pd.DataFrame, method: str, metric: str = "top-1") -> pd.Series:
    """A row of the fusion table."""
    return per_seed(results, "fusion", method, "rgb-d", metric)


def check_claims(results: pd.DataFrame, speedups: list[float], params: MotionrgbdParams) -> list[Claim]:
    """All claims of the card at the active scale, from the tidy results and the measured forward passes."""
    claims = [*fusion(results, params), *factors(results, params), *order(results, params)]
    claims += [*rivals(results, params), *components(results, params), *distillation(results, params)]
    return [*claims, speed(speedups, params), *paper_scale(results, params)]


def fusion(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 1: fusion against the best single modality and against what one modality can reach."""
    texts = (
        "CAPF - best single modality >= 20 points of top-1",
        "CAPF is above the 50 % that no single modality can exceed",
    )
    if params.data.name != "generated":
        return _elsewhere(("1a", "1b"), texts, params)
    capf = fused(results, "capf")
    best = pd.concat([per_seed(results, "main", "full", m) for m in MODALITIES], axis=1).max(axis=1)
    return [
        _compared("1a", texts[0], params, (capf - best).dropna(), FUSION_GAIN, POINTS),
        _compared("1b", texts[1], params, capf, ONE_MODALITY, "% of top-1"),
    ]


def factors(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 2: each modality knows its own bit and guesses the other's."""
    cases = (
        ("2a", "rgb", "glove", "RGB tells the glove: accuracy >= 95 %"),
        ("2b", "rgb", "depth", "RGB guesses push or pull: accuracy within 10 points of 50 %"),
        ("2c", "depth", "depth", "Depth tells push from pull: accuracy >= 95 %"),
        ("2d", "depth", "glove", "Depth guesses the glove: accuracy within 10 points of 50 %"),
    )
    if params.data.name != "generated":
        return _elsewhere([case[0] for case in cases], [case[3] for case in cases], params)
    claims = []
    for number, modality, factor, text in cases:
        values = per_seed(results, "main", "full", modality, f"{factor} accuracy")
        if number in ("2a", "2c"):
            claims.append(_compared(number, text, params, values, SEEN, "%"))
        else:
            room = AROUND - (values - UNSEEN).abs()
            claims.append(_compared(number, text, params, room, 0.0, "points left to the edge of 50 +- 10"))
    return claims


def order(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 3: the order of frames carries the trajectory.

    The card asks for <= 60 % with frames permuted; a network that knows no trajectory would pass. So it must also be
    above 60 % with frames in order.
    """
    texts = [
        f"{m.upper()}: trajectory accuracy is <= 60 % with frames permuted, and above it in order"
        for m in MODALITIES
    ]
    if params.data.name != "generated":
        return _elsewhere(("3a", "3b"), texts, params)
    claims = []
    for number, modality, text in zip(("3a", "3b"), MODALITIES, texts, strict=True):
        permuted = per_seed(results, "main", "full", modality, "trajectory accuracy, frames permuted")
        ordered = per_seed(results, "main", "full", modality, "trajectory accuracy")
        room = pd.concat([PERMUTED - permuted, ordered - PERMUTED], axis=1).min(axis=1)
        claims.append(_compared(number, text, params, room, 0.0, "points from 60 %, the nearer of the two"))
    return claims


def rivals(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 4: learnt fusion against averaging and against an MLP."""
    capf = fused(results, "capf")
    average = fused(results, "averaged log-probabilities")
    return [
        _compared(
            "4a", "CAPF - averaged log-probabilities >= 2 points", params, (capf - average).dropna(),
            OVER_AVERAGE, POINTS,
        ),
        _compared(
            "4b", "CAPF - concatenation and MLP >= 0 points (reported at quick, the card asks it at real)",
            params, (capf - fused(results, "concat")).dropna(), 0.0, POINTS,
        ),
    ]  # fmt: skip


def components(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 5: each component; at quick non-inferiority by 5 points is all that the card asks."""
    bound = NON_INFERIOR if params.scale == "quick" else 0.0
    claims = []
    for letter, (row, name) in zip("abcd", COMPONENTS.items(), strict=True):
        modality = params.ablation.modality
        full, without = (per_seed(results, "ablation", r, modality) for r in ("full", row))
        text = f"{name}: full - without >= {bound:g} points"
        claims.append(_compared(f"5{letter}", text, params, (full - without).dropna(), bound, POINTS))
    return claims


def distillation(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 6: the distillation value falls by half."""
    claims = []
    for number, modality in zip(("6a", "6b"), MODALITIES, strict=True):
        first, last = (
            per_seed(results, "main", "full", modality, f"distillation, {when}")
            for when in ("first active epoch", "last epoch")
        )
        text = f"{modality.upper()}: the distillation falls by >= 50 % from its first active epoch"
        fall = 100 * (1 - last / first)
        claims.append(_compared(number, text, params, fall, DISTILLED, "% of the first active value"))
    return claims


def speed(speedups: list[float], params: MotionrgbdParams) -> Claim:
    """Claim 7: a forward pass against the released formulation, at equal outputs."""
    text = "Forward pass of the paper's unimodal network >= 2 times the released formulation's speed, equal scores"
    unit = "times, one value for each pair of runs"
    return at_least("7", text, params.scale, speedups, FASTER, unit)


def paper_scale(results: pd.DataFrame, params: MotionrgbdParams) -> list[Claim]:
    """Claim 8: the published accuracies."""
    text = "Top-1 is within 1 point of the published one, or above: RGB, depth, RGB-D"
    if params.scale != "paper" or params.data.name not in PUBLISHED_NAMES:
        reason = "needs NvGesture, IsoGD, THU-READ or NTU RGB+D at 224 pixels, and Jester pre-training"
        return [not_tested("8", text, params.scale, reason)]
    rows = published("motionrgbd")
    rows = rows[rows["table"] == PUBLISHED_NAMES[params.data.name]]
    ours = {
        "RGB": per_seed(results, "main", "full", "rgb"),
        "Depth": per_seed(results, "main", "full", "depth"),
    }
    ours["RGB-D"] = fused(results, "capf")
    claims = []
    for letter, (setting, values) in zip("abc", ours.items(), strict=True):
        target = float(rows[rows["setting"] == setting]["value"].iloc[0])
        statement = f"{setting}: top-1 is within 1 point of the published {target:g} %, or above"
        claims.append(
            _compared(f"8{letter}", statement, params, values - target, -1.0, "points from published")
        )
    return claims


def _elsewhere(
    numbers: "list[str] | tuple[str, ...]", texts: "list[str] | tuple[str, ...]", params: MotionrgbdParams
) -> list[Claim]:
    reason = "a claim about the generated clips of the quick scale"
    return [not_tested(n, text, params.scale, reason) for n, text in zip(numbers, texts, strict=True)]


def _compared(
    number: str,
    text: str,
    params: MotionrgbdParams,
    effects: "pd.Series | np.ndarray",
    bound: float,
    unit: str,
) -> Claim:
    if not len(effects):
        return not_tested(number, text, params.scale, "one of the rows was not run")
    return at_least(number, text, params.scale, np.asarray(effects, dtype=float), bound, unit)
