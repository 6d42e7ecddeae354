"""How time and memory grow with the length (card, claim 4 and T7).

Time is process time of forward passes on one thread; memory is the bytes that a forward pass keeps for the
backward pass, which is counted, not measured.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from stages.fedformer.method.attention import FullAttention
from stages.fedformer.method.autocorrelation import AutoCorrelation
from stages.fedformer.method.fourier import FourierBlock, FourierCrossAttention
from stages.fedformer.method.modes import select_modes
from stages.fedformer.method.transformer import Transformer
from stages.fedformer.method.trunk import Config, FEDformer, Sizes

LENGTHS = (1024, 2048, 4096)
HORIZONS = (96, 192, 336, 720)
HEADS, HEAD_WIDTH, MODES, BATCH = 8, 8, 64, 2
REPEATS = 7
BLOCKS = ("FEB-f", "FEA-f", "auto-correlation", "full attention")


def block_of(name: str, length: int) -> nn.Module:
    """A block at a length, width 64, 64 random modes."""
    width, rng = HEADS * HEAD_WIDTH, np.random.RandomState(0)
    index = [select_modes(length, MODES, "random", rng) for _ in range(2)]
    torch.manual_seed(0)
    match name:
        case "FEB-f":
            return FourierBlock(width, HEADS, length, index[0], "official")
        case "FEA-f":
            return FourierCrossAttention(width, HEADS, length, length, index[0], index[1], "tanh", "official")
        case "auto-correlation":
            return AutoCorrelation(factor=1)
        case _:
            return FullAttention(causal=False, dropout=0.0)


@torch.no_grad()
def block_seconds(name: str, length: int) -> float:
    """Process time of one forward pass: the fastest of several."""
    block = block_of(name, length).eval()
    inputs = [torch.randn(BATCH, length, HEADS, HEAD_WIDTH) for _ in range(3)]
    return _fastest(lambda: block(*inputs))


def model_of(name: str, horizon: int) -> tuple[nn.Module, Sizes]:
    """A model of width 64 at input 96 and a horizon."""
    sizes = Sizes(variates=7, features=4, seq_len=96, label_len=48, pred_len=horizon, width=64, hidden=128)
    config, rng = (
        Config(sizes, polynomials=4, self_channels=8, cross_channels=8, alpha=8),
        np.random.RandomState(0),
    )
    torch.manual_seed(0)
    match name:
        case "FEDformer-f":
            return FEDformer(config, rng), sizes
        case "FEDformer-w":
            return FEDformer(replace(config, self_block="wavelet", cross_block="wavelet"), rng), sizes
        case "Autoformer":
            blocks = replace(config, self_block="auto-correlation", cross_block="auto-correlation")
            return FEDformer(blocks, rng), sizes
        case _:
            return Transformer(sizes, sparse=name == "Informer"), sizes


MODELS = ("FEDformer-f", "FEDformer-w", "Autoformer", "Informer", "Transformer")


def model_cost(name: str, horizon: int) -> list[float]:
    """Process time of a forward pass (s) and bytes it keeps for the backward pass, batch 2."""
    model, sizes = model_of(name, horizon)
    length = sizes.label_len + sizes.pred_len
    shapes = ((sizes.seq_len, sizes.variates), (sizes.seq_len, 4), (length, sizes.variates), (length, 4))
    inputs = [torch.randn(BATCH, *shape) for shape in shapes]
    kept = kept_bytes(model.train(), inputs)
    with torch.no_grad():
        seconds = _fastest(lambda: model.eval()(*inputs))
    return [seconds, kept]


def kept_bytes(model: nn.Module, inputs: list[Tensor]) -> float:
    """Bytes of the distinct storages, parameters aside, that autograd keeps after a forward pass."""
    storages: dict[int, int] = {}
    owned = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(*inputs).sum()
    return float(sum(storages.values()))


def slope(lengths: tuple[int, ...], values: list[float]) -> float:
    """Of the straight line through the points in a log-log plot."""
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def _fastest(work: Callable[[], object]) -> float:
    torch.set_num_threads(1)
    work()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)
