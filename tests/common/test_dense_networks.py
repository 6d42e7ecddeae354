"""Mask R-CNN and UPerNet on any backbone: they fit one picture, and have the sizes that are known of them."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import maskrcnn_resnet50_fpn

from stages.common.dense.detectors import MaskRCNNConfig, mask_rcnn
from stages.common.dense.semantic import IGNORED
from stages.common.dense.upernet import PyramidPooling, UPerNet, UPerNetConfig

SIZE = 64
CHANNELS = (8, 12, 16, 24)
SMALL = MaskRCNNConfig(
    channels=16,
    anchor_scale=4,
    box_features=32,
    mask_channels=(16,),
    proposals=60,
    regions=32,
    sizes=(SIZE,),
    longest=SIZE,
)


class Body(nn.Module):
    """Four strided convolutions: maps at strides 4, 8, 16, 32."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (3, *CHANNELS)
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(cin, cout, 5, stride, 2), nn.GroupNorm(4, cout), nn.ReLU(),
                nn.Conv2d(cout, cout, 3, padding=1), nn.ReLU(),
            )
            for cin, cout, stride in zip(sizes, CHANNELS, (4, 2, 2, 2), strict=False)
        )  # fmt: skip

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        maps = {}
        for index, step in enumerate(self.steps):
            x_BCHW = step(x_BCHW)
            maps[str(index)] = x_BCHW
        return maps


def pictures() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A bright square in the dark, and a picture without objects."""
    image, mask = torch.zeros(3, SIZE, SIZE), torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    image[:, 14:38, 20:44] = 1.0
    mask[:, 14:38, 20:44] = 1
    square = {"boxes": torch.tensor([[20.0, 14.0, 44.0, 38.0]]), "labels": torch.tensor([2]), "masks": mask}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": mask[:0]}
    return [image, torch.zeros(3, SIZE, SIZE)], [square, nothing]


def train(
    model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]], steps: int
) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def test_mask_rcnn_finds_one_object_and_its_mask() -> None:
    torch.manual_seed(0)
    images, targets = pictures()
    model = mask_rcnn(Body(), CHANNELS, 2, SMALL)
    losses = train(model, images, targets, 150)
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        found, _ = model.eval()(images)
    best = int(found["scores"].argmax())
    assert found["labels"][best] == 2
    assert (found["boxes"][best] - targets[0]["boxes"][0]).abs().max() < 5
    mask = found["masks"][best, 0] > 0.5
    true = targets[0]["masks"][0].bool()
    assert (mask & true).sum() > 0.7 * (mask | true).sum()


def test_upernet_segments_one_object() -> None:
    torch.manual_seed(0)
    images, targets = pictures()
    labels = [{"semantic": target["masks"].sum(0).long()} for target in targets]
    model = UPerNet(Body(), CHANNELS, 2, UPerNetConfig(16, (1, 2), 8))
    train(model, images, labels, 60)
    with torch.no_grad():
        logits, _ = model.eval()(images)
    assert logits.shape == (2, SIZE, SIZE)
    assert (logits.argmax(0) == labels[0]["semantic"]).float().mean() > 0.95


def test_upernet_takes_images_of_different_sizes_one_by_one() -> None:
    torch.manual_seed(0)
    model = UPerNet(Body(), CHANNELS, 3, UPerNetConfig(16, (1, 2), 8)).eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 96, 64)]
    with torch.no_grad():
        first, second = model(images)
        together = model([images[0], images[0]])
    assert (first.shape, second.shape) == ((3, 64, 64), (3, 96, 64))
    torch.testing.assert_close(together[0], first, atol=1e-5, rtol=1e-5)


def test_ignored_pixels_and_the_weight_of_the_auxiliary_loss() -> None:
    torch.manual_seed(0)
    images, _ = pictures()
    model = UPerNet(Body(), CHANNELS, 2, UPerNetConfig(16, (1, 2), 8, dropout=0.0))
    label = torch.zeros(SIZE, SIZE, dtype=torch.long)
    half = label.clone()
    half[:, 32:] = IGNORED
    losses = model(images, [{"semantic": half}] * 2)
    other = half.clone()
    other[:, 40:] = 1  # some of what was left out counts now
    assert not torch.equal(model(images, [{"semantic": other}] * 2)["segmentation"], losses["segmentation"])
    doubled = UPerNet(Body(), CHANNELS, 2, UPerNetConfig(16, (1, 2), 8, auxiliary_weight=0.8, dropout=0.0))
    doubled.load_state_dict(model.state_dict())
    again = doubled(images, [{"semantic": half}] * 2)
    torch.testing.assert_close(again["auxiliary"], 2 * losses["auxiliary"])
    torch.testing.assert_close(again["segmentation"], losses["segmentation"])


def test_pooling_sees_the_whole_map() -> None:
    """One far pixel changes every output pixel through the 1 x 1 pool."""
    pooling = PyramidPooling(4, 8, (1, 2)).eval()
    x = torch.rand(1, 4, 12, 12)
    y = x.clone()
    y[..., 0, 0] += 100
    assert ((pooling(x) - pooling(y)).abs().sum(1) > 0).all()


def test_default_mask_rcnn_is_torchvisions() -> None:
    """Same backbone, same sizes: as many numbers as the published model (44,401,393 without batch norm)."""
    layers = {f"layer{index}": str(index - 1) for index in range(1, 5)}
    with torch.device("meta"):
        body = IntermediateLayerGetter(resnet50(), layers)
        ours = mask_rcnn(body, (256, 512, 1024, 2048), 90, MaskRCNNConfig())
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)

    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert count(ours) == count(theirs) == 44_401_393 + 53_120  # weights and biases of batch norm
    anchors = ours.rpn.anchor_generator
    assert anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
