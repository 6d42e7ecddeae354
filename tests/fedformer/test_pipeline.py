"""The stages on tiny settings of each scale: they run, resume, give the same bytes again, and say what is
wrong.
"""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from stages.common.stage.errors import InputError, ParameterError
from stages.fedformer import evaluate, prepare, train, training
from stages.fedformer.claims import check_claims
from stages.fedformer.params import FedformerParams
from tests.common.stages import Settings, killed_stage, open_workspace, preset, stage, write_params
from tests.fedformer.mirror import in_mirror_or_skip

MIRROR = os.environ.get("ENCORE_MIRROR", "")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return open_workspace(tmp_path, monkeypatch)


def tiny(scale: str) -> Settings:
    """One data set of a scale's own preset, the generated one or ILI, with everything that costs time made small."""
    params = preset("fedformer", scale)
    data = "generated" if scale == "quick" else "ili"
    recipe = params["data"][data]
    horizon = 96 if data == "generated" else 24
    recipe["models"] = {"fedformer-f": [horizon], "dlinear": [horizon], "repeat-last": [horizon, 36]}
    recipe |= {
        "features": ["M"],
        "variations": ["M16-low"],
        "width": 16,
        "hidden": 16,
        "epochs": 2,
        "train_windows": 64,
    }
    params |= {
        "seeds": [0, 1],
        "models": ["fedformer-f", "dlinear"],
        "data": {data: recipe},
        "launch": "python",
    }
    return params


@pytest.mark.parametrize("scale", ["quick", "real", "paper"])
def test_stages_run_from_end_to_end(scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if scale != "quick":
        monkeypatch.setenv("ENCORE_MIRROR", MIRROR)
        in_mirror_or_skip("ili")
    write_params("fedformer", tiny(scale))
    stage(prepare.main, monkeypatch)
    for model in ("fedformer-f", "dlinear"):
        for seed in (0, 1):
            stage(train.main, monkeypatch, "--model", model, "--seed", seed)
    stage(evaluate.main, monkeypatch)
    results = pd.read_parquet(workspace / f"runs/fedformer/{scale}/evaluate/results.parquet")
    assert set(results["method"]) == {"fedformer-f", "dlinear", "repeat-last"}
    assert set(results["table"]) == {"multivariate", "ablation"}
    assert results["value"].notna().all()
    claims = check_claims(results, None, FedformerParams.model_validate(tiny(scale)))
    verdicts = {claim.id: claim for claim in claims}
    untested = "not tested at this scale"
    on_ili = scale != "quick"
    assert verdicts["5"].verdict == ("supported" if on_ili else untested)
    assert (verdicts["8-ili-fedformer-f"].verdict == untested) != on_ili
    assert (verdicts["8-generated-fedformer-f"].verdict == untested) == on_ili
    assert verdicts["9"].verdict == untested
    assert {claim.id.partition("-")[0] for claim in claims} == set("123456789")


def test_a_killed_training_ends_with_the_same_weights(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed in its second step, after a checkpoint before every step, and run again."""
    write_params("fedformer", tiny("quick"))
    stage(prepare.main, monkeypatch)
    cell = ("--model", "fedformer-f", "--seed", 0)
    stage(train.main, monkeypatch, *cell)
    folder = workspace / "runs/fedformer/quick/train/fedformer-f-0"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    killed_stage(train.main, monkeypatch, training, "batch", 2, *cell)
    assert list(workspace.glob(".encore/work/*/*.ckpt"))
    assert not folder.exists()
    stage(train.main, monkeypatch, *cell)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "fedformer.seeds"),
        ({"colour": 1}, "fedformer.colour: unknown key"),
        ({"models": ["dlinear", "informer"]}, "models that no data set names: informer"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(
    change: Settings, message: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params("fedformer", tiny("quick") | change)
    with pytest.raises(ParameterError, match=message) as error:
        stage(prepare.main, monkeypatch)
    assert "\n" not in str(error.value)
    assert not (workspace / "data" / "fedformer").exists()


def test_a_missing_input_is_told(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params("fedformer", tiny("quick"))
    with pytest.raises(InputError, match="data/fedformer/quick"):
        stage(evaluate.main, monkeypatch)


def test_models_pick_what_is_run_of_each_data_set() -> None:
    params = preset("fedformer", "real") | {"models": ["nlinear", "dlinear"]}
    for recipe in FedformerParams.model_validate(params).data.values():
        assert set(recipe.models) == {"dlinear", "nlinear", "repeat-last"}


@pytest.mark.parametrize("scale", ["quick", "real", "paper"])
def test_presets_are_valid(scale: str) -> None:
    params = FedformerParams.model_validate(preset("fedformer", scale))
    assert len(params.seeds) >= 3
    assert json.loads(params.model_dump_json())["scale"] == scale
