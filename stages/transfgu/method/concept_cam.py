"""Concepts projected back onto pixels: the CAM of TransFGU, in closed form and by autograd.

A concept owns a patch if attending to it would bring the class token nearer to the concept's centroid. The map of
concept k is the class token's attention where k owns a patch, plus a bonus (-gradient) that breaks ties between owners.

Shapes: B images, K concepts, h x w grid, n = h w, N = 1 + n, D width, H heads.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.transfgu.method.transformer_block import Block
from stages.transfgu.method.vision_transformer import VisionTransformer, attention_rollout

CamMethod = Literal["closed_form", "autograd"]
CamVariant = Literal["transfgu", "attention", "rollout", "gradient", "gradient-attention"]
CAM_VARIANTS: tuple[CamVariant, ...] = get_args(CamVariant)


@dataclass(frozen=True)
class CamParts:
    """What a map is made of: the class token's head-mean attention `[B, n]` and signed gradients `[B, K, n]`."""

    attention_Bn: Tensor
    gradient_BKn: Tensor


def concept_cam(
    model: VisionTransformer,
    x_BCHW: Tensor,
    centroids_KD: Tensor,
    keep: float = 0.8,
    cam_batch_size: int = 8,
    method: CamMethod = "closed_form",
) -> Tensor:
    """Maps `[B, K, h, w]` of the concepts, in float32.

    The released code averages its loss over the batch, so its gradients, and with them the weight of the bonus, shrink
    with the batch. `cam_batch_size` is that batch, whatever B is here. `keep` is the share of the bonus' mass kept.
    """
    h, w = x_BCHW.shape[-2] // model.patch, x_BCHW.shape[-1] // model.patch
    parts = cam_parts(model, x_BCHW, centroids_KD, cam_batch_size, method)
    return combine(parts, keep).view(len(x_BCHW), -1, h, w)


def cam_parts(
    model: VisionTransformer,
    x_BCHW: Tensor,
    centroids_KD: Tensor,
    cam_batch_size: int = 8,
    method: CamMethod = "closed_form",
) -> CamParts:
    """Attention and gradients of the images; in float32 even where autocast is on."""
    with torch.autocast(x_BCHW.device.type, enabled=False):
        if method == "closed_form":
            return _closed_form(model, x_BCHW.float(), centroids_KD, cam_batch_size)
        return _autograd(model, x_BCHW.float(), centroids_KD, cam_batch_size)


def combine(parts: CamParts, keep: float = 0.8) -> Tensor:
    """Maps `[B, K, n]`: attention (its maximum 1) plus the kept bonus, 0 where the gradient is positive."""
    attention_B1n = normalised_attention(parts.attention_Bn)[:, None]
    bonus_BKn = kept_bonus(parts.gradient_BKn, keep)
    return torch.where(parts.gradient_BKn > 0, 0.0, attention_B1n + bonus_BKn)


def normalised_attention(attention_Bn: Tensor) -> Tensor:
    """Each image's attention over its own maximum."""
    return attention_Bn / attention_Bn.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def kept_bonus(gradient_BKn: Tensor, keep: float) -> Tensor:
    """max(0, -gradient), entries outside the top `keep` of its mass set to 0."""
    bonus_BKn = (-gradient_BKn).clamp(min=0)
    return torch.where(carries_mass(bonus_BKn, keep), bonus_BKn, 0.0)


def carries_mass(u: Tensor, keep: float) -> Tensor:
    """Mask of the largest entries along the last axis that carry the share `keep` of its sum; none if that is 0."""
    ascending, order = u.sort(dim=-1)
    total = ascending.sum(-1, keepdim=True)
    cumulative = (ascending / total.clamp(min=torch.finfo(u.dtype).tiny)).cumsum(-1)
    mask = torch.zeros_like(u, dtype=torch.bool).scatter(-1, order, cumulative > 1 - keep)
    return mask & (total > 0)


