"""The files of deploy/: they can be read, publish on 127.0.0.1 only, and call what there is."""

import re
import subprocess

import pytest
import yaml

from flows.__main__ import arguments
from tests.flows.project import REPOSITORY

DEPLOY = REPOSITORY / "deploy"


def test_compose_publishes_on_this_machine_only() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert {"postgres", "minio", "prefect", "mlflow", "worker"} <= set(services)
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("${")  # none is written down


def test_slurm_script_is_a_shell_script() -> None:
    subprocess.run(["bash", "-n", DEPLOY / "slurm.sh"], check=True)


@pytest.mark.parametrize("file", ["compose.yaml", "kubernetes.yaml", "slurm.sh"])
def test_workers_are_of_pools_that_exist(file: str) -> None:
    pools = re.findall(r"python -m flows worker (\w+)", (DEPLOY / file).read_text())
    assert pools
    for pool in pools:
        assert arguments(["worker", pool]).pool == pool
