"""Wrong parameters and arguments: one line that names the key, the value and what is allowed; exit code 2."""

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stages.chex.params import ChexParams
from stages.common.stage.errors import ParameterError
from stages.common.stage.params import Fractions, Seeds, load_params
from tests.common.workspace import end_processes, environment, python, stage, tiny_params, write_params

MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": (
        {"prune__flop": 0.4},
        ["chex.prune.flop: unknown key", "allowed here: flops, explore, period, residual_power"],
    ),
    "unknown key of a data set": (
        {"data__digits__epochs": 3},
        ["chex.data.digits.epochs: unknown key", "net, steps, batch"],
    ),
    "unknown key at the top": ({"seed": 3}, ["chex.seed: unknown key", "scale, launch, seeds"]),
    "unknown data set": (
        {"data__mnist": {}},
        ["chex.data.mnist", "'shapes', 'digits', 'cifar10' or 'imagenet'"],
    ),
    "wrong type": ({"data__digits__steps": "many"}, ["chex.data.digits.steps = 'many'", "integer"]),
    "a number as text": ({"data__digits__lr": "1e-3"}, ["chex.data.digits.lr = '1e-3'", "number"]),
    "a fraction of a step": ({"data__digits__steps": 10.5}, ["chex.data.digits.steps = 10.5", "integer"]),
    "out of range": ({"prune__flops": [0.3, 1.5]}, ["chex.prune.flops.1 = 1.5", "less than 1"]),
    "scalar out of range": ({"prune__flops": 0.0}, ["chex.prune.flops", "= 0.0", "greater than 0"]),
    "not a number": (
        {"prune__explore": float("nan")},
        ["chex.prune.explore = nan", "less than or equal to 1"],
    ),
    "no target": ({"prune__flops": []}, ["chex.prune.flops = []", "at least 1 item"]),
    "duplicate seeds": ({"seeds": [0, 1, 0]}, ["chex.seeds = [0, 1, 0]", "twice"]),
    "duplicate methods": ({"methods": ["chex", "l1", "chex"]}, ["chex.methods", "twice"]),
    "negative seed": ({"seeds": [-1]}, ["chex.seeds.0 = -1", "greater than or equal to 0"]),
    "unknown choice": ({"scale": "huge"}, ["chex.scale = 'huge'", "'quick', 'real' or 'paper'"]),
    "unknown method": ({"methods": ["chex", "cheX"]}, ["chex.methods.1 = 'cheX'", "'chex-no-regrow'"]),
}


