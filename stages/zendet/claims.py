"""The paper's claims as checkable statements (card, "Claims to test")."""

import numpy as np
import pandas as pd
from scipy import stats

from stages.common.report.claims import Claim, at_least, exact, not_tested
from stages.zendet.params import ZendetParams

PARAMS = {"MAE-DET-S": 21_233_120, "MAE-DET-M": 25_843_536, "MAE-DET-L": 43_879_552}
FLOPS = {"MAE-DET-S": 48.7, "MAE-DET-M": 89.9, "MAE-DET-L": 152.9}
ORDER = ("MAE-DET-L", "MAE-DET-M", "MAE-DET-S", "ResNet-50-like")
PUBLISHED_AP = {"MAE-DET-S": 45.1, "MAE-DET-M": 46.9, "MAE-DET-L": 47.8}
SCORE, EVALUATIONS = 2050.0, 16_000


def per_seed(results: pd.DataFrame, table: str, method: str, setting: str, metric: str) -> pd.Series:
    """Values by seed; empty when the row was not run."""
    rows = results[
        (results["table"] == table)
        & (results["method"] == method)
        & (results["setting"] == setting)
        & (results["metric"] == metric)
    ]
    return rows.set_index("seed")["value"].sort_index()


def published_values(results: pd.DataFrame, metric: str) -> pd.Series:
    """One number of every published backbone."""
    rows = results[(results["table"] == "T5") & (results["metric"] == metric)]
    return rows.set_index("method")["value"]


