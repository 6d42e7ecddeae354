"""Detectors on a searched backbone: GFLV2 (`stages.common.dense.gflv2`), FCOS and RetinaNet (torchvision's).

All are called as torchvision's: `detector(images, targets)` gives a dict of losses in training, `detector(images)` a list of
dicts in evaluation. Images are 0 .. 1, of any sizes; labels are 0 .. classes - 1.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from stages.common.dense.detectors import MEAN, STD
from stages.common.dense.gflv2 import CANDIDATES, DETECTIONS, GFLV2, NMS, SCORE, GFLV2Config
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.structure import Structure
from stages.zendet.params import Detector, HeadName

CENTRE_RADIUS = 1.5  # strides around an object's centre where FCOS has its positives


class CoarserLevels(ExtraFPNBlock):
    """P6, P7, ...: each a 3x3 convolution of stride 2 on the level before."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(levels))

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """P3 .. P5 and the levels after them."""
        for conv in self.convs:
            results.append(conv(results[-1]))
            names.append(f"p{2 + len(results)}")
        return results, names


class Pyramid(nn.Module):
    """A backbone and a feature pyramid on its C3 .. C5, as torchvision's detectors want them."""

    def __init__(self, body: MasterNet, channels: int, levels: int) -> None:
        super().__init__()
        self.body, self.out_channels = body, channels
        coarser = CoarserLevels(channels, levels - len(body.out_channels))
        self.fpn = FeaturePyramidNetwork(body.out_channels, channels, coarser)

    def forward(self, x_BCHW: Tensor) -> OrderedDict[str, Tensor]:
        """Images to P3, P4, ... by name, in order."""
        return self.fpn(OrderedDict((f"p{i}", c) for i, c in enumerate(self.body(x_BCHW), 3)))


def strides_of(detector: Detector) -> tuple[int, ...]:
    """Strides of the levels P3, P4, ..."""
    return tuple(8 * 2**level for level in range(detector.levels))


def build_detector(structure: Structure, head: HeadName, classes: int, detector: Detector) -> nn.Module:
    """A detector on the stages C3 .. C5 of a structure, its weights fresh."""
    body = MasterNet(structure, (2, 3, 4), detector.zero_residual)
    pyramid, strides = Pyramid(body, detector.channels, detector.levels), strides_of(detector)
    norm = partial(nn.GroupNorm, detector.groups)
    common = {
        "min_size": detector.sizes, "max_size": detector.longest, "image_mean": MEAN, "image_std": STD,
        "score_thresh": SCORE, "nms_thresh": NMS, "detections_per_img": DETECTIONS,
        "topk_candidates": CANDIDATES,
    }  # fmt: skip
    match head:
        case "gfl":
            sizes = tuple(detector.sizes)
            config = GFLV2Config(strides, detector.convs, detector.groups, sizes, detector.longest)
            return GFLV2(pyramid, classes, config)
        case "fcos":
            sides = [_fcos_size(stride, detector) for stride in strides]
            fcos_head = FCOSHead(detector.channels, 1, classes, num_convs=0)
            fcos_head.classification_head = FCOSClassificationHead(
                detector.channels, 1, classes, num_convs=detector.convs, norm_layer=norm
            )
            fcos_head.regression_head = FCOSRegressionHead(
                detector.channels, 1, num_convs=detector.convs, norm_layer=norm
            )
            return FCOS(
                pyramid,
                classes,
                # torchvision measures the radius in anchor sides, which are not the strides here
                center_sampling_radius=CENTRE_RADIUS * strides[0] / sides[0],
                anchor_generator=AnchorGenerator(
                    tuple((side,) for side in sides), ((1.0,),) * detector.levels
                ),
                head=fcos_head,
                **common,
            )
        case "retinanet":
            scales = tuple(tuple(round(4 * s * 2 ** (i / 3)) for i in range(3)) for s in strides)
            return RetinaNet(
                pyramid,
                classes,
                anchor_generator=AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * detector.levels),
                head=RetinaNetHead(detector.channels, 9, classes, norm_layer=norm),
                **common,
            )


def _fcos_size(stride: int, detector: Detector) -> int:
    """Side that FCOS measures a level's objects in: the stride at 800 px, proportionally smaller for small images.

    A level takes objects of 4 to 8 times it, so that in images of 128 px, too, they spread over the levels.
    """
    return max(1, round(stride * min(1.0, detector.sizes[-1] / 512)))