@pytest.fixture(scope="module")
def warm_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose warm interpreter all mistakes are told to."""
    folder = tmp_path_factory.mktemp("parameters")
    yield folder
    end_processes(folder)


def one_line_error(folder: Path, *argv: str) -> str:
    """The one line that a stage ends with, exit code 2; nothing may be written."""
    before = sorted(folder.rglob("*"))
    result = stage(folder, *argv, ENCORE_WARM="1")
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert sorted(folder.rglob("*")) == before
    return lines[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_params_yaml(mistake: str, warm_folder: Path) -> None:
    changes, expected = MISTAKES[mistake]
    write_params(warm_folder, tiny_params(**changes))
    line = one_line_error(warm_folder, "chex.prepare")
    assert line.startswith("error: params.yaml: ")
    for part in expected:
        assert part in line


@pytest.mark.parametrize("key", ["seeds", "prune.explore", "data.digits.lr"])
def test_missing_key(key: str, warm_folder: Path) -> None:
    section = tiny_params()
    *path, last = key.split(".")
    inner = section
    for name in path:
        inner = inner[name]
    del inner[last]
    write_params(warm_folder, section)
    assert one_line_error(warm_folder, "chex.prepare") == f"error: params.yaml: chex.{key}: missing"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hico: {scale: quick}\n", "no section 'chex'"),
        ("", "no section 'chex'"),
        ("- chex\n", "no section 'chex'"),
        ("chex:\n", "chex = None: must be a valid dictionary"),
        ("chex: {scale: quick\nseeds: [0", "not YAML: "),
        ("chex: \x00", "not YAML: "),
    ],
)
def test_broken_params_yaml(content: str, expected: str, warm_folder: Path) -> None:
    (warm_folder / "params.yaml").write_text(content)
    assert f"params.yaml: {expected}" in one_line_error(warm_folder, "chex.prepare")


def test_params_yaml_that_is_not_text(warm_folder: Path) -> None:
    (warm_folder / "params.yaml").write_bytes(b"\xff\xfe\x00chex")
    assert "params.yaml: not YAML: " in one_line_error(warm_folder, "chex.prepare")


def test_missing_params_yaml(warm_folder: Path) -> None:
    (warm_folder / "params.yaml").unlink(missing_ok=True)
    line = one_line_error(warm_folder, "chex.prepare")
    assert line == "error: params.yaml: not found; run from the repository's root"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["chex.prune", "--method", "chexx", "--seed", "0"], ["--method", "'chexx'", "chex-no-regrow"]),
        (["chex.prune", "--method", "chex", "--seed", "one"], ["--seed", "'one'"]),
        (["chex.prune", "--method", "chex", "--seed", "-1"], ["--seed", "'-1'", "0 or greater"]),
        (["chex.prune", "--method", "chex"], ["--seed"]),
        (["chex.pretrain", "--seed", "0.5"], ["--seed", "'0.5'"]),
        (["chex.pretrain", "--seed", "0", "--epochs", "3"], ["--epochs"]),
        (["chex.nothing"], ["chex.nothing", "chex.evaluate, chex.prepare, chex.pretrain"]),
        (["nothing.prepare"], ["nothing.prepare", "chex.prepare"]),
        (["chex"], ["chex", "<paper>.<step>"]),
    ],
)
def test_wrong_arguments(argv: list[str], expected: list[str], warm_folder: Path) -> None:
    write_params(warm_folder, tiny_params())
    line = one_line_error(warm_folder, *argv)
    for part in expected:
        assert part in line


@pytest.mark.parametrize("entry", [["-m", "stages", "chex.prepare"], ["-m", "stages.chex.prepare"]])
def test_mistakes_without_the_warm_interpreter(entry: list[str], workspace: Path) -> None:
    write_params(workspace, tiny_params(prune__flop=0.4))
    result = python(workspace, *entry, ENCORE_WARM="0")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "chex.prune.flop: unknown key" in result.stderr
    assert os.listdir(workspace) == ["params.yaml"]
    assert environment()["PYTHONPATH"]


def test_one_number_is_a_list_of_one(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params(prune__flops=0.4))
    assert load_params(ChexParams, "chex", tmp_path / "params.yaml").prune.flops == [0.4]


def test_parameters_are_frozen(tmp_path: Path) -> None:
    write_params(tmp_path, tiny_params())
    params = load_params(ChexParams, "chex", tmp_path / "params.yaml")
    with pytest.raises(ValidationError):
        params.scale = "real"


@given(st.lists(st.integers(-3, 6), max_size=5))
def test_law_of_seeds(seeds: list[int]) -> None:
    allowed = bool(seeds) and min(seeds) >= 0 and len(set(seeds)) == len(seeds)
    adapter = TypeAdapter(Seeds)
    if allowed:
        assert adapter.validate_python(seeds, strict=True) == seeds
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(seeds, strict=True)


@given(st.floats(allow_nan=True))
def test_law_of_fractions(value: float) -> None:
    adapter = TypeAdapter(Fractions)
    if 0 < value < 1:
        assert adapter.validate_python(value, strict=True) == adapter.validate_python([value]) == [value]
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(value, strict=True)


def paths_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys of a nested section."""
    if not isinstance(value, dict):
        return []
    return [inner for key in value for inner in [(*path, key), *paths_of(value[key], (*path, key))]]


@given(st.data())
def test_every_misspelt_key_is_named(data: st.DataObject) -> None:
    section = tiny_params()
    path = data.draw(st.sampled_from(paths_of(section)))
    inner = section
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1] + "_"] = deepcopy(inner[path[-1]])
    with pytest.raises(ParameterError) as error:
        load_params(ChexParams, "chex", FakePath(yaml.safe_dump({"chex": section})))  # type: ignore[arg-type]
    assert f"chex.{'.'.join(path)}_" in str(error.value)
    assert "\n" not in str(error.value)


class FakePath:
    """A params.yaml that is in memory only."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self) -> str:
        return self.text

    def __str__(self) -> str:
        return "params.yaml"
