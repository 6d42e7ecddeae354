"""Pseudo maps of a set of images, stored compactly.

A map is 0, the attention, or the attention plus a bonus. So an image keeps its attention (float16), one bit per concept
and patch for "not 0", one for "has a bonus", and the bonuses themselves (float16, over the image's largest).
Shapes: N images, K concepts, h x w grid, n = h w.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.transfgu.method.concept_cam import CamParts, kept_bonus, normalised_attention


class PseudoMaps:
    """Maps of N images: add images in order, write, read back, unpack the ones needed."""

    def __init__(self, concepts: int, grid: tuple[int, int]) -> None:
        self.concepts, self.grid = concepts, grid
        self._parts: list[dict[str, Tensor]] = []

    def add(self, parts: CamParts, keep: float) -> None:
        """Append the maps of a batch."""
        bonus_BKn = kept_bonus(parts.gradient_BKn, keep).cpu()
        largest_B = bonus_BKn.amax((1, 2))
        unit_BKn = bonus_BKn / largest_B[:, None, None].clamp(min=torch.finfo(torch.float32).tiny)
        bonus_mask = (unit_BKn.half() > 0) & (bonus_BKn > 0)
        self._parts.append(
            {
                "attention": normalised_attention(parts.attention_Bn).cpu().half(),
                "owned": _pack(parts.gradient_BKn.cpu() <= 0),
                "has_bonus": _pack(bonus_mask),
                "bonus": unit_BKn[bonus_mask].half(),
                "largest": largest_B,
                "count": bonus_mask.flatten(1).sum(1).int(),
            }
        )

    def save(self, path: Path) -> None:
        """Write all maps to a file."""
        content = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        save_file({**content, "shape": torch.tensor([self.concepts, *self.grid])}, path)

    @classmethod
    def load(cls, path: Path) -> "PseudoMaps":
        """Read what `save` has written."""
        content = load_file(path)
        concepts, h, w = content.pop("shape").tolist()
        maps = cls(concepts, (h, w))
        maps._parts = [content]
        return maps

    def __len__(self) -> int:
        return sum(len(part["largest"]) for part in self._parts)

    def dense(self, ids: Tensor) -> Tensor:
        """Maps `[B, K, h, w]` in float32 of these images, after `load`."""
        (part,) = self._parts
        shape = self.concepts, self.grid[0] * self.grid[1]
        owned, has_bonus = (_unpack(part[name][ids], shape) for name in ("owned", "has_bonus"))
        end = part["count"].cumsum(0)
        values = torch.cat(
            [part["bonus"][int(end[i] - part["count"][i]) : int(end[i])] for i in ids.tolist()]
        )
        bonus_BKn = torch.zeros(has_bonus.shape)
        bonus_BKn[has_bonus] = values.float()
        bonus_BKn *= part["largest"][ids][:, None, None]
        maps_BKn = torch.where(owned, part["attention"][ids].float()[:, None] + bonus_BKn, 0.0)
        return maps_BKn.unflatten(-1, self.grid)


def _pack(mask_BKn: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask_BKn.flatten(1).numpy(), axis=1))


def _unpack(bits_Bm: Tensor, shape: tuple[int, int]) -> Tensor:
    count = shape[0] * shape[1]
    return torch.from_numpy(np.unpackbits(bits_Bm.numpy(), axis=1, count=count)).bool().unflatten(1, shape)
