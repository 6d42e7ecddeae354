"""A stage that is killed and run again ends with the same bytes as one that was not."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from stages.chex.data import ArrayData, Batch
from stages.chex.loop import fit
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.params import ChexParams, Recipe
from stages.chex.rows import Schedule
from stages.chex.training import ImageStudy, task_of
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.errors import InputError
from stages.common.stage.files import output_dir, verified
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage
from stages.common.stage.tracking import RunLog
from tests.common.workspace import environment, processes_in, stage, tree

CELL = ["chex.prune", "--method", "chex", "--seed", "0"]
OUTPUT = Path("runs/chex/quick/prune/chex-0")


@pytest.fixture(scope="module")
def expected(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an uninterrupted run writes."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "workspace"
    shutil.copytree(prepared, folder)
    result = stage(folder, *CELL)
    assert result.returncode == 0, result.stderr
    assert list((folder / ".encore" / "work").iterdir()) == []
    return tree(folder / OUTPUT)


def nothing_is_half_written(folder: Path, expected: dict[str, str]) -> None:
    """What is there under its final name is whole."""
    assert tree(folder / OUTPUT) in ({}, expected)
    try:
        verified(folder / OUTPUT)
    except InputError:
        assert not (folder / OUTPUT).exists()


@pytest.mark.parametrize("warm", [False, True])
def test_killed_at_a_random_moment(warm: bool, pretrained: Path, expected: dict[str, str]) -> None:
    command = ["-m", "stages", *CELL] if warm else ["-m", "stages.chex.prune", *CELL[1:]]
    env = environment(ENCORE_WARM="1" if warm else "0")
    if warm:
        assert stage(pretrained, "chex.nothing", ENCORE_WARM="1").returncode == 2  # the interpreter is there
    servers = processes_in(pretrained)
    seconds = (0.3, 0.9) if warm else (2.0, 5.0)
    generator = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, *command], cwd=pretrained, env=env)
        try:
            process.wait(timeout=generator.uniform(*seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        left = [p for p in processes_in(pretrained) if p not in servers]
        assert psutil.wait_procs(left, timeout=10)[1] == []
        nothing_is_half_written(pretrained, expected)
    result = subprocess.run(
        [sys.executable, *command], cwd=pretrained, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert tree(pretrained / OUTPUT) == expected
    assert list((pretrained / ".encore" / "work").iterdir()) == []


def test_killed_at_any_file_operation(pretrained: Path, expected: dict[str, str]) -> None:
    command = [sys.executable, "-m", "tests.common.crash", "12", "0", *CELL]
    process = subprocess.Popen(
        command, cwd=pretrained, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    killed = 0
    for line in process.stdout:
        killed += json.loads(line)["code"] == -9
        left = [p for p in processes_in(pretrained) if p.pid != process.pid]
        assert psutil.wait_procs(left, timeout=10)[1] == []
        nothing_is_half_written(pretrained, expected)
        if process.poll() is None:
            process.stdin.write("go on\n")
            process.stdin.flush()
        last = json.loads(line)
    assert process.wait() == 0
    assert last["code"] == 0
    assert killed >= 4
    assert tree(pretrained / OUTPUT) == expected


class Interruption(Exception):
    """Stands for a kill."""


class Interrupted(ArrayData):
    """Data whose training batches end with an interruption."""

    stop = 10**9

    def train(self, seed: int, start: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().train(seed, start), start):
            if step == self.stop:
                raise Interruption
            yield batch


def train(
    folder: Path, stop: int, recipe: Recipe, method: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a network of the digits up to step `stop`; all of its state and its history."""
    device = torch.device("cpu")
    built = ImageStudy().explored("digits", 0, device)
    budget = 0.3 * built.dense_macs
    regrow: Any = method
    config = ExplorerConfig(t_max=16, period=4, macs_budget=budget, regrow=regrow, criterion="random")
    explorer = ChannelExplorer(
        built.model, built.groups, config, torch.Generator().manual_seed(0), built.macs
    )
    explorer.initialise()
    data = Interrupted(Path("data/chex/quick/digits.safetensors"), 10, recipe, device)
    data.stop = stop
    schedule = Schedule(recipe.steps, updates=range(4, 17, 4), final_update=20)
    task, checkpoint = task_of(data, schedule, 0), Checkpoint(folder / "checkpoint")
    with RunLog("chex", "test", "test") as log:
        history = fit(built.model, explorer, task, schedule, device, log, checkpoint)
    return {**built.model.state_dict(), **explorer.state_dict()}, history


@pytest.mark.parametrize("augment", ["none", "mixup"])
@pytest.mark.parametrize("method", ["residual", "random"])
def test_interrupted_training_goes_on_bit_for_bit(
    augment: str, method: str, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pretrained)
    recipe = load_params(ChexParams, "chex").data["digits"]
    recipe = recipe.model_copy(update={"mixup": 0.2 if augment == "mixup" else 0.0})
    state, history = train(pretrained / "whole", 10**9, recipe, method)
    channels = [sum(entry["active"].values()) for entry in history]
    assert channels[1] > channels[-1]  # channels were brought back and had to go in the end
    monkeypatch.setattr("stages.chex.loop.CHECKPOINT_SECONDS", 0.0)
    for stop in (1, 3, 4, 5, 12, 20, 21, 23):  # before, at and after updates, the last one included
        with pytest.raises(Interruption):
            train(pretrained / "parts", stop, recipe, method)
    resumed, resumed_history = train(pretrained / "parts", 10**9, recipe, method)
    assert resumed_history == history
    assert resumed.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(resumed[name], tensor), name


def test_a_checkpoint_of_other_inputs_is_not_resumed(
    pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work folders are named by what made them: another parameter, input or seed finds another one."""
    monkeypatch.chdir(pretrained)
    params, inputs = load_params(ChexParams, "chex"), [Path("data/chex/quick")]
    other = params.model_copy(update={"seeds": [5]})
    first = Stage("chex-prune", params, inputs, 0, "chex").work
    assert Stage("chex-prune", params, inputs, 0, "chex").work == first
    names = {
        first,
        Stage("chex-prune", params, inputs, 1, "chex").work,
        Stage("chex-prune", params, inputs, 0, "l1").work,
        Stage("chex-pretrain", params, inputs, 0, "chex").work,
        Stage("chex-prune", other, inputs, 0, "chex").work,
    }
    with output_dir(inputs[0]) as folder:
        (folder / "digits.safetensors").write_bytes(b"other data")
    names.add(Stage("chex-prune", params, inputs, 0, "chex").work)
    assert len(names) == 6


def test_jobs_give_every_result_and_pass_errors_on() -> None:
    assert sorted(run_jobs(abs, [-3, 2, -1])) == [(-3, 3), (-1, 1), (2, 2)]
    assert list(run_jobs(abs, [-3])) == [(-3, 3)]
    with pytest.raises(TypeError):
        list(run_jobs(abs, ["text", 1]))  # type: ignore[arg-type]
