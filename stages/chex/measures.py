"""What is counted of a network by means that know nothing of ours, and what its speed depends on."""

import hashlib

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_LAYERS = (
    torch.ops.aten.convolution,
    torch.ops.aten.addmm,
    torch.ops.aten.mm,
)  # products of activations left out


@torch.no_grad()
def torch_macs(network: nn.Module, example: Tensor) -> float:
    """Multiply-accumulates of the layers in one forward pass, by torch's own counter (it leaves biases out)."""
    with FlopCounterMode(display=False) as counter:
        network(example)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(counts.get(operation, 0) for operation in _LAYERS) / 2


def structure_key(network: nn.Module) -> str:
    """Digest of what a network's speed depends on: the names and shapes of its parameters."""
    shapes = [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]
