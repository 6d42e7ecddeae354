"""Workspaces that several tests share, each made once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common.workspace import end_processes, stage, tiny_params, write_params


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A folder with small parameters and nothing else; the processes in it end with the test."""
    folder = tmp_path / "workspace"
    write_params(folder, tiny_params())
    yield folder
    end_processes(folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which chex.prepare and chex.pretrain (seed 0) have run; tests copy it."""
    folder = tmp_path_factory.mktemp("prepared")
    write_params(folder, tiny_params())
    for argv in (["chex.prepare"], ["chex.pretrain", "--seed", "0"]):
        result = stage(folder, *argv)
        assert result.returncode == 0, result.stderr
    shutil.rmtree(folder / ".encore")
    return folder


@pytest.fixture
def pretrained(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `prepared` for one test."""
    folder = tmp_path / "workspace"
    shutil.copytree(prepared, folder)
    yield folder
    end_processes(folder)
