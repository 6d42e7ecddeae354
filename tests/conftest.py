"""Every test has one core: tests run side by side (`make test`), and two threads on one core wait for each other."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the stages that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, for what its fixtures made, and all that need the servers, which start once."""
    for item in items:
        needs_servers = "served" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("served" if needs_servers else item.path.as_posix()))
