"""The paper's claims as checkable statements (card, "Claims to test"); bounds are the card's."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.common.report.claims import Claim, at_least, not_tested
from stages.hico.params import HicoParams

POINTS = "points"
LINEAR = "action linear"
AUC_BOUND = 60.0  # percent; 50 is chance


def per_seed(results: pd.DataFrame, method: str, metric: str, table: str = "A") -> pd.Series:
    """Values by seed, averaged over targets; empty where the method was not run."""
    chosen = results[
        (results["table"] == table) & (results["method"] == method) & (results["metric"] == metric)
    ]
    return chosen.groupby("seed")["value"].mean()


def difference(results: pd.DataFrame, method: str, other: str, metric: str = LINEAR) -> np.ndarray:
    """Paired by seed, that is within a world; empty where either is missing."""
    return (per_seed(results, method, metric) - per_seed(results, other, metric)).dropna().to_numpy()


def check_claims(results: pd.DataFrame, params: HicoParams) -> list[Claim]:
    """All claims of the card at the active scale, from the tidy results."""
    scale = params.scale

    def compare(number: str, statement: str, effects: Sequence[float] | np.ndarray, bound: float) -> Claim:
        if not len(effects):
            return not_tested(number, statement, scale, "its methods are not among `methods` of this run")
        return at_least(number, statement, scale, effects, bound, POINTS)

    def versus(number: str, method: str, other: str, bound: float, statement: str) -> Claim:
        return compare(number, statement, difference(results, method, other), bound)

    def later(number: str, method: str, other: str, bound: float, statement: str) -> Claim:
        """A claim that the card tests at the larger scales only."""
        if scale == "quick":
            return not_tested(
                number,
                statement,
                scale,
                "the card tests this at real and paper scale",
            )
        return versus(number, method, other, bound, statement)

    linear = "linear action accuracy"
    return [
        versus(
            "1", "vcl-1", "simclr", 3.0,
            f"Unlimited distance hurts on untrimmed video: VCL (1 s) - SimCLR >= 3 points, {linear}",
        ),
        versus(
            "2", "simclr-trimmed", "simclr", 0.0,
            f"SimCLR falls from trimmed to untrimmed pre-training: trimmed - untrimmed > 0, {linear}",
        ),
        versus(
            "3a", "hico", "simclr", 5.0 if scale == "quick" else 0.0,
            f"HiCo - SimCLR, both on untrimmed video, {linear}, >= {5 if scale == 'quick' else 0} points",
        ),
        versus(
            "3b", "hico", "simclr-trimmed", 0.0,
            f"HiCo on untrimmed - SimCLR on trimmed video > 0, {linear}",
        ),
        compare(
            "4",
            "The topic predictor generalises: AUC of same topic against another, pairs of action clips of "
            "different held-out videos, >= 60 %",
            per_seed(results, "hico", "topic AUC").to_numpy(),
            AUC_BOUND,
        ),
        later("5a", "hico", "vcl-3-clips", 0.0, f"HiCo above the same three clips without topic loss, {linear}"),
        later("5b", "hico", "vcl-1", 0.0, f"HiCo above VCL with two clips, {linear}"),
        later("6a", "hico", "hico-fixed", 0.0, f"Gradual distance at least as good as a fixed one, {linear}"),
        gradual_theory(results, params),
        paper_only(results, params),
        later("8a", "vcl-1", "vcl-0", 0.0, f"Distance sweep: 1 s is better than 0, {linear}"),
        versus("8b", "vcl-1", "simclr", 0.0, f"Distance sweep: 1 s is better than unlimited, {linear}"),
    ]  # fmt: skip


def gradual_theory(results: pd.DataFrame, params: HicoParams) -> Claim:
    """Claim 6 in the simulation: final losses at equal steps and noise, paired by seed."""
    chosen = results[(results["table"] == "H") & (results["metric"] == "final loss")]
    wide = chosen.pivot_table(index="seed", columns="method", values="value")
    return at_least(
        "6b",
        "Simulation: widening gradually ends at a loss no higher than the full distance from the start",
        params.scale,
        (wide["fixed"] - wide["gradual"]).to_numpy(),
        0.0,
        "loss (fixed - gradual), final iterate",
    )


def paper_only(results: pd.DataFrame, params: HicoParams) -> Claim:
    """Claim 7: the authors' comparison of UK400 and K400."""
    statement = "HiCo pre-trained on UK400 (untrimmed) above K400 (trimmed) on HMDB51 and UCF101, fine-tuned and linear"
    if params.scale != "paper" or params.untrimmed != "uk400":
        return not_tested("7", statement, params.scale, "needs K400 and UK400 (`-S hico=paper`)")
    effects = [
        difference(results, "hico", "hico-trimmed", metric) for metric in ("action fine-tuned", "action LFT")
    ]
    if not all(len(values) for values in effects):
        return not_tested("7", statement, params.scale, "its methods are not among `methods` of this run")
    return at_least("7", statement, params.scale, np.mean(effects, axis=0), 0.0, POINTS)
