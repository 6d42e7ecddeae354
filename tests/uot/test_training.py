"""Losses, heads, streams and resuming of joint fine-tuning; the generated data; the theory's simulation."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.stage.checkpoint import Checkpoint
from stages.uot import training
from stages.uot.cells import ROWS, Row
from stages.uot.concepts import CODE_DISTANCE, CONCEPTS, World
from stages.uot.data import ArrayImages, index_batches
from stages.uot.method.backbones import build_backbone
from stages.uot.method.dual_head import (
    HEAD_STD,
    DualHeadModel,
    consistency_loss,
    joint_loss,
    l2_sp,
)
from stages.uot.method.excess_risk import Point, excess_risk, step_size
from stages.uot.method.learning_rate import step_factor
from stages.uot.method.metrics import mean_per_class_accuracy
from stages.uot.params import Finetune, Start
from stages.uot.pretrain import labels_of

CPU = torch.device("cpu")
START = Start(net="mlp", weights=None, lr=0.02, weight_decay=1e-4, source_weight=1.0)
RECIPE = Finetune(
    length=12, unit="steps", batch=8, momentum=0.9, head_ratio=10.0, l2_sp=0.1, temperature=1.0,
    threshold=0.0, precision="float32", fraction=1.0, fractions=[], k_sweep=[], source_weights=[],
)  # fmt: skip


class NoLog:
    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        pass


def images(seed: int, count: int = 40, classes: int = 4) -> ArrayImages:
    generator = torch.Generator().manual_seed(seed)
    return ArrayImages(torch.randn(count, 144, generator=generator), torch.arange(count) % classes, CPU)


def model() -> DualHeadModel:
    torch.manual_seed(0)
    return DualHeadModel(build_backbone("mlp"), 24, 6, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 99), st.integers(0, 7), st.integers(0, 7))
def test_index_batches_resume_anywhere_and_cover_every_epoch(
    count: int, batch: int, seed: int, start: int, more: int
) -> None:
    whole = dict(index_batches(count, batch, seed, 0, start + more))
    later = dict(index_batches(count, batch, seed, start, start + more))
    assert later == {step: whole[step] for step in range(start, start + more)}
    flat = [index for rows in whole.values() for index in rows]
    for first in range(0, len(flat) - count + 1, count):
        assert sorted(flat[first : first + count]) == list(range(count))


@pytest.mark.parametrize("name", ["uot", "uot-unlabelled", "vanilla", "l2-sp"])
def test_finetuning_resumes_to_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS.get(name, Row())
    source = None if row.source == "none" else images(2, classes=6)

    def run(steps_before_kill: int | None, path: Path) -> tuple[DualHeadModel, list[float]]:
        network = model()
        plan = training.Plan(images(1), images(3), source, 12, 1.0)
        stop: list[int] = []

        class Log(NoLog):
            def metrics(self, values: dict[str, float], step: int = 0) -> None:
                if (
                    steps_before_kill is not None
                    and "test top1 in training" in values
                    and step >= steps_before_kill
                ):
                    stop.append(step)
                    raise KeyboardInterrupt

        log: Any = Log()
        try:
            history = training.finetune(network, row, plan, START, RECIPE, 7, log, Checkpoint(path))
        except KeyboardInterrupt:
            return run(None, path)
        return network, history

    straight, history = run(None, tmp_path / "a")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    resumed, again = run(7, tmp_path / "b")
    assert again == history
    assert len(history) == training.EVALUATIONS
    for key, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_pretraining_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.uot.params import Pretrain

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    recipe = Pretrain(epochs=2, batch=10, lr=0.05, momentum=0.9, weight_decay=1e-4)
    log: Any = NoLog()
    results = []
    for path in (tmp_path / "a", tmp_path / "b"):
        torch.manual_seed(0)
        network = torch.nn.Sequential(build_backbone("mlp"), torch.nn.Linear(24, 4))
        training.pretrain(network, images(1), torch.arange(4), recipe, 3, log, Checkpoint(path))
        if path.name == "b":  # once more from its last checkpoint
            training.pretrain(network, images(1), torch.arange(4), recipe, 3, log, Checkpoint(path))
        results.append(network.state_dict())
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())


def test_heads_start_as_the_official_ones() -> None:
    network = DualHeadModel(torch.nn.Identity(), 512, 1000, 50)
    assert float(network.fc_up.weight.detach().std()) == pytest.approx(HEAD_STD, rel=0.01)
    assert math.sqrt(2 / 2048) == HEAD_STD
    assert not network.fc_up.bias.any()


def test_joint_loss_weights_the_mean_source_loss() -> None:
    up, down = torch.randn(5, 6), torch.randn(5, 4)
    target, source = torch.tensor([0, 1]), torch.tensor([5, 2, 0])
    total, own, other = joint_loss(up, down, target, source, 0.3)
    assert float(own) == pytest.approx(float(torch.nn.functional.cross_entropy(down[:2], target)))
    assert float(other) == pytest.approx(float(torch.nn.functional.cross_entropy(up[2:], source)))
    assert float(total) == pytest.approx(float(own + 0.3 * other))
    nothing = joint_loss(up[:2], down[:2], target, source[:0], 0.3)
    assert float(nothing[0]) == float(own)


def test_consistency_loss_of_an_empty_mask_is_zero() -> None:
    strong = torch.randn(3, 4, requires_grad=True)
    loss = consistency_loss(torch.zeros(3, 4), strong, 1.0, 0.9)
    loss.backward()
    assert float(loss.detach()) == 0
    assert strong.grad is not None
    assert not strong.grad.any()


def test_l2_sp_is_half_beta_squared_distance() -> None:
    layer = torch.nn.Linear(3, 2)
    start = {name: parameter.detach() - 2 for name, parameter in layer.named_parameters()}
    assert float(l2_sp(layer, start, 0.1).detach()) == pytest.approx(0.05 * 4 * 8, rel=1e-5)


def test_schedule_drops_at_60_and_80_percent() -> None:
    assert [step_factor(step, 400) for step in (0, 239, 240, 319, 320, 399)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_mean_per_class_skips_absent_classes() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 0, 1])]
    assert mean_per_class_accuracy(logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(75)


def test_merged_labels_pair_classes_within_a_concept() -> None:
    groups = ["0", "0", "0", "1", "1", "1"]
    assert labels_of("merged", groups).tolist() == [0, 0, 1, 2, 2, 3]
    assert labels_of("fine", groups).tolist() == list(range(6))


def test_concepts_keep_their_distance_and_depend_on_the_seed_alone() -> None:
    world = World(0)
    first = world.new_classes(dict.fromkeys(range(CONCEPTS), 6))
    second = world.new_classes({0: 6})
    codes = torch.cat([first.code[first.concept == 0], second.code])
    distances = torch.cdist(codes, codes) + 10 * torch.eye(len(codes))
    assert float(distances.min()) >= CODE_DISTANCE
    x, y = world.sample(second, 5)
    again = World(0)
    again.new_classes(dict.fromkeys(range(CONCEPTS), 6))
    assert torch.equal(again.sample(again.new_classes({0: 6}), 5)[0], x)
    assert x.shape == (30, 144)
    assert y.tolist() == [label for label in range(6) for _ in range(5)]


def test_theory_forgets_the_start_and_profits_from_a_near_source() -> None:
    near, far = excess_risk(1024, [Point(0.1), Point(5.0)], trials=64)
    assert far == pytest.approx(near, rel=0.02)
    points = [Point(0.5), Point(0.5, 0.5, 0.0), Point(0.5, 0.5, 1.0), Point(0.5, 1.0, 1.0)]
    alone, helped, misled, unused = excess_risk(512, points, trials=64)
    assert helped < 0.7 * alone < alone < misled
    assert unused == alone
    assert step_size(64) == 0.02
    assert step_size(10_000) == pytest.approx(math.log(10_000) / 2000)
