"""Independent runs side by side on the CPU cores of one machine."""

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LONE_THREADS = 2  # of a job that has nothing beside it: the cores that `quick` is made for


def worker_count() -> int:
    """How many processes to use: `ENCORE_JOBS`, or else the cores this process may run on."""
    return int(os.environ.get("ENCORE_JOBS") or len(os.sched_getaffinity(0)))


def _start_worker() -> None:
    gc.freeze()  # garbage of the parent is the parent's: its libraries' threads, which it may wait for, are not here
    # a killed stage must not leave its workers training on
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)


def run_jobs(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """Run `work` on every job; yields (job, result) as they finish.

    On CPU each job has a process and one thread of its own, so that its numbers do not depend on how many
    run at once; a single job has two threads, as far as there are cores for them. With a GPU, or under torchrun, the
    jobs run one after another in this process.
    """
    if torch.cuda.is_available() or "LOCAL_RANK" in os.environ or len(jobs) == 1:
        torch.set_num_threads(min(LONE_THREADS, worker_count()) if len(jobs) == 1 else 1)
        for job in jobs:
            yield job, work(job)
        return
    workers = min(worker_count(), len(jobs))
    context = multiprocessing.get_context("fork")  # torch is imported already: a fork costs milliseconds
    with ProcessPoolExecutor(workers, context, initializer=_start_worker) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
