"""Training of a boundary-matching network on the features of untrimmed videos, and its proposals.

Letters: V videos, T places, C channels, P proposals.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import parallel, process_share
from stages.common.stage.tracking import RunLog
from stages.hico.footage import Video
from stages.hico.localisation.boundary_matching import BMN, Targets, bmn_loss, targets
from stages.hico.localisation.proposals import proposals
from stages.hico.params import Bmn
from stages.hico.training import LOG_STEPS, History, resume, save_state

DECAY = 0.1  # of the learning rate, once


def train_bmn(
    features_VTC: Tensor,
    videos: Sequence[Video],
    recipe: Bmn,
    seed: int,
    device: torch.device,
    log: RunLog,
    checkpoint: Checkpoint,
) -> BMN:
    """A network trained on features at the places of `videos`, whose segments it is to find; resumes from `checkpoint`."""
    torch.manual_seed(seed)
    model = BMN(features_VTC.shape[2], recipe.places, recipe.durations, recipe.points, recipe.width).to(
        device
    )
    optimizer = torch.optim.Adam(
        model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, foreach=True
    )
    truths = [
        torch.tensor([(start, end) for start, end, _ in video.segments]).view(-1, 2) / video.duration
        for video in videos
    ]
    per_epoch = max(len(videos) // recipe.batch, 1)
    start, saved_at = resume(checkpoint, model, optimizer, History()), time.monotonic()
    network, (rank, world) = parallel(model, device), process_share()
    for step in range(start, recipe.epochs * per_epoch):
        saved_at = save_state(checkpoint, model, optimizer, step, saved_at, History())
        epoch, number = divmod(step, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (DECAY if epoch >= recipe.decay_epoch else 1.0)
        order = torch.randperm(len(videos), generator=_generator(seed, epoch)).tolist()
        places = order[number * recipe.batch : (number + 1) * recipe.batch][rank::world]
        wanted = targets([truths[place] for place in places], recipe.places, recipe.durations)
        x_BCT = features_VTC[places].transpose(1, 2).contiguous().to(device)
        loss = bmn_loss(
            network(x_BCT), Targets(*(part.to(device) for part in wanted)), _generator(seed, -1 - step)
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({"BMN loss": loss.item()}, step)
    return model.eval()


@torch.no_grad()
def propose(model: BMN, features_VTC: Tensor, recipe: Bmn, device: torch.device) -> Tensor:
    """The best proposals of each video, `[V, P, 3]`: start and end as shares of the video, score."""
    found: list[Tensor] = []
    for some_BTC in features_VTC.split(recipe.batch):
        scores = model(some_BTC.transpose(1, 2).contiguous().to(device))
        parts = (scores.start.cpu(), scores.end.cpu(), scores.quality.cpu())
        found += [proposals(*video, recipe.proposals) for video in zip(*parts, strict=True)]
    return torch.stack(found)


def _generator(seed: int, number: int) -> torch.Generator:
    """For the order of an epoch, or for the draws of a step (negative numbers)."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
