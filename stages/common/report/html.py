"""`reports/index.html`: one static page, without server or network, from what lies in `reports/`."""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urljoin

import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.token import Token

from stages.common.results import read_parquet
from stages.common.stage.files import write_atomic

PAPERS = {
    "chex": ("CHEX", "Channel exploration for CNN model compression", "CVPR 2022"),
    "chex-detection": ("CHEX: detection", "Channel exploration of detectors", "CVPR 2022"),
    "chex-points": ("CHEX: point clouds", "Channel exploration of PointNet", "CVPR 2022"),
    "hico": ("HiCo", "Learning from untrimmed videos with hierarchical consistency", "CVPR 2022"),
    "entroformer": ("Entroformer", "A transformer entropy model for learned image compression", "ICLR 2022"),
    "fedformer": ("FEDformer", "Frequency enhanced transformer for long-term forecasting", "ICML 2022"),
    "elsa": ("ELSA", "Enhanced local self-attention for vision transformers", "arXiv 2021"),
    "elsa-dense": ("ELSA: dense tasks", "ELSA in detection and segmentation", "arXiv 2021"),
    "motionrgbd": ("MotionRGBD", "Decoupling and recoupling space and time for RGB-D motion", "CVPR 2022"),
    "adam": ("Adam family", "A novel convergence analysis for algorithms of the Adam family", "OPT 2021"),
    "transfgu": ("TransFGU", "Top-down fine-grained unsupervised semantic segmentation", "ECCV 2022"),
    "zendet": ("ZenDet", "Maximum entropy in zero-shot search for detection backbones", "ICML 2022"),
    "uot": ("UOT", "Fine-tuning with pre-training data chosen by unbalanced transport", "NeurIPS 2022"),
}
SCALES = {
    "quick": ("small scale", "small scale, not the paper's setting"),
    "real": ("one machine", "public data on one machine, not the paper's setting"),
    "paper": ("paper's setting", "the paper's own setting"),
}
VERDICTS = {"supported": "✓", "not supported": "✗", "inconclusive": "?", "not tested at this scale": "–"}
RESULT_COLUMNS = (
    "method", "metric", "value", "unit", "setting", "seed", "data", "table", "run_id", "git_rev",
)  # fmt: skip
PUBLISHED_COLUMNS = ("method", "metric", "value", "unit", "setting", "source", "table")


@dataclass(frozen=True)
class Report:
    """What lies in `reports/<paper>/<scale>/`; whatever has not been written yet is empty."""

    paper: str
    scale: str
    claims: list[dict[str, Any]]
    tables: list[Path]
    figures: list[Path]
    results: pd.DataFrame

    @property
    def anchor(self) -> str:
        """The panel's id on the page."""
        return f"{self.paper}-{self.scale}"


def write_index(reports: Path) -> Path:
    """Render `<reports>/index.html` from the folders beside it; the same inputs give the same bytes."""
    sections, overview, links = [], [], []
    for paper, (name, title, venue) in PAPERS.items():
        found = [report for scale in SCALES if (report := _load(reports, paper, scale))]
        overview.append(_overview_rows(paper, found))
        links.append(
            f'<li><a href="#{paper}">{escape(name)}{"" if found else " <small>not yet</small>"}</a></li>'
        )
        heading = f'<h2>{escape(name)} <span class="subtitle">{escape(title)} · {venue}</span></h2>'
        body = _scales(paper, found, reports) if found else _absent(paper)
        sections.append(f'<section class="paper" id="{paper}" aria-label="{name}">{heading}{body}</section>')
    here = Path(__file__).parent
    script = (here / "page.js").read_text()
    page = Template((here / "page.html").read_text()).substitute(
        style=(here / "page.css").read_text(),
        script=script,
        # the only script that the browser may run is this one, whatever the results contain
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        links="\n".join(links),
        overview="\n".join(overview),
        papers="\n".join(sections),
    )
    path = reports / "index.html"
    write_atomic(path, page)
    return path


