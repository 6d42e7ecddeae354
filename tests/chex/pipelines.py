"""What the tests of the three pipelines' stages share."""

import importlib
from pathlib import Path

import pytest

from tests.common.stages import Settings, open_workspace, stage, write_params
from tests.common.workspace import tree


def open_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the stages read of the repository; one worker, no MLflow, one latency measurement."""
    monkeypatch.setattr("stages.chex.tables.LATENCY_REPEATS", 1)
    return open_workspace(folder, monkeypatch)


def run_all(name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Run all stages of the pipeline `name` in the current folder; digests of what they have written."""
    write_params(name, settings)
    package = "stages." + name.replace("-", ".")

    def run(step: str, *arguments: object) -> None:
        stage(importlib.import_module(f"{package}.{step}").main, monkeypatch, *arguments)

    run("prepare")
    for seed in settings["seeds"]:
        run("pretrain", "--seed", seed)
        for method in settings["methods"]:
            run("prune", "--method", method, "--seed", seed)
    run("evaluate")
    run("report")
    found = tree(Path.cwd())
    return {path: digest for path, digest in found.items() if path.startswith(("runs", "reports", "data"))}
