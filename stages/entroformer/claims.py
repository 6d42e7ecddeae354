"""The paper's claims as checkable statements (card, "Claims to test")."""

import numpy as np
import pandas as pd

from stages.common.report.claims import Claim, at_least, exact, not_tested
from stages.entroformer.complexity import Decoding
from stages.entroformer.method.metrics import bd_rate
from stages.entroformer.params import EntroformerParams

PER_CENT = "% fewer bits"
ABLATIONS_AT_REAL = {"context-absolute": "absolute positions", "context-square": "a square of positions"}


def rate(results: pd.DataFrame, method: str, metric: str = "bpp") -> pd.Series:
    """Bits per pixel of the fixed latents by seed; empty when the row was not run."""
    rows = results[
        (results["table"] == "rates") & (results["method"] == method) & (results["metric"] == metric)
    ]
    return rows.groupby("seed")["value"].mean()


def saving(results: pd.DataFrame, method: str, other: str) -> np.ndarray:
    """By how many per cent `method` needs fewer bits than `other`, paired by seed."""
    return (100 * (1 - rate(results, method) / rate(results, other))).dropna().to_numpy()


def curve(results: pd.DataFrame, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rates (real bytes) and PSNR of a codec over its trade-offs, sorted by rate."""
    rows = results[(results["method"] == method) & results["table"].isin(["files", "anchors"])]
    rows = rows[(rows["seed"] == seed) | (rows["table"] == "anchors")]
    wide = rows.pivot_table(index="setting", columns="metric", values="value").sort_values("bpp")
    return wide["bpp"].to_numpy(), wide["PSNR"].to_numpy()


def check_claims(
    results: pd.DataFrame, decodings: dict[str, Decoding], params: EntroformerParams
) -> list[Claim]:
    """All claims of the card at the active scale."""
    return [
        *hyper_and_context(results, params),
        *against_convolutions(results, params),
        *two_pass(results, params),
        *passes_and_seconds(decodings, params),
        *real_files(results, params),
        *ablations(results, params),
        *rate_distortion(results, params),
    ]


def _compare(
    results: pd.DataFrame,
    params: EntroformerParams,
    number: str,
    text: str,
    method: str,
    other: str,
    bound: float = 0.0,
) -> Claim:
    effects = saving(results, method, other)
    if not len(effects):
        return not_tested(number, text, params.scale, f"no rows of {method} and {other} on fixed latents")
    return at_least(number, text, params.scale, effects, bound, PER_CENT)


def hyper_and_context(results: pd.DataFrame, params: EntroformerParams) -> list[Claim]:
    """Claim 1: each of hyperprior and context adds to the other."""
    claims = []
    for letter, prefix, name in (("e", "ent", "Entroformer"), ("c", "cnn", "CNN")):
        for part, what in (("context", "context alone"), ("hyper", "hyperprior alone")):
            text = f"{name}: hyperprior and serial context together need fewer bits than {what}"
            claims.append(
                _compare(results, params, f"1{letter}-{part}", text, f"{prefix}-serial", f"{prefix}-{part}")
            )
    return claims


def against_convolutions(results: pd.DataFrame, params: EntroformerParams) -> list[Claim]:
    """Claim 2: the transformer against a 5x5 masked convolution, at equal steps."""
    serial = "Serial context: Entroformer needs fewer bits than a 5x5 masked convolution"
    halves = "Two-pass context and hyperprior: Entroformer needs fewer bits than CNN checkerboard"
    claims = [
        _compare(results, params, "2a", serial, "ent-context", "cnn-context"),
        _compare(results, params, "2b", halves, "ent-two-pass", "cnn-two-pass"),
    ]
    text = "Serial context and hyperprior: Entroformer needs fewer bits than CNN"
    if params.scale == "quick":
        return [
            *claims,
            not_tested("2c", text, params.scale, "needs longer training (card); the table shows the rates"),
        ]
    return [*claims, _compare(results, params, "2c", text, "ent-serial", "cnn-serial")]


def two_pass(results: pd.DataFrame, params: EntroformerParams) -> list[Claim]:
    """Claim 3: what decoding in two passes costs in rate."""
    text = "Two-pass decoding needs at most 8 % more bits than serial"
    more = -saving(results, "ent-two-pass", "ent-serial")
    first = (
        at_least("3a", text, params.scale, 8 - more, 0.0, "% (8 minus the increase)")
        if len(more)
        else not_tested("3a", text, params.scale, "no rows of ent-two-pass and ent-serial on fixed latents")
    )
    below = "Two-pass decoding needs fewer bits than the hyperprior alone"
    return [first, _compare(results, params, "3b", below, "ent-two-pass", "ent-hyper")]


def passes_and_seconds(decodings: dict[str, Decoding], params: EntroformerParams) -> list[Claim]:
    """Claim 4: two network passes whatever the size, and what that saves."""
    statements = {
        "4a": "Decoding takes 2 network passes at any size; serial decoding one per position",
        "4b": "Two-pass decoding takes less than 1/5 of the time of cached serial decoding at 16x16 positions",
        "4c": "Two-pass decoding takes less than 1/50 of the time of uncached serial decoding at 32x48 positions",
    }
    if not decodings:
        return [
            not_tested(n, text, params.scale, "no codec of both kinds was trained")
            for n, text in statements.items()
        ]
    two, serial = (
        [decodings[f"{kind}/{size}"] for size in ("small", "large")]
        for kind in ("ent-two-pass", "ent-serial")
    )
    holds = all(d.passes == 2 for d in two) and all(d.passes == d.positions for d in serial)
    extrapolated = "uncached time extrapolated from one pass"
    cached, uncached = serial[0].seconds / two[0].seconds, serial[1].uncached_seconds / two[1].seconds
    return [
        exact(
            "4a", statements["4a"], params.scale, holds, two[1].passes, "passes counted at 32x48 positions", 1
        ),
        exact("4b", statements["4b"], params.scale, cached > 5, cached, "times faster; one thread", 1),
        exact(
            "4c", statements["4c"], params.scale, uncached > 50, uncached, f"times faster; {extrapolated}", 1
        ),
    ]


def real_files(results: pd.DataFrame, params: EntroformerParams) -> list[Claim]:
    """Claim 5: real bytes, decoded exactly."""
    claims = []
    for letter, metric, text in (
        ("a", "size within bound", "Every file has at most ceil(estimated bits / 8) * 1.005 + 32 bytes"),
        ("b", "latents exact", "Decoding gives back the encoder's latents"),
        ("c", "picture exact", "The decoded picture is the encoder's own reconstruction, bit for bit"),
    ):
        values = results[(results["table"] == "files") & (results["metric"] == metric)]["value"]
        if values.empty:
            claims.append(not_tested(f"5{letter}", text, params.scale, "no codec track"))
            continue
        test = f"share of pictures, over {len(values)} trained codecs"
        claims.append(
            exact(
                f"5{letter}",
                text,
                params.scale,
                bool((values == 1).all()),
                values.mean(),
                test,
                len(params.seeds),
            )
        )
    return claims


def ablations(results: pd.DataFrame, params: EntroformerParams) -> list[Claim]:
    """Claim 6: top-k and the diamond, on the serial context alone."""
    text = "Top-k attention needs at most 0.5 % more bits than dense attention"
    diamond = "The diamond encoding saves more than 3 % over no position encoding"
    claims = [
        _compare(results, params, "6a", text, "ent-context", "context-dense", -0.5),
        _compare(results, params, "6b", diamond, "ent-context", "context-no-position", 3.0),
    ]
    for letter, (method, name) in zip("cd", ABLATIONS_AT_REAL.items(), strict=True):
        claims.append(
            _compare(
                results,
                params,
                f"6{letter}",
                f"The diamond needs fewer bits than {name}",
                "ent-context",
                method,
            )
        )
    return claims


def rate_distortion(results: pd.DataFrame, params: EntroformerParams) -> list[Claim]:
    """Claims 7 and 8: whole codecs on Kodak."""
    bd = "BD-rate of Entroformer (serial, with hyperprior) against CNN (serial, with hyperprior) is at most -8 %"
    beats = "The codec beats JPEG and WebP at all rates"
    published = (
        "The nine published Kodak points: -8 % against mbt2018, -18 % against BPG 4:4:4, +1.4 % against VTM"
    )
    paper = not_tested(
        "8", published, params.scale, "needs the paper's data, 500 epochs per trade-off and BPG, VTM"
    )
    trained = set(results.loc[results["table"] == "files", "method"])
    if params.scale == "quick" or not {"ent-serial", "cnn-serial"} <= trained:
        reason = "needs codecs at four trade-offs on photographs; `-S entroformer=real` on a GPU"
        return [
            not_tested("7a", bd, params.scale, reason),
            not_tested("7b", beats, params.scale, reason),
            paper,
        ]
    seeds = params.seeds
    try:
        effects = [
            -bd_rate(*curve(results, "cnn-serial", s), *curve(results, "ent-serial", s)) for s in seeds
        ]
        first = at_least("7a", bd, params.scale, effects, 8.0, "% (minus BD-rate)")
    except ValueError as error:  # a training that failed may give curves that cannot be compared
        first = not_tested("7a", bd, params.scale, f"the curves do not compare: {error}")
    margins = []
    for seed in seeds:
        rates, psnrs = curve(results, "ent-serial", seed)
        for name in ("jpeg", "webp"):
            theirs = curve(results, name, 0)
            common = (rates >= theirs[0][0]) & (rates <= theirs[0][-1])
            margins += list(psnrs[common] - np.interp(rates[common], *theirs))
    worst = min(margins, default=float("-inf"))
    return [
        first,
        exact("7b", beats, params.scale, worst > 0, worst, "dB, smallest margin at our rates", len(seeds)),
        paper,
    ]
