"""The user's command: a folder for a budget, and what it says of a wrong one."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from stages.common.stage.errors import ParameterError
from stages.zendet import design
from stages.zendet.method.cost import count_flops, count_layers, count_params
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.structure import read_structure

QUICK = ("--evaluations", "200", "--population", "16", "--islands", "1", "--size", "64", "--layers", "25")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["design", *map(str, arguments)])
    design.main()


def test_folder_for_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "conv_data.out"
    rows = [
        f"{{Regular,1,{c},{side},{side},{c},{k},{stride},{fused}}} {1e-9 * c * c * k * k * side * side}"
        for c in (8, 64, 512) for side in (2, 8, 64) for k in (1, 3, 5) for stride in (1, 2) for fused in (0, 1)
    ]  # fmt: skip
    rows += [f"{{Regular,1,3,{side},{side},{c},3,2,0}} 0.01" for c in (8, 64) for side in (32, 64, 128)]
    table.write_text("\n".join(rows))
    folder = tmp_path / "mine"
    budget = ("--flops", 2e7, "--params", 1e6, "--latency", 1.0, "--latency-table", table)
    call(monkeypatch, folder, *budget, *QUICK)
    structure = read_structure(folder / "structure.txt")
    assert count_flops(structure, 64) <= 2e7
    assert count_params(structure) <= 1e6
    assert count_layers(structure) <= 25
    net = MasterNet(structure).eval()
    net.load_state_dict(load_file(folder / "backbone.safetensors"))
    session = onnxruntime.InferenceSession(folder / "backbone.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 64), (3, 3, 96, 128)):
        x = torch.randn(shape)
        outputs = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            for ours, theirs in zip(net(x), outputs, strict=True):
                np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)
    assert len((folder / "pareto.csv").read_text().splitlines()) > 1
    assert (folder / "pareto.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "give a budget"),
        (("--flops", "-1"), "must be greater than 0"),
        (("--flops", "1e9", "--size", "100"), "multiple of 32"),
        (("--latency", "3"), "give both or neither"),
        (("--flops", "1000"), "no structure keeps to the budget"),
        (("--flops", "1e9", "--space", "vit"), "invalid choice"),
    ],
)
def test_wrong_budgets_are_told(
    arguments: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ParameterError, match=problem) as error:
        call(monkeypatch, tmp_path / "mine", *arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mine").exists()
