"""ELSA-VOLO D1 to D5: VOLO with an ELSA block in the place of each Outlooker of its first stage.

The authors released neither code nor weights: **the configuration is reconstructed** (kernel 5, group width 8,
lambda = gamma = 1, heads as VOLO's; card, "ELSA-VOLO"), and all of it is an argument.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.elsa.method.block import MLP, Block, drop_path_rates, elsa_block
from stages.elsa.method.swin import initialise


class Stem(nn.Module):
    """Images to patches of 8 x 8: three convolutions at half size, then one of stride `patch_size / 2`."""

    def __init__(self, hidden: int, dim: int, patch_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, kernel, stride in ((3, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
            layers += [nn.Conv2d(channels, hidden, kernel, stride, kernel // 2, bias=False)]
            layers += [nn.BatchNorm2d(hidden), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.proj = nn.Conv2d(hidden, dim, patch_size // 2, patch_size // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """`[B, h, w, C]`."""
        return self.proj(self.conv(x_BCHW)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """2 x 2 convolution of stride 2, channels last."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out, 2, 2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Halve the map."""
        return self.proj(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SelfAttention(nn.Module):
    """Attention between all pixels of a map, `[B, H, W, C]`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Attend globally."""
        q, k, v = self.qkv(x_BHWC.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(out).view_as(x_BHWC)


class ClassAttention(nn.Module):
    """Attention of the class token (the first of `[B, N, C]`) to all tokens; `[B, 1, C]`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv, self.q = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Gather into the class token."""
        k, v = self.kv(x_BNC).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.q(x_BNC[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ClassBlock(nn.Module):
    """Updates the class token only."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), ClassAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), MLP(dim, mlp_ratio)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """`[B, N, C]`."""
        cls_B1C = x_BNC[:, :1] + self.attn(self.norm1(x_BNC))
        cls_B1C = cls_B1C + self.mlp(self.norm2(cls_B1C))
        return torch.cat([cls_B1C, x_BNC[:, 1:]], 1)


class ELSAVOLO(nn.Module):
    """Classifier, `[B, 3, H, W]` to `[B, classes]`: class logits plus half the largest token logits.

    Args:
        layers: blocks of the ELSA stage and of the three stages of plain transformers.
        embed_dims, num_heads: of the ELSA stage and of the others.
        drop_path: of the last block; none in the first stage, as in VOLO's code.
    """

    def __init__(
        self,
        layers: Sequence[int],
        embed_dims: tuple[int, int],
        num_heads: tuple[int, int],
        mlp_ratio: float = 3.0,
        stem_hidden_dim: int = 64,
        patch_size: int = 8,
        img_size: int = 224,
        num_classes: int = 1000,
        kernel_size: int = 5,
        group_width: int = 8,
        dim_qk: int | None = None,
        lam: float = 1.0,
        gamma: float = 1.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        (local, dim), (local_heads, heads) = embed_dims, num_heads
        rates = drop_path_rates(drop_path, sum(layers))
        self.patch_embed = Stem(stem_hidden_dim, local, patch_size)
        elsa = [
            elsa_block(local, kernel_size, local_heads, mlp_ratio,
                       group_width=group_width, dim_qk=dim_qk, lam=lam, gamma=gamma)  # type: ignore[arg-type]
            for _ in range(layers[0])
        ]  # fmt: skip
        network: list[nn.Module] = [nn.Sequential(*elsa), Downsample(local, dim)]
        done = layers[0]
        for depth in layers[1:]:
            blocks = [
                Block(dim, SelfAttention(dim, heads), mlp_ratio, rates[done + number])
                for number in range(depth)
            ]
            network.append(nn.Sequential(*blocks))
            done += depth
        self.network = nn.ModuleList(network)
        side = img_size // patch_size // 2
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, side, side, dim), std=0.02))
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.post_network = nn.ModuleList([ClassBlock(dim, heads, mlp_ratio) for _ in range(2)])
        self.norm = nn.LayerNorm(dim)
        self.head, self.aux_head = nn.Linear(dim, num_classes), nn.Linear(dim, num_classes)
        self.apply(initialise)

    def tokens(self, x_BCHW: Tensor) -> Tensor:
        """What the stages make of an image, `[B, N, C]`."""
        x_BHWC = self.network[1](self.network[0](self.patch_embed(x_BCHW))) + self.pos_embed
        for stage in self.network[2:]:
            x_BHWC = stage(x_BHWC)
        return x_BHWC.flatten(1, 2)

    def logits(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Of the image `[B, classes]` and of each token `[B, N, classes]`, for `token_label_loss`."""
        x_BNC = self.tokens(x_BCHW)
        x_BNC = torch.cat([self.cls_token.expand(len(x_BNC), -1, -1), x_BNC], 1)
        for block in self.post_network:
            x_BNC = block(x_BNC)
        x_BNC = self.norm(x_BNC)
        return self.head(x_BNC[:, 0]), self.aux_head(x_BNC[:, 1:])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits."""
        image, token = self.logits(x_BCHW)
        return image + 0.5 * token.amax(1)


def token_label_loss(
    logits: tuple[Tensor, Tensor], target_BK: Tensor, token_target_BNK: Tensor, weight: float = 0.5
) -> Tensor:
    """Soft cross-entropy of the image, plus `weight` times that of the tokens (token labelling)."""
    image, token = logits
    loss = -(target_BK * image.log_softmax(-1)).sum(-1).mean()
    return loss + weight * -(token_target_BNK * token.log_softmax(-1)).sum(-1).mean()


def elsa_volo_d1(**options: float) -> ELSAVOLO:
    """26.7 M parameters (configuration reconstructed)."""
    return ELSAVOLO((4, 4, 8, 2), (192, 384), (6, 12), **options)  # type: ignore[arg-type]


def elsa_volo_d2(**options: float) -> ELSAVOLO:
    """58.7 M parameters (configuration reconstructed)."""
    return ELSAVOLO((6, 4, 10, 4), (256, 512), (8, 16), **options)  # type: ignore[arg-type]


def elsa_volo_d3(**options: float) -> ELSAVOLO:
    """86.4 M parameters (configuration reconstructed)."""
    return ELSAVOLO((8, 8, 16, 4), (256, 512), (8, 16), **options)  # type: ignore[arg-type]


def elsa_volo_d4(**options: float) -> ELSAVOLO:
    """192.7 M parameters (configuration reconstructed)."""
    return ELSAVOLO((8, 8, 16, 4), (384, 768), (12, 16), **options)  # type: ignore[arg-type]


def elsa_volo_d5(**options: float) -> ELSAVOLO:
    """295.1 M parameters (configuration reconstructed)."""
    return ELSAVOLO(
        (12, 12, 20, 4), (384, 768), (12, 16), **{"mlp_ratio": 4, "stem_hidden_dim": 128, **options}  # type: ignore[arg-type]
    )  # fmt: skip
