"""Claims as checkable statements: a comparison over seeds, an interval, a verdict."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["supported", "not supported", "inconclusive", "not tested at this scale"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Claim:
    """One claim of a paper and what the results say about it.

    `effect` is the measured quantity in the unit that the statement names, `interval` its two-sided 95 % confidence interval
    over the `n` seeds, `test` how both were obtained.
    """

    id: str
    statement: str
    scale: str
    verdict: Verdict
    effect: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0
    test: str = ""

    def to_json(self) -> dict[str, object]:
        """The entry of `claims.json`."""
        return asdict(self)


def at_least(
    claim_id: str, statement: str, scale: str, effects: Sequence[float] | np.ndarray, bound: float, unit: str
) -> Claim:
    """The claim that a quantity is at least `bound`, from one paired value of it per seed.

    Supported when the t interval over seeds lies above the bound, not supported when it lies below, inconclusive when the
    bound is inside. With fewer than two seeds there is no interval, and the claim is inconclusive.
    """
    values = np.asarray(effects, dtype=float)
    mean = float(values.mean())
    test = f"mean of paired values over seeds >= {bound:g} {unit}, t interval at 95 %"
    if len(values) < 2:
        return Claim(claim_id, statement, scale, "inconclusive", mean, None, len(values), test)
    half = float(
        stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    )
    low, high = mean - half, mean + half
    verdict: Verdict = "supported" if low >= bound else "not supported" if high < bound else "inconclusive"
    return Claim(claim_id, statement, scale, verdict, mean, (low, high), len(values), test)


def exact(claim_id: str, statement: str, scale: str, holds: bool, effect: float, test: str, n: int) -> Claim:
    """A claim about something that is counted or equal, where no chance is involved."""
    return Claim(claim_id, statement, scale, "supported" if holds else "not supported", effect, None, n, test)


def not_tested(claim_id: str, statement: str, scale: str, reason: str) -> Claim:
    """A claim whose setting this scale does not have."""
    return Claim(claim_id, statement, scale, "not tested at this scale", test=reason)


def claims_markdown(title: str, claims: Sequence[Claim]) -> str:
    """`claims.md`: a table of the claims, their verdicts and the evidence."""
    lines = [
        f"# {title}", "",
        "| claim | statement | verdict | effect | 95 % interval | seeds | how tested |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for claim in claims:
        effect = "" if claim.effect is None else f"{claim.effect:.4g}"
        interval = "" if claim.interval is None else "{:.4g} .. {:.4g}".format(*claim.interval)
        lines.append(
            f"| {claim.id} | {claim.statement} | **{claim.verdict}** | {effect} | {interval} | {claim.n} | {claim.test} |"
        )
    return "\n".join(lines) + "\n"
