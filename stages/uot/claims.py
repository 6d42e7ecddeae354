"""The paper's claims as checkable statements (card, "Claims to test")."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stages.common.report.claims import Claim, at_least, exact, not_tested
from stages.common.results import published
from stages.uot.params import PretrainName, UotParams

RECOMPUTED = (
    "selection recomputed from the released class means"  # how published.csv names the rows of claim 2
)
POINTS = "points of top-1"


def setting(pretraining: str, fraction: float, k: int = 0, weight: float = 0.0) -> str:
    """A setting as `stages.uot.cells` writes it."""
    parts = [pretraining, f"fraction {fraction:g}"]
    return ", ".join(parts + ([f"K {k}"] if k else []) + ([f"lambda {weight:g}"] if weight else []))


def main_setting(
    params: UotParams, pretraining: PretrainName, row: str, fraction: float | None = None
) -> str:
    """The setting of a row in the main table, or at another fraction of the target."""
    share = params.finetune.fraction if fraction is None else fraction
    if row in ("scratch", "vanilla", "vanilla-2x", "l2-sp"):
        return setting(pretraining, share)
    weight = params.pretraining[pretraining].source_weight
    return setting(pretraining, share, 0 if row == "all" else params.select.k, weight)


def per_seed(results: pd.DataFrame, method: str, setting: str, metric: str = "top1") -> pd.Series:
    """Values by seed, averaged over data sets; empty when the row was not run."""
    rows = results[
        (results["method"] == method) & (results["setting"] == setting) & (results["metric"] == metric)
    ]
    return rows.groupby("seed")["value"].mean()


def check_claims(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """All claims of the card at the active scale, from the tidy results."""
    claims = released_selections(results, params)
    if params.scale == "quick":
        claims += [*which_classes(results, params), *target_size(results, params)]
    else:
        claims += [
            not_tested(number, text, params.scale, "a claim about the generated data of the quick scale")
            for number, text in (
                ("3", "uot against vanilla, random and all, self-supervised stand-in"),
                ("4", "uot against vanilla and random, supervised start"),
                ("5", "The gain fades with target size"),
            )
        ]
    claims += [*start_dependence(results, params), *joint_gradient(results, params)]
    if params.scale == "quick":
        claims += mixed_target(results, params)
    else:
        text = "Heterogeneous targets: uot keeps to relevant concepts better than mean-cost"
        claims.append(
            not_tested("8", text, params.scale, "a claim about the generated data of the quick scale")
        )
    return claims + paper_scale(results, params)


def released_selections(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claims 1 and 2: the selections themselves, on the class means that the authors released."""
    statements = {
        "1a": "All 16 selections from the released class means are the official code's, class for class",
        "1b": "The log-domain solver stays finite at p_m = 1e-4, where exp(-cost) underflows",
        "2": "As many birds, dogs and vehicles are selected as with the official code",
    }
    if params.scale == "quick":
        reason = "needs the class means that the authors released; `dvc exp run -S uot=real uot-released`"
        return [not_tested(number, text, params.scale, reason) for number, text in statements.items()]
    table = results[results["table"] == "T1"]
    agreed = table[table["metric"] == "in the official selection"]["value"]
    finite = table[table["metric"].str.startswith("finite at")]["value"]
    recomputed = published("uot")
    recomputed = recomputed[recomputed["table"].str.startswith(RECOMPUTED)]
    purity = table[(table["metric"] == "purity") & (table["method"] == "uot")]
    ours = {(row.setting, row.data): row.value for row in purity.itertuples()}
    names = {"supervised": "supervised", "MoCo-v2": "moco"}
    gaps = []
    for row in recomputed.itertuples():
        start, data = str(row.setting).split(", ")
        known = {
            key: value
            for key, value in ours.items()
            if key[0] == names[start] and key[1].lower() == data.lower()
        }
        gaps += [abs(round(value) - float(row.value)) for value in known.values()]  # of 100: % are classes
    return [
        exact(
            "1a",
            statements["1a"],
            params.scale,
            len(agreed) == 16 and bool((agreed == 100).all()),
            float((agreed == 100).sum()),
            "selections equal to the official code's, of 16",
            1,
        ),
        exact(
            "1b",
            statements["1b"],
            params.scale,
            bool((finite == 1).all()),
            float(finite.sum()),
            "of the 16 released problems",
            1,
        ),
        exact(
            "2",
            statements["2"],
            params.scale,
            len(gaps) == len(recomputed) and max(gaps) == 0,
            float(max(gaps)),
            f"largest difference in classes over {len(recomputed)} counts in published.csv",
            1,
        ),
    ]


