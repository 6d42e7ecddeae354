"""LatentConcepts: the card's generated source and target for the quick scale.

A class is a concept k of eight and a code in its three latent dimensions. A sample has a latent block per
concept: its own concept's block is the code plus noise, the seven others are nuisance. Telling classes of one
concept apart needs that concept's block, read through a non-linear mixing, so that only source classes of the
same concept teach it. Shapes: C classes, N samples, 144 = 12 x 12 pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONCEPTS, LATENT, HIDDEN, SIZE = 8, 3, 96, 12
CODE_DISTANCE, CODE_NOISE, MARK, PIXEL_NOISE = 0.9, 0.35, 1.5, 0.2
FREQUENCIES = (1.0, 4.0)  # radial band of the pixel patterns, in cycles per image


@dataclass
class Classes:
    """`concept [C]` and `code [C, 3]` of some classes."""

    concept: Tensor
    code: Tensor


class World:
    """The mixing from latents to pixels and the codes given out so far, all drawn from one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        width = CONCEPTS * LATENT + CONCEPTS
        self.w1 = self._normal(HIDDEN, width) * math.sqrt(4 / width)
        self.b1 = 0.3 * self._normal(HIDDEN)
        self.w2 = self._patterns() / math.sqrt(HIDDEN)
        self.codes: list[list[Tensor]] = [[] for _ in range(CONCEPTS)]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def _patterns(self) -> Tensor:
        """`[HIDDEN, 144]` random band-limited images of mean square 1."""
        spectrum = torch.fft.fft2(self._normal(HIDDEN, SIZE, SIZE))
        frequency_S = torch.fft.fftfreq(SIZE) * SIZE
        radius_SS = torch.hypot(frequency_S[:, None], frequency_S[None])
        band_SS = (radius_SS >= FREQUENCIES[0]) & (radius_SS <= FREQUENCIES[1])
        image = torch.fft.ifft2(spectrum * band_SS).real
        return (image / image.square().mean((1, 2), keepdim=True).sqrt()).flatten(1)

    def new_classes(self, per_concept: dict[int, int], shift: dict[int, float] | None = None) -> Classes:
        """Draw classes whose codes keep their distance from all earlier ones of the concept.

        Args:
            per_concept: how many of each concept.
            shift: per concept, what is added to every coordinate of its codes.
        """
        concepts, codes = [], []
        for concept, count in per_concept.items():
            offset = (shift or {}).get(concept, 0.0)
            while count:
                code = self._normal(LATENT) + offset
                if all(float((code - other).norm()) >= CODE_DISTANCE for other in self.codes[concept]):
                    self.codes[concept].append(code)
                    concepts.append(concept)
                    codes.append(code)
                    count -= 1
        return Classes(torch.tensor(concepts), torch.stack(codes))

    def sample(self, classes: Classes, per_class: int) -> tuple[Tensor, Tensor]:
        """`per_class` samples of each class in turn: pixels `[N, 144]` and labels `[N]`."""
        label_N = torch.arange(len(classes.concept)).repeat_interleave(per_class)
        concept_N, row_N = classes.concept[label_N], torch.arange(len(label_N))
        z_NKL = self._normal(len(label_N), CONCEPTS, LATENT)
        z_NKL[row_N, concept_N] = classes.code[label_N] + CODE_NOISE * self._normal(len(label_N), LATENT)
        mark_NK = torch.zeros(len(label_N), CONCEPTS)
        mark_NK[row_N, concept_N] = MARK * (1 + 0.2 * self._normal(len(label_N)))
        latent_NW = torch.cat([z_NKL.flatten(1), mark_NK], 1)
        x_N144 = torch.tanh(latent_NW @ self.w1.T + self.b1) @ self.w2
        return x_N144 + PIXEL_NOISE * self._normal(len(label_N), SIZE * SIZE), label_N
