"""A structure as a network, with the module names of the authors' checkpoints (card, section 1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stages.zendet.method.structure import DIVISOR, BlockSpec, Structure, has_shortcut, stage_ends


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, and a ReLU if asked for."""

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu = relu

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`[B, cin, H, W]` to `[B, cout, H / stride, W / stride]`."""
        y_BCHW = self.bn1(self.conv1(x_BCHW))
        return y_BCHW.relu_() if self.relu else y_BCHW


class Bottleneck(nn.Module):
    """1x1, k x k, 1x1 and a shortcut (K1DWK1 has none where channels change); a ReLU at the end in any case."""

    def __init__(self, block: BlockSpec, first: bool) -> None:
        super().__init__()
        cin, stride = (block.cin, block.stride) if first else (block.cout, 1)
        groups = block.mid if block.kind == "k1dwk1" else 1
        self.conv1 = ConvBN(cin, block.mid, 1)
        self.conv2 = ConvBN(block.mid, block.mid, block.kernel, stride, groups)
        self.conv3 = ConvBN(block.mid, block.cout, 1, relu=False)
        self.shortcut = has_shortcut(block, first)
        self.pool = nn.AvgPool2d(2) if stride == 2 else None
        self.residual_proj = (
            ConvBN(cin, block.cout, 1, relu=False) if block.kind == "k1kxk1" and first else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`[B, cin, H, W]` to `[B, cout, H / stride, W / stride]`."""
        y_BCHW = self.conv3(self.conv2(self.conv1(x_BCHW)))
        if self.shortcut:
            x_BCHW = x_BCHW if self.pool is None else self.pool(x_BCHW)
            y_BCHW = y_BCHW + (x_BCHW if self.residual_proj is None else self.residual_proj(x_BCHW))
        return y_BCHW.relu_()


class SuperBlock(nn.Module):
    """Bottlenecks in a row."""

    def __init__(self, block: BlockSpec) -> None:
        super().__init__()
        self.block_list = nn.Sequential(*(Bottleneck(block, j == 0) for j in range(block.depth)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`[B, cin, H, W]` to `[B, cout, H / stride, W / stride]`."""
        y_BCHW: Tensor = self.block_list(x_BCHW)
        return y_BCHW


class MasterNet(nn.Module):
    """A backbone: images to the features of some of its stages (0 is C1, the stem's).

    Convolutions start Kaiming-normal (fan-out), norms at 1; with `zero_residual` the last norm of every residual
    branch starts at 0, so that a deep network moves within a short schedule.
    """

    def __init__(
        self, structure: Structure, out_indices: Sequence[int] = (1, 2, 3, 4), zero_residual: bool = False
    ) -> None:
        super().__init__()
        self.structure, self.out_indices = structure, tuple(out_indices)
        ends = stage_ends(structure)
        if not set(out_indices) <= set(range(len(ends))):
            raise ValueError(f"out_indices {tuple(out_indices)}: must be among 0 .. {len(ends) - 1}")
        self.out_blocks = [ends[index] for index in out_indices]
        self.out_channels = [structure[end].cout for end in self.out_blocks]
        self.block_list = nn.ModuleList(
            ConvBN(b.cin, b.cout, b.kernel, b.stride) if b.kind == "conv" else SuperBlock(b)
            for b in structure
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_residual and isinstance(module, Bottleneck) and module.shortcut:
                nn.init.zeros_(module.conv3.bn1.weight)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Images `[B, 3, H, W]` to features `[B, C_i, H / 2^(i+1), W / 2^(i+1)]` of the stages asked for.

        Raises:
            ValueError: a side is not a multiple of 32 (shortcuts floor where convolutions ceil).
        """
        if not torch.jit.is_tracing() and (x_BCHW.shape[-2] % DIVISOR or x_BCHW.shape[-1] % DIVISOR):
            raise ValueError(f"image {tuple(x_BCHW.shape[-2:])}: sides must be multiples of {DIVISOR}")
        features = []
        for index, block in enumerate(self.block_list):
            x_BCHW = block(x_BCHW)
            if index in self.out_blocks:
                features.append(x_BCHW)
        return features

    def from_official(self, state_dict: Mapping[str, Tensor]) -> "MasterNet":
        """Load a state dict whose names are the authors', in place; returns the network.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        own = self.state_dict()
        needed = {name for name in own if not name.endswith("num_batches_tracked")}
        missing, left = sorted(needed - set(state_dict)), sorted(set(state_dict) - set(own))
        if missing or left:
            raise ValueError(f"not this backbone: missing {missing[:3]}, left over {left[:3]}")
        for name in sorted(needed):
            if own[name].shape != state_dict[name].shape:
                raise ValueError(
                    f"not this backbone: {name} is {tuple(state_dict[name].shape)}, must be {tuple(own[name].shape)}"
                )
        self.load_state_dict(dict(state_dict), strict=False)
        return self
