"""What the frame costs: seconds per stage beyond its own work, per-step cost of tracking, DVC's cost per lock line.

    python -m benchmarks.frame_cost [--cells 30]

A pipeline of cells that sleep for a tenth of a second is run by `dvc repro` three ways: as a bare shell command
(DVC alone), as stages in the warm interpreter, and as stages in processes of their own that import torch.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK_SECONDS = 0.1
STAGE = """
import time
from pathlib import Path

from stages.common.stage.run import cell_arguments, run
from stages.common.stage.tracking import RunLog


def main() -> None:
    seed = cell_arguments("a cell that sleeps", seed=int).seed
    with RunLog("frame", f"cell {{seed}}", str(seed)) as log:
        log.metrics({{"seconds": {work}}})
        time.sleep({work})
    Path(f"out{{seed}}").write_text("done")


if __name__ == "__main__":
    run(main)
"""


def pipeline(command: str, cells: int, deps: int) -> str:
    """A dvc.yaml with one matrix stage."""
    lines = [
        "stages:",
        "  cell:",
        "    matrix:",
        f"      seed: {list(range(cells))}",
        f"    cmd: {command}",
        "    deps:",
        *(f"      - dep{i}" for i in range(deps)),
        "    outs:",
        "      - out${item.seed}",
    ]
    return "\n".join(lines) + "\n"


def seconds(command: str, cells: int, deps: int = 8, env: dict[str, str] | None = None) -> float:
    """Wall time of `dvc repro` over the cells, in a project of its own."""
    with tempfile.TemporaryDirectory() as folder:
        # without the papers' pipelines, which want a params.yaml
        shutil.copytree(ROOT / "stages", Path(folder, "stages"), ignore=shutil.ignore_patterns("dvc.*"))
        Path(folder, "stages", "frame").mkdir()
        Path(folder, "stages", "frame", "cell.py").write_text(STAGE.format(work=WORK_SECONDS))
        for i in range(deps):
            Path(folder, f"dep{i}").write_text(str(i))
        Path(folder, "dvc.yaml").write_text(pipeline(command, cells, deps))
        run = {"cwd": folder, "check": True, "capture_output": True, "env": os.environ | (env or {})}
        subprocess.run(["git", "init", "-q"], **run)  # type: ignore[call-overload]
        subprocess.run(["dvc", "init", "-q"], **run)  # type: ignore[call-overload]
        start = time.perf_counter()
        subprocess.run(["dvc", "repro", "-q"], **run)  # type: ignore[call-overload]
        return time.perf_counter() - start


def tracking_cost(steps: int = 20_000) -> float:
    """Microseconds per logged step."""
    from stages.common.stage.tracking import RunLog

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with RunLog("frame", "steps", "steps") as log:
                start = time.perf_counter()
                for step in range(steps):
                    log.metrics({"loss": 1.0 / (step + 1), "rate": 0.1}, step)
                return (time.perf_counter() - start) / steps * 1e6
        finally:
            os.chdir(here)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=30)
    cells = parser.parse_args().cells
    bare = seconds(f"sleep {WORK_SECONDS} && touch out${{item.seed}}", cells)
    warm = seconds("python -m stages frame.cell --seed ${item.seed}", cells)
    cold = seconds("python -m stages frame.cell --seed ${item.seed}", cells, env={"ENCORE_WARM": "0"})
    print(f"{cells} cells of {WORK_SECONDS} s under `dvc repro`, seconds")
    print(f"{'':34}{'total':>8}{'per cell beyond its work':>28}{'beyond DVC':>12}")
    for name, total in (
        ("shell command", bare),
        ("stage, warm interpreter", warm),
        ("stage, process of its own", cold),
    ):
        print(f"{name:34}{total:8.1f}{total / cells - WORK_SECONDS:28.2f}{(total - bare) / cells:12.2f}")
    few, many = (
        seconds("touch out${item.seed}", cells, deps=2),
        seconds("touch out${item.seed}", cells, deps=22),
    )
    lines = 20 * 4 * cells / 2  # mean number of lines that the longer lock file has more
    print(f"DVC, per stage and line of dvc.lock: {(many - few) / cells / lines * 1e3:.2f} ms")
    print(f"tracking, per logged step: {tracking_cost():.1f} µs")


if __name__ == "__main__":
    main()
