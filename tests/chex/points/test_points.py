"""Solids, ModelNet's files, PointNet's coupling, training of the slim copy: what is claimed of each."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.chex.loop import Loss, SubModel, Task, fit
from stages.chex.measures import torch_macs
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.explorer import ChannelExplorer
from stages.chex.method.flops import MacModel, count_macs
from stages.chex.method.narrow import tensor_masks
from stages.chex.method.slim import load_slim, save_slim, slim
from stages.chex.params import Prune
from stages.chex.points.data import turn_jitter
from stages.chex.points.modelnet import read_clouds, read_meshes, read_off, surface_points
from stages.chex.points.pointnet import PointNet
from stages.chex.points.solids import SOLIDS, make_solids, unit_ball
from stages.chex.points.training import METHODS
from stages.chex.rows import Row, explorer_of, schedule_of
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.errors import InputError
from stages.common.stage.tracking import RunLog

CPU = torch.device("cpu")
X_N3P = torch.randn(6, 3, 32, generator=torch.Generator().manual_seed(3))
PRUNE = Prune(flops=[0.4], explore=0.7, period=0.2, residual_power=2)


def pointnet(transform: bool = False, seed: int = 0) -> PointNet:
    """A small PointNet whose norms look trained."""
    torch.manual_seed(seed)
    model = PointNet(5, (16, 24, 40), (20,), 0.0, transform, 0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.1)
            nn.init.uniform_(module.weight, 0.3, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model


# ----------------------------------------------------------------------------------------------------- clouds


def raw(name: str, points: int = 4000) -> Tensor:
    """Points [P, 3] of a solid before it is stretched and turned."""
    generator = torch.Generator().manual_seed(0)
    return SOLIDS[name](lambda *shape: torch.rand(*shape, generator=generator), 1, points)[0]


def test_points_lie_on_their_solids() -> None:
    x, y, z = raw("sphere").unbind(1)
    torch.testing.assert_close(x**2 + y**2 + z**2, torch.ones(4000))
    torch.testing.assert_close(raw("cube").abs().amax(1), torch.ones(4000))
    x, y, z = raw("cylinder").unbind(1)
    radius = (x**2 + y**2).sqrt()
    assert torch.maximum(radius, z.abs()).sub(1).abs().max() < 1e-5
    x, y, z = raw("cone").unbind(1)
    mantle = (z - 1 + 2 * (x**2 + y**2).sqrt()).abs() < 1e-5
    assert (mantle | (z == -1)).all()
    x, y, z = raw("torus").unbind(1)
    torch.testing.assert_close(
        ((x**2 + y**2).sqrt() - 1) ** 2 + z**2, torch.full((4000,), 0.16), atol=1e-5, rtol=0
    )
    planes_43 = torch.tensor([[-1.0, -1, -1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    assert ((raw("tetrahedron") @ planes_43.T).amax(1) - 1).abs().max() < 1e-5
    x, y, z = raw("helix").unbind(1)
    torch.testing.assert_close(
        torch.atan2(y, x).cos(), (2 * torch.pi * 3 * (z + 1) / 2).cos(), atol=1e-4, rtol=0
    )
    x, _, z = raw("wave sheet").unbind(1)
    torch.testing.assert_close(z, 0.4 * (2 * torch.pi * x).sin())


def test_points_are_uniform_in_area() -> None:
    """Shares of the parts whose areas are known."""
    z = raw("cylinder")[:, 2]
    assert float((z.abs() < 1).float().mean()) == pytest.approx(2 / 3, abs=0.03)
    assert float((raw("cone")[:, 2] == -1).float().mean()) == pytest.approx(1 / (1 + 5**0.5), abs=0.03)
    x, y, _ = raw("torus").unbind(1)
    # outer half of the tube: 1/2 + tube / pi of the area
    assert float(((x**2 + y**2).sqrt() > 1).float().mean()) == pytest.approx(0.5 + 0.4 / np.pi, abs=0.03)
    assert float((raw("sphere")[:, 2] > 0.5).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_solids_are_reproducible_centred_and_balanced() -> None:
    x_N3P, y_N = make_solids(80, 16, torch.Generator().manual_seed(1))
    again_N3P, _ = make_solids(80, 16, torch.Generator().manual_seed(1))
    assert torch.equal(x_N3P, again_N3P)
    assert y_N.bincount().tolist() == [10] * 8
    torch.testing.assert_close(x_N3P.mean(2), torch.zeros(80, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x_N3P.norm(dim=1).amax(1), torch.ones(80))
    other_N3P, _ = make_solids(80, 16, torch.Generator().manual_seed(2))
    assert not torch.equal(x_N3P, other_N3P)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50), st.floats(-20, 20))
def test_the_unit_ball_forgets_place_and_size(seed: int, size: float, shift: float) -> None:
    x_N3P = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(unit_ball(size * x_N3P + shift), unit_ball(x_N3P))


def test_turning_keeps_height_and_distances() -> None:
    turned = turn_jitter(X_N3P, torch.Generator().manual_seed(0))
    assert (turned[:, 1] - X_N3P[:, 1]).abs().max() <= 0.05 + 1e-6
    radius, before = turned[:, [0, 2]].norm(dim=1), X_N3P[:, [0, 2]].norm(dim=1)
    assert (radius - before).abs().max() <= 0.05 * 2**0.5 + 1e-5
    assert (turned - X_N3P).abs().max() > 0.5


OFF = "OFF{}4 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n{}\n"


@pytest.mark.parametrize("gap", ["\n", ""])
@pytest.mark.parametrize("faces", ["3 0 1 2\n3 0 2 3", "4 0 1 2 3\n3 0 1 2"])
def test_off_files_are_read(gap: str, faces: str, tmp_path: Path) -> None:
    path = tmp_path / "a.off"
    path.write_text(OFF.format(gap, faces))
    vertices, triangles = read_off(path)
    assert vertices.shape == (4, 3)
    assert triangles[:2].tolist() == [[0, 1, 2], [0, 2, 3]]
    x_3P = surface_points(vertices, triangles[:2], 2000, torch.Generator().manual_seed(0))
    assert x_3P[2].abs().max() == 0
    assert 0 <= x_3P.min() <= x_3P.max() <= 1
    assert float((x_3P[0] > x_3P[1]).float().mean()) == pytest.approx(
        0.5, abs=0.05
    )  # both triangles, by area


@pytest.mark.parametrize(
    ("text", "message"),
    [("PLY", "does not start with OFF"), ("OFF 4 2 0 1 2", "not a whole OFF mesh"), ("OFF x", "not a whole"),
     (OFF.format("\n", "3 0 1 9\n3 0 2 3"), "a vertex that is not there")],
)  # fmt: skip
def test_damaged_meshes_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_off(tmp_path / "a.off")
    assert "a.off" in str(error.value)
    assert "\n" not in str(error.value)


def write_modelnet40(root: Path, clouds: int = 8, points: int = 64) -> None:
    """Files laid out like modelnet40_ply_hdf5_2048, of two classes."""
    root.mkdir()
    (root / "shape_names.txt").write_text("chair\ntable\n")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (root / f"{split}_files.txt").write_text(f"data/modelnet40_ply_hdf5_2048/ply_data_{split}0.h5\n")
        with h5py.File(root / f"ply_data_{split}0.h5", "w") as file:
            file["data"] = rng.normal(size=(clouds, points, 3)).astype(np.float32)
            file["label"] = (np.arange(clouds) % 2).astype(np.uint8)[:, None]


def write_modelnet10(root: Path, clouds: int = 4) -> None:
    """Meshes laid out like ModelNet10, of two classes."""
    for name, split, number in itertools.product(("chair", "table"), ("train", "test"), range(clouds)):
        folder = root / name / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}_{number}.off").write_text(OFF.format("\n", "3 0 1 2\n3 0 2 3"))


def test_modelnet_is_read_as_distributed(tmp_path: Path) -> None:
    write_modelnet40(tmp_path / "40")
    write_modelnet10(tmp_path / "10")
    for x_N3P, y_N, names, count in (
        (*read_clouds(tmp_path / "40", "train", 32), 8),
        (*read_meshes(tmp_path / "10", "test", 32), 8),
    ):
        assert x_N3P.shape == (count, 3, 32)
        assert names == ["chair", "table"]
        assert y_N.bincount().tolist() == [4, 4]
    with h5py.File(tmp_path / "40" / "ply_data_train0.h5") as file:
        first_P3 = torch.from_numpy(file["data"][0, :32])
    torch.testing.assert_close(
        read_clouds(tmp_path / "40", "train", 32)[0][0], unit_ball(first_P3.T[None])[0]
    )


def test_damaged_clouds_are_named(tmp_path: Path) -> None:
    root = tmp_path / "40"
    with pytest.raises(InputError, match=r"train_files\.txt: not found"):
        read_clouds(root, "train", 32)
    write_modelnet40(root)
    with pytest.raises(InputError, match="needed are 100 points"):
        read_clouds(root, "train", 100)
    (root / "shape_names.txt").write_text("chair\n")
    with pytest.raises(InputError, match="label 1, but"):
        read_clouds(root, "train", 32)
    (root / "ply_data_train0.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(InputError, match=r"ply_data_train0\.h5: not an HDF5"):
        read_clouds(root, "train", 32)
    with pytest.raises(InputError, match="no meshes"):
        read_meshes(tmp_path, "train", 32)


# --------------------------------------------------------------------------------------------------- PointNet


def test_prunable_places_are_all_hidden_widths() -> None:
    model = pointnet()
    groups, dense = find_channel_groups(model, X_N3P)
    assert dense == []
    assert [g.units for g in groups] == [16, 24, 40, 20]
    assert {c.module for g in groups for c in g.consumers} == {"shared.3", "shared.6", "hidden.0", "logits"}
    groups, dense = find_channel_groups(pointnet(transform=True), X_N3P)
    assert len(groups) == 8
    assert [name for name, _ in dense] == ["transform.matrix"]  # the 3x3 matrix itself


@pytest.mark.parametrize("transform", [False, True])
def test_slim_equals_masked(transform: bool, tmp_path: Path) -> None:
    model = pointnet(transform).eval()
    groups, _ = find_channel_groups(model, X_N3P)
    generator = torch.Generator().manual_seed(2)
    masks = {g.name: torch.rand(g.units, generator=generator) < 0.5 for g in groups}
    small = slim(model, groups, masks)
    with torch.no_grad():
        full = model(X_N3P)
        for name, mask in tensor_masks(model, groups, masks).items():
            model.get_parameter(name).mul_(mask)
        torch.testing.assert_close(small(X_N3P), model(X_N3P), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(full, model(X_N3P), atol=1e-2)
    macs = MacModel(model, groups, X_N3P)
    assert macs.of_masks(masks) == count_macs(small, X_N3P)
    assert 0 <= count_macs(small, X_N3P[:1]) - torch_macs(small, X_N3P[:1]) <= 14  # biases
    save_slim(small, tmp_path / "slim.safetensors")
    assert torch.equal(load_slim(tmp_path / "slim.safetensors", pointnet(transform))(X_N3P), small(X_N3P))


def test_pointnet_does_not_depend_on_the_order_of_points() -> None:
    model = pointnet(transform=True).eval()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(X_N3P[:, :, order]), model(X_N3P))


def test_the_transform_starts_as_the_identity() -> None:
    model = pointnet(transform=True)
    torch.testing.assert_close(model.transform(X_N3P), X_N3P)


# --------------------------------------------------------------------------------------------------- training


class Stop(Exception):
    """Stands for a kill."""


def task(stop: int = 10**9, kind: str = "adamw") -> Task:
    """Steps on random clouds; ends with an interruption at the step `stop`."""

    def losses(start: int) -> Iterator[Loss]:
        for step in itertools.count(start):
            if step == stop:
                raise Stop
            generator = torch.Generator().manual_seed(step)
            x_N3P = torch.randn(8, 3, 16, generator=generator)
            y_N = torch.randint(0, 5, (8,), generator=generator)

            def loss(network: nn.Module, x_N3P: Tensor = x_N3P, y_N: Tensor = y_N) -> Tensor:
                return F.cross_entropy(network(x_N3P), y_N)

            yield loss

    def optimizer(network: nn.Module) -> torch.optim.Optimizer:
        if kind == "adamw":
            return torch.optim.AdamW(network.parameters(), lr=1e-2)
        return torch.optim.SGD(network.parameters(), lr=1e-2, momentum=0.9)

    return Task(optimizer, lambda step: 1 / (1 + step), losses)


def train(folder: Path, row: Row, stop: int = 10**9, kind: str = "adamw") -> dict[str, Tensor]:
    """A training of 20 steps; the weights and the explorer's state at its end."""
    model = pointnet()
    groups, _ = find_channel_groups(model, X_N3P)
    macs = MacModel(model, groups, X_N3P)
    budget = 0.4 * macs([g.units for g in groups])
    explorer = explorer_of(row, model, groups, macs, budget, 20, PRUNE, 0)
    with RunLog("chex-points", "test", "test") as log:
        schedule = schedule_of(row, 20, PRUNE)
        history = fit(model, explorer, task(stop, kind), schedule, CPU, log, Checkpoint(folder / "ckpt"))
    assert macs.of_masks(explorer.masks) <= budget
    assert history[0]["step"] == 0
    return {**model.state_dict(), **explorer.state_dict()}


