"""ATSS: which anchors are positive, from the statistics of each object's own candidates (Zhang et al., CVPR 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

TOPK = 9
INSIDE = 0.01  # pixels that an anchor's centre must be inside its box


def grid_anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> list[Tensor]:
    """One square anchor of side 8 strides per cell, `[H W, 4]` per level, centred on the cell's top left corner."""
    anchors = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device) * stride,
            torch.arange(width, device=device) * stride,
            indexing="ij",
        )
        centre = torch.stack([x, y], -1).flatten(0, 1).float()
        anchors.append(torch.cat([centre - 4 * stride, centre + 4 * stride], 1))
    return anchors


def centres(box_N4: Tensor) -> Tensor:
    """Centres (x, y) of boxes, `[N, 2]`."""
    return (box_N4[:, :2] + box_N4[:, 2:]) / 2


def assign(anchors: Sequence[Tensor], box_G4: Tensor, topk: int = TOPK) -> Tensor:
    """The object of every anchor of all levels, `[N]`, -1 for background.

    Candidates of an object are the `topk` anchors per level with the nearest centres; positive are those whose IoU
    reaches mean + standard deviation over the candidates and whose centre is inside the box. An anchor that two objects
    claim goes to the higher IoU.
    """
    anchor_N4 = torch.cat(list(anchors))
    objects = len(box_G4)
    if objects == 0:
        return torch.full((len(anchor_N4),), -1, device=anchor_N4.device)
    iou_NG = box_iou(anchor_N4, box_G4)
    distance_NG = torch.cdist(
        centres(anchor_N4), centres(box_G4), compute_mode="donot_use_mm_for_euclid_dist"
    )
    picked, start = [], 0
    for level in anchors:
        part = distance_NG[start : start + len(level)]
        picked.append(part.topk(min(topk, len(level)), dim=0, largest=False).indices + start)
        start += len(level)
    candidate_CG = torch.cat(picked)
    candidate_iou_CG = iou_NG.gather(0, candidate_CG)
    threshold_G = candidate_iou_CG.mean(0) + candidate_iou_CG.std(0)
    centre_C_G2 = centres(anchor_N4)[candidate_CG]
    inside_CG = torch.cat([centre_C_G2 - box_G4[:, :2], box_G4[:, 2:] - centre_C_G2], -1).amin(-1) > INSIDE
    positive_CG = (candidate_iou_CG >= threshold_G) & inside_CG
    claim_NG = torch.full_like(iou_NG, -1.0)
    claim_NG.scatter_(0, candidate_CG, torch.where(positive_CG, candidate_iou_CG, -1.0))
    best_N, owner_N = claim_NG.max(1)
    return torch.where(best_N >= 0, owner_N, -1)
