"""The report page: what it says, that it is safe and reproducible, and how it behaves in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stages.common.report.claims import at_least, exact, not_tested
from stages.common.report.figures import write_svg
from stages.common.report.html import PAPERS, write_index
from stages.common.report.tables import markdown_table, mean_std
from stages.common.results import results_frame, write_parquet
from tests.common.browser import browser, console_problems, emulate, needs_browser, requested_urls

EVIL = "</script><script>alert(1)</script><!-- <b>&"
N_RESULTS = 20_000


def results(paper: str, scale: str, n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    methods = ["CHEX", "uniform pruning", "magnitude, one shot", "dense", EVIL]
    return results_frame(
        {
            "paper": paper, "table": "digits", "method": methods[i % 5], "setting": f"sparsity 0.{i % 9}",
            "metric": ("top1", "flops")[i % 2], "value": 90 + rng.normal(), "unit": "%", "seed": i,
            "scale": scale, "data": "digits (scikit-learn)", "run_id": f"{i:08x}",
            "git_rev": "05472be1234567",
        }
        for i in range(n)
    )  # fmt: skip


def write_report(folder: Path, n: int) -> None:
    paper, scale = folder.parent.name, folder.name
    frame = results(paper, scale, n)
    write_parquet(frame, folder / "results.parquet")
    top1 = frame[frame.metric == "top1"]
    rows = [
        [
            re.sub("([<&])", r"\\\1", name),
            mean_std(group.value),
            f"{9.5 + 10 * i:.1f} ± 0.1",
            "–" if i else "76.0",
        ]
        for i, (name, group) in enumerate(top1.groupby("method"))
    ]
    table = markdown_table(["method", f"top-1 % ({scale}, digits, n=3)", "time s", "published"], rows)
    (folder / "table.md").write_text(
        f"# Digits at equal FLOPs\n\nMean ± std; see [claims](claims.md).\n\n{table}\n"
        f"## Note\n\nRaw <img src=x onerror=alert(1)> and ![remote](https://example.org/x.png) stay out,\n"
        f"and so does [this](javascript:alert(1)).\n"
    )
    claims = [
        at_least("C1", "CHEX beats uniform pruning by >= 0.5 points", scale, [1.1, 1.3, 0.9], 0.5, "points"),
        at_least("C2", "Regrowing beats one-shot pruning", scale, [-1.1, -1.3, -0.9], 0, "points"),
        at_least("C3", f"A statement with {EVIL}", scale, [0.5, -0.4, 0.1], 0, "points"),
        exact("C4", "The slim network equals the masked one", scale, True, 0.0, "max abs difference", 1),
        not_tested("C5", "ResNet-50 keeps 76.0 % top-1 at 1 GFLOPs", scale, "needs ImageNet"),
    ]  # fmt: skip
    (folder / "claims.json").write_text(json.dumps([claim.to_json() for claim in claims]))
    for name in ("accuracy_vs_flops", "kept-channels"):
        figure = Figure((5, 3))
        figure.subplots().plot([1, 2, 3], [3, 5, 4], "o-", label="CHEX")
        write_svg(figure, folder / f"{name}.svg")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site") / "reports"
    shutil.copytree("reports/published", root / "published")
    for name, n in (("chex/quick", N_RESULTS), ("chex/real", 40), ("elsa/quick", 20)):
        (root / name).mkdir(parents=True)
        write_report(root / name, n)
    write_index(root)
    return root


@pytest.fixture
def page(reports: Path) -> str:
    return (reports / "index.html").read_text()


def test_papers_come_in_their_fixed_order(page: str) -> None:
    assert re.findall(r'<section class="paper" id="([\w-]+)"', page) == list(PAPERS)
    assert re.findall(r'class="panel" id="([\w-]+)"', page) == ["chex-quick", "chex-real", "elsa-quick"]
    assert page.count("Not reproduced yet") == len(PAPERS) - 2


def test_every_anchor_leads_somewhere_and_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_same_inputs_same_bytes(reports: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(reports, moved, ignore=shutil.ignore_patterns("index.html"))
    assert write_index(moved).read_bytes() == (reports / "index.html").read_bytes()
    assert not list(moved.glob(".*"))


def test_data_cannot_become_markup(page: str) -> None:
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert 'href="javascript' not in page
    assert "example.org/x.png" in page  # the image became a link
    assert not re.search(r"<[^>]+\son\w+=", page.replace("onerror=alert(1)&gt;", ""))
    scripts = re.findall(r'<script type="application/json" id="data-([\w-]+)">(.*?)</script>', page, re.S)
    packed = dict(scripts)["chex-quick"]
    assert "<" not in packed
    assert EVIL in json.loads(packed)["method"]["levels"]


def test_small_scale_is_labelled(page: str) -> None:
    overview = page[page.index('id="overview"') : page.index('id="chex"')]
    assert len(re.findall(r'#\w+-quick">quick</a> <span class="scale-tag quick">small scale<', overview)) == 2
    panel = page[page.index('id="chex-quick"') : page.index('id="chex-real"')]
    assert "small scale, not the paper" in panel


def test_links_in_tables_are_seen_from_the_page(page: str) -> None:
    assert 'href="chex/quick/claims.md"' in page


def test_values_keep_counts_and_name_what_is_not_finite(tmp_path: Path) -> None:
    frame = results("adam", "quick", 4).assign(value=[float("nan"), float("inf"), 29_140_978, 0.123456789])
    (tmp_path / "adam/quick").mkdir(parents=True)
    write_parquet(frame, tmp_path / "adam/quick/results.parquet")
    text = write_index(tmp_path).read_text()
    assert '"value":["nan","inf",29140978,0.123457]' in text


@pytest.mark.parametrize("kept", ["claims.json", "table.md", "accuracy_vs_flops.svg", "results.parquet"])
def test_any_piece_alone_makes_a_report(reports: Path, tmp_path: Path, kept: str) -> None:
    folder = tmp_path / "uot" / "quick"
    folder.mkdir(parents=True)
    shutil.copy(reports / "elsa" / "quick" / kept, folder)
    page = write_index(tmp_path).read_text()
    headings = {"claims.json": "Claims", "table.md": "Tables", "accuracy_vs_flops.svg": "Figures",
                "results.parquet": "All results beside the published numbers"}  # fmt: skip
    assert [name for name, heading in headings.items() if f"<h4>{heading}</h4>" in page] == [kept]
    assert page.count("Not reproduced yet") == len(PAPERS) - 1


def test_without_any_report_all_are_not_reproduced_yet(tmp_path: Path) -> None:
    (tmp_path / "chex" / "quick").mkdir(parents=True)
    assert write_index(tmp_path).read_text().count("Not reproduced yet") == len(PAPERS)


@pytest.fixture(scope="module")
def driver(reports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        driver.set_script_timeout(30)
        yield driver


@pytest.fixture
def opened(driver: Any, reports: Path) -> Any:
    driver.get("about:blank")
    console_problems(driver), requested_urls(driver)
    driver.get((reports / "index.html").as_uri())
    return driver


def column(driver: Any, table: str, index: int) -> list[str]:
    script = """
        const rows = [...document.querySelector(arguments[0]).tBodies[0].rows];
        return rows.map(row => row.cells[arguments[1]].textContent);"""
    return driver.execute_script(script, table, index)


def click(driver: Any, selector: str) -> None:
    driver.find_element("css selector", selector).click()


def open_explorer(driver: Any, explorer: str) -> None:
    """Unfold the results of a scale; they are filled in after the event, which may come late on a busy machine."""
    from selenium.webdriver.support.ui import WebDriverWait

    click(driver, f"{explorer} summary")
    WebDriverWait(driver, 60).until(lambda page: page.find_elements("css selector", f"{explorer} tbody tr"))


@needs_browser
def test_page_is_quiet_and_asks_nothing_of_the_network(opened: Any, reports: Path) -> None:
    opened.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    opened.execute_async_script("setTimeout(arguments[0], 500)")
    images = "return [...document.images].every(i => i.loading = 'eager') && document.images.length"
    assert opened.execute_script(images) == 6
    assert console_problems(opened) == []
    assert requested_urls(opened) == [(reports / "index.html").as_uri()]
    assert opened.execute_script("return document.querySelectorAll('script:not([type])').length") == 1


@needs_browser
def test_a_table_sorts_by_its_numbers(opened: Any) -> None:
    table = "#chex-real .markdown table"
    before = column(opened, table, 2)
    for expected, rows in (
        ("ascending", ["9.5 ± 0.1", "19.5 ± 0.1", "29.5 ± 0.1", "39.5 ± 0.1", "49.5 ± 0.1"]),
        ("descending", ["49.5 ± 0.1", "39.5 ± 0.1", "29.5 ± 0.1", "19.5 ± 0.1", "9.5 ± 0.1"]),
        ("none", before),
    ):
        click(opened, f"{table} th:nth-child(3) button")
        header = opened.find_element("css selector", f"{table} th:nth-child(3)")
        assert header.get_attribute("aria-sort") == expected
        assert column(opened, table, 2) == rows


@needs_browser
def test_a_table_sorts_from_the_keyboard_with_dashes_last(opened: Any) -> None:
    table = "#chex-real .markdown table"
    button = opened.find_element("css selector", f"{table} th:nth-child(4) button")
    for _ in range(2):
        button.send_keys("\ue007")  # Enter
        assert column(opened, table, 3) == ["76.0", "–", "–", "–", "–"]


@needs_browser
def test_claims_filter_by_verdict_and_text(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    table = "#chex-real table[data-select]"
    tools = opened.find_element("css selector", "#chex-real .tools")
    choice = Select(tools.find_element("css selector", "select"))
    choice.select_by_visible_text("✗ not supported")
    assert column(opened, table, 0) == ["C2"]
    choice.select_by_visible_text("all")
    tools.find_element("css selector", "input").send_keys("UNIFORM")
    assert column(opened, table, 0) == ["C1"]
    assert tools.find_element("css selector", ".status").text == "1 row, 4 filtered out"


@needs_browser
def test_scale_switch_shows_one_scale_and_follows_links(opened: Any) -> None:
    def shown() -> list[str]:
        return [
            p.get_attribute("id")
            for p in opened.find_elements("css selector", "#chex .panel")
            if p.is_displayed()
        ]

    assert shown() == ["chex-real"]
    click(opened, "#chex .switch a[href='#chex-quick']")
    assert shown() == ["chex-quick"]
    current = opened.find_elements("css selector", "#chex .switch [aria-current]")
    assert [link.text for link in current] == ["quick"]
    opened.back()
    click(opened, "#overview a[href='#chex-real']")
    assert shown() == ["chex-real"]


@needs_browser
def test_of_twenty_thousand_results_only_what_is_asked_for_is_shown(opened: Any) -> None:
    click(opened, "#chex .switch a[href='#chex-quick']")
    open_explorer(opened, "#chex-quick .explorer")
    table = "#chex-quick .explorer table"
    assert len(column(opened, table, 0)) == 200
    click(opened, f"{table} th:nth-child(3) button")
    opened.find_element("css selector", "#chex-quick .explorer input[name=method]").send_keys("uniform")
    assert set(column(opened, table, 0)) == {"uniform pruning"}
    values = [float(value) for value in column(opened, table, 2)]
    assert values == sorted(values)
    click(opened, "#chex-quick .explorer .more")
    assert len(column(opened, table, 0)) == 1200
    assert (
        "1200 of 4000 rows shown" in opened.find_element("css selector", "#chex-quick .explorer .status").text
    )
    assert console_problems(opened) == []


@needs_browser
def test_published_numbers_stand_beside_ours_under_the_same_filters(opened: Any, reports: Path) -> None:
    open_explorer(opened, "#chex-real .explorer")
    ours, theirs = (f"#chex-real .explorer .columns > :nth-child({n}) table" for n in (1, 2))
    published = pd.read_csv(reports / "published" / "chex.csv", dtype=str)
    assert column(opened, theirs, 2) == list(published.value)
    assert column(opened, theirs, 5) == list(published.source)
    opened.find_element("css selector", "#chex-real .explorer input[name=metric]").send_keys("top1")
    assert set(column(opened, ours, 1)) == {"top1"}
    assert column(opened, theirs, 2) == list(published.value[published.metric.str.contains("top1")])


@needs_browser
@pytest.mark.parametrize("width", [360, 1400])
def test_page_does_not_scroll_sideways(opened: Any, width: int) -> None:
    emulate(opened, width, 800, "dark")
    opened.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    opened.execute_async_script("setTimeout(arguments[0], 100)")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    emulate(opened, 1400, 1000)
