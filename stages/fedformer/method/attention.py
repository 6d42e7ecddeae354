"""Attention of the baselines: full, and Informer's ProbSparse (Zhou et al. 2021, arXiv 2012.07436).

Shapes: B batch, L length of queries, S of keys and values, H heads, E head width, U chosen queries, R
    sampled keys.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FullAttention(nn.Module):
    """Softmax attention; `causal` hides later keys from a query."""

    def __init__(self, causal: bool, dropout: float) -> None:
        super().__init__()
        self.causal, self.dropout = causal, dropout

    def forward(self, q_BLHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor) -> Tensor:
        """`[B, L, H, E]`."""
        q, k, v = (x.transpose(1, 2) for x in (q_BLHE, k_BSHE, v_BSHE))
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal).transpose(
            1, 2
        )


class ProbSparseAttention(nn.Module):
    """Attention for the few queries whose scores differ most from uniform; the others get the mean (causal:
    sum) of values.

    How far a query is from uniform is judged on a random sample of keys: new ones at every training step,
    the same ones always in evaluation, so that a model gives one answer.

    Args:
        causal: hide later keys from a query.
        factor: `factor * ceil(log(length))` queries are chosen and keys sampled.
        dropout: of the attention weights.
    """

    def __init__(self, causal: bool, factor: int, dropout: float) -> None:
        super().__init__()
        self.causal, self.factor = causal, factor
        self.dropout = nn.Dropout(dropout)

    def forward(self, q_BLHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor) -> Tensor:
        """`[B, L, H, E]`."""
        q_BHLE, k_BHSE, v_BHSE = (x.transpose(1, 2) for x in (q_BLHE, k_BSHE, v_BSHE))
        length, keys = q_BHLE.shape[2], k_BHSE.shape[2]
        sampled = min(keys, self.factor * math.ceil(math.log(keys)))
        chosen = min(length, self.factor * math.ceil(math.log(length)))
        generator = None if self.training else torch.Generator().manual_seed(0)
        sample_LR = torch.randint(keys, (length, sampled), generator=generator).to(q_BHLE.device)
        with torch.no_grad():  # it only ranks
            score_BHLR = torch.einsum("bhle,bhlre->bhlr", q_BHLE, k_BHSE[:, :, sample_LR])
            spread_BHL = score_BHLR.amax(-1) - score_BHLR.sum(-1) / keys
            top_BHU = spread_BHL.topk(chosen, sorted=False).indices
        top_BHUE = top_BHU[..., None].expand(-1, -1, -1, q_BHLE.shape[3])
        score_BHUS = q_BHLE.gather(2, top_BHUE) @ k_BHSE.transpose(-1, -2) / math.sqrt(q_BHLE.shape[3])
        if self.causal:
            later_BHUS = torch.arange(keys, device=q_BHLE.device) > top_BHU[..., None]
            score_BHUS = score_BHUS.masked_fill(later_BHUS, -math.inf)
            rest_BHLE = v_BHSE.cumsum(2)
        else:
            rest_BHLE = v_BHSE.mean(2, keepdim=True).expand(-1, -1, length, -1)
        context_BHUE = self.dropout(score_BHUS.softmax(-1)) @ v_BHSE
        return rest_BHLE.scatter(2, top_BHUE, context_BHUE).transpose(1, 2)
