"""The mask-transformer head: class embeddings attend to frozen patch tokens; cosines between both are the masks.

Shapes: B batch, n patches, D encoder width, d head width, K classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.transfgu.method.transformer_block import Block

EPS = 1e-5
ClassInit = Literal["official", "orthogonal"]


class MaskTransformer(nn.Module):
    """Two pre-norm blocks over patches and class embeddings; names are the released files'.

    `class_init` "official" is what the released code does: an orthogonal init of a 1 x K x d tensor, which is one row of
    unit length, so each class embedding has length about K^-0.5 and they are not orthogonal. "orthogonal" makes them so.
    """

    def __init__(
        self,
        n_cls: int,
        d_encoder: int,
        d_model: int,
        n_layers: int = 2,
        n_heads: int = 6,
        dropout: float = 0.1,
        class_init: ClassInit = "official",
    ) -> None:
        super().__init__()
        self.n_cls = n_cls
        self.proj_dec = nn.Linear(d_encoder, d_model)
        self.cls_emb = nn.Parameter(torch.empty(1, n_cls, d_model))
        self.blocks = nn.ModuleList(
            Block(d_model, n_heads, EPS, qkv_bias=False, dropout=dropout) for _ in range(n_layers)
        )
        self.decoder_norm, self.mask_norm = nn.LayerNorm(d_model, EPS), nn.LayerNorm(n_cls, EPS)
        self.proj_patch = nn.Parameter(torch.randn(d_model, d_model) * d_model**-0.5)
        self.proj_classes = nn.Parameter(torch.randn(d_model, d_model) * d_model**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.orthogonal_(self.cls_emb if class_init == "official" else self.cls_emb[0])

    def forward(self, tokens_BnD: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens -> logits `[B, K, n]` and class unit class embeddings `[B, K, d]`."""
        x = self.proj_dec(tokens_BnD)
        x = torch.cat([x, self.cls_emb.expand(len(x), -1, -1)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches_Bnd = F.normalize(x[:, : -self.n_cls] @ self.proj_patch, dim=-1)
        classes_BKd = F.normalize(x[:, -self.n_cls :] @ self.proj_classes, dim=-1)
        return self.mask_norm(patches_Bnd @ classes_BKd.mT).transpose(1, 2), classes_BKd


def adam(head: nn.Module, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Adam with L2 decay on tensors that are neither 1-D nor named bias."""
    named = list(head.named_parameters())
    decayed = [p for name, p in named if p.ndim > 1 and not name.endswith("bias")]
    others = [p for name, p in named if p.ndim <= 1 or name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, lr=lr, foreach=True)


def clamp_gradients(head: nn.Module) -> None:
    """Clamp every gradient entry to [-1, 1]."""
    gradients = [p.grad for p in head.parameters() if p.grad is not None]
    torch._foreach_clamp_min_(gradients, -1.0)
    torch._foreach_clamp_max_(gradients, 1.0)