def _load(reports: Path, paper: str, scale: str) -> Report | None:
    folder = reports / paper / scale
    claims, results = folder / "claims.json", folder / "results.parquet"
    report = Report(
        paper,
        scale,
        json.loads(claims.read_text()) if claims.exists() else [],
        sorted(folder.glob("table*.md")),
        sorted(folder.glob("*.svg")),
        read_parquet(results) if results.exists() else pd.DataFrame(columns=list(RESULT_COLUMNS)),
    )
    return report if report.claims or report.tables or report.figures or len(report.results) else None


def _absent(paper: str) -> str:
    return f'<p class="absent">Not reproduced yet. Run <code>dvc repro {paper}</code>.</p>'


def _overview_rows(paper: str, found: list[Report]) -> str:
    link = f'<a href="#{paper}">{escape(PAPERS[paper][0])}</a>'
    if not found:
        dashes = '<td class="number">–</td>' * 6
        return f'<tr class="absent"><td>{link}</td><td>not reproduced yet</td>{dashes}</tr>'
    rows = []
    for report in found:
        verdicts = Counter(claim["verdict"] for claim in report.claims)
        bar = "".join(f'<i class="{_slug(name)}" style="flex:{verdicts[name]}"></i>' for name in VERDICTS)
        rows.append(
            f"<tr><td>{link}</td>"
            f'<td><a href="#{report.anchor}">{report.scale}</a> {_scale_tag(report.scale, brief=True)}</td>'
            f'<td class="number">{len(report.claims)}<span class="bar" aria-hidden="true">{bar}</span></td>'
            + "".join(f'<td class="number">{verdicts[name]}</td>' for name in VERDICTS)
            + f'<td class="number">{len(report.results)}</td></tr>'
        )
    return "\n".join(rows)


def _scale_tag(scale: str, brief: bool = False) -> str:
    """What the scale is, so that no small-scale number passes for the paper's."""
    short, full = SCALES[scale]
    return f'<span class="scale-tag {scale}">{escape(short if brief else full)}</span>'


def _scales(paper: str, found: list[Report], reports: Path) -> str:
    available = {report.scale for report in found}
    switch = "".join(
        f'<a href="#{paper}-{scale}">{scale}</a>'
        if scale in available
        else f"<span>{scale} <small>not run</small></span>"
        for scale in SCALES
    )
    published = reports / "published" / f"{paper}.csv"
    rows = pd.read_csv(published, dtype=str, keep_default_na=False) if published.exists() else pd.DataFrame()
    # written by people: why claims come out as they do
    findings = reports / paper / "findings.md"
    return (
        (_markdown(findings, f"{paper}/") if findings.exists() else "")
        + f'<nav class="switch" aria-label="Scale of {paper}">{switch}</nav>'
        + _data_script(f"{paper}-published", rows, PUBLISHED_COLUMNS)
        + "".join(_panel(report) for report in found)
    )


def _panel(report: Report) -> str:
    paper = report.paper
    parts = [
        f"<h3>{report.scale.capitalize()} scale {_scale_tag(report.scale)}</h3>",
        _provenance(report.results),
    ]
    if report.claims:
        parts += ["<h4>Claims</h4>", _claims_table(report)]
    if report.tables:
        parts += ["<h4>Tables</h4>", *(_markdown(path, f"{paper}/{report.scale}/") for path in report.tables)]
    if report.figures:
        parts += ["<h4>Figures</h4>", f'<div class="figures">{"".join(map(_figure, report.figures))}</div>']
    if len(report.results):
        parts += [
            f'<details class="explorer" data-ours="{report.anchor}" data-published="{paper}-published">',
            "<summary><h4>All results beside the published numbers</h4>",
            f" {len(report.results)} rows, six significant digits</summary>",
            _data_script(report.anchor, report.results, RESULT_COLUMNS),
            "</details>",
        ]
    return f'<div class="panel" id="{report.anchor}">{"".join(parts)}</div>'


