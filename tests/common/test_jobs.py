"""Jobs of one cell: how many threads each has."""

from collections.abc import Iterator

import pytest
import torch

from stages.common.stage.jobs import run_jobs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, jobs run one after another")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads(job: int) -> int:
    return torch.get_num_threads()


@pytest.mark.parametrize(
    ("cores", "jobs", "expected"), [(2, 1, 2), (8, 1, 2), (1, 1, 1), (2, 2, 1), (1, 2, 1)]
)
def test_a_single_job_has_two_threads_and_jobs_side_by_side_one_each(
    cores: int, jobs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCORE_JOBS", str(cores))
    assert dict(run_jobs(threads, range(jobs))) == dict.fromkeys(range(jobs), expected)
