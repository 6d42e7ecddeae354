"""The paper's claims about classification as checkable statements (card, "Claims to test")."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from stages.chex.params import ChexParams, DataName
from stages.chex.study import setting_of
from stages.chex.tables import LATENCY_REPEATS
from stages.chex.verdicts import equivalence
from stages.common.report.claims import Claim, at_least, exact, not_tested

CARD_FLOPS = (
    0.3  # the card's claims are about its prototype's sparsity of 0.75, which leaves 30 % of the MACs
)
MACS_TOLERANCE = 0.05  # rows are compared where their multiply-accumulates differ by at most this
TITLES: dict[DataName, str] = {
    "shapes": "shapes",
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "imagenet": "ImageNet",
}


def check_claims(
    results: pd.DataFrame, widths: pd.DataFrame, speedup: tuple[float, float], params: ChexParams
) -> list[Claim]:
    """All claims of the card at the active scale.

    Args:
        results: tidy results.
        widths: active channels per group over training.
        speedup: ResNet-50 at 224, dense over slim latency and the fraction of its multiply-accumulates.
        params: names the scale, data sets and targets.
    """
    quick = params.scale == "quick"
    versus_scratch, versus_l1 = (3.0, 3.0) if quick else (0.5, 0.0)
    versus_bn, versus_gradual = (-0.5, -1.0) if quick else (0.0, 0.0)
    comparisons = [  # number, statement, the other row, points of top-1 that the card asks for at this scale
        (
            "1",
            f"CHEX beats the uniform network from scratch by >= {versus_scratch:g} points",
            "uniform",
            versus_scratch,
        ),
        ("2a", f"At equal steps, CHEX beats one-shot L1 by >= {versus_l1:g} points", "l1", versus_l1),
        ("2b", f"At equal steps, CHEX - one-shot BN scale >= {versus_bn:g} points", "bn", versus_bn),
        ("3a", "Global re-allocation beats uniform widths", "chex-no-realloc", 0.0),
        (
            "7",
            f"CHEX - gradual pruning without regrowing >= {versus_gradual:g} points",
            "chex-no-regrow",
            versus_gradual,
        ),
        ("7b", "Residual sampling beats random regrowing", "chex-random-regrow", 0.0),
    ]
    claims: list[Claim] = []
    for data in params.data:
        for number, text, other, bound in comparisons:
            claims += comparison(number, text, other, bound, results, data, params)
        claims.append(widening(widths[widths["part"] == data], data, params))
        claims += selection(results[results["data"] == data], data, params)
    claims += equivalence(
        results, params.scale, len(params.seeds), equal="The slim network's outputs equal the masked network's to 1e-5",
        compared="logits", counted="The slim network's MACs equal the count of torch's own counter (but for the biases)",
        biases="the classifier's bias adds one per class", extra=1000,
    )  # fmt: skip
    claims.append(latency(speedup, params))
    claims.append(
        not_tested("8", "Detection, segmentation, 3D: within 2 points of dense at half the body's MACs", params.scale,
                   "in pipelines of their own, whose claims 8a and 8b it is: `chex-detection` and `chex-points`")
    )  # fmt: skip
    return claims


def comparison(
    number: str,
    text: str,
    other: str,
    bound: float,
    results: pd.DataFrame,
    data: DataName,
    params: ChexParams,
) -> list[Claim]:
    """The claim that CHEX is better than another row by `bound` points: at the card's target, and over all targets."""
    rows = results[(results["data"] == data) & (results["table"] == "T1")]
    card = min(params.prune.flops, key=lambda target: abs(target - CARD_FLOPS))
    everywhere = f"mean over {len(params.prune.flops)} FLOPs targets"
    claims = []
    for suffix, targets, where in (
        ("", [card], f"{card:.0%} FLOPs"),
        ("-all", params.prune.flops, everywhere),
    ):
        claim_id, statement = f"{number}-{data}{suffix}", f"{text}, at equal MACs on {TITLES[data]} ({where})"
        if not {"chex", other} <= set(rows["method"]):
            claims.append(not_tested(claim_id, statement, params.scale, "a row is missing"))
            continue
        differences, gap = paired_differences(rows, "chex", other, targets)
        claim = at_least(claim_id, statement, params.scale, differences, bound, "points of top-1")
        note = f"{claim.test}; MACs differ by at most {gap:.1%}"
        if gap > MACS_TOLERANCE:
            note += f" (more than {MACS_TOLERANCE:.0%}: not at equal MACs)"
        claims.append(replace(claim, test=note))
    return claims


