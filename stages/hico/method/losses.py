"""HiCo's losses: visual consistency (VCL), topical consistency (TCL), and the SimCLR baseline (card, "Losses").

Rows are clips, the n clips of a video adjacent: N = B n. Letters: B videos, n clips each, N clips, d embedding width.
The last clip of a video is the topical one where there is one; the first two are the visual pair.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_EPS = 1e-5  # inside both logarithms of the topic loss, as in the official code


def same_video(count: int, n_clips: int, device: torch.device) -> Tensor:
    """Bool `[N, N]`: whether two clips are of one video."""
    video_N = torch.arange(count, device=device) // n_clips
    return video_N[:, None] == video_N[None, :]


def vcl_loss(z_Nd: Tensor, n_clips: int, temperature: float = 0.1) -> Tensor:
    """Visual consistency: the first two clips of a video attract each other.

    The negatives of an anchor are all clips of every other video, the topical ones among them; topical clips are no
    anchors.
    """
    s_NN = z_Nd.float() @ z_Nd.float().T
    count = len(z_Nd)
    anchor_A = (torch.arange(count, device=z_Nd.device) % n_clips < 2).nonzero()[:, 0]
    partner_A = anchor_A + 1 - 2 * (anchor_A % n_clips)
    positive_A = s_NN[anchor_A, partner_A].clamp(-1, 1) / temperature
    masked_NN = (s_NN / temperature).masked_fill(same_video(count, n_clips, z_Nd.device), -torch.inf)
    negative_A = torch.logsumexp(masked_NN[anchor_A], 1)
    # -log(E+ / (E+ + E-)) in logarithms: the sums of exponentials would overflow in half precision
    return F.softplus(negative_A - positive_A).mean()


def simclr_loss(z_Nd: Tensor, n_clips: int, temperature: float = 0.1) -> Tensor:
    """The baseline: every clip is an anchor, and each other clip of its video a positive term of its own."""
    s_NN = z_Nd.float() @ z_Nd.float().T
    same_NN = same_video(len(z_Nd), n_clips, z_Nd.device)
    negative_N = torch.logsumexp((s_NN / temperature).masked_fill(same_NN, -torch.inf), 1)
    pair_NN = same_NN & ~torch.eye(len(z_Nd), dtype=torch.bool, device=z_Nd.device)
    positive_NP = s_NN[pair_NN].view(len(z_Nd), n_clips - 1).clamp(-1, 1) / temperature
    return F.softplus(negative_N[:, None] - positive_NP).mean()


def tcl_loss(a_NN: Tensor, n_clips: int, gamma: float = 0.5) -> Tensor:
    """Topical consistency: a focal cross-entropy on "are these two clips of one video".

    `a_NN` are logits of ordered pairs; the official second channel is their transpose, which changes no mean over
    ordered pairs. All ordered pairs within a video are positives; positives and negatives are averaged separately,
    so that the few positives weigh as much as the many negatives.
    """
    p_NN = torch.sigmoid(a_NN.float())
    same_NN = same_video(len(a_NN), n_clips, a_NN.device)
    positive_P = p_NN[same_NN & ~torch.eye(len(a_NN), dtype=torch.bool, device=a_NN.device)]
    negative_Q = p_NN[~same_NN]
    return (
        -((1 - positive_P) ** gamma * torch.log(positive_P + LOG_EPS)).mean()
        - (negative_Q**gamma * torch.log(1 - negative_Q + LOG_EPS)).mean()
    )


def hico_loss(
    z_Nd: Tensor,
    a_NN: Tensor,
    n_clips: int,
    temperature: float = 0.1,
    gamma: float = 0.5,
    topic_weight: float = 1.0,
    world_size: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, VCL and TCL.

    With several processes `z_Nd` are all of them (`gather_with_local_gradient`), `a_NN` the process's own. Each
    process then has the global VCL but the gradient of its own rows, so its weight is `world_size`, which undoes
    DDP's averaging.
    """
    visual = vcl_loss(z_Nd, n_clips, temperature)
    topical = tcl_loss(a_NN, n_clips, gamma)
    return visual * world_size + topic_weight * topical, visual, topical


def gather_with_local_gradient(z_Nd: Tensor) -> Tensor:
    """Embeddings of all processes in the order of their ranks; only this process's own carry a gradient."""
    if not torch.distributed.is_initialized():
        return z_Nd
    parts = [torch.empty_like(z_Nd) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, z_Nd.detach().contiguous())
    parts[torch.distributed.get_rank()] = z_Nd
    return torch.cat(parts)
