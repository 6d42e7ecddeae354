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
    path = RAW / dataset / name
    if not (path.exists() and sha256(path) == entry["sha256"]):
        _download(entry["url"], path, entry["sha256"])
    return path


def _download(url: str, path: Path, digest: str) -> None:
    """Fetch `url` into `path` when its bytes are right; what was broken off goes on the next time (pooch cannot)."""
    import requests  # only where something is downloaded

    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=60) as reply:
            if reply.status_code != requests.codes.requested_range_not_satisfiable:  # else all of it is here
                reply.raise_for_status()
                resumed = reply.status_code == requests.codes.partial_content
                with part.open("ab" if resumed else "wb") as file:
                    for chunk in reply.iter_content(1 << 16):
                        file.write(chunk)
    except requests.RequestException as error:
        raise InputError(
            f"{path}: cannot be downloaded from {url} ({type(error).__name__}); "
            "run it again to go on, or set ENCORE_MIRROR to a folder that has it"
        ) from None
    if sha256(part) != digest:
        part.unlink()
        raise InputError(
            f"{path}: the bytes at {url} do not have the sha256 in {REGISTRY}; "
            "set ENCORE_MIRROR to a folder that has the right ones"
        )
    part.replace(path)
