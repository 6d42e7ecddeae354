"""Prefect work pools, one per kind of machine."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

POOLS = {"cpu": "Machines without GPUs", "gpu": "Machines with GPUs: a worker owns named slots (ENCORE_GPUS)"}


def ensure_pools(gpus: list[str]) -> list[str]:
    """Make both pools where they are missing; returns those that this machine can work for."""
    with get_client(sync_client=True) as client:
        for name, description in POOLS.items():
            try:
                client.create_work_pool(WorkPoolCreate(name=name, type="process", description=description))
            except ObjectAlreadyExists:
                continue
    return ["cpu", "gpu"] if gpus else ["cpu"]
