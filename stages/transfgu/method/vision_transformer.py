"""The vision transformer of DINO (Caron et al., ICCV 2021), as an encoder that shows its attention.

Shapes: B batch, n = h w patches (grid h x w), N = 1 + n tokens, D width, H heads.
"""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.transfgu.method.transformer_block import Block

EPS = 1e-6
RESIZE_OFFSET = 0.1  # of DINO's position resize: guards against rounding, and shifts the sampling points


class PatchEmbedding(nn.Module):
    """A convolution whose kernel is its stride."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, n, D]`."""
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Class token, learned positions, pre-norm blocks, a final norm.

    `native` is the patch grid's side that the positions were learned at. `forward` gives the class token's feature.
    """

    def __init__(
        self, patch: int, width: int, depth: int, heads: int, native: int, layer_scale: bool = False
    ) -> None:
        super().__init__()
        self.patch, self.width, self.native = patch, width, native
        self.patch_embed = PatchEmbedding(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + native**2, width))
        self.blocks = nn.ModuleList(Block(width, heads, EPS, layer_scale=layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPS)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.apply(_initialise)

    def positions(self, h: int, w: int) -> Tensor:
        """Position table `[1, 1 + h w, D]` of a grid, resized bicubically as DINO does."""
        if h == w == self.native:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].view(1, self.native, self.native, -1).permute(0, 3, 1, 2)
        scale = ((h + RESIZE_OFFSET) / self.native, (w + RESIZE_OFFSET) / self.native)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def embed(self, x_BCHW: Tensor) -> Tensor:
        """Tokens `[B, N, D]` before the first block. Sides that the patch does not divide lose the rest."""
        h, w = x_BCHW.shape[-2] // self.patch, x_BCHW.shape[-1] // self.patch
        patches_BnD = self.patch_embed(x_BCHW)
        return torch.cat([self.cls_token.expand(len(x_BCHW), -1, -1), patches_BnD], 1) + self.positions(h, w)

    def before_last(self, x_BCHW: Tensor) -> Tensor:
        """Tokens `[B, N, D]` that enter the last block."""
        tokens_BND = self.embed(x_BCHW)
        for block in self.blocks[:-1]:
            tokens_BND = block(tokens_BND)
        return tokens_BND

    @overload
    def forward_features(self, x_BCHW: Tensor, return_attention: None = None) -> Tensor: ...
    @overload
    def forward_features(
        self, x_BCHW: Tensor, return_attention: Literal["last", "all"]
    ) -> tuple[Tensor, list[Tensor]]: ...

    def forward_features(
        self, x_BCHW: Tensor, return_attention: Literal["last", "all"] | None = None
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """All tokens after the final norm `[B, N, D]`; if asked, softmaxed attentions `[B, H, N, N]` by block."""
        tokens_BND = self.embed(x_BCHW)
        attentions: list[Tensor] = []
        for number, block in enumerate(self.blocks, 1):
            if return_attention == "all" or (return_attention == "last" and number == len(self.blocks)):
                assert isinstance(block, Block)
                tokens_BND, attention_BHNN = block.with_attention(tokens_BND)
                attentions.append(attention_BHNN)
            else:
                tokens_BND = block(tokens_BND)
        tokens_BND = self.norm(tokens_BND)
        return tokens_BND if return_attention is None else (tokens_BND, attentions)

    def class_attention(self, x_BCHW: Tensor) -> Tensor:
        """Head mean of the last block's attention from the class token to the patches, `[B, n]`."""
        block = self.blocks[-1]
        assert isinstance(block, Block)
        q_BHNd, k_BHNd, _ = block.attn.query_key_value(block.norm1(self.before_last(x_BCHW)))
        return block.attn.probabilities(q_BHNd[:, :, :1], k_BHNd)[:, :, 0, 1:].mean(1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Class token after the final norm, `[B, D]`."""
        return self.forward_features(x_BCHW)[:, 0]


def attention_rollout(attentions: list[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema, ACL 2020): how much each patch reaches the class token, `[B, n]`.

    Half head mean, half identity, rows normalised, multiplied over the blocks.
    """
    rollout_BNN: Tensor | None = None
    for attention_BHNN in attentions:
        mean_BNN = attention_BHNN.mean(1)
        step_BNN = 0.5 * mean_BNN + 0.5 * torch.eye(mean_BNN.shape[-1], device=mean_BNN.device)
        step_BNN = step_BNN / step_BNN.sum(-1, keepdim=True)
        rollout_BNN = step_BNN if rollout_BNN is None else step_BNN @ rollout_BNN
    if rollout_BNN is None:
        raise ValueError("attention_rollout: no attention given")
    return rollout_BNN[:, 0, 1:]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
