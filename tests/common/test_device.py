"""A stage under torchrun: several processes, one output."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages.common.stage.device import is_main, process_share, start_device
from stages.common.stage.files import verified
from tests.common.workspace import processes_in, python, stage, tree

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
OUTPUT = Path("runs/chex/quick/pretrain/0")


def test_one_process_is_the_main_one() -> None:
    assert start_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert process_share() == (0, 1)
    assert is_main()


def test_the_share_of_a_process_is_known_before_its_group_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that finds all its work done starts no group, and still only one of its processes may write."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process_share() == (1, 2)
    assert not is_main()


@pytest.mark.timeout(300)
def test_two_processes_train_one_network(pretrained: Path) -> None:
    # small steps: at the preset's learning rate two runs that differ by rounding soon have nothing in common
    params = yaml.safe_load((pretrained / "params.yaml").read_text())
    params["chex"]["data"]["digits"]["lr"] = 0.002
    (pretrained / "params.yaml").write_text(yaml.safe_dump(params))
    assert stage(pretrained, "chex.pretrain", "--seed", "0").returncode == 0
    alone = load_file(pretrained / OUTPUT / "digits-dense.safetensors")
    spool = pretrained / ".encore" / "tracking"
    before = set(spool.glob("*.jsonl"))
    (pretrained / OUTPUT / "left over").write_text("by an earlier run")
    result = python(pretrained, *TORCHRUN, "-m", "stages", "chex.pretrain", "--seed", "0")
    assert result.returncode == 0, result.stderr
    assert processes_in(pretrained) == []
    assert sorted(tree(pretrained / OUTPUT)) == [
        "MANIFEST.json",
        "digits-dense.safetensors",
        "digits-half.safetensors",
    ]
    verified(pretrained / OUTPUT)
    together = load_file(pretrained / OUTPUT / "digits-dense.safetensors")
    assert together.keys() == alone.keys()
    # the same batches: the networks differ by rounding and by the statistics of half batches, no more
    for name, tensor in alone.items():
        assert tensor.shape == together[name].shape
        assert torch.isfinite(together[name].double()).all()
        if name.endswith("conv1.weight"):
            distance = (tensor - together[name]).norm() / tensor.norm()
            assert 0 < distance < 0.1, name
    assert list((pretrained / ".encore" / "work").iterdir()) == []
    new = set(spool.glob("*.jsonl")) - before
    starts = [json.loads(path.read_text().splitlines()[0]) for path in new]
    assert sorted(start["name"] for start in starts) == [
        "dense digits dense seed 0",
        "dense digits half seed 0",
    ]
    # run again where the work is done but the output is not there yet
    assert stage(pretrained, "chex.prune", "--method", "uniform", "--seed", "0").returncode == 0
