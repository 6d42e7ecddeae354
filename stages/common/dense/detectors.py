"""Torchvision's Mask R-CNN on any backbone.

A backbone maps images `[B, 3, H, W]` to a dict of maps `[B, C_l, H_l, W_l]` by name, finest first. Detectors are called as
torchvision's: `detector(images, targets)` gives a dict of losses in training, `detector(images)` a list of dicts (boxes,
scores, labels, masks) in evaluation. Images are 0 .. 1, of any sizes; labels are 1 .. classes, 0 is the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
ROI, MASK_ROI = 7, 14  # sides of what the box and the mask head see of a region


class WithPyramid(nn.Module):
    """A backbone and a feature pyramid over its maps, with one coarser level by pooling, as Mask R-CNN wants them."""

    def __init__(self, body: nn.Module, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(in_channels), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Maps of `out_channels` channels, finest first; the last is "pool"."""
        return self.fpn(self.body(x_BCHW))


@dataclass(frozen=True)
class MaskRCNNConfig:
    """Sizes of a Mask R-CNN; the defaults are those of COCO (torchvision, MMDetection).

    Attributes:
        channels: of the pyramid. strides: of the backbone's maps, pixels.
        anchor_scale: side of a level's anchors over its stride.
        box_features: of the box head's two layers. mask_channels: of the mask head's convolutions.
        proposals: after suppression in training; half as many in tests. regions: that the box head learns from, per image.
        detections: that are kept of an image in tests.
        sizes: short sides of training, one is drawn; the last one is the test's. longest: bound of the long side.
    """

    channels: int = 256
    strides: tuple[int, ...] = (4, 8, 16, 32)
    anchor_scale: float = 8.0
    box_features: int = 1024
    mask_channels: tuple[int, ...] = (256, 256, 256, 256)
    proposals: int = 2000
    regions: int = 512
    detections: int = 100
    sizes: tuple[int, ...] = (800,)
    longest: int = 1333


def mask_rcnn(body: nn.Module, in_channels: Sequence[int], classes: int, config: MaskRCNNConfig) -> MaskRCNN:
    """A Mask R-CNN on the backbone `body`, whose maps have `in_channels` channels."""
    pyramid = WithPyramid(body, in_channels, config.channels)
    levels = [str(index) for index in range(len(config.strides))]
    strides = (*config.strides, 2 * config.strides[-1])
    return MaskRCNN(
        pyramid,
        min_size=config.sizes,
        max_size=config.longest,
        image_mean=list(MEAN),
        image_std=list(STD),
        rpn_anchor_generator=AnchorGenerator(
            tuple((config.anchor_scale * stride,) for stride in strides), (RATIOS,) * len(strides)
        ),
        rpn_pre_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_pre_nms_top_n_test=config.proposals // 2,
        rpn_post_nms_top_n_test=config.proposals // 2,
        box_batch_size_per_image=config.regions,
        box_detections_per_img=config.detections,
        box_roi_pool=MultiScaleRoIAlign(levels, ROI, 2),
        box_head=TwoMLPHead(config.channels * ROI**2, config.box_features),
        box_predictor=FastRCNNPredictor(config.box_features, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(levels, MASK_ROI, 2),
        mask_head=MaskRCNNHeads(config.channels, config.mask_channels, 1),
        mask_predictor=MaskRCNNPredictor(config.mask_channels[-1], config.mask_channels[-1], classes + 1),
    )
