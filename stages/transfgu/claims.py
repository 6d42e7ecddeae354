"""The paper's claims as checkable statements (card, "Claims to test"); bounds are the card's."""

import numpy as np
import pandas as pd

from stages.common.report.claims import Claim, at_least, exact, not_tested
from stages.common.results import published
from stages.transfgu.params import TransfguParams

POINTS = "points of mIoU"
ABLATION = (("negative", "teacher"), ("uncertainty", "negative"), ("transfgu", "uncertainty"))
CAM_AGREES, CAM_FLAT = 1e-5, 1.3
CAM_SMALL, CAM_LARGE = 8, 64  # concepts


def per_seed(results: pd.DataFrame, table: str, method: str, metric: str = "mIoU") -> pd.Series:
    """Values by seed; empty when the row was not run."""
    chosen = (results["table"] == table) & (results["method"] == method) & (results["metric"] == metric)
    return results[chosen].groupby("seed")["value"].mean()


def difference(
    results: pd.DataFrame, ours: tuple[str, str], other: tuple[str, str], metric: str = "mIoU"
) -> np.ndarray:
    """Paired by seed; each side is (table, method)."""
    return (per_seed(results, *ours, metric) - per_seed(results, *other, metric)).dropna().to_numpy()


def check_claims(results: pd.DataFrame, cam: dict[str, float], params: TransfguParams) -> list[Claim]:
    """All claims of the card at the active scale, from the tidy results and the measured CAM."""
    claims = [*top_down(results, params), *pretraining(results, params), *closed_form(cam, params)]
    claims += [*ablation(results, params), *real_scale(results, params), *paper_scale(results, params)]
    return claims


def top_down(results: pd.DataFrame, params: TransfguParams) -> list[Claim]:
    """Claims 1 and 2: concepts against patch clusters; each step of training helps."""
    statements = {
        "1a": (
            "Full TransFGU - DINO patch k-means > 0 in mIoU on things",
            "patch k-means",
            "T1",
            "mIoU things",
        ),
        "1b": (
            "Full TransFGU - DINO patch k-means > 0 in pixel accuracy",
            "patch k-means",
            "T1",
            "pixel accuracy",
        ),
        "2a": ("Full TransFGU - trained without teacher >= 0 in mIoU", "no-teacher", "T3", "mIoU"),
    }
    if params.scale != "quick":
        reason = "a claim about the generated scenes of the quick scale"
        more = {"2b": ("Trained without teacher - CAM argmax > 0 in mIoU, in every seed",)}
        return [not_tested(n, texts[0], params.scale, reason) for n, texts in {**statements, **more}.items()]
    claims = []
    for number, (text, other, table, metric) in statements.items():
        effects = difference(results, (table, "transfgu"), (table, other), metric)
        claims.append(_compared(number, text, params, effects, f"points of {metric}"))
    steps = difference(results, ("T3", "no-teacher"), ("T3", "cam"))
    text = "Trained without teacher - CAM argmax > 0 in mIoU, in every seed"
    if not len(steps):
        return [*claims, not_tested("2b", text, params.scale, "the ablation was not run")]
    test = "smallest difference over seeds, points of mIoU"
    return [
        *claims,
        exact("2b", text, params.scale, bool((steps > 0).all()), float(steps.min()), test, len(steps)),
    ]


def pretraining(results: pd.DataFrame, params: TransfguParams) -> list[Claim]:
    """Claim 3: with a random encoder, half of the margin over patch clusters is lost."""
    text = "A random encoder loses at least half of full TransFGU's margin over patch k-means (things mIoU)"
    if params.scale != "quick" or "random" not in params.methods:
        return [not_tested("3", text, params.scale, "the random encoder was not run")]
    metric = "mIoU things"
    margin = difference(results, ("T1", "transfgu"), ("T1", "patch k-means"), metric)
    if margin.mean() <= 0:
        return [not_tested("3", text, params.scale, "there is no margin to lose: see claim 1a")]
    without = difference(results, ("T1", "transfgu-random"), ("T1", "patch k-means, random backbone"), metric)
    return [
        at_least(
            "3",
            text,
            params.scale,
            0.5 * margin - without,
            0.0,
            "points (half the margin minus the random one)",
        )
    ]


