"""The paper's claims as checkable statements (card, "Claims to test"); bounds are the card's, fixed before any run."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd

from stages.adam import bilevel, compositional, counterexamples, digits, minmax, rate
from stages.adam.fits import against, per_seed
from stages.adam.fits import rate as rate_of
from stages.adam.method.rates import Fit, fit_loglog
from stages.adam.method.recursion import MEMBERS
from stages.adam.params import AdamParams
from stages.common.report.claims import Claim, Verdict, at_least, exact, not_tested
from stages.common.results import published

BOOTSTRAP = (
    "least squares of log mean over seeds; 95 % percentile bootstrap over seeds, the same seeds at every T"
)
FLATTENING = 0.05  # by how much the last horizons' slope may be above the first ones'
DRIFT = 0.15  # a ratio may grow by this exponent: what claim 1 allows a rate to be above -1/2
CURVES = "AdaBound repository CIFAR-10 curves (rival, not this paper)"
# why a claim fails at quick scale, by the start of its id
REASONS = {
    "3b-": "Why: at gamma = .01 x still moves (T2's row with x frozen is at half the error), and the recursion's drift term "
    "comes on top of gamma sigma²/2",
    "5b-": "Why: gamma/(2-gamma) of SGDA's error would be .05 of it; the rest is lag and not noise, as the gradient itself "
    "swings (tails of ‖∇Phi‖² are as large); the card gives no initial weights, and its reference run swings less",
    "7b-5": "Why: no floor yet, both tails still fall with T; twenty terms amplify the samples' noise more than five do, "
    "and that is more than the bias of five",
    "8b": "Why: at the full step size beta = .99 oscillates (training loss above .1) and lags, and adabound under the "
    "increasing schedule has not converged",
}
ADAPTIVE = ("adam", "amsgrad", "adagrad")  # the rivals of AdaBound in claim 9


def check_claims(results: pd.DataFrame, params: AdamParams) -> list[Claim]:
    """All claims of the card at the active scale."""
    claims = [
        *rates(results, params),
        *bounds(results, params),
        *variance(results, params),
        *momentum_is_needed(results, params),
        *min_max(results, params),
        *inner_average(results, params),
        *bi_level(results, params),
        *on_digits(results, params),
        *cifar10(results, params),
    ]
    return [_explained(claim) for claim in claims]


def _explained(claim: Claim) -> Claim:
    """The claim, with the reason added where it was looked into."""
    if claim.scale != "quick" or claim.verdict in ("supported", "not tested at this scale"):
        return claim
    reasons = [text for prefix, text in REASONS.items() if claim.id.startswith(prefix)]
    return Claim(**{**claim.__dict__, "test": ". ".join([claim.test, *reasons])})


def within(
    claim_id: str, statement: str, scale: str, fit: Fit, low: float, high: float, n: int, test: str
) -> Claim:
    """The claim that an exponent lies in [low, high]: by whether its interval is inside, outside, or across."""
    verdict: Verdict = "inconclusive"
    if low <= fit.low and fit.high <= high:
        verdict = "supported"
    elif fit.high < low or fit.low > high:
        verdict = "not supported"
    return Claim(claim_id, statement, scale, verdict, fit.slope, (fit.low, fit.high), n, test)


def _members(params: AdamParams) -> list[str]:
    return [member for member in params.rate.members if MEMBERS[member].momentum]


def rates(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 1: the rate of every member."""
    n, scale = len(params.seeds), params.scale
    for member in _members(params):
        T_M, values_MS = against(results, "T", "avg_grad_sq", table="T1", method=member)
        text = f"{member}: the averaged squared gradient norm falls like T^-1/2, slope in [-.75, -.35]"
        yield within(f"1-{member}", text, scale, fit_loglog(T_M, values_MS), -0.75, -0.35, n, BOOTSTRAP)
        if len(T_M) >= 6:
            first, last = fit_loglog(T_M[:3], values_MS[:3]), fit_loglog(T_M[-3:], values_MS[-3:])
            change = Fit(last.slope - first.slope, last.low - first.high, last.high - first.low)
            text = f"{member}: the slope over the last three T is at most .05 above that over the first three"
            test = f"difference of slopes, ends of both intervals; {BOOTSTRAP}"
            yield within(f"1b-{member}", text, scale, change, -np.inf, FLATTENING, n, test)


