"""Names of stages on the command line."""

import pytest

from stages.__main__ import stage_module
from stages.common.stage.errors import ParameterError


@pytest.mark.parametrize("name", ["chex.prune", "chex.points.prune"])
def test_a_stage_is_found_by_its_name(name: str) -> None:
    assert stage_module(name).__name__ == f"stages.{name}"


@pytest.mark.parametrize(
    "name", ["", "chex", "chex.nothing", "chex.loop", "chex/prune", "..prune", "__main__", "common.show"]
)
def test_other_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ParameterError, match="no such stage") as refused:
        stage_module(name)
    assert "\n" not in str(refused.value)
    assert "common" not in str(refused.value).partition(":")[2]


def test_a_wrong_step_is_answered_with_the_paper_s_own_ones() -> None:
    with pytest.raises(ParameterError) as refused:
        stage_module("chex.nothing")
    assert str(refused.value).endswith(
        "chex.evaluate, chex.prepare, chex.pretrain, chex.prune, chex.report, "
        "chex.detection.evaluate, chex.detection.prepare, chex.detection.pretrain, chex.detection.prune, "
        "chex.detection.report, chex.points.evaluate, chex.points.prepare, chex.points.pretrain, "
        "chex.points.prune, chex.points.report"
    )
