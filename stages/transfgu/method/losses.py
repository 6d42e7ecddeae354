"""Mixed pseudo labels and the three losses of a training step.

Shapes: B batch, K things and stuff, C channels (K, or 1 + K where channel 0 is background), h x w grid.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

IGNORE = -100  # a patch without pseudo evidence and without a teacher
BACKGROUND_SCORE = 0.1  # so background wins where every map is below 0.05
ALPHA_FIRST, ALPHA_STEP, ALPHA_LAST = 0.03, 0.01, 0.1
UNCERTAINTY_WEIGHT, EMBEDDING_WEIGHT = 0.3, 1.0


def normalise_maps(maps_BKhw: Tensor) -> Tensor:
    """Each image's maps moved to [0, 1] over all concepts and patches; 0 everywhere where they are constant."""
    low = maps_BKhw.amin((1, 2, 3), keepdim=True)
    span = maps_BKhw.amax((1, 2, 3), keepdim=True) - low
    return torch.where(span > 0, (maps_BKhw - low) / torch.where(span > 0, span, 1.0), 0.0)


def mix_pseudo_labels(
    maps_BKhw: Tensor, teacher_BChw: Tensor | None, background: bool
) -> tuple[Tensor, Tensor]:
    """Scores S `[B, C, h, w]` and their argmax y `[B, h, w]` (lowest channel on ties).

    S is half the teacher's softmax and half the normalised maps, or the maps alone. Images with constant maps take
    the teacher's label, or IGNORE without one.
    """
    scores = normalise_maps(maps_BKhw)
    if background:
        beta = (BACKGROUND_SCORE - scores.amax(1, keepdim=True)).clamp(min=0)
        scores = torch.cat([beta, scores], 1)
    constant_B = maps_BKhw.flatten(1).amax(1) == maps_BKhw.flatten(1).amin(1)
    if teacher_BChw is None:
        labels = scores.argmax(1)
        return scores, torch.where(constant_B[:, None, None], IGNORE, labels)
    teacher = teacher_BChw.softmax(1)
    scores = torch.where(constant_B[:, None, None, None], teacher, 0.5 * teacher + 0.5 * scores)
    return scores, scores.argmax(1)


def negative_weight(epochs_since_restart: int) -> float:
    """Alpha: .03, .04 ... .1, then .1."""
    return min(ALPHA_LAST, ALPHA_FIRST + ALPHA_STEP * epochs_since_restart)


def draw_permutation(channels: int, generator: Generator) -> Tensor:
    """The one random permutation of the channels that a batch's negative labels come from."""
    return torch.randperm(channels, generator=generator)


def bootstrap_loss(
    logits_BChw: Tensor, labels_Bhw: Tensor, alpha: float = 0.0, permutation_C: Tensor | None = None
) -> Tensor:
    """L_cat per patch `[B, h, w]`: CE(z, y) - alpha CE(z, y'), y' the label's place in the permutation.

    Without a permutation it is cross-entropy alone. Ignored patches give 0.
    """
    known_B1hw = (labels_Bhw != IGNORE)[:, None]
    label_B1hw = labels_Bhw[:, None].clamp(min=0)
    log_p_BChw = logits_BChw.log_softmax(1)  # one softmax for both terms
    loss_B1hw = -log_p_BChw.gather(1, label_B1hw)
    if permutation_C is not None:
        place_C = permutation_C.argsort().to(labels_Bhw.device)
        loss_B1hw = loss_B1hw + alpha * log_p_BChw.gather(1, place_C[label_B1hw])
    return torch.where(known_B1hw, loss_B1hw, 0.0)[:, 0]


def uncertainty_loss(logits_BChw: Tensor, maps_BKhw: Tensor, background: bool) -> Tensor:
    """L_unc: 1 - (best - second) of the softmax, per patch `[B, h, w]`; 0 with a single channel.

    With a background channel: over the foreground channels, and one number, the mean over patches whose best
    normalised map is above 0.1 (0 when there is none).
    """
    foreground = logits_BChw[:, 1:] if background else logits_BChw
    if foreground.shape[1] < 2:
        return logits_BChw.new_zeros(()) if background else torch.zeros_like(logits_BChw[:, 0])
    best = foreground.softmax(1).topk(2, 1).values
    loss_Bhw = 1 - (best[:, 0] - best[:, 1])
    if not background:
        return loss_Bhw
    sure_Bhw = normalise_maps(maps_BKhw).amax(1) > BACKGROUND_SCORE
    return (loss_Bhw * sure_Bhw).sum() / sure_Bhw.sum().clamp(min=1)


def class_embedding_loss(embeddings_BCd: Tensor) -> Tensor:
    """L_emb: mean over pairs of classes and images of 1 + cos(e_i, e_j)."""
    return (
        class_embedding_pairs(embeddings_BCd).mean()
        if embeddings_BCd.shape[1] > 1
        else embeddings_BCd.sum() * 0
    )


def class_embedding_pairs(embeddings_BCd: Tensor) -> Tensor:
    """1 + cos of each pair i < j, `[B, pairs]`."""
    unit = F.normalize(embeddings_BCd, dim=-1)
    classes = unit.shape[1]
    first, second = torch.triu_indices(classes, classes, 1, device=unit.device)
    return 1 + (unit @ unit.mT)[:, first, second]


@dataclass(frozen=True)
class Terms:
    """Which parts of the method a row of the ablation has, in the order in which they are added."""

    teacher: bool = True
    negative: bool = True
    uncertainty: bool = True
    embedding: bool = True


def segmentation_loss(
    logits_BChw: Tensor,
    embeddings_BCd: Tensor,
    maps_BKhw: Tensor,
    teacher_BChw: Tensor | None,
    epochs_since_restart: int,
    permutation_C: Tensor,
    background: bool,
    terms: Terms,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total = L_cat + 0.3 L_unc + L_emb, and its parts before weighting.

    Maps of another grid are resized bilinearly.
    """
    if maps_BKhw.shape[-2:] != logits_BChw.shape[-2:]:
        maps_BKhw = F.interpolate(maps_BKhw, logits_BChw.shape[-2:], mode="bilinear")
    _, labels_Bhw = mix_pseudo_labels(maps_BKhw, teacher_BChw, background)
    negative = terms.negative and teacher_BChw is not None
    alpha = negative_weight(epochs_since_restart)
    category = bootstrap_loss(logits_BChw, labels_Bhw, alpha, permutation_C if negative else None).mean()
    parts = {"cat": category}
    total = category
    if terms.uncertainty:
        parts["unc"] = uncertainty_loss(logits_BChw, maps_BKhw, background).mean()
        total = total + UNCERTAINTY_WEIGHT * parts["unc"]
    if terms.embedding:
        parts["emb"] = class_embedding_loss(embeddings_BCd)
        total = total + EMBEDDING_WEIGHT * parts["emb"]
    return total, parts
