"""Multiply-adds and parameters of a network, counted without computing anything.

Counted: convolutions, linear layers, both products of attention, and one multiply-add a tap, channel and pixel where
filters are applied. Norms, activations and softmax are not.
"""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stages.elsa.method.attention import ELSAAttention
from stages.elsa.method.mixers import DDF, DynamicFilter, Involution, NeighborhoodAttention, WindowAttention
from stages.elsa.method.volo import ClassAttention, SelfAttention


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(build: Callable[[], nn.Module], size: int) -> Counter[str]:
    """Multiply-adds of one image of `size` x `size` pixels: by kind `conv`, `linear`, `attn`, `op`.

    `build` is called on the meta device, so that neither weights nor activations exist.
    """
    counts: Counter[str] = Counter()

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        match module:
            case nn.Conv2d():
                counts["conv"] += output.numel() * module.weight[0].numel()
            case nn.Linear():
                counts["linear"] += output.numel() * module.in_features
            case ELSAAttention():
                counts["op"] += module.kernel_size**2 * module.dim_v * x.shape[1] * x.shape[2]
            case DynamicFilter() | DDF() | Involution():
                counts["op"] += module.kernel_size**2 * x.numel()
            case NeighborhoodAttention():
                counts["attn"] += 2 * module.kernel_size**2 * x.numel()
            case WindowAttention():
                w = module.window
                tokens = (x.shape[1] + -x.shape[1] % w) * (x.shape[2] + -x.shape[2] % w)
                counts["attn"] += 2 * w * w * tokens * x.shape[3]
            case SelfAttention():
                counts["attn"] += 2 * (x.shape[1] * x.shape[2]) ** 2 * x.shape[3]
            case ClassAttention():
                counts["attn"] += 2 * x.shape[1] * x.shape[2]

    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        for module in model.modules():
            module.register_forward_hook(hook)
        model(torch.empty(1, 3, size, size))
    return counts
