"""What every stage does around its own work: arguments, seed, work folder, errors in one line."""

import argparse
import functools
import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from stages.common.stage.device import is_main
from stages.common.stage.errors import ParameterError, StageError
from stages.common.stage.files import digest_of, verified
from stages.common.stage.params import Section

ROOT = Path(__file__).resolve().parents[3]
WORK = Path(".encore/work")


def run(main: Callable[[], None]) -> None:
    """Call a stage's `main`; a `StageError` becomes one line on standard error and its exit code."""
    try:
        main()
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> "None":  # type: ignore[override]
        raise ParameterError(f"{self.prog}: {message}")


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or greater")
    return int(text)


def cell_arguments(description: str, **options: Sequence[str] | type[int]) -> argparse.Namespace:
    """Read the arguments that name one cell of a stage's matrix.

    Each option is given as the values that are allowed, or as `int` (a seed, a number: 0 or greater); all are required.
    """
    parser = _Parser(description=description)
    for name, kind in options.items():
        if isinstance(kind, type):
            parser.add_argument(f"--{name}", type=_whole_number, required=True)
        else:
            parser.add_argument(f"--{name}", choices=list(kind), required=True)
    return parser.parse_args()


def seed_everything(seed: int) -> None:
    """Seed every generator that a stage may use without naming it, and ask torch for repeatable kernels."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries that take no generator use this one)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # no stage reads memory that it has not written, and filling it all takes 4 to 6 % of a training step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def project_files() -> list[Path]:
    """The project's own files that this process has imported, relative to the repository, sorted.

    How the stage was started is no part of it: the same stage names the same files with and without the warm interpreter.
    """
    sources = {
        Path(source)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in ("stages", "__main__") and (source := getattr(module, "__file__", None))
    }
    sources -= {ROOT / "stages" / "__main__.py", ROOT / "stages" / "common" / "warm.py"}
    return sorted(path.relative_to(ROOT) for path in sources if path.is_relative_to(ROOT / "stages"))


@functools.cache
def git_revision() -> str:
    """The last commit that touched what this process runs (`-dirty` when that is not committed).

    It is the commit of the stage's own code, not HEAD, so that committing a report does not change the report.
    """
    files = [str(path) for path in project_files()]
    try:
        commit = _git("log", "-1", "--format=%h", "--abbrev=10", "--", *files)
        return commit + ("-dirty" if _git("status", "--porcelain", "--", *files) else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unversioned"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


class Stage:
    """One execution of one stage: checks its inputs, seeds, and owns a work folder for checkpoints.

    The name of the work folder is a digest of the stage, its cell, its parameters, its inputs and its code. A stage that
    was killed finds its checkpoints there; one whose code or inputs have changed since does not. The folder is
    removed when the block ends without an error.
    """

    def __init__(
        self, name: str, params: Section, inputs: Sequence[Path], seed: int = 0, cell: str = ""
    ) -> None:
        seed_everything(seed)
        digest = hashlib.sha256()
        for part in (name, cell, str(seed), params.model_dump_json()):
            digest.update(part.encode() + b"\0")
        for path in inputs:
            digest.update(digest_of(verified(path)).encode())
        for source in project_files():
            digest.update((ROOT / source).read_bytes())
        self.work = WORK / f"{name}-{digest.hexdigest()[:16]}"

    def __enter__(self) -> "Stage":
        self.work.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and is_main():  # the others may be done while the main process still copies from it
            shutil.rmtree(self.work, ignore_errors=True)
