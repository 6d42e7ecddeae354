"""Small DVC projects for the tests of flows: stages that are shell commands, and events to wait for."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER: dict[str, str] = {}  # names the Prefect server that the tests of a module share
PATIENCE = 240.0  # seconds until a test gives up waiting for an event; machines may be loaded


def make_project(
    folder: Path,
    stages: dict[str, Any],
    files: dict[str, str] | None = None,
    part: dict[str, Any] | None = None,
) -> Path:
    """A git repository with a DVC project of these stages, committed; those of `part` are in `part/dvc.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ({"source.txt": "source\n"} | (files or {})).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    if part:
        (folder / "part").mkdir()
        inner = {name: stage | {"wdir": ".."} for name, stage in part.items()}
        (folder / "part" / "dvc.yaml").write_text(yaml.safe_dump({"stages": inner}, sort_keys=False))
    shutil.copytree(empty_project(), folder, dirs_exist_ok=True)
    commit(folder, "start")
    return folder


@cache
def empty_project() -> Path:
    """A git repository with an empty DVC project."""
    folder = Path(tempfile.mkdtemp(prefix="encore-empty-"))
    atexit.register(shutil.rmtree, folder)
    (folder / ".gitignore").write_text("/.encore/\n")
    git(folder, "init", "-q")
    run(["dvc", "init", "-q"], folder)
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit all that git does not ignore."""
    git(folder, "add", ".")
    git(folder, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", message)


def copy(text: str, deps: list[str], out: str, before: str = "", **more: Any) -> dict[str, Any]:
    """A stage that writes its dependencies and `text` into `out`; `before` is run first."""
    command = f"cat {' '.join(deps)} > {out} && echo {text} >> {out}"
    return {"cmd": f"{before} && {command}" if before else command, "deps": deps, "outs": [out], **more}


def diamond() -> dict[str, Any]:
    """a -> b, c -> d, and e on its own."""
    return {
        "a": copy("a", ["source.txt"], "a.txt"),
        "b": copy("b", ["a.txt"], "b.txt"),
        "c": copy("c", ["a.txt"], "c.txt"),
        "d": copy("d", ["b.txt", "c.txt"], "d.txt"),
        "e": copy("e", ["source.txt"], "e.txt"),
    }


def resumable(before: str = "true") -> dict[str, Any]:
    """A stage that counts to ten, keeps its place, and is killed once on the way by the test."""
    count = (
        "for i in 1 2 3 4 5 6 7 8 9 10; do grep -qx $i place || { echo $i >> place; "
        "if test $i = 5 -a ! -e go; then echo $$ > pid; until test -e go; do sleep 0.02; done; fi; }; done; cp place a.txt"
    )
    return {"a": {"cmd": f"{before}; touch place; {count}", "deps": ["source.txt"], "outs": ["a.txt"]}}


def written(path: Path) -> str:
    """What is in a file, when there is one."""
    return path.read_text() if path.exists() else ""


def git(folder: Path, *arguments: str) -> str:
    """Run git."""
    return run(["git", *arguments], folder).stdout


def environment(**more: str) -> dict[str, str]:
    """This environment, without what names servers or GPUs, with this repository's flows."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT", "ENCORE", "CUDA_VISIBLE", "MLFLOW"))
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | SERVER | {"PYTHONPATH": str(REPOSITORY), "PATH": path} | more


def run(command: list[str], folder: Path, code: int = 0, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that has to end with this exit code."""
    done = subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True)
    assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
    return done


def flows(folder: Path, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run `python -m flows`."""
    return run([sys.executable, "-m", "flows", *arguments], folder, code, ENCORE_GPUS="")


def start_flows(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `python -m flows` with its output in `flows.log`."""
    log = (folder / ".encore-test.log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "flows", *arguments], cwd=folder, env=environment(ENCORE_GPUS=""),
        stdout=log, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )  # fmt: skip


def log_of(folder: Path) -> str:
    """What flows that were started have said."""
    path = folder / ".encore-test.log"
    return path.read_text() if path.exists() else ""


def wait_for(event: Callable[[], Any], what: str) -> Any:
    """Wait for an event; returns its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := event()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


def state_of(folder: Path) -> dict[str, bytes]:
    """Every file of the workspace and of DVC's cache and run cache, by name."""
    left_out = (".git/", ".dvc/tmp", ".encore", ".dvc/cache/files/md5/tmp")
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not (name := str(path.relative_to(folder))).startswith(left_out)
    }