def _provenance(results: pd.DataFrame) -> str:
    """Where the numbers come from: data, seeds, git revision."""
    if results.empty:
        return ""
    facts = {
        "data": ", ".join(sorted(results["data"].unique())),
        "seeds": str(results["seed"].nunique()),
        "git": ", ".join(sorted(revision[:10] for revision in results["git_rev"].unique())),
    }
    text = " · ".join(f"{key}: {value}" for key, value in facts.items() if value)
    return f'<p class="facts">{escape(text)}</p>'


def _scroll_box(label: str) -> str:
    """Opens the box that one wide table scrolls in; page.js adds sorting and a filter to the table."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'


def _claims_table(report: Report) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(claim['id'])}</code></td><td>{_badge(claim['verdict'])}</td>"
        f'<td class="text">{escape(claim["statement"])}</td>'
        f'<td class="number">{_short(claim["effect"])}</td>'
        f'<td class="number">{_interval(claim["interval"])}</td>'
        f'<td class="number">{claim["n"]:d}</td><td class="text">{escape(claim["test"])}</td></tr>'
        for claim in report.claims
    )
    header = (
        "<th>claim</th><th>verdict</th><th>statement</th>"
        '<th class="number">effect</th><th class="number">95 % interval</th><th class="number">n</th>'
        "<th>test</th>"
    )
    return (
        _scroll_box(f"Claims of {report.paper}, {report.scale} scale")
        + f'<table data-select="1"><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _badge(verdict: str) -> str:
    symbol = f'<span aria-hidden="true">{VERDICTS[verdict]}</span>'
    return f'<span class="badge {_slug(verdict)}">{symbol} {verdict}</span>'


def _slug(text: str) -> str:
    return text.replace(" ", "-")


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(interval: list[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def _markdown(path: Path, folder: str) -> str:
    """A markdown file with raw HTML off, headings below the panel's, links seen from the page."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.add_render_rule("table_open", _open_table)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(path.read_text())
    label = path.stem
    for token, following in pairwise([*tokens, Token("end", "", 0)]):
        if token.type.startswith("heading_"):
            token.tag = f"h{min(6, int(token.tag[1]) + 4)}"
        if token.type == "heading_open":
            label = "".join(child.content for child in following.children or ())
        token.meta["label"] = label
        for child in token.children or ():
            if child.type == "link_open":
                child.attrSet("href", urljoin(folder, str(child.attrGet("href"))))
    return f'<article class="markdown">{parser.renderer.render(tokens, parser.options, {})}</article>'


def _open_table(_renderer: object, tokens: Sequence[Token], index: int, *_: object) -> str:
    return _scroll_box(tokens[index].meta["label"]) + "<table>"


def _figure(path: Path) -> str:
    """A figure as an image of its own: matplotlib's element ids clash when SVG files share a document."""
    caption = escape(path.stem.replace("_", " ").replace("-", " "))
    source = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{source}" alt="Figure: {caption}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _data_script(name: str, frame: pd.DataFrame, columns: tuple[str, ...]) -> str:
    """A frame as JSON in a script element: numbers in lists, text as codes into its distinct values."""
    packed: dict[str, Any] = {}
    for column in columns if len(frame) else ():
        if pd.api.types.is_numeric_dtype(frame[column]):
            packed[column] = [_number(value) for value in frame[column]]
        else:
            codes, levels = pd.factorize(frame[column], sort=True)
            packed[column] = {"codes": codes.tolist(), "levels": list(levels)}
    # without any "<", nothing in the data can end the element or open a comment
    text = json.dumps(packed, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="data-{name}">{text}</script>'


def _number(value: float) -> int | float | str:
    """Six significant digits for reading; counts in full; JSON has no word for nan and inf."""
    if not math.isfinite(value):
        return str(value)
    return int(value) if value == int(value) else float(f"{value:.6g}")
