"""Stages of a paper in the test's own process, in a folder of their own: quick, and open to monkeypatching."""

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.common.workspace import ROOT

Settings = dict[str, Any]
Main = Callable[[], None]


def preset(paper: str, scale: str) -> Settings:
    """The content of `conf/<paper>/<scale>.yaml`."""
    return yaml.safe_load((ROOT / "conf" / paper / f"{scale}.yaml").read_text())


def open_workspace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in `folder`, which gets what stages read of the repository; one worker, no mirror, no MLflow."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ENCORE_JOBS", "1")
    monkeypatch.delenv("ENCORE_MIRROR", raising=False)
    monkeypatch.setattr("stages.common.report.write.start_sync", lambda: None)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "registry.yaml", folder / "data")  # a copy: tests register data of their own
    (folder / "reports").mkdir()
    (folder / "reports" / "published").symlink_to(ROOT / "reports" / "published")
    return folder


def stage(main: Main, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a stage's `main` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["stage", *map(str, arguments)])
    main()


def killed_stage(
    main: Main, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, call: int, *arguments: object
) -> None:
    """Run a stage in a fork that is killed (SIGKILL) at call number `call` (from 1) of `module.name`, wherever it is."""
    child = os.fork()
    if not child:
        stage_process, function, calls = os.getpid(), getattr(module, name), itertools.count(1)

        def dies(*args: Any, **options: Any) -> Any:
            if next(calls) == call:
                os.kill(stage_process, signal.SIGKILL)
                signal.pause()  # a worker ends with its stage
            return function(*args, **options)

        monkeypatch.setattr(module, name, dies)
        try:
            stage(main, monkeypatch, *arguments)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def write_params(paper: str, settings: Settings) -> None:
    """Make `settings` the paper's parameters in the current folder."""
    Path("params.yaml").write_text(yaml.safe_dump({paper: settings}))