@pytest.mark.parametrize("method", ["uniform", "l1", "chex", "chex-no-regrow"])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_interrupted_training_goes_on_bit_for_bit(
    method: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = METHODS[method]  # type: ignore[index]
    whole = train(tmp_path / "whole", row, kind=kind)
    monkeypatch.setattr("stages.chex.loop.CHECKPOINT_SECONDS", 0.0)
    for stop in (1, 4, 5, 9):
        with pytest.raises(Stop):
            train(tmp_path / "parts", row, stop, kind)
    resumed = train(tmp_path / "parts", row, kind=kind)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_moments_wait_with_their_channels() -> None:
    """What Adam knows of a channel is cut with it and comes back with it, the rest moves on."""
    model = pointnet()
    groups, _ = find_channel_groups(model, X_N3P)
    macs = MacModel(model, groups, X_N3P)
    explorer: ChannelExplorer = explorer_of(METHODS["chex"], model, groups, macs, 0.4 * macs([g.units for g in groups]), 20,
                                            PRUNE, 0)  # fmt: skip
    sub = SubModel(model, explorer, task(), CPU, {}, {})
    losses = task().losses(0)
    for _ in range(3):
        next(losses)(sub.network).backward()
        sub.optimizer.step()
    sub.put_back()
    before = {name: value.clone() for name, value in sub.moments["exp_avg_sq"].items()}
    name = groups[0].name
    explorer.masks[name] = torch.arange(16) >= 4
    sub.take()
    weight = f"{name}.weight"
    parameter = dict(sub.module.named_parameters())[weight]
    assert parameter.shape[0] == 12
    assert torch.equal(sub.optimizer.state[parameter]["exp_avg_sq"], before[weight][4:])
    assert float(sub.optimizer.state[parameter]["step"]) == 3
    next(losses)(sub.network).backward()
    sub.optimizer.step()
    sub.put_back()
    after = sub.moments["exp_avg_sq"][weight]
    assert torch.equal(after[:4], before[weight][:4])
    assert not torch.equal(after[4:], before[weight][4:])
    assert float(sub.counters["step"]) == 4


def test_rows_end_at_the_same_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for method, row in METHODS.items():
        state = train(tmp_path / method, row)
        assert any(not mask.all() for name, mask in state.items() if name.startswith("mask/"))


def test_wide_layers_follow_the_rule_of_the_row() -> None:
    """3 -> 16 is wide: leverage and L1 norms rank its channels differently."""
    kept = {}
    for method in ("chex", "chex-wide-l1"):
        model = pointnet(seed=4)
        groups, _ = find_channel_groups(model, X_N3P)
        macs = MacModel(model, groups, X_N3P)
        budget = 0.3 * macs([g.units for g in groups])
        explorer = explorer_of(METHODS[method], model, groups, macs, budget, 20, PRUNE, 0)
        explorer.finish()
        kept[method] = explorer.masks["shared.0"]
    assert not torch.equal(kept["chex"], kept["chex-wide-l1"])
