"""Training of the PiCIE-style and STEGO-style rows; both end with a head on patches and centroids in its space."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog
from stages.transfgu.data import Images
from stages.transfgu.method.augment import normalise, photometric
from stages.transfgu.method.rivals import (
    PatchHead,
    cluster_logits,
    fit_patches,
    picie_loss,
    stego_loss,
)
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.params import Rivals
from stages.transfgu.training import ENCODE_BATCH, patch_tokens


def encode(
    model: VisionTransformer,
    images: Images,
    size: tuple[int, int],
    view: Generator | None = None,
    flip: bool = False,
) -> Tensor:
    """Patch tokens of all images `[N, D, h, w]`; a view is coloured, and mirrored and put back."""
    device, parts = next(model.parameters()).device, []
    for first in range(0, len(images), ENCODE_BATCH):
        ids = list(range(first, min(first + ENCODE_BATCH, len(images))))
        x_BCHW = images.read(ids, size).to(device)
        x_BCHW = x_BCHW if view is None else photometric(x_BCHW, view)
        tokens = patch_tokens(model, normalise(x_BCHW.flip(-1) if flip else x_BCHW))
        parts.append(tokens.flip(-1) if flip else tokens)
    return torch.cat(parts).clone()


def train_picie(
    model: VisionTransformer,
    images: Images,
    size: tuple[int, int],
    k: int,
    recipe: Rivals,
    seed: int,
    log: RunLog,
) -> dict[str, Tensor]:
    """PiCIE style: two views, clustered anew each round; the head learns both views' clusters from both views."""
    torch.manual_seed(seed)
    head = PatchHead(model.width, recipe.width).to(next(model.parameters()).device)
    optimizer = torch.optim.Adam(head.parameters(), recipe.lr)
    for number in range(recipe.rounds):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        views = (encode(model, images, size, generator), encode(model, images, size, generator, flip=True))
        with torch.no_grad():
            codes = [head(view) for view in views]
            centroids = tuple(fit_patches(code, k, True, seed, 1).centroids_KD for code in codes)
            labels = tuple(
                cluster_logits(code, c, True).argmax(1) for code, c in zip(codes, centroids, strict=True)
            )
        for _ in range(recipe.steps):
            ids = torch.randint(len(images), (recipe.batch,), generator=generator)
            z = (head(views[0][ids]), head(views[1][ids]))
            loss = picie_loss(z, centroids, (labels[0][ids], labels[1][ids]))  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tick()
        log.metrics({"loss": loss.item()}, number)
    return _finish(head, encode(model, images, size), k, seed)


def train_stego(
    model: VisionTransformer,
    images: Images,
    size: tuple[int, int],
    k: int,
    recipe: Rivals,
    seed: int,
    log: RunLog,
) -> dict[str, Tensor]:
    """STEGO style: codes whose correspondences follow the features', for self, neighbouring and random images."""
    torch.manual_seed(seed)
    tokens = encode(model, images, size)
    mean_ND = F.normalize(tokens.mean((2, 3)), dim=1)
    similar = mean_ND @ mean_ND.T
    neighbours_NM = similar.fill_diagonal_(-1).topk(min(5, len(images) - 1)).indices
    head = PatchHead(model.width, recipe.width).to(tokens.device)
    optimizer = torch.optim.Adam(head.parameters(), recipe.lr)
    generator = torch.Generator().manual_seed(seed)
    for step in range(recipe.rounds * recipe.steps):
        ids = torch.randint(len(images), (recipe.batch,), generator=generator)
        chosen = torch.randint(neighbours_NM.shape[1], (recipe.batch,), generator=generator)
        near = neighbours_NM[ids, chosen]
        far = torch.randint(len(images), (recipe.batch,), generator=generator)
        features = [tokens[index] for index in (ids, near, far)]
        loss = stego_loss(features, [head(part) for part in features], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tick()
        if step % recipe.steps == 0:
            log.metrics({"loss": loss.item()}, step)
    return _finish(head, tokens, k, seed)


def _finish(head: PatchHead, tokens: Tensor, k: int, seed: int) -> dict[str, Tensor]:
    with torch.no_grad():
        centroids = fit_patches(head(tokens), k, True, seed).centroids_KD
    state = {f"head.{name}": value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    return {**state, "centroids": centroids.cpu()}


def rival_logits(state: dict[str, Tensor], tokens_BDhw: Tensor) -> Tensor:
    """Cluster scores `[B, K, h, w]` of a trained rival."""
    width_out, width_in = state["head.linear.weight"].shape[:2]
    head = PatchHead(width_in, width_out)
    head.load_state_dict({n.removeprefix("head."): v for n, v in state.items() if n.startswith("head.")})
    with torch.no_grad():
        return cluster_logits(
            head.to(tokens_BDhw.device)(tokens_BDhw), state["centroids"].to(tokens_BDhw.device), True
        )
