"""Folders in which tests run stages as users do: small parameters, processes of their own, nothing left behind."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {
    "net": "quick", "steps": 24, "batch": 50, "lr": 0.2, "finetune_lr": 0.1, "warmup": 2, "momentum": 0.9,
    "weight_decay": 5e-4, "smoothing": 0.1, "mixup": 0.0, "augment": "none", "precision": "float32",
}  # fmt: skip
TINY = {
    "scale": "quick",
    "launch": "python",
    "seeds": [0, 1],
    "methods": ["uniform", "l1", "chex"],
    "data": {"digits": RECIPE},
    "image_folder": None,
    "prune": {"flops": [0.3, 0.5], "explore": 0.6875, "period": 0.25, "residual_power": 2},
}


def environment(**extra: str) -> dict[str, str]:
    """The environment of a user who has set nothing and uses this Python; `extra` on top."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ENCORE_", "MLFLOW_", "DVC_"))
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), **extra}


def tiny_params(**changes: Any) -> dict[str, Any]:
    """Parameters of a CHEX run of seconds; keys of `changes` are dotted with `__` (`prune__flops=[0.4]`)."""
    section: dict[str, Any] = deepcopy(TINY)
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = section
        for name in path:
            inner = inner[name]
        inner[last] = value
    return section


def write_params(folder: Path, section: Any) -> None:
    """Make `section` the parameters of CHEX in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump({"chex": section}, sort_keys=False))


def python(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in `folder`; its output is captured."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
    )


def stage(folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a stage in `folder`, in a process of its own."""
    return python(folder, "-m", "stages", *argv, **{"ENCORE_WARM": "0", **env})


def tree(folder: Path) -> dict[str, str]:
    """Digest of every file under `folder`, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def processes_in(folder: Path) -> list[psutil.Process]:
    """Processes that work in `folder`: the stages of a workspace, their workers, its warm interpreter, its sync.

    The tests' own process is none of them, even when it is there.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder.resolve()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def end_processes(folder: Path) -> None:
    """Kill what still works in `folder`."""
    processes = processes_in(folder)
    kill(processes)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill these processes and wait for their end."""
    processes = list(processes)
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
