"""Runs a stage again and again, each time killed at another of its file operations, then to its end.

`python -m tests.common.crash <kills> <seed> <stage> [arguments]`: one line of JSON per run on standard output.
A kill is SIGKILL to the process of the stage, sent by the operation itself (in the stage or in one of its workers).
"""

import json
import mmap
import os
import random
import signal
import sys
from typing import Any

import torch  # noqa: F401  (once, for all the runs)

import stages.chex.loop
from stages.__main__ import run_here

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.copyfile"}
COUNTER = mmap.mmap(-1, 8)  # shared by a run and its workers


def writes(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event changes a file below the current folder."""
    if event in WRITES:
        return True
    if event != "open":
        return False
    path, mode, flags = arguments
    inside = isinstance(path, str) and (not path.startswith("/") or path.startswith(os.getcwd()))
    return inside and bool(
        flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (mode and set(mode) & set("wax+"))
    )


def run(argv: list[str], kill_at: int) -> dict[str, int]:
    """Run the stage in a fork; at the operation number `kill_at` it is killed. Says how it went."""
    COUNTER[:] = bytes(8)
    child = os.fork()
    if not child:
        stage = os.getpid()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if writes(event, arguments):
                count = int.from_bytes(COUNTER, "big") + 1
                COUNTER[:] = count.to_bytes(8, "big")
                if count == kill_at:
                    os.kill(stage, signal.SIGKILL)

        sys.addaudithook(hook)
        os._exit(run_here(argv))
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "operations": int.from_bytes(COUNTER, "big")}


def main() -> None:
    """Kill the stage at several points, drawn at random from those that an uninterrupted run passes."""
    kills, seed, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    stages.chex.loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint before every step
    generator = random.Random(seed)
    operations = 400
    for _ in range(kills):
        outcome = run(argv, generator.randrange(1, operations))
        print(json.dumps(outcome), flush=True)
        if sys.stdin.readline() != "go on\n":  # the test looks at what is there
            return
    print(json.dumps(run(argv, 0)), flush=True)


if __name__ == "__main__":
    main()
