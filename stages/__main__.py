"""Run a stage quickly: `python -m stages chex.prune --method chex --seed 0`.

The same as `python -m stages.chex.prune --method chex --seed 0`, but in the warm interpreter (`stages.common.warm`).
"""

import ctypes
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LARGEST_MMAP_THRESHOLD, LARGEST_TRIM_THRESHOLD = 2**25, 2**31 - 1  # that glibc takes


def stage_module(name: str) -> ModuleType:
    """The module of the stage `name`.

    Raises:
        ParameterError: there is no such stage.
    """
    from stages.common.stage.errors import ParameterError

    here = Path(__file__).parent

    def is_stage(file: Path) -> bool:
        return "common" not in file.relative_to(here).parts and "\ndef main(" in file.read_text()

    parts = name.split(".")
    file = here.joinpath(*parts).with_suffix(".py")
    named = len(parts) > 1 and all(part.isidentifier() for part in parts)
    if not named or not file.is_file() or not is_stage(file):
        files = sorted(here.glob("*/**/*.py"), key=lambda file: (len(file.parts), file))
        stages = [".".join(f.relative_to(here).with_suffix("").parts) for f in files if is_stage(f)]
        paper = name.partition(".")[0]
        near = [known for known in stages if known.startswith(f"{paper}.")] or stages
        raise ParameterError(f"{name}: no such stage; a stage is <paper>.<step>: {', '.join(near)}")
    return importlib.import_module(f"stages.{name}")


def keep_freed_memory() -> None:
    """Have glibc keep the memory that a training step frees, for the next step.

    It gives large blocks back, and every step then pays for fresh pages, a tenth of the time of small networks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD)


def run_here(argv: list[str]) -> int:
    """Run the stage `argv[0]` (such as `chex.prune`) in this process; returns its exit code."""
    from stages.common.stage.run import run

    sys.argv = argv
    keep_freed_memory()
    try:
        run(lambda: stage_module(argv[0]).main())
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run the stage named on the command line, in the warm interpreter where there can be one."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print("usage: python -m stages <paper>.<step> [arguments]", file=sys.stderr)
        return 2
    # torchrun's processes find each other through their own environment and must be its children
    if os.environ.get("ENCORE_WARM") == "0" or "LOCAL_RANK" in os.environ or sys.platform != "linux":
        return run_here(sys.argv[1:])
    from stages.common.warm import run_warm

    code = run_warm(sys.argv[1:])
    return run_here(sys.argv[1:]) if code is None else code


if __name__ == "__main__":
    sys.exit(main())
