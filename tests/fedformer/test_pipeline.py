"""The stages on tiny settings of each scale: they run, resume, give the same bytes again, and say what is
wrong.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from stages.fedformer.claims import check_claims
from stages.fedformer.params import FedformerParams
from tests.fedformer.mirror import in_mirror_or_skip

ROOT = Path(__file__).parents[2]


def tiny(scale: str) -> dict[str, Any]:
    """One data set of a scale's own preset, the generated one or ILI, with everything that costs time made small."""
    params = yaml.safe_load((ROOT / f"conf/fedformer/{scale}.yaml").read_text())
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


def stage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"stages.fedformer.{arguments[0]}", *arguments[1:]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "ENCORE_JOBS": "1"},
        capture_output=True,
        text=True,
    )


def workplace(folder: Path, params: dict[str, Any]) -> Path:
    (folder / "params.yaml").write_text(yaml.safe_dump({"fedformer": params}))
    shutil.copytree(ROOT / "reports" / "published", folder / "reports" / "published")
    return folder


def finish(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scale", ["quick", "real", "paper"])
def test_stages_run_from_end_to_end(scale, tmp_path):
    if scale != "quick":
        in_mirror_or_skip("ili")
    folder = workplace(tmp_path, tiny(scale))
    finish(stage(folder, "prepare"))
    for model in ("fedformer-f", "dlinear"):
        for seed in ("0", "1"):
            finish(stage(folder, "train", "--model", model, "--seed", seed))
    finish(stage(folder, "evaluate"))
    results = pd.read_parquet(folder / f"runs/fedformer/{scale}/evaluate/results.parquet")
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


def test_a_killed_training_ends_with_the_same_weights(tmp_path):
    params = tiny("quick")
    params["data"]["generated"] |= {
        "width": 64,
        "hidden": 256,
        "epochs": 3,
        "train_windows": None,
        "variations": [],
    }
    folder = workplace(tmp_path, params)
    finish(stage(folder, "prepare"))
    weights = folder / "runs/fedformer/quick/train/fedformer-f-0/generated-M-96.safetensors"
    code = (
        "import sys, stages.fedformer.training as t; from stages.fedformer import train; "
        "t.CHECKPOINT_SECONDS = 0.0; "
        "sys.argv = ['train', '--model', 'fedformer-f', '--seed', '0']; train.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ENCORE_JOBS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment)
    deadline = time.monotonic() + 120
    while not list(folder.glob(".encore/work/*/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob(".encore/work/*/*.ckpt"))
    assert not weights.exists()
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    resumed = weights.read_bytes()
    shutil.rmtree(folder / "runs")
    finish(stage(folder, "train", "--model", "fedformer-f", "--seed", "0"))
    assert weights.read_bytes() == resumed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "fedformer.seeds"),
        ({"colour": 1}, "fedformer.colour: unknown key"),
        ({"models": ["dlinear", "informer"]}, "models that no data set names: informer"),
    ],
)
def test_wrong_parameters_are_told_in_one_line(change, message, tmp_path):
    done = stage(workplace(tmp_path, tiny("quick") | change), "prepare")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_missing_input_is_told_in_one_line(tmp_path):
    done = stage(workplace(tmp_path, tiny("quick")), "evaluate")
    assert done.returncode == 3
    assert "data/fedformer/quick" in done.stderr


def test_models_pick_what_is_run_of_each_data_set():
    params = yaml.safe_load((ROOT / "conf/fedformer/real.yaml").read_text()) | {
        "models": ["nlinear", "dlinear"]
    }
    for recipe in FedformerParams.model_validate(params).data.values():
        assert set(recipe.models) == {"dlinear", "nlinear", "repeat-last"}


@pytest.mark.parametrize("scale", ["quick", "real", "paper"])
def test_presets_are_valid(scale):
    params = FedformerParams.model_validate(
        yaml.safe_load((ROOT / f"conf/fedformer/{scale}.yaml").read_text())
    )
    assert len(params.seeds) >= 3
    assert json.loads(params.model_dump_json())["scale"] == scale