def which_classes(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claims 3 and 4: uot against its alternatives, from either start."""
    claims: list[Claim] = []

    def compare(number: str, pretraining: PretrainName, other: str, bound: float, text: str) -> None:
        ours, theirs = (
            per_seed(results, method, main_setting(params, pretraining, method)) for method in ("uot", other)
        )
        difference = (ours - theirs).dropna().to_numpy()
        if not len(difference):
            claims.append(
                not_tested(number, text, params.scale, f"no rows of start {pretraining} for uot and {other}")
            )
            return
        claims.append(at_least(number, text, params.scale, difference, bound, POINTS))

    for letter, other, bound in (("a", "vanilla", 8.0), ("b", "random", 6.0), ("c", "all", 4.0)):
        text = f"Self-supervised stand-in (merged): uot - {other} >= {bound:g} points"
        compare(f"3{letter}", "merged", other, bound, text)
        compare(f"3{letter}+", "merged", other, 0.0, f"Self-supervised stand-in (merged): uot - {other} > 0")
    text = "Self-supervised stand-in (merged): uot beats vanilla of twice the steps, the same compute"
    compare("3d", "merged", "vanilla-2x", 0.0, text)
    compare("4a", "fine", "vanilla", 2.0, "Supervised start (fine): uot - vanilla >= 2 points")
    random = (
        per_seed(results, "random", main_setting(params, "fine", "random"))
        if "fine" in params.pretraining
        else None
    )
    text = "Supervised start (fine): random classes do as well as uot, to 2 points"
    if random is None or not len(random):
        return [*claims, not_tested("4b", text, params.scale, "no rows of start fine for random")]
    ours = per_seed(results, "uot", main_setting(params, "fine", "uot"))
    effects = (random - ours).dropna().to_numpy()
    return [*claims, at_least("4b", text, params.scale, effects, -2.0, f"{POINTS} (random - uot)")]


def gains(results: pd.DataFrame, params: UotParams, pretraining: PretrainName) -> pd.DataFrame:
    """uot - vanilla by seed (rows) and fraction of the target (columns, ascending)."""
    columns = {}
    for fraction in sorted({params.finetune.fraction, *params.finetune.fractions}):
        ours, vanilla = (
            per_seed(results, method, main_setting(params, pretraining, method, fraction))
            for method in ("uot", "vanilla")
        )
        columns[fraction] = ours - vanilla
    return pd.DataFrame(columns).dropna()


def target_size(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claim 5: the gain over vanilla fades as the target grows."""
    claims = []
    for pretraining in params.pretraining:
        table = gains(results, params, pretraining)
        text = f"Start {pretraining}: the gain of uot over vanilla falls with target size"
        if table.empty or table.shape[1] < 2:
            claims.append(
                not_tested(
                    f"5-{pretraining}", text, params.scale, "uot and vanilla at two target sizes are needed"
                )
            )
            continue
        doublings = np.log2(table.columns.to_numpy(dtype=float))
        slopes = np.polyfit(doublings, table.to_numpy().T, 1)[0]
        claims.append(
            at_least(
                f"5a-{pretraining}",
                text,
                params.scale,
                -slopes,
                0.0,
                "points per doubling of the target (fitted fall)",
            )
        )
        text = f"Start {pretraining}: with the whole target the gain is < 4 points"
        claims.append(
            at_least(
                f"5b-{pretraining}",
                text,
                params.scale,
                4 - table.iloc[:, -1].to_numpy(),
                0.0,
                "points (4 - gain)",
            )
        )
    return claims


def start_dependence(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claim 6: the start hardly matters once there is data."""
    table = results[results["table"] == "T5"]
    numbers = table["setting"].str.extract(r"n (?P<n>\d+), start (?P<start>[\d.]+),").astype(float)
    wide = table.assign(**numbers).pivot_table(index=["seed", "n"], columns="start", values="value")
    large = wide[wide.index.get_level_values("n") >= 1024]
    gap = (large.max(axis=1) / large.min(axis=1) - 1).groupby("seed").max()
    small = wide.xs(64, level="n")
    ratio = small[5.0] / small[0.1]
    return [
        at_least(
            "6a",
            "Theory: excess risks from starts 0.1, 1 and 5 away are within 2 % of each other at n >= 1024",
            params.scale,
            0.02 - gap.to_numpy(),
            0.0,
            "(2 % minus the largest relative gap)",
        ),
        at_least(
            "6b",
            "Theory: excess risks from starts 0.1 and 5 away are 30 times apart at n = 64",
            params.scale,
            ratio.to_numpy(),
            30.0,
            "times",
        ),
    ]


def joint_gradient(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claim 7: a source near the target lowers the excess risk, one far away does not."""
    table = results[results["table"] == "T6"]
    delta = table["setting"].str.extract(r"delta ([\d.]+)$")[0].astype(float)
    alpha = table["method"].str.removeprefix("alpha ").astype(float)
    wide = table.assign(delta=delta, alpha=alpha).pivot_table(
        index=["seed", "delta"], columns="alpha", values="value"
    )
    near = wide[wide.index.get_level_values("delta") <= 0.2].idxmin(axis=1)
    interior = ((near > 0) & (near < 1)).mean()
    far = wide.xs(1.0, level="delta")
    loss = far.loc[:, far.columns <= 0.5].min(axis=1) - far[1.0]
    return [
        exact(
            "7a",
            "Theory: the best weight of the target's gradient is inside (0, 1) for sources at most 0.2 away",
            params.scale,
            interior == 1,
            float(interior),
            "share of seeds and distances where the best of five weights is inside",
            len(params.seeds),
        ),
        at_least(
            "7b",
            "Theory: a source 1 away does not help at target weights <= 0.5",
            params.scale,
            loss.to_numpy(),
            0.0,
            "excess risk more than without the source",
        ),
    ]


def mixed_target(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claim 8: a target of three concepts of unequal sizes, the smallest one shifted."""
    rows = results[
        (results["table"] == "T8") & (results["data"] == "mixed") & (results["metric"] == "purity")
    ]
    claims = []
    for pretraining in params.pretraining:
        chosen = rows[rows["setting"].str.startswith(f"{pretraining},")]
        wide = chosen.pivot_table(index="seed", columns="method", values="value")
        pairs: Sequence[tuple[str, str, float, str]] = (
            ("a", "mean-cost", 0.0, "uot selects more relevant classes than mean cost"),
            ("b", "nearest", -5.0, "uot selects as many relevant classes as nearest mean, to 5 points"),
        )
        for letter, other, bound, text in pairs:
            difference = (wide["uot"] - wide[other]).to_numpy()
            statement = f"Heterogeneous target, start {pretraining}: {text}"
            claims.append(
                at_least(
                    f"8{letter}-{pretraining}", statement, params.scale, difference, bound, "points of purity"
                )
            )
    return claims


def paper_scale(results: pd.DataFrame, params: UotParams) -> list[Claim]:
    """Claim 9: the published gain, and at real scale whether there is one."""
    text = "MoCo-v2 ResNet-50: uot - vanilla >= 2.93 points on the average of eight data sets"
    if params.scale == "quick":
        return [
            not_tested("9", text, params.scale, "needs ImageNet, eight target sets and a released checkpoint")
        ]
    claims = []
    for pretraining in params.pretraining:
        ours, vanilla = (
            per_seed(results, method, main_setting(params, pretraining, method))
            for method in ("uot", "vanilla")
        )
        moco = pretraining == "moco"
        statement = (
            text if moco else f"Start {pretraining}: uot - vanilla > 0 on the average of the data sets"
        )
        effects = (ours - vanilla).to_numpy()
        claims.append(
            at_least(f"9-{pretraining}", statement, params.scale, effects, 2.93 if moco else 0.0, POINTS)
        )
    return claims
