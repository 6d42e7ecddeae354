"""What mixers and the operator cost: CPU time of one thread, and the growth of resident memory (table T7, claim 7).

Each measurement has a process of its own, in which nothing has been freed that it could reuse.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.elsa.method.aggregate import hadamard_ghost_aggregate
from stages.elsa.params import MixerName
from stages.elsa.variants import VARIANTS, build_mixer

REPEATS = 5
BATCH = 2
KERNEL = 7
# channels, side, heads of stages 1 to 3 of Swin-T at 224 pixels
SHAPES = ((96, 56, 3), (192, 28, 6), (384, 14, 12))


def mixer_cost(mixer: MixerName, shape: tuple[int, int, int]) -> list[float]:
    """Milliseconds of forward, of forward and backward, and MiB at the latter's peak."""
    dim, side, heads = shape

    def prepare() -> tuple[Callable[[], Tensor], Iterable[Tensor]]:
        module: nn.Module = build_mixer(dim, heads, KERNEL, 0, VARIANTS[mixer], KERNEL, 4)
        x = torch.randn(BATCH, side, side, dim, requires_grad=True)
        return (lambda: module(x)), [x, *module.parameters()]

    return _in_own_process(prepare)


def operator_cost(backend: str, shape: tuple[int, int, int] = SHAPES[0]) -> list[float]:
    """The same of the operator as ELSA-Swin has it (lambda 0, gamma 1)."""
    dim, side, heads = shape

    def prepare() -> tuple[Callable[[], Tensor], Iterable[Tensor]]:
        v = torch.randn(BATCH, heads, dim // heads, side, side, requires_grad=True)
        h = torch.randn(BATCH, heads, KERNEL**2, side, side).softmax(2).requires_grad_()
        add = torch.randn(dim, KERNEL, KERNEL, requires_grad=True)
        call = lambda: hadamard_ghost_aggregate(v, h, None, add, KERNEL, backend=backend)  # type: ignore[arg-type]  # noqa: E731
        return call, [v, h, add]

    return _in_own_process(prepare)


def _in_own_process(prepare: Callable[[], tuple[Callable[[], Tensor], Iterable[Tensor]]]) -> list[float]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(prepare, there))
    process.start()
    numbers: list[float] = here.recv()
    process.join()
    return numbers


def _measure(
    prepare: Callable[[], tuple[Callable[[], Tensor], Iterable[Tensor]]], answer: Connection
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    forward, inputs = prepare()
    inputs = list(inputs)

    def train() -> None:
        torch.autograd.grad(forward().sum(), inputs)

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _resident("VmRSS")
    train()  # warms up, too
    peak = (_resident("VmHWM") - before) / 1024
    with torch.no_grad():
        milliseconds = min(_timed(forward) for _ in range(REPEATS))
    answer.send([milliseconds, min(_timed(train) for _ in range(REPEATS)), peak])


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def _resident(name: str) -> int:
    """KiB of resident memory, now (`VmRSS`) or at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")