def score_table(results: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Scores of the random structures: a row each, a column per method."""
    rows = results[(results["table"] == "F2") & (results["setting"] == setting)]
    return rows.pivot(index="seed", columns="method", values="value")


def best_after(results: pd.DataFrame, method: str, evaluations: int = EVALUATIONS) -> pd.Series:
    """The best score of the authors' setting by seed, at the last recorded point within `evaluations`."""
    rows = results[(results["table"] == "F1") & (results["method"] == method)]
    rows = rows.assign(at=rows["setting"].str.removeprefix("after ").astype(int))
    return rows[rows["at"] <= evaluations].groupby("seed")["value"].max()


def check_claims(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """All claims of the card at the active scale, from the tidy results."""
    return [
        *accounting(results, params),
        *fidelity(results, params),
        *search(results, params),
        *detectors(results, params),
        *latency(results, params),
        *coco(results, params),
    ]


def accounting(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """Claims 1 and 4: published parameters and FLOPs, and the order of the scores."""
    counted, flops = published_values(results, "params"), published_values(results, "published flops")
    score = published_values(results, "analytic score")[list(ORDER)]
    ratio = flops["MAE-DET-S"] / flops["ResNet-50-like"]
    return [
        exact(
            "1a",
            "Parameters of MAE-DET-S, M, L are the published ones exactly",
            params.scale,
            all(counted[name] == value for name, value in PARAMS.items()),
            float(sum(counted[name] == value for name, value in PARAMS.items())),
            "backbones of 3 that agree",
            1,
        ),
        exact(
            "1b",
            "FLOPs of MAE-DET-S, M, L at 1280x800 round to 48.7, 89.9, 152.9 G",
            params.scale,
            all(round(flops[name], 1) == value for name, value in FLOPS.items()),
            float(sum(round(flops[name], 1) == value for name, value in FLOPS.items())),
            "backbones of 3 that agree",
            1,
        ),
        exact(
            "4",
            f"Score: MAE-DET-L > M > S > ResNet-50-like, although S has {ratio:.2f} times its FLOPs",
            params.scale,
            bool((np.diff(score) < 0).all()),
            float(score.iloc[2] - score.iloc[3]),
            "S - ResNet-50-like in nats, analytic, 480 px",
            1,
        ),
    ]


def fidelity(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """Claim 2: the analytic score against Monte-Carlo on random structures."""
    large, small = (f"{size} px" for size in (max(params.score_check.sizes), min(params.score_check.sizes)))
    table = score_table(results, large)
    rho = float(stats.spearmanr(table["analytic"], table["monte carlo"]).statistic)
    error = relative_error(table, "analytic").max()
    little = score_table(results, small)
    analytic, closed = (relative_error(little, method).mean() for method in ("analytic", "closed form"))
    count = len(table)
    return [
        exact(
            "2a",
            "Analytic against Monte-Carlo score: Spearman >= 0.99",
            params.scale,
            rho >= 0.99 and count >= 30,
            rho,
            f"rank correlation over {count} random structures, {large}",
            count,
        ),
        exact(
            "2b",
            "Analytic against Monte-Carlo score: relative error <= 0.5 %",
            params.scale,
            error <= 0.005,
            100 * float(error),
            f"largest error in % over {count} random structures, {large}",
            count,
        ),
        exact(
            "2c",
            "The closed form is worse than the analytic score on small inputs",
            params.scale,
            closed > analytic,
            float(closed / analytic),
            f"mean relative error of the closed form over that of the analytic score, {small}",
            count,
        ),
    ]


def relative_error(table: pd.DataFrame, method: str) -> pd.Series:
    """Distance to Monte-Carlo as a share of it."""
    error: pd.Series = (table[method] / table["monte carlo"] - 1).abs()
    return error


def search(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """Claim 3: the authors' search setting."""
    ours, walk = best_after(results, "entropy"), best_after(results, "random")
    wins = int((ours > walk).sum())
    return [
        at_least(
            "3a",
            "Authors' setting (18.8 GFLOPs at 480 px, 91 layers), closed form: >= 2050 within 16k evaluations",
            params.scale,
            ours.to_numpy(),
            SCORE,
            "nats",
        ),
        exact(
            "3b",
            "The search beats a random walk of equal evaluations with every seed",
            params.scale,
            wins == len(ours),
            float((ours - walk).min()),
            f"smallest difference in nats over seeds; {wins} of {len(ours)} won",
            len(ours),
        ),
    ]


def detectors(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """Claims 5 and 6: AP of the searched backbone against its controls, FLOPs and layers equal."""
    claims = []
    for head in params.heads:
        ap = {b: per_seed(results, "T1", b, head, "AP") for b in ("entropy", "min-entropy", "resnet")}
        text = f"{head}: AP of the minimum-entropy backbone <= 0.7 of the searched one's (provisional)"
        if len(ap["entropy"]) and len(ap["min-entropy"]):
            lost = (1 - ap["min-entropy"] / ap["entropy"]).to_numpy()
            claims.append(at_least(f"5-{head}", text, params.scale, lost, 0.3, "of the AP lost"))
        else:
            claims.append(not_tested(f"5-{head}", text, params.scale, "one of the two is not trained"))
        text = f"{head}: the searched backbone is not worse than the ResNet by more than 2 sd"
        if len(ap["entropy"]) and len(ap["resnet"]) > 1:
            slack = 2 * ap["resnet"].std(ddof=1)
            margin = (ap["entropy"] - ap["resnet"] + slack).to_numpy()
            claims.append(
                at_least(
                    f"6-{head}", text, params.scale, margin, 0.0, f"AP (difference + 2 sd = {slack:.2f})"
                )
            )
        else:
            claims.append(not_tested(f"6-{head}", text, params.scale, "not trained, or with one seed"))
    return claims


def latency(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """Claim 7: predicted V100 time at 480 px, batch 32."""
    text = "Predicted V100 FP16 time of MAE-DET-S <= 0.70 of ResNet-50's; M is not faster than ResNet-50"
    ms = published_values(results, "predicted ms")
    if ms.empty:
        reason = "needs the authors' V100 table (zendet.search.latency_table)"
        return [not_tested("7", text, params.scale, reason)]
    small, medium = (float(ms[name] / ms["ResNet-50-like"]) for name in ("MAE-DET-S", "MAE-DET-M"))
    holds = small <= 0.7 and medium >= 1
    return [
        exact("7", text, params.scale, holds, small, f"time of S over ResNet-50's; M's is {medium:.2f}", 1)
    ]


def coco(results: pd.DataFrame, params: ZendetParams) -> list[Claim]:
    """Claim 8: the published APs."""
    claims = []
    for name, published in PUBLISHED_AP.items():
        text = f"COCO, GFLV2: AP of {name} >= {published}"
        ap = per_seed(results[results["data"] == "coco"], "T1", name, "gfl", "AP")
        claims.append(
            at_least(f"8-{name[-1]}", text, params.scale, ap.to_numpy(), published, "AP")
            if params.scale == "paper" and len(ap)
            else not_tested(f"8-{name[-1]}", text, params.scale, "needs COCO and the paper's schedule")
        )
    return claims
