"""Parity with the authors' code: every case of tests/golden/zendet (its README describes the files)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.common.dense.atss import assign, grid_anchors
from stages.common.dense.gfl import GFLHead, distribution_focal_loss, integral, quality_focal_loss
from stages.zendet.method.budget import Budget
from stages.zendet.method.cost import count_flops, count_layers, count_params, stage_table
from stages.zendet.method.entropy import EntropyScorer, entropy_forward, entropy_score
from stages.zendet.method.evolution import EvolutionarySearch
from stages.zendet.method.latency import ConvQuery, LatencyTable, TableRow, network_queries
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.proxies import PlainConv, zen_score
from stages.zendet.method.spaces import SPACES, K1KXK1Space
from stages.zendet.method.structure import Structure, parse_structure
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("zendet", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def structure(case: Case, name: str) -> Structure:
    return parse_structure(str(case[f"{name}structure"]))


def prefixes(case: Case, key: str) -> list[str]:
    """What stands before `<key>` in the names of a case."""
    return [name.removesuffix(key) for name in case if name.endswith(f"/{key}")]


@pytest.mark.parametrize("path", cases("structures"))
def test_golden_structures(path: Path) -> None:
    case = load(path)
    names = prefixes(case, "structure")
    assert names
    for name in names:
        net = structure(case, name)
        assert count_params(net) == case[f"{name}params"]
        assert count_layers(net) == case[f"{name}layers"]
        for convention, key in (("official", "flops_official"), ("conv", "conv_macs")):
            counted = [count_flops(net, int(side), convention) for side in case["resolutions"]]  # type: ignore[arg-type]
            assert counted == pytest.approx(case[f"{name}{key}"].tolist(), rel=1e-9)
        rows = stage_table(net)
        assert len(rows) == case[f"{name}stages"]
        assert [row.end for row in rows] == case[f"{name}stage_last_block_index"].tolist()
        assert [row.blocks for row in rows] == case[f"{name}stage_blocks_cum"].tolist()
        assert [row.layers for row in rows] == case[f"{name}stage_layers_cum"].tolist()
        assert [row.channels for row in rows] == case[f"{name}stage_channels"].tolist()
        for key in (key for key in case if key.startswith(f"{name}closed_score_alpha_")):
            alphas = [float(part) for part in key.rpartition("alpha_")[2].split("_")]
            score = entropy_score(net, 480, alphas, "closed_form")
            assert score.block_log_sigma == pytest.approx(
                case[f"{name}closed_block_log_std"].tolist(), rel=1e-9
            )
            assert score.stages == pytest.approx(case[key].tolist(), rel=1e-9)
            assert EntropyScorer(480, alphas, "closed_form")(net) == pytest.approx(score.total, rel=1e-9)


@pytest.mark.parametrize("path", cases("entropy"))
def test_golden_entropy_forward(path: Path) -> None:
    case = load(path)
    for name in prefixes(case, "block_std"):
        std, features = entropy_forward(
            structure(case, name),
            tensor(case[f"{name}input"]),
            lambda conv, _, name=name: tensor(case[f"{name}weight/{conv}.weight"]),  # type: ignore[misc]
        )
        assert std.numpy() == pytest.approx(case[f"{name}block_std"], rel=1e-5)
        assert features[:, :4, :2, :2].numpy() == pytest.approx(case[f"{name}final_feature_corner"], abs=1e-4)


@pytest.mark.parametrize("path", cases("entropy"))
def test_golden_monte_carlo_and_analytic_means(path: Path) -> None:
    case = load(path)
    for name in prefixes(case, "mean"):
        size, batch, repeats = map(int, case[f"{name}resolution_batch_repeats"])
        mean, sd = float(case[f"{name}mean"]), float(case[f"{name}sd"])
        net = structure(case, name)
        assert entropy_score(net, size).total == pytest.approx(mean, rel=0.005)
        few = min(repeats, 8)
        drawn = entropy_score(
            net,
            size,
            method="monte_carlo",
            batch=batch,
            repeats=few,
            generator=torch.Generator().manual_seed(0),
        )
        assert abs(drawn.total - mean) <= 4 * sd / few**0.5 + 0.003 * mean


@pytest.mark.parametrize("path", cases("backbone"))
def test_golden_backbone(path: Path) -> None:
    case = load(path)
    for name in prefixes(case, "input"):
        weights = f"{name}weight/"
        state = {key.removeprefix(weights): tensor(case[key]) for key in case if key.startswith(weights)}
        net = MasterNet(structure(case, name)).from_official(state)
        for mode in ("eval", "train"):
            net.train(mode == "train")
            with torch.no_grad():
                features = net(tensor(case[f"{name}input"]))
            for stage, feature in enumerate(features, 2):
                assert feature.numpy() == pytest.approx(case[f"{name}{mode}_C{stage}"], abs=1e-4)


class Replay:
    """Gives the recorded draws, and insists that the options are those that were offered."""

    def __init__(self, draws: list[Any]) -> None:
        self.draws = list(draws)

    def __call__(self, options: Sequence[Any]) -> Any:
        offered, value = self.draws.pop(0)
        assert list(options) == offered
        return value


@pytest.mark.parametrize("path", cases("mutation"))
def test_golden_mutation(path: Path) -> None:
    for text in load(path)["cases"]:
        case = json.loads(str(text))
        space = SPACES[case["space"]](case["budget_layers"], case["image_size"], case["rules"])
        replay = Replay(case["draws"])
        child = space.apply(parse_structure(repr(case["parent"])), case["block"], replay, case["minor"])
        assert child == parse_structure(repr(case["child"]))
        assert not replay.draws
        assert (count_layers(child) <= case["budget_layers"]) == case["layers_ok"]


@pytest.mark.parametrize("path", cases("search"))
def test_golden_search(path: Path) -> None:
    case = load(path)
    for name in prefixes(case, "settings"):
        settings = json.loads(str(case[f"{name}settings"]))
        size, flops, layers = settings["res"], settings["BF"], settings["BL"]
        scorer = EntropyScorer(size, settings["alphas"], "closed_form")
        top = [parse_structure(str(text)) for text in case[f"{name}seed0_top_structures"]]
        assert [scorer(net) for net in top] == pytest.approx(case[f"{name}seed0_top_scores"].tolist())
        assert [count_flops(net, size) for net in top] == pytest.approx(
            case[f"{name}seed0_top_flops"].tolist()
        )
        curves = case[f"{name}best_score_every_100_candidates"]
        best = []
        for seed in range(len(curves)):
            search = EvolutionarySearch(
                K1KXK1Space(layers, size), Budget(size, flops, layers=layers), scorer,
                parse_structure(str(case[f"{name}init"])), 100 * curves.shape[1], settings["popu"], seed,
            )  # fmt: skip
            best.append(search.run().ranked[0][0])
        # other draws, the same algorithm: as good as theirs within their own scatter
        assert np.mean(best) >= curves[:, -1].mean() - curves[:, -1].std(ddof=1)


@pytest.mark.parametrize("path", cases("latency"))
def test_golden_latency(path: Path) -> None:
    case = load(path)
    rows = []
    columns = zip(
        case["table_type"],
        case["table_batch_inC_inH_outC_kernel_stride_fused"].tolist(),
        case["table_ms"],
        strict=True,
    )
    for kind, (batch, cin, side, cout, kernel, stride, fused), ms in columns:
        rows.append(TableRow(ConvQuery(bool(kind), cin, side, cout, kernel, stride, fused), batch, float(ms)))
    table = LatencyTable(rows)
    for operator, ms in zip(
        case["ops/type_stride_fused_kernel_batch_inC_inH_outC"].tolist(), case["ops/ms"], strict=True
    ):
        kind, stride, fused, kernel, batch, cin, side, cout = operator
        query = ConvQuery(bool(kind), cin, side, cout, kernel, stride, fused)
        assert table.predict_op(query, batch) == pytest.approx(float(ms), rel=2e-2)
    for name in prefixes(case, "op_ms"):
        operators = case[f"{name}queries_type_stride_fused_kernel_inC_inH_outC"].tolist()
        expected = [ConvQuery(bool(t), cin, side, cout, k, s, f) for t, s, f, k, cin, side, cout in operators]
        listed = set(expected)
        queries = network_queries(structure(case, name), int(name.split("/")[-2]))
        assert [query for query in queries if query in listed] == expected
        total = sum(table.predict_op(query, 32) for query in expected)
        assert total == pytest.approx(float(case[f"{name}total_ms_batch32"]), rel=2e-2)


@pytest.mark.parametrize("path", cases("gfl"))
def test_golden_gfl_losses(path: Path) -> None:
    case = load(path)
    loss = quality_focal_loss(
        tensor(case["qfl/pred_prob"]), tensor(case["qfl/label"]), tensor(case["qfl/quality"])
    )
    assert loss.numpy() == pytest.approx(case["qfl/loss_per_row"], abs=1e-5)
    loss = distribution_focal_loss(tensor(case["dfl/logits"]), tensor(case["dfl/target"]))
    assert loss.numpy() == pytest.approx(case["dfl/loss_per_row"], abs=1e-5)


@pytest.mark.parametrize("path", cases("gfl"))
def test_golden_gfl_head(path: Path) -> None:
    case = load(path)
    weights = "head/weight/"
    state = {key.removeprefix(weights): tensor(case[key]) for key in case if key.startswith(weights)}
    convs = sum(key.startswith("cls_convs") and key.endswith("conv.weight") for key in state)
    channels, channels_in = state["cls_convs.0.conv.weight"].shape[:2]
    levels = sum(key.startswith("head/feat") for key in case)
    head = GFLHead(
        len(state["gfl_cls.weight"]),
        channels_in,
        channels,
        convs,
        levels,
        len(state["reg_conf.0.weight"]),
        32,
    )
    head.load_state_dict(state)
    with torch.no_grad():
        outputs = head([tensor(case[f"head/feat{level}"]) for level in range(levels)])
    for level, (score, logits) in enumerate(outputs):
        assert score.numpy() == pytest.approx(case[f"head/joint_score{level}"], abs=1e-5)
        assert logits.numpy() == pytest.approx(case[f"head/box_logits{level}"], abs=1e-5)
    distances = integral(outputs[0][1].permute(0, 2, 3, 1)).reshape(-1, 4)
    assert distances.numpy() == pytest.approx(case["head/integral_level0"], abs=1e-5)


@pytest.mark.parametrize("path", cases("gfl"))
def test_golden_atss(path: Path) -> None:
    case = load(path)
    counts = case["atss/num_per_level"].tolist()
    sides = [round(count**0.5) for count in counts]
    anchors = grid_anchors(
        [(side, side) for side in sides], [8 * 2**level for level in range(len(sides))], torch.device("cpu")
    )
    assert torch.equal(torch.cat(anchors), tensor(case["atss/anchors_xyxy"]))
    owner = assign(anchors, tensor(case["atss/gt_xyxy"]))
    assert (owner + 1).tolist() == case["atss/assigned_gt_plus1"].tolist()


@pytest.mark.parametrize("path", cases("zen_score"))
def test_golden_zen_score(path: Path) -> None:
    case = load(path)
    convs = [
        PlainConv(tensor(case[f"weight/convs.{index}.weight"]), int(stride))
        for index, (_, _, stride) in enumerate(case["channels_kernel_stride"].tolist())
    ]
    score, variances = zen_score(convs, tensor(case["input"]), tensor(case["mixed_input"]))
    assert score == pytest.approx(float(case["score"]), abs=1e-4)
    assert variances == pytest.approx(case["running_var_means"].tolist(), rel=1e-4)
