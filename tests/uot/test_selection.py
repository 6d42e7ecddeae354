"""Rankings of source classes: what each method means, and the released selections."""

import json

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stages.common.datasets import in_mirror
from stages.common.stage.run import ROOT
from stages.uot.method.class_means import class_means
from stages.uot.method.selection import (
    SELECTION_METHODS,
    SelectionMethod,
    concept_purity,
    overlap,
    rank_classes,
)
from stages.uot.method.transport import class_cost
from stages.uot.released_files import CLASSES, DATASET, MEANS, SELECTIONS, read_classes, released_file

TARGETS = ("CUB", "cars", "dogs", "aircraft", "pets", "DTD", "caltech", "SUN")
# card, "Tables to produce": overlap with uot at K = 100, in the order of TARGETS
OVERLAP = {
    ("nearest", "supervised"): (73, 86, 79, 79, 79, 60, 20, 58),
    ("nearest", "moco"): (71, 56, 90, 64, 93, 82, 86, 89),
    ("mean-cost", "supervised"): (97, 99, 95, 98, 72, 95, 90, 82),
    ("mean-cost", "moco"): (55, 92, 64, 96, 48, 69, 39, 74),
}
PURITY = {
    ("CUB", "bird"): (56, 53),
    ("dogs", "dog"): (98, 100),
    ("pets", "dog"): (80, 90),
    ("cars", "vehicle"): (35, 26),
}


needs_released_files = pytest.mark.skipif(
    not all(in_mirror(DATASET, name) for name in (MEANS, CLASSES, SELECTIONS)),
    reason="needs what the authors released, in ENCORE_MIRROR (python -m stages.uot.import_released CLONE)",
)


@needs_released_files
@pytest.mark.parametrize("start", ["supervised", "moco"])
@pytest.mark.parametrize("target", TARGETS)
def test_released_selection_class_for_class(start: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    means = load_file(released_file(MEANS))
    expected = json.loads(released_file(SELECTIONS).read_text())[f"{start}/{target}"]
    source, own = means[f"{start}/imagenet"], means[f"{start}/{target}"]
    chosen = {
        method: rank_classes(method, source, own).order[:100] for method in ("uot", "nearest", "mean-cost")
    }
    assert sorted(chosen["uot"]) == expected
    place = TARGETS.index(target)
    for method in ("nearest", "mean-cost"):
        assert round(100 * overlap(chosen["uot"], chosen[method])) == OVERLAP[method, start][place]
    groups = [row["concept"] for row in read_classes()]
    for (name, group), counts in PURITY.items():
        if name == target:
            assert round(100 * concept_purity(chosen["uot"], groups, {group})) == counts[start == "moco"]


def random_means(seed: int, source: int = 12, target: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(source, 6, generator=generator), torch.randn(target, 6, generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(SELECTION_METHODS))
def test_every_ranking_is_a_permutation_with_falling_scores(seed: int, method: SelectionMethod) -> None:
    ranking = rank_classes(method, *random_means(seed), seed=seed)
    assert sorted(ranking.order) == list(range(12))
    assert ranking.score == sorted(ranking.score, reverse=True)


@pytest.mark.parametrize("method", SELECTION_METHODS)
def test_classes_without_a_mean_are_left_out(method: SelectionMethod) -> None:
    source, target = random_means(0)
    source[3], target[1] = float("nan"), float("nan")
    order = rank_classes(method, source, target, target_count_T=torch.tensor([1, 0, 1, 1, 1])).order
    assert sorted(order) == [index for index in range(12) if index != 3]
    with pytest.raises(ValueError, match="no class with a mean"):
        rank_classes(method, source, torch.full_like(target, float("nan")))


def test_meaning_of_the_baselines() -> None:
    source, target = random_means(1)
    cost = class_cost(source, target)
    assert rank_classes("nearest", source, target).order[0] == int(cost.min(1).values.argmin())
    assert (
        rank_classes("farthest", source, target).order == rank_classes("nearest", source, target).order[::-1]
    )
    assert rank_classes("mean-cost", source, target).order == torch.argsort(cost.mean(1)).tolist()
    first = rank_classes("round-robin", source, target).order[:2]
    assert first[0] == int(cost[:, 0].argmin())
    second = cost[:, 1].clone()
    second[first[0]] = float("inf")
    assert first[1] == int(second.argmin())
    assert rank_classes("random", source, target, seed=1) != rank_classes("random", source, target, seed=2)


def test_greedy_ot_is_the_earth_movers_distance_of_one_class() -> None:
    source, target = random_means(2)
    count = torch.tensor([1.0, 2, 3, 4, 5])
    cost = class_cost(source, target).numpy()
    weight = (count / count.sum()).double().numpy()
    distance = {index: -ot.emd2([1.0], weight, cost[index : index + 1]) for index in range(len(source))}
    ranking = rank_classes("greedy-ot", source, target, target_count_T=count)
    assert ranking.score == pytest.approx([distance[index] for index in ranking.order])


def test_uot_covers_an_isolated_target_that_the_mean_cost_forgets() -> None:
    generator = torch.Generator().manual_seed(0)
    crowd = torch.tensor([1.0, 0, 0, 0]) + 0.3 * torch.randn(20, 4, generator=generator)
    lonely = torch.tensor([-1.0, 0, 0, 0]) + 0.05 * torch.randn(1, 4, generator=generator)
    source = torch.cat([crowd, lonely])
    target = torch.cat([crowd[:9] + 0.05, lonely[:1]])
    uot, mean = (rank_classes(method, source, target).order[:12] for method in ("uot", "mean-cost"))
    assert 20 in uot
    assert 20 not in mean


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 7))
def test_class_means_do_not_depend_on_the_batches(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(23, 3, generator=generator), torch.arange(23) % 4
    whole = class_means([(x, y)], 4)
    parts = class_means(zip(x.split(size), y.split(size), strict=True), 4)
    assert torch.allclose(whole.mean, parts.mean)
    assert torch.allclose(whole.mean[1], x[y == 1].double().mean(0))


def test_class_means_refuse_and_warn() -> None:
    with pytest.raises(ValueError, match=r"outside 0 \.\. 1"):
        class_means([(torch.ones(2, 3), torch.tensor([0, 2]))], 2)
    with pytest.raises(ValueError, match="no features"):
        class_means([], 2)
    with pytest.warns(UserWarning, match=r"\[1\]"):
        assert class_means([(torch.ones(1, 3), torch.tensor([0]))], 2).mean[1].isnan().all()