def paired_differences(
    rows: pd.DataFrame, method: str, other: str, targets: list[float]
) -> tuple[np.ndarray, float]:
    """Per seed, the mean over targets of top-1 of `method` minus `other`; and the largest relative gap in MACs."""

    def pivot(metric: str, name: str) -> pd.DataFrame:
        chosen = rows[(rows["method"] == name) & (rows["metric"] == metric)]
        chosen = chosen[chosen["setting"].isin([setting_of(target) for target in targets])]
        return chosen.pivot_table(index="seed", columns="setting", values="value")

    top1 = pivot("top1", method) - pivot("top1", other)
    gap = (pivot("macs", method) / pivot("macs", other) - 1).abs().to_numpy().max()
    return top1.mean(axis=1).to_numpy(), float(gap)


def widening(widths: pd.DataFrame, data: DataName, params: ChexParams) -> Claim:
    """Claim 3, second half: some layer's width increases while training."""
    text = (
        f"Re-allocation moves channels between layers: in every CHEX run on {TITLES[data]} some layer widens"
    )
    runs = widths[widths["method"] == "chex"].groupby(["target", "seed", "group"], sort=False)["active"]
    widens = runs.apply(lambda active: bool((active.diff() > 0).any()))
    grows = widens.groupby(["target", "seed"]).any()
    test = "share of runs in which a group has more active channels after an update than before"
    share = float(grows.mean()) if len(grows) else 0.0
    return exact(f"3b-{data}", text, params.scale, share == 1.0, share, test, len(params.seeds))


def selection(rows: pd.DataFrame, data: DataName, params: ChexParams) -> list[Claim]:
    """Claim 4: which criterion leaves the smaller weight-reconstruction residual on trained layers."""
    table = rows[rows["table"] == "T6"].pivot_table(index="seed", columns="metric", values="value")

    def per_seed(formula: Callable[[str], pd.Series]) -> np.ndarray:
        return np.mean([formula(f" at {fraction}").to_numpy() for fraction in ("0.25", "0.5")], axis=0)

    where, scale = f"on layers trained on {TITLES[data]}", params.scale
    unit = "relative residual"
    versus_l1 = per_seed(lambda at: (table[f"css{at}"] / table[f"l1{at}"] - 1).abs())
    above = min(float((table[f"css{at}"] - table[f"bound{at}"]).min()) for at in (" at 0.25", " at 0.5"))
    return [
        at_least(f"4a-{data}", f"CSS leaves a smaller residual than random selection {where}", scale,
                 per_seed(lambda at: table[f"random{at}"] - table[f"css{at}"]), 0.0, unit),
        at_least(f"4b-{data}", f"CSS and L1 leave residuals within 2 % of each other {where}", scale,
                 0.02 - versus_l1, 0.0, "(2 % minus the relative gap)"),
        exact(f"4c-{data}", f"CSS never goes below the SVD bound {where}", scale, above >= 0, above,
              "smallest residual minus bound over seeds and fractions", len(table)),
        at_least(f"4d-{data}", f"Greedy CSS is not worse than CSS on average {where}", scale,
                 per_seed(lambda at: table[f"css{at}"] - table[f"css_greedy{at}"]), 0.0, unit),
    ]  # fmt: skip


def latency(speedup: tuple[float, float], params: ChexParams) -> Claim:
    """Claim 6: the slim network is really faster."""
    text = "At <= 25 % of the MACs, ResNet-50 at 224 runs >= 3x faster on one CPU thread"
    factor, fraction = speedup
    test = (
        f"median latency of {LATENCY_REPEATS} interleaved runs, dense over slim, batch 1, at {fraction:.1%} of the MACs "
        "(uniform widths)"
    )
    return exact("6", text, params.scale, factor >= 3.0 and fraction <= 0.25, factor, test, 1)
