"""The exploration itself: schedule, restoring, resuming, ablations, compact training, ranks, and
`explore`."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from stages.chex.explore import explore
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.compact import CompactModel
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.flops import MacModel, count_macs
from stages.chex.method.resnet import build

X = torch.zeros(1, 3, 12, 12)
CONFIG = ExplorerConfig(t_max=8, period=2, sparsity=0.6, delta0=0.4)


def batch(t: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(t)
    images = torch.randn(16, 3, 12, 12, generator=generator)
    return images, torch.randint(0, 8, (16,), generator=generator)


def make(config: ExplorerConfig = CONFIG, name: str = "quick") -> ChannelExplorer:
    torch.manual_seed(0)
    model = build(name, 8, norm_scale=0.5)
    groups, _ = find_channel_groups(model, X)
    macs = MacModel(model, groups, X)
    return ChannelExplorer(model, groups, config, torch.Generator().manual_seed(3), macs)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> float:
    images, labels = batch(t)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def run(explorer: ChannelExplorer, start: int = 0, stop: int = 11, optimizer: torch.optim.SGD | None = None):
    optimizer = optimizer or sgd(explorer.model)
    reports = []
    for t in range(start, stop):
        if explorer.due(t):
            reports.append(explorer.step(t))
        train_step(explorer.model, optimizer, t)
        explorer.apply_masks()
    return reports, optimizer


def test_sparsity_follows_the_schedule_and_ends_at_the_target() -> None:
    explorer = make()
    explorer.initialise()
    total = sum(g.units for g in explorer.groups)
    reports, _ = run(explorer)
    assert len(reports) == 4
    for report in reports:
        kept = total - int(total * CONFIG.sparsity + 1e-9) - 1
        assert sum(report.kept.values()) == kept
        assert sum(report.active.values()) == kept + round(report.delta * total)
    assert reports[-1].delta == 0
    assert explorer.finish() is None
    for group in explorer.groups:
        assert int(explorer.masks[group.name].sum()) == reports[-1].active[group.name]
        assert not bool(
            explorer.model.get_parameter(f"{group.name}.weight")[~explorer.masks[group.name]].any()
        )


def test_finish_prunes_what_a_period_that_does_not_divide_t_max_leaves() -> None:
    explorer = make(replace(CONFIG, t_max=7, round_to=4))
    explorer.initialise()
    run(explorer)
    report = explorer.finish()
    assert report is not None
    assert not any(report.regrown.values())
    assert all(n % 4 == 0 for n in report.active.values())
    assert explorer.finish() is None


def test_uniform_regrow_widens_a_layer_and_global_norm_never_does() -> None:
    widened = {}
    for rule in ("uniform", "global_norm"):
        explorer = make(replace(CONFIG, regrow_allocation=rule))
        explorer.initialise()
        widths = [{name: int(mask.sum()) for name, mask in explorer.masks.items()}]
        widths += [report.active for report in run(explorer)[0]]
        pairs = pairwise(widths)
        widened[rule] = any(after[name] > before[name] for before, after in pairs for name in before)
    assert widened == {"uniform": True, "global_norm": False}


def test_regrown_channels_return_as_they_were_last() -> None:
    explorer = make(replace(CONFIG, delta0=0.6, period=1))
    explorer.initialise()
    optimizer = sgd(explorer.model)
    last_used: dict[tuple[str, int], Tensor] = {}
    for t in range(1, 8):
        for group in explorer.groups:  # values while active, before the update prunes some
            weight = explorer.model.get_parameter(f"{group.name}.weight").detach()
            for unit in explorer.masks[group.name].nonzero()[:, 0].tolist():
                last_used[group.name, unit] = weight[unit].clone()
        before = {name: mask.clone() for name, mask in explorer.masks.items()}
        explorer.step(t)
        for group in explorer.groups:
            if group.kind != "shortcut":
                continue  # their columns are never masked, so the whole row must be back
            weight = explorer.model.get_parameter(f"{group.name}.weight")
            for unit in (explorer.masks[group.name] & ~before[group.name]).nonzero()[:, 0].tolist():
                assert torch.equal(weight[unit], last_used[group.name, unit])
        train_step(explorer.model, optimizer, t)
        explorer.apply_masks()


@pytest.mark.parametrize(
    "change",
    [
        {"regrow": "none"},
        {"regrow": "random"},
        {"allocation": "uniform"},
        {"regrow": "none", "allocation": "uniform", "criterion": "l1"},
        {"criterion": "css_greedy", "decay": "linear"},
        {"criterion": "bn", "restore": "zero"},
        {"criterion": "geometric_median", "decay": "constant"},
        {"criterion": "random", "wide": "leverage", "regrow_allocation": "uniform_floor"},
    ],
    ids=str,
)
def test_ablations_end_at_the_target(change: dict[str, str]) -> None:
    explorer = make(replace(CONFIG, **change))  # type: ignore[arg-type]
    explorer.initialise()
    reports, _ = run(explorer)
    explorer.finish()
    total = sum(g.units for g in explorer.groups)
    active = sum(int(mask.sum()) for mask in explorer.masks.values())
    assert 1 - active / total == pytest.approx(0.6, abs=0.02)
    if change.get("regrow") == "none":
        assert all(after.sparsity >= before.sparsity for before, after in pairwise(reports))
        assert not any(any(report.regrown.values()) for report in reports)


def test_pruning_at_once_is_initialise_train_finish() -> None:
    explorer = make(replace(CONFIG, delta0=None))
    explorer.initialise()
    assert all(bool(mask.all()) for mask in explorer.masks.values())
    for t in range(2):  # scales that are still all equal would tie at the threshold
        train_step(explorer.model, sgd(explorer.model), t)
    report = explorer.finish()
    assert report is not None
    assert report.sparsity == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_budget_is_met_at_the_end(allocation: Literal["global", "uniform"]) -> None:
    explorer = make(replace(CONFIG, delta0=None, macs_budget=150_000, allocation=allocation))
    explorer.initialise()
    run(explorer)
    assert explorer.macs is not None
    assert 0.95 * 150_000 < explorer.macs.of_masks(explorer.masks) <= 150_000


def test_resumed_run_equals_the_uninterrupted_one() -> None:
    straight = make()
    straight.initialise()
    run(straight)

    first = make()
    first.initialise()
    _, optimizer = run(first, 0, 5)
    saved = [first.model.state_dict(), first.state_dict(), optimizer.state_dict()]
    second = make()
    second.model.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    optimizer = sgd(second.model)
    optimizer.load_state_dict(saved[2])
    run(second, 5, 11, optimizer)

    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    after, expected = second.state_dict(), straight.state_dict()
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["quick", "resnet20"])
def test_compact_training_equals_masked_training(name: str) -> None:
    explorer = make(name=name)
    explorer.initialise()
    run(explorer, 0, 3)
    full = explorer.model.double()
    optimizer = sgd(full)
    explorer = ChannelExplorer(full, explorer.groups, CONFIG, torch.Generator().manual_seed(0))
    explorer.initialise()

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
        images, labels = batch(t)
        optimizer.zero_grad()
        F.cross_entropy(model(images.double()), labels).backward()
        optimizer.step()

    step(full, optimizer, 0)
    explorer.apply_masks()
    compact = CompactModel(full, explorer.groups, explorer.masks)
    slim_optimizer = sgd(compact.module)
    momentum = {n: optimizer.state[p]["momentum_buffer"] for n, p in full.named_parameters()}
    sliced = compact.slice_state(momentum)
    for n, p in compact.module.named_parameters():
        slim_optimizer.state[p]["momentum_buffer"] = sliced[n].clone()
    for t in range(1, 6):
        step(full, optimizer, t)
        explorer.apply_masks()
        step(compact.module, slim_optimizer, t)

    masked = {n: v.clone() for n, v in full.state_dict().items()}
    momentum = {n: optimizer.state[p]["momentum_buffer"] for n, p in full.named_parameters()}
    full.zero_grad()
    with torch.no_grad():
        for p in full.parameters():
            p.add_(1.0)  # whatever is there must be overwritten
    compact.scatter_()
    for n, v in full.state_dict().items():
        if "running" not in n:
            torch.testing.assert_close(v, masked[n], atol=1e-9, rtol=1e-9)
    own = {n: slim_optimizer.state[p]["momentum_buffer"] for n, p in compact.module.named_parameters()}
    for n, v in compact.scatter_state(own).items():
        assert v.shape == momentum[n].shape
        active = v != 0
        torch.testing.assert_close(v[active], momentum[n][active], atol=1e-9, rtol=1e-9)
    images = batch(99)[0].double()
    with torch.no_grad():
        torch.testing.assert_close(full.eval()(images), compact.module.eval()(images), atol=1e-9, rtol=1e-9)


def _rank(rank: int, path: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    explorer = make()
    explorer.generator.manual_seed(rank)  # replicas that draw differently must still agree
    explorer.initialise()
    explorer.step(2)
    torch.save(explorer.masks, f"{path}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_agree_on_masks(tmp_path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())


@pytest.mark.parametrize(("macs", "sparsity"), [(0.4, None), (None, 0.5)])
def test_explore_slims_a_user_s_model(macs: float | None, sparsity: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 8)),
    )
    dense = count_macs(model, X)
    optimizer = sgd(model)

    def train(epoch: int) -> None:
        train_step(model, optimizer, epoch)

    small, report = explore(model, X, train, epochs=10, macs=macs, sparsity=sparsity)
    images = batch(50)[0]
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(images), model.eval()(images), atol=1e-5, rtol=1e-5)
    assert report.macs == (count_macs(small, X), dense)
    if macs is not None:
        assert 0.3 < report.macs[0] / dense <= 0.4
    assert len(report.updates) == 7
    assert "MACs" in str(report)


def test_explore_refuses_what_it_cannot_do() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match="either macs"):
        explore(model, X, lambda epoch: None, 1)
    with pytest.raises(ValueError, match="PixelShuffle"):
        explore(model, X, lambda epoch: None, 1, macs=0.5)