def cam_variant(
    variant: CamVariant,
    model: VisionTransformer,
    x_BCHW: Tensor,
    centroids_KD: Tensor,
    cam_batch_size: int = 8,
) -> Tensor:
    """The map of an ablation row, `[B, K, n]`.

    `attention` and `rollout` weigh an owned patch without a bonus, `gradient` is the bonus alone, `gradient-attention`
    the classic product of the two.
    """
    parts = cam_parts(model, x_BCHW, centroids_KD, cam_batch_size)
    attention_B1n = normalised_attention(parts.attention_Bn)[:, None]
    owned_BKn = parts.gradient_BKn <= 0
    match variant:
        case "transfgu":
            return combine(parts)
        case "attention":
            return attention_B1n * owned_BKn
        case "rollout":
            with torch.inference_mode():
                _, attentions = model.forward_features(x_BCHW, "all")
                rollout_B1n = normalised_attention(attention_rollout(attentions))[:, None]
            return rollout_B1n * owned_BKn
        case "gradient":
            return (-parts.gradient_BKn).clamp(min=0)
        case "gradient-attention":
            return (-parts.gradient_BKn * attention_B1n).clamp(min=0)


def _closed_form(
    model: VisionTransformer, x_BCHW: Tensor, centroids_KD: Tensor, cam_batch_size: int
) -> CamParts:
    """Only the class token's row of the last attention reaches its feature, so one small backward serves all concepts.

    With y the class token after the attention residual and v_k the gradient of 1 - cos(f, c_k) at y (through MLP and
    norm, for K copies of one token), the gradient for patch j is the head mean of <(v_k W_o) of that head, V_j>.
    """
    block = model.blocks[-1]
    assert isinstance(block, Block)
    with torch.no_grad():
        tokens_BND = model.before_last(x_BCHW)
        normed_BND = block.norm1(tokens_BND)
        q_BHNd, k_BHNd, v_BHNd = block.attn.query_key_value(normed_BND)
        attention_BH1N = block.attn.probabilities(q_BHNd[:, :, :1], k_BHNd)
        y_B1D = tokens_BND[:, :1] + block.ls1(block.attn.combine(attention_BH1N, v_BHNd))
    with torch.enable_grad():
        y_BKD = y_B1D.expand(-1, len(centroids_KD), -1).detach().requires_grad_()
        feature_BKD = model.norm(block.after_attention(y_BKD))
        similarity_BK = F.cosine_similarity(feature_BKD, centroids_KD.to(x_BCHW.device)[None], dim=-1)
        (slope_BKD,) = torch.autograd.grad(-similarity_BK.sum(), y_BKD)
    with torch.no_grad():
        scale = block.ls1(torch.ones_like(y_B1D))
        projected_BKD = slope_BKD * scale @ block.attn.proj.weight
        values_BnD = v_BHNd[:, :, 1:].transpose(1, 2).flatten(2)
        gradient_BKn = projected_BKD @ values_BnD.mT / (block.attn.heads * cam_batch_size)
    return CamParts(attention_BH1N[:, :, 0, 1:].mean(1), gradient_BKn)


def _autograd(
    model: VisionTransformer, x_BCHW: Tensor, centroids_KD: Tensor, cam_batch_size: int
) -> CamParts:
    """As the released code does it: one backward pass through the whole encoder per concept."""
    with torch.enable_grad():
        tokens_BND, attentions = model.forward_features(x_BCHW, "last")
        attention_BHNN = attentions[0]
        attention_BHNN.retain_grad()
        gradients: list[Tensor] = []
        for centroid_D in centroids_KD.to(x_BCHW.device):
            attention_BHNN.grad = None
            similarity_B = F.cosine_similarity(tokens_BND[:, 0], centroid_D[None], dim=-1)
            (-similarity_B.sum() / cam_batch_size).backward(retain_graph=True)
            assert attention_BHNN.grad is not None
            gradients.append(attention_BHNN.grad[:, :, 0, 1:].mean(1))
    model.zero_grad(set_to_none=True)
    return CamParts(attention_BHNN[:, :, 0, 1:].mean(1).detach(), torch.stack(gradients, 1))
