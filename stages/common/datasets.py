"""Public data sets by name: found in a mirror or downloaded, and never used before their sha256 is checked."""

import os
from pathlib import Path
from typing import Any

import yaml

from stages.common.stage.errors import InputError
from stages.common.stage.files import sha256

REGISTRY = Path("data/registry.yaml")
RAW = Path("data/raw")


def in_mirror(dataset: str, name: str) -> bool:
    """Whether `$ENCORE_MIRROR` holds this file."""
    mirror = os.environ.get("ENCORE_MIRROR")
    return bool(mirror) and Path(str(mirror), dataset, name).is_file()


def fetch(dataset: str, name: str) -> Path:
    """Path of a file of a registered data set, its bytes checked; downloads are kept in `data/raw`.

    Raises:
        InputError: no mirror has the file and it cannot be downloaded, or its bytes are not the registered ones.
    """
    entry: dict[str, Any] = yaml.safe_load(REGISTRY.read_text())[dataset]["files"][name]
    if in_mirror(dataset, name):
        path = Path(os.environ["ENCORE_MIRROR"], dataset, name)
        # a file without a stable home has no registered digest; whoever reads it checks what is in it
        if "sha256" in entry and sha256(path) != entry["sha256"]:
            raise InputError(f"{path}: sha256 is not the one in {REGISTRY}; replace the file")
        return path
    if "url" not in entry:
        raise InputError(f"{dataset}/{name}: only a mirror has this file; set ENCORE_MIRROR to its folder")
    import pooch  # only where something is downloaded

    try:
        return Path(pooch.retrieve(entry["url"], f"sha256:{entry['sha256']}", fname=name, path=RAW / dataset))
    except ValueError:  # what pooch raises for wrong bytes, which it does not keep
        raise InputError(
            f"{dataset}/{name}: the bytes at {entry['url']} do not have the sha256 in {REGISTRY}; "
            "set ENCORE_MIRROR to a folder that has the right ones"
        ) from None
    except Exception as error:  # requests and urllib raise many kinds
        raise InputError(
            f"{dataset}/{name}: cannot be downloaded from {entry['url']} ({type(error).__name__}); "
            "set ENCORE_MIRROR to a folder that has it"
        ) from None