def bounds(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 2: the theorem's inequalities, and that their slack does not vanish with T."""
    scale, n = params.scale, len(params.seeds)
    for member in _members(params):
        margin = float(per_seed(results, "step_margin", table="T1", method=member).to_numpy().min())
        for number in ("B1", "B2"):
            text = (
                f"{member}: bound ({number}) holds at every T, the step size being within the theorem's limit"
            )
            T_M, ratio_MS = against(results, "T", f"{number}_ratio", table="T1", method=member)
            if margin < 1:
                test = f"the step size is {1 / margin:.2f} times the limit: the theorem does not apply"
                yield exact(f"2-{number}-{member}", text, scale, False, margin, test, n)
                continue
            worst_S = ratio_MS[ratio_MS.mean(axis=1).argmax()]
            claim = at_least(
                f"2-{number}-{member}", text, scale, 1 - worst_S, 0.0, "(1 minus left over right side)"
            )
            yield Claim(**{**claim.__dict__, "test": f"{claim.test}; at the T with the largest ratio"})
            text = f"{member}: left over right side of ({number}) does not drift upwards, at most like T^.15"
            fit = fit_loglog(T_M, ratio_MS)
            yield within(f"2b-{number}-{member}", text, scale, fit, -np.inf, DRIFT, n, BOOTSTRAP)


def variance(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 3: the first moment's error against gamma."""
    scale, n, sigma2 = params.scale, len(params.seeds), rate.SIGMA**2
    for member in _members(params):
        gamma_M, error_MS = against(results, "gamma", "tail_D", table="T2", method=member)
        small = gamma_M < 1
        text = f"{member}: the first moment's error is proportional to gamma, slope in [.85, 1.1]"
        test = BOOTSTRAP.replace("every T", "every gamma")
        fit = fit_loglog(gamma_M[small], error_MS[small])
        yield within(f"3a-{member}", text, scale, fit, 0.85, 1.1, n, test)
        low = gamma_M <= 0.1
        relative_MS = error_MS[low] / (sigma2 * gamma_M[low, None])
        worst_S = relative_MS[relative_MS.mean(axis=1).argmax()]
        text = f"{member}: for gamma <= .1 the first moment's error is below gamma sigma²"
        claim = at_least(f"3b-{member}", text, scale, 1 - worst_S, 0.0, "(1 minus error over gamma sigma²)")
        yield Claim(**{**claim.__dict__, "test": f"{claim.test}; at the gamma with the largest ratio"})
    if "rmsprop" in params.rate.members:
        _, error_MS = against(results, "T", "avg_D", table="T1", method="rmsprop")
        worst = float(np.abs(error_MS / sigma2 - 1).max())
        text = "Without momentum (rmsprop) the error stays at sigma² for every T"
        yield exact("3c", text, scale, worst < 1e-6, worst, "largest relative difference over T and seeds", n)


def momentum_is_needed(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 4: small betas end at the wrong point, whatever the step size."""
    scale = params.scale
    large, small = max(params.skewed.etas), min(params.skewed.etas)
    table = per_seed(results, "tail_grad_sq", table="T4", method="adam")

    def ratio(beta: float) -> np.ndarray:
        at = [table.loc[f"beta={beta:g}, eta={eta:g}"].to_numpy() for eta in (small, large)]
        return at[0] / at[1]

    low = [ratio(beta) for beta in params.skewed.betas if beta <= 0.9]
    high = [ratio(beta) for beta in params.skewed.betas if beta >= 0.99]
    unit = "(floor at the smaller over floor at the larger step size)"
    if low:
        text = "Skewed noise: with beta <= .9 Adam's floor does not fall with the step size (ratio >= .9)"
        yield at_least("4a", text, scale, np.min(low, axis=0), 0.9, unit + ", worst beta")
    if 0.0 in params.skewed.betas:
        text = "Skewed noise: without momentum a smaller step size does not help Adam (ratio >= .9)"
        yield at_least("4b", text, scale, ratio(0.0), 0.9, unit)
    if high:
        text = "Skewed noise: with beta >= .99 Adam's floor falls with the step size (ratio <= .5)"
        yield at_least("4c", text, scale, 0.5 - np.max(high, axis=0), 0.0, "(.5 minus the ratio), worst beta")
    lite = {"table": "T3", "data": counterexamples.LITE}
    adam = per_seed(results, "last_x", method="adam", **lite)
    wrong = [adam.loc[f"beta={b:g}"] for b in params.counterexamples.betas if b <= 0.9]
    right = [adam.loc[f"beta={b:g}"] for b in params.counterexamples.betas if b >= 0.999]
    text = "Reddi's problem: Adam with {} ends nearer to the {} (optimum -1, worst point +1)"
    if wrong:
        statement = text.format("beta <= .9", "worst point")
        yield at_least("4d", statement, scale, np.min(wrong, axis=0), 0.0, "(last x), worst beta")
    if right:
        statement = text.format("beta >= .999", "optimum")
        yield at_least("4e", statement, scale, -np.max(right, axis=0), 0.0, "(minus last x), worst beta")
    amsgrad = per_seed(results, "last_x", method="amsgrad", **lite).to_numpy()
    statement = "Reddi's problem: AMSGrad ends nearer to the optimum whatever its beta"
    yield at_least("4f", statement, scale, -amsgrad.max(axis=0), 0.0, "(minus last x), worst beta")


def min_max(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 5."""
    scale, n = params.scale, len(params.seeds)
    for method in ("pdsm", "pdada"):
        fit = rate_of(results, "avg_grad_sq", data=minmax.QUADRATIC, method=method)
        text = f"Min-max, {method}: averaged ‖∇Phi‖² falls like T^-1/2, slope in [-.65, -.4]"
        yield within(f"5a-{method}", text, scale, fit, -0.65, -0.4, n, BOOTSTRAP)
    error = {
        m: per_seed(results, "tail_D", data=minmax.AUC, method=m).to_numpy()[0] for m in minmax.AUC_JOBS[:3]
    }
    for method in ("pdsm", "pdada"):
        text = f"AUC: {method}'s estimator error is at least 5 times below SGDA's"
        share = error[method] / error["sgda"]
        yield at_least(f"5b-{method}", text, scale, 0.2 - share, 0.0, "(.2 minus our error over SGDA's)")


def inner_average(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 6."""
    last = f"T={params.compositional.horizons[-1]}"
    ours, naive = (
        per_seed(results, "avg_grad_sq", data=compositional.DATA, method=method).loc[last].to_numpy()
        for method in ("moving average", "naive")
    )
    text = "Compositional: with the inner moving average, averaged ‖∇F‖² at the largest T is at most .4 of the naive one"
    yield at_least("6", text, params.scale, 0.4 - ours / naive, 0.0, "(.4 minus ours over naive)")


def bi_level(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 7."""
    scale, n, K = params.scale, len(params.seeds), max(params.bilevel.terms)
    fit = rate_of(results, "avg_grad_sq", data=bilevel.QUADRATIC, method=f"smb K={K}")
    text = f"Bilevel, K={K}: averaged squared hypergradient norm falls like T^-1/2, slope in [-.65, -.4]"
    yield within("7a", text, scale, fit, -0.65, -0.4, n, BOOTSTRAP)
    last = f"T={params.bilevel.horizons[-1]}"
    floor = {
        terms: per_seed(results, "tail_grad_sq", data=bilevel.QUADRATIC, method=f"smb K={terms}")
        .loc[last]
        .to_numpy()
        for terms in params.bilevel.terms
        if terms > 0
    }
    falling = sorted(floor, reverse=True)
    for more, fewer in pairwise(falling):
        tie = (more, fewer) == (20, 5)
        text = f"Bilevel: the tail at the largest T is higher with K={fewer} than with K={more}"
        if tie:
            text += " (the card lets these two tie)"
        gap = floor[fewer] - floor[more]
        yield at_least(f"7b-{fewer}", text, scale, gap, 0.0, "(difference of tails of ‖∇Phi‖²)")


def on_digits(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 8: accuracy and estimator error, at the customary beta and under every schedule."""
    scale = params.scale
    members = [member for member in params.digits.members if MEMBERS[member].momentum]
    cells = {
        member: {
            metric: per_seed(results, metric, table="T5", method=member)
            for metric in ("accuracy", "tail_D", "tail_noise_sq")
        }
        for member in members
    }
    for claim_id, settings, where in (
        ("8a", ["beta=0.9"], "with constant beta = .9"),
        ("8b", list(digits.TIMETABLES), "under every schedule"),
    ):
        accuracy_S = np.min(
            [c["accuracy"].loc[settings].to_numpy().min(axis=0) for c in cells.values()], axis=0
        )
        text = f"Digits: every member reaches 96 % {where}"
        yield at_least(
            claim_id, text, scale, accuracy_S, 96.0, "% of test accuracy, worst member and schedule"
        )
        gain_S = np.min(
            [(c["tail_noise_sq"] / c["tail_D"]).loc[settings].to_numpy().min(axis=0) for c in cells.values()],
            axis=0,
        )
        text = f"Digits: {where}, every member's first moment is at least 4 times closer to the gradient than a mini-batch"
        unit = "(raw noise over first moment's error), worst member and schedule"
        yield at_least(claim_id + "-D", text, scale, gain_S, 4.0, unit)


def cifar10(results: pd.DataFrame, params: AdamParams) -> Iterator[Claim]:
    """Claim 9: the rivals' final test accuracies on CIFAR-10."""
    options, scale = params.cifar10, params.scale
    final = results[(results["table"] == "T8") & (results["metric"] == "test_accuracy")]
    accuracy = final.pivot_table(index="method", columns="seed", values="value")
    for method in ("adabound", "amsbound"):
        text = f"CIFAR-10, ResNet-34: {method} ends at least 1 point above Adam, AMSGrad and AdaGrad"
        near = f"CIFAR-10, ResNet-34: {method} ends within 1 point of its published curve"
        if options is None or not {method, *ADAPTIVE} <= set(options.methods):
            yield not_tested(f"9a-{method}", text, scale, "needs the CIFAR-10 rows")
            yield not_tested(f"9b-{method}", near, scale, "needs the CIFAR-10 rows")
            continue
        margin_S = (accuracy.loc[method] - accuracy.loc[list(ADAPTIVE)].max()).to_numpy()
        yield at_least(f"9a-{method}", text, scale, margin_S, 1.0, "points of final test accuracy")
        gap_S = (accuracy.loc[method] - published_accuracy(method)).abs().to_numpy()
        yield at_least(f"9b-{method}", near, scale, 1 - gap_S, 0.0, "(1 minus the distance in points)")


def published_accuracy(method: str) -> float:
    """Final test accuracy of the AdaBound repository's ResNet-34 curve, in percent."""
    table = published("adam")
    rows = table[(table["table"] == CURVES) & (table["method"] == method)]
    rows = rows[
        rows["setting"].str.startswith("ResNet-34") & rows["metric"].str.startswith("test accuracy, final")
    ]
    return float(rows["value"].iloc[0])
