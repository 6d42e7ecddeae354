"""What every block that stands in for attention has in common."""

from torch import nn


class Block(nn.Module):
    """Takes queries, keys and values `[B, L, H, E]`; those that `reads` does not name come as None."""

    reads: tuple[str, ...]
