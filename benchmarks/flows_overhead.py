"""What a flow costs beside `dvc repro`: per stage, on a wide graph, and to plan a graph of a thousand stages.

    python -m benchmarks.flows_overhead [--wide 16] [--seconds 5] [--cells 30] [--stages 1000]

The flow is the command line as a user types it, with Prefect's embedded server and its start in every figure.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def make(folder: Path, stages: dict[str, object]) -> None:
    """A DVC project with these stages."""
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    for i in range(8):
        (folder / f"dep{i}").write_text(str(i))
    run(["git", "init", "-q"], folder)
    run(["dvc", "init", "-q"], folder)


def cells(count: int, seconds: float) -> dict[str, object]:
    """Independent stages that sleep."""
    deps = [f"dep{i}" for i in range(8)]
    return {
        f"cell{i}": {"cmd": f"sleep {seconds} && echo {i} > out{i}", "deps": deps, "outs": [f"out{i}"]}
        for i in range(count)
    }


def run(command: list[str], folder: Path) -> float:
    """Wall time of a command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def measure(stages: dict[str, object], jobs: int) -> tuple[float, float, float]:
    """Seconds of `dvc repro`, of the flow, and of the flow when there is nothing to do."""
    flow = [sys.executable, "-m", "flows", "reproduce", "--jobs", str(jobs)]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        make(Path(one), stages)
        make(Path(other), stages)
        return run(["dvc", "repro", "-q"], Path(one)), run(flow, Path(other)), run(flow, Path(other))


def plan_seconds(count: int) -> float:
    """Seconds to plan a graph of layers of ten stages, each on two of the layer above; start of Python included."""
    stages: dict[str, object] = {}
    for i in range(count):
        above = [f"out{i - 10}", f"out{i // 10 * 10 - 10 + (i + 1) % 10}"] if i >= 10 else ["dep0"]
        stages[f"stage{i}"] = {"cmd": f"echo > out{i}", "deps": [*above, "dep1", "dep2"], "outs": [f"out{i}"]}
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), stages)
        return run([sys.executable, "-m", "flows", "reproduce", "--dry"], Path(folder))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wide", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--cells", type=int, default=30)
    parser.add_argument("--stages", type=int, default=1000)
    options = parser.parse_args()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f} before the start")
    print(f"plan of {options.stages} stages: {plan_seconds(options.stages):.1f} s", flush=True)
    plan = run([sys.executable, "-m", "flows", "reproduce", "--dry"], ROOT)
    print(
        f"plan of all papers, in this clone as it is: {plan:.1f} s (when up to date: all of a flow)",
        flush=True,
    )
    dvc, flow, nothing = measure(cells(1, 0), 1)
    print(
        f"one empty stage: dvc repro {dvc:.1f} s, flow {flow:.1f} s; nothing to do: {nothing:.1f} s",
        flush=True,
    )
    dvc, flow, nothing = measure(cells(options.cells, 0.1), 1)
    print(f"{options.cells} stages of 0.1 s, --jobs 1: dvc repro {dvc:.1f} s, flow {flow:.1f} s")
    print(
        f"  per stage beyond dvc repro: {(flow - dvc) / options.cells:.2f} s; nothing to do: {nothing:.1f} s",
        flush=True,
    )
    dvc, flow, _ = measure(cells(options.wide, options.seconds), 2)
    print(
        f"{options.wide} independent stages of {options.seconds:g} s: dvc repro {dvc:.1f} s, flow --jobs 2 {flow:.1f} s"
    )
    print(f"  {dvc / flow:.2f} times faster")


if __name__ == "__main__":
    main()
