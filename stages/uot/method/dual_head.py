"""One backbone, two heads, and the losses of joint fine-tuning (card, "Step 5")."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_STD = math.sqrt(2 / 2048)  # the official constant, whatever the width (card, "Pitfalls")


class DualHeadModel(nn.Module):
    """`fc_up` classifies the source in its own label ids, `fc_down` the target, from one pooled feature."""

    def __init__(self, backbone: nn.Module, dim: int, n_source: int, n_target: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc_up = nn.Linear(dim, n_source)
        self.fc_down = nn.Linear(dim, n_target)
        for head in (self.fc_up, self.fc_down):
            nn.init.normal_(head.weight, std=HEAD_STD)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Source logits `[B, n_source]` and target logits `[B, n_target]` of every row, from one pass."""
        features_BD = self.backbone(x)
        return self.fc_up(features_BD), self.fc_down(features_BD)

    def predict(self, x: Tensor) -> Tensor:
        """Target logits `[B, n_target]`."""
        return self.fc_down(self.backbone(x))


def joint_loss(
    up_BS: Tensor, down_BT: Tensor, target_label: Tensor, source_label: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, target and source loss of one concatenated batch: target rows first, source rows after them.

    `weight` is the card's lambda: it multiplies the mean source loss. Without source rows their loss is zero.
    """
    rows = len(target_label)
    target = F.cross_entropy(down_BT[:rows], target_label)
    # an empty sum is 0 and keeps the source head in the graph, where data-parallel training expects it
    source = F.cross_entropy(up_BS[rows:], source_label) if len(source_label) else up_BS[rows:].sum()
    return target + weight * source, target, source


def consistency_loss(weak_UT: Tensor, strong_UT: Tensor, temperature: float, threshold: float) -> Tensor:
    """The unlabelled variant: cross-entropy of the strong views to soft pseudo-labels of the weak views.

    Averaged over the rows whose pseudo-label is at least `threshold` sure; 0 when none is (the official code
    divides by 0).
    """
    pseudo_UT = torch.softmax(weak_UT.detach() / temperature, 1)
    mask_U = (pseudo_UT.max(1).values >= threshold).to(strong_UT.dtype)
    loss_U = -(pseudo_UT * F.log_softmax(strong_UT, 1)).sum(1)
    return (mask_U * loss_U).sum() / mask_U.sum().clamp(min=1)


def l2_sp(backbone: nn.Module, start: dict[str, Tensor], beta: float) -> Tensor:
    """(beta / 2) |theta - theta_pretrained|^2 over the backbone's parameters (Li et al. 2018)."""
    squares = [(parameter - start[name]).square().sum() for name, parameter in backbone.named_parameters()]
    return beta / 2 * torch.stack(squares).sum()


def sgd(
    model: DualHeadModel, lr: float, weight_decay: float, momentum: float, head_ratio: float
) -> torch.optim.SGD:
    """Nesterov SGD with coupled weight decay on everything.

    The heads learn at `head_ratio` times the backbone's rate.

    The groups carry their own `base_lr`, which a schedule multiplies.
    """
    heads = [*model.fc_up.parameters(), *model.fc_down.parameters()]
    groups = [
        {"params": list(model.backbone.parameters()), "lr": lr, "base_lr": lr},
        {"params": heads, "lr": head_ratio * lr, "base_lr": head_ratio * lr},
    ]
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=momentum > 0, foreach=True
    )