def closed_form(cam: dict[str, float], params: TransfguParams) -> list[Claim]:
    """Claim 4: the closed form is exact and its cost does not grow with the concepts."""
    growth = cam["closed_form large"] / cam["closed_form small"]
    linear = cam["autograd large"] / cam["autograd small"]
    return [
        exact(
            "4a",
            f"Closed-form and autograd CAM agree to {CAM_AGREES:g}",
            params.scale,
            cam["difference"] <= CAM_AGREES,
            cam["difference"],
            "largest difference of the maps",
            1,
        ),
        exact(
            "4b",
            f"Closed form: K = {CAM_SMALL} -> {CAM_LARGE} costs at most x {CAM_FLAT:g}",
            params.scale,
            growth <= CAM_FLAT,
            growth,
            "ratio of median wall times",
            1,
        ),
        exact(
            "4c",
            f"Autograd grows linearly: K = {CAM_SMALL} -> {CAM_LARGE} costs at least half of x {CAM_LARGE // CAM_SMALL}",
            params.scale,
            linear >= CAM_LARGE / CAM_SMALL / 2,
            linear,
            "ratio of median wall times",
            1,
        ),
    ]


def ablation(results: pd.DataFrame, params: TransfguParams) -> list[Claim]:
    """Claim 5: what each term changes; the card promises no direction, so the verdict is about > 0."""
    claims = []
    for letter, (row, before) in zip("abc", ABLATION, strict=True):
        term = {"negative": "negative", "uncertainty": "uncertainty", "transfgu": "embedding"}[row]
        text = f"Adding the {term} term changes mIoU (no direction promised; tested: > 0)"
        effects = difference(results, ("T3", row), ("T3", before))
        claims.append(_compared(f"5{letter}", text, params, effects, POINTS))
    return claims


def real_scale(results: pd.DataFrame, params: TransfguParams) -> list[Claim]:
    """Claim 6: full against CAM argmax and patch clusters on photographs."""
    texts = {
        "6a": "Photographs: full TransFGU - CAM argmax > 0 in mIoU",
        "6b": "Photographs: full TransFGU - patch k-means > 0 in mIoU (reported either way)",
    }
    if params.scale != "real":
        return [
            not_tested(n, text, params.scale, "a claim about CamVid, the real scale")
            for n, text in texts.items()
        ]
    pairs = {"6a": (("T3", "transfgu"), ("T3", "cam")), "6b": (("T1", "transfgu"), ("T1", "patch k-means"))}
    return [_compared(n, text, params, difference(results, *pairs[n]), POINTS) for n, text in texts.items()]


def paper_scale(results: pd.DataFrame, params: TransfguParams) -> list[Claim]:
    """Claims 7 and 8: the published numbers, and the margin over PiCIE."""
    margin = "The margin over PiCIE grows from COCO-Stuff-27 to COCO-Stuff-171"
    later = not_tested("8", margin, params.scale, "needs two COCO-Stuff settings and a PiCIE trained on each")
    text = "mIoU is within 0.5 points of the published one, or above"
    if params.scale != "paper":
        return [
            not_tested("7", text, params.scale, "needs COCO-Stuff, Cityscapes, VOC or LIP and DINO ViT-S/8"),
            later,
        ]
    names = {
        "cocostuff27": "COCO-Stuff-27", "cocostuff171": "COCO-Stuff-171", "coco80": "COCO-80", "voc": "Pascal-VOC",
        "cityscapes": "Cityscapes", "lip5": "LIP-5", "lip16": "LIP-16", "lip19": "LIP-19",
    }  # fmt: skip
    rows = published("transfgu")
    own = rows["setting"].str.startswith(f"{names[params.data.name]};") & (rows["source"] == "readme")
    target = float(rows[own & (rows["method"] == "TransFGU") & (rows["metric"] == "mIoU")]["value"].iloc[0])
    effects = per_seed(results, "T1", "transfgu").to_numpy() - target
    return [at_least("7", text, params.scale, effects, -0.5, "points over the published mIoU"), later]


def _compared(number: str, text: str, params: TransfguParams, effects: np.ndarray, unit: str) -> Claim:
    if not len(effects):
        return not_tested(number, text, params.scale, "one of the two rows was not run")
    return at_least(number, text, params.scale, effects, 0.0, unit)
