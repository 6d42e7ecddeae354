"""`dvc repro chex` from a clone to the report, at a size of seconds."""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stages.chex.params import ChexParams
from stages.common.report.html import PAPERS
from stages.common.results import COLUMNS
from stages.common.stage.files import verified
from stages.common.stage.params import load_params
from tests.common.workspace import ROOT, end_processes, environment, tiny_params, tree

VERDICTS = {"supported", "not supported", "inconclusive", "not tested at this scale"}
REPORT = Path("reports/chex/quick")
SECTION = tiny_params(prune__flops=[0.3], methods=["l1", "chex"])


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC as a user does; its output."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "dvc"), *arguments],
        cwd=folder, env=environment(PYTHONPATH=""), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def set_preset(folder: Path, section: dict[str, object]) -> None:
    """Make `section` the quick preset, and compose the parameters from it."""
    (folder / "conf" / "chex" / "quick.yaml").write_text(yaml.safe_dump(section, sort_keys=False))
    subprocess.run(
        [sys.executable, "-m", "stages.common.presets"],
        cwd=folder,
        env=environment(PYTHONPATH=""),
        check=True,
    )


def ran(output: str) -> list[str]:
    """Stages that a `dvc repro` has run."""
    lines = [line for line in output.splitlines() if line.startswith("Running stage '")]
    return [line.split("'")[1].rpartition(":")[2] for line in lines]


def locks(folder: Path) -> list[Path]:
    """The lock of the targets and those of the papers."""
    return [path for path in (folder / "dvc.lock", *folder.glob("stages/**/dvc.lock")) if path.exists()]


def lock_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in locks(folder)]


