"""What decoding costs: network passes, and seconds of two-pass, cached serial and uncached serial decoding.

Measured with trained codecs on generated pictures, one thread, from the latents' bytes to the latents.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from stages.common.report.timings import Timings
from stages.entroformer.dead_leaves import dead_leaves
from stages.entroformer.images import pad, to_tensor
from stages.entroformer.method.codec import EntropyModel, ImageCodec, LatentCoder, one_thread

SMALL, LARGE = (256, 256), (512, 768)  # pixels; 16 x 16 and 32 x 48 latent positions
REPEATS = 3


@dataclass(frozen=True)
class Decoding:
    """Decoding one picture: positions, network passes, seconds (one pass of the uncached serial context included)."""

    size: tuple[int, int]
    positions: int
    passes: int
    seconds: float
    whole_context_seconds: float

    @property
    def uncached_seconds(self) -> float:
        """Serial decoding that runs the context over the whole grid for every position; extrapolated from one pass."""
        return self.positions * self.whole_context_seconds


def measure(codec: ImageCodec, size: tuple[int, int], timings: Timings, key: str) -> Decoding:
    """Time one codec on one size; seconds are kept under `key`."""
    picture = dead_leaves(1, *size, np.random.default_rng(0))[0].permute(1, 2, 0).contiguous().numpy()
    coder = LatentCoder(codec.entropy)
    y, z = codec.latents(pad(to_tensor(picture), codec.spec.multiple))
    h, w = y.shape[2:]
    content = coder.encode(y, z)
    passes = count_passes(coder.entropy, lambda: coder.decode(content, h, w))

    def decode() -> list[float]:
        with one_thread():
            return [seconds(lambda: coder.decode(content, h, w)) for _ in range(REPEATS)]

    def whole_context() -> list[float]:
        context = coder.entropy.context
        assert context is not None
        with one_thread(), torch.no_grad():
            return [seconds(lambda: context(y)) for _ in range(REPEATS)]

    return Decoding(
        size, h * w, passes, median(timings.measure(f"decode {key}", decode)),
        median(timings.measure(f"whole context {key}", whole_context)),
    )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def count_passes(entropy: EntropyModel, work: Callable[[], object]) -> int:
    """How often `work` asks for parameters of latents."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = entropy.parameter_network.register_forward_hook(count)
    work()
    hook.remove()
    return calls
