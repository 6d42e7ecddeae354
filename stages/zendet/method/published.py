"""The published backbones and the structures that the authors' searches start from (card, section 1)."""

from collections.abc import Sequence

from stages.zendet.method.structure import BlockSpec, Kind, Structure

Rows = Sequence[tuple[int, int, int, int, int]]  # out, stride, kernel, depth, mid


def _backbone(kind: Kind, stem: int, stem_kernel: int, rows: Rows) -> Structure:
    blocks = [BlockSpec("conv", 3, stem, 2, stem_kernel)]
    for cout, stride, kernel, depth, mid in rows:
        blocks.append(BlockSpec(kind, blocks[-1].cout, cout, stride, kernel, depth, mid))
    return tuple(blocks)


MAEDET_S = _backbone(
    "k1kxk1", 32, 3,
    [(48, 2, 5, 2, 32), (272, 2, 3, 4, 120), (1024, 2, 5, 10, 80), (2048, 2, 3, 10, 240)],
)  # fmt: skip
MAEDET_M = _backbone(
    "k1kxk1", 64, 3,
    [(120, 2, 3, 2, 64), (512, 2, 5, 10, 72), (1632, 2, 5, 10, 112), (2048, 2, 5, 8, 184)],
)  # fmt: skip
MAEDET_L = _backbone(
    "k1kxk1", 80, 3,
    [(144, 2, 3, 2, 80), (608, 2, 5, 12, 88), (1912, 2, 5, 12, 136), (2400, 2, 5, 10, 220)],
)  # fmt: skip
RESNET50_LIKE = _backbone(
    "k1kxk1", 64, 7,
    [(256, 2, 3, 3, 64), (512, 2, 3, 4, 128), (1024, 2, 3, 6, 256), (2048, 2, 3, 3, 512)],
)  # fmt: skip
PUBLISHED = {
    "ResNet-50-like": RESNET50_LIKE,
    "MAE-DET-S": MAEDET_S,
    "MAE-DET-M": MAEDET_M,
    "MAE-DET-L": MAEDET_L,
}

INITIAL_DETECTION = _backbone(
    "k1kxk1", 32, 3,
    [(256, 2, 3, 1, 64), (512, 2, 3, 1, 128), (768, 2, 3, 1, 256), (1024, 1, 3, 1, 256), (2048, 2, 3, 1, 512)],
)  # fmt: skip
INITIAL_MOBILE = (
    *_backbone(
        "k1dwk1", 16, 3,
        [(24, 2, 3, 1, 48), (48, 2, 3, 1, 96), (64, 2, 3, 1, 128), (96, 1, 3, 1, 192), (192, 2, 3, 1, 384)],
    ),
    BlockSpec("conv", 192, 1280, 1, 1),
)  # fmt: skip
