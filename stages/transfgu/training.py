"""The training loop of the head: frozen tokens, pseudo maps, restarts with the last head as teacher.

Draws depend on (seed, step) alone, so that a checkpoint resumes to the same bytes.
"""

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog
from stages.transfgu.data import Images
from stages.transfgu.maps import PseudoMaps
from stages.transfgu.method.augment import PseudoLabelAugment, normalise
from stages.transfgu.method.losses import Terms, draw_permutation, segmentation_loss
from stages.transfgu.method.mask_transformer import MaskTransformer, adam, clamp_gradients
from stages.transfgu.method.restarts import RestartSchedule
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.params import Train

CHECKPOINT_SECONDS = 60.0
ENCODE_BATCH = 64
Batch = tuple[Tensor, Tensor]


@torch.inference_mode()
def patch_tokens(model: VisionTransformer, x_BCHW: Tensor) -> Tensor:
    """Patch tokens on their grid, `[B, D, h, w]`."""
    grid = x_BCHW.shape[-2] // model.patch, x_BCHW.shape[-1] // model.patch
    parts = [model.forward_features(part)[:, 1:] for part in x_BCHW.split(ENCODE_BATCH)]
    return torch.cat(parts).transpose(1, 2).unflatten(-1, grid)


@dataclass
class TokenCrops:
    """Half-size crops at random places of tokens that are computed once: an epoch costs the head alone."""

    tokens_NDhw: Tensor
    maps: PseudoMaps

    def __len__(self) -> int:
        return len(self.tokens_NDhw)

    def batch(self, ids: Tensor, generator: Generator) -> Batch:
        """Tokens `[B, D, h/2, w/2]` and their maps."""
        _, _, h, w = self.tokens_NDhw.shape
        rows, columns = max(1, h // 2), max(1, w // 2)
        top_B = torch.randint(h - rows + 1, (len(ids),), generator=generator)
        left_B = torch.randint(w - columns + 1, (len(ids),), generator=generator)
        y_Bh1 = (top_B[:, None] + torch.arange(rows))[:, :, None]
        x_B1w = (left_B[:, None] + torch.arange(columns))[:, None]
        image_B11 = torch.arange(len(ids))[:, None, None]

        def crop(grid_BChw: Tensor) -> Tensor:
            return grid_BChw.permute(0, 2, 3, 1)[image_B11, y_Bh1, x_B1w].permute(0, 3, 1, 2)

        device = self.tokens_NDhw.device
        return crop(self.tokens_NDhw[ids.to(device)]), crop(self.maps.dense(ids)).to(device)


@dataclass
class ImageCrops:
    """Crops of images as in the paper; each goes through the frozen encoder once, for student and teacher."""

    images: Images
    maps: PseudoMaps
    model: VisionTransformer
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, ids: Tensor, generator: Generator) -> Batch:
        """Tokens `[B, D, h/2, w/2]` and their maps."""
        device = next(self.model.parameters()).device
        x_BCHW = self.images.read(ids.tolist(), self.size).to(device)
        augment = PseudoLabelAugment(self.model.patch)
        crops_BCHW, maps_BKhw = augment(x_BCHW, self.maps.dense(ids).to(device), generator)
        return patch_tokens(self.model, crops_BCHW).clone(), maps_BKhw


def training_crops(
    recipe: Train, images: Images, maps: PseudoMaps, model: VisionTransformer, size: tuple[int, int]
) -> TokenCrops | ImageCrops:
    """What the head trains on."""
    if recipe.augment == "images":
        return ImageCrops(images, maps, model, size)
    device = next(model.parameters()).device
    ids = range(len(images))
    parts = [
        patch_tokens(model, normalise(images.read(list(ids[first : first + ENCODE_BATCH]), size).to(device)))
        for first in range(0, len(images), ENCODE_BATCH)
    ]
    return TokenCrops(torch.cat(parts).clone(), maps)


def new_head(recipe: Train, n_cls: int, width: int, seed: int) -> MaskTransformer:
    """An untrained head; the same for every row of a seed."""
    torch.manual_seed(seed)
    return MaskTransformer(
        n_cls, width, recipe.width, recipe.layers, recipe.heads, recipe.dropout, recipe.class_init
    )


def head_logits(head: MaskTransformer, tokens_BDhw: Tensor) -> tuple[Tensor, Tensor]:
    """Logits on the tokens' grid `[B, C, h, w]` and class embeddings."""
    logits_BCn, embeddings_BCd = head(tokens_BDhw.flatten(2).transpose(1, 2))
    return logits_BCn.unflatten(-1, tokens_BDhw.shape[-2:]), embeddings_BCd


def total_steps(recipe: Train, count: int) -> int:
    """Steps of a training on `count` images."""
    return recipe.epochs * (count * recipe.repeat // recipe.batch)


def train_head(
    head: MaskTransformer,
    crops: TokenCrops | ImageCrops,
    recipe: Train,
    terms: Terms,
    background: bool,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> list[dict[str, float]]:
    """Train `head` in place; returns the losses by epoch.

    A step whose loss is not positive, or not a number, is skipped: L_cat can be negative.
    """
    schedule = RestartSchedule(recipe.start, recipe.intervals)
    first_weights = copy.deepcopy(head.state_dict())
    teacher = copy.deepcopy(head).eval().requires_grad_(False)
    optimizer = adam(head, recipe.lr, recipe.weight_decay)
    per_epoch = len(crops) * recipe.repeat // recipe.batch
    start, history = 0, []
    if saved := checkpoint.load():
        head.load_state_dict(saved["head"])
        teacher.load_state_dict(saved["teacher"])
        optimizer.load_state_dict(saved["optimizer"])
        start, history = int(saved["epoch"]), list(saved["history"])
    saved_at = time.monotonic()
    for epoch in range(start, recipe.epochs):
        if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
            states = {
                "head": head.state_dict(),
                "teacher": teacher.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            checkpoint.save({**states, "epoch": epoch, "history": history})
            saved_at = time.monotonic()
        use_teacher = terms.teacher and schedule.teacher_on(epoch)
        if terms.teacher and schedule.restarts(epoch):
            teacher.load_state_dict(head.state_dict())
            head.load_state_dict(first_weights)
        order = torch.randperm(len(crops) * recipe.repeat, generator=_generator(seed, epoch)) % len(crops)
        head.train()
        sums: dict[str, float] = {}
        for number in range(per_epoch):
            step = epoch * per_epoch + number
            generator = _generator(seed, recipe.epochs + step)
            ids = order[number * recipe.batch : (number + 1) * recipe.batch]
            tokens_BDhw, maps_BKhw = crops.batch(ids, generator)
            permutation_C = draw_permutation(head.n_cls, generator)
            torch.manual_seed(seed * 1_000_003 + step)  # of dropout
            logits, embeddings = head_logits(head, tokens_BDhw)
            with torch.no_grad():
                teacher_logits = head_logits(teacher, tokens_BDhw)[0] if use_teacher else None
            since = schedule.epochs_since(epoch)
            total, parts = segmentation_loss(
                logits, embeddings, maps_BKhw, teacher_logits, since, permutation_C, background, terms
            )
            value = total.item()
            taken = math.isfinite(value) and value > 0
            if taken:
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                clamp_gradients(head)
                optimizer.step()
            for name, part in {
                **{n: p.item() for n, p in parts.items()},
                "skipped": float(not taken),
            }.items():
                sums[name] = sums.get(name, 0.0) + part / per_epoch
            tick()
        log.metrics(sums, epoch)
        history.append(sums)
    head.eval()
    return history


def _generator(seed: int, draw: int) -> Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + draw)