def sent(folder: Path) -> None:
    """Wait until nobody is sending runs to MLflow any more."""
    with (folder / ".encore" / "tracking" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working tree as a repository of its own, with small parameters, in which `dvc repro chex` has run once."""
    folder = tmp_path_factory.mktemp("clone") / "encore"
    listed = git(ROOT, "ls-files", "-co", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for lock in locks(folder):
        lock.unlink()
    set_preset(folder, SECTION)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    output = dvc(folder, "repro", "chex")
    cells = [f"chex-prune@{method}-{seed}" for method in ("l1", "chex") for seed in (0, 1)]
    everything = ["chex-prepare", "chex-pretrain@0", "chex-pretrain@1", *cells, "chex-evaluate", "chex"]
    assert sorted(ran(output)) == sorted(everything)
    yield folder
    sent(folder)
    end_processes(folder)


def test_the_report_is_there(clone: Path) -> None:
    report = verified(clone / REPORT)
    names = {path.name for path in report.iterdir()}
    assert {"results.parquet", "table.md", "claims.md", "claims.json"} <= names
    assert any(name.endswith(".svg") for name in names)
    table = (report / "table.md").read_text()
    assert "**CHEX**" in table
    assert "small scale, not the paper's setting" in table
    assert "Published: ImageNet" in table
    page = (clone / "reports" / "index.html").read_text()
    name, title, _ = PAPERS["chex"]
    assert name in page
    assert title in page
    assert 'id="chex-quick"' in page


def test_results_are_tidy(clone: Path) -> None:
    results = pd.read_parquet(clone / REPORT / "results.parquet")
    assert list(results.columns) == list(COLUMNS)
    assert set(results["paper"]) == {"chex"}
    assert set(results["scale"]) == {"quick"}
    assert set(results["seed"]) == {0, 1}
    assert set(results["method"]) == {"dense", "l1", "chex"}
    assert results["value"].notna().all()
    assert not results.duplicated(["table", "method", "setting", "metric", "seed", "data"]).any()
    # each network is one run
    runs = results.groupby(["method", "setting", "seed", "data"])["run_id"].nunique()
    assert (runs == 1).all()
    assert results["run_id"].nunique() == len(runs)
    top1 = results[results["metric"] == "top1"]["value"]
    assert top1.between(0, 100).all()
    (revision,) = set(results["git_rev"])
    assert not revision.endswith("-dirty")
    assert git(clone, "cat-file", "-t", revision).strip() == "commit"


def test_claims_are_in_the_contracts_form(clone: Path) -> None:
    claims = json.loads((clone / REPORT / "claims.json").read_text())
    assert len({claim["id"] for claim in claims}) == len(claims) > 5
    for claim in claims:
        assert claim.keys() == {"id", "statement", "scale", "verdict", "effect", "interval", "n", "test"}
        assert claim["verdict"] in VERDICTS
        assert claim["scale"] == "quick"
        if claim["interval"]:
            low, high = claim["interval"]
            assert low <= claim["effect"] <= high
            assert claim["n"] >= 2
    text = (clone / REPORT / "claims.md").read_text()
    assert all(f"| {claim['id']} |" in text for claim in claims)


def test_runs_are_in_mlflow(clone: Path) -> None:
    from mlflow import MlflowClient

    sent(clone)
    client = MlflowClient(f"sqlite:///{clone}/mlflow.db")
    experiment = client.get_experiment_by_name("chex")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run is not parent]
    assert len(nested) == 2 * 2 + 2 * 2  # dense and half dense per seed; two methods per seed
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    results = pd.read_parquet(clone / REPORT / "results.parquet")
    by_key = {run.data.tags["encore.run_key"]: run for run in nested}
    for row in results[results["table"] == "T1"].itertuples():
        run = by_key[row.run_id]
        assert run.data.metrics[row.metric] == pytest.approx(row.value)
        assert run.data.params["method"] == row.method
        assert run.data.params["seed"] == str(row.seed)
        assert run.data.tags["dvc.stage"].startswith(("chex-prune@", "chex-pretrain@"))
    assert "table.md" in {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert not list((clone / ".encore" / "tracking").glob("*.jsonl"))


def test_the_second_time_nothing_runs(clone: Path) -> None:
    before = lock_bytes(clone)
    assert len(before) == 2
    output = dvc(clone, "repro", "chex")
    assert ran(output) == []
    assert "Data and pipelines are up to date." in output
    assert lock_bytes(clone) == before


def test_forced_it_gives_the_same_bytes(clone: Path) -> None:
    lock, reports, runs = lock_bytes(clone), tree(clone / "reports"), tree(clone / "runs")
    assert len(ran(dvc(clone, "repro", "-f", "chex"))) == 9
    assert tree(clone / "runs") == runs
    assert tree(clone / "reports") == reports
    assert lock_bytes(clone) == lock


def test_an_override_is_composed(clone: Path) -> None:
    """`dvc exp run -S` as a user gives it, for a stage that the value does not touch: nothing has to be trained."""
    output = dvc(clone, "exp", "run", "-S", "chex.prune.flops=0.4", "stages/chex/dvc.yaml:chex-prepare")
    try:
        assert ran(output) == []
        changed = yaml.safe_load((clone / "params.yaml").read_text())["chex"]
        assert changed == {**SECTION, "prune": {**SECTION["prune"], "flops": 0.4}}
        assert load_params(ChexParams, "chex", clone / "params.yaml").prune.flops == [0.4]
        would_run = ran(dvc(clone, "repro", "--dry", "chex"))
        assert "chex-prune@chex-0" in would_run
        assert "chex-prepare" not in would_run
        assert "chex-pretrain@0" not in would_run
    finally:
        set_preset(clone, SECTION)


def test_an_edit_runs_what_it_touches(clone: Path) -> None:
    """DVC is asked what it would run."""
    file = clone / "stages" / "chex" / "figures.py"
    before = file.read_text()
    try:
        file.write_text(before + "\n# edited\n")
        assert ran(dvc(clone, "repro", "--dry", "chex")) == ["chex"]
    finally:
        file.write_text(before)


def test_a_new_seed_runs_only_its_cells(clone: Path) -> None:
    before = tree(clone / "runs" / "chex" / "quick" / "prune")
    set_preset(clone, {**SECTION, "seeds": [0, 1, 2]})
    try:
        output = dvc(clone, "repro", "chex")
        new = ["chex-pretrain@2", "chex-prune@l1-2", "chex-prune@chex-2", "chex-evaluate", "chex"]
        assert sorted(ran(output)) == sorted(new)
        after = tree(clone / "runs" / "chex" / "quick" / "prune")
        assert before.items() <= after.items()
        results = pd.read_parquet(clone / REPORT / "results.parquet")
        assert set(results["seed"]) == {0, 1, 2}
    finally:
        set_preset(clone, SECTION)
