"""The forward pass as the released code formulates it, on the weights of our networks: what speed is compared with.

3-D convolutions with padded copies; the FRP layer frame by frame through a 1-D convolution, its guidance pooled anew at
each place; attention maps of all branches compared in a Python loop at every step, for plots (card, "Performance").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.motionrgbd.method.blocks import SamePool, SpatialConv, SpatialInception, same_padding
from stages.motionrgbd.method.dsn import DSN
from stages.motionrgbd.method.dtn import Block, Branch
from stages.motionrgbd.method.frp import FRP
from stages.motionrgbd.method.unimodal import Logits, UnimodalNet


def released_forward(net: UnimodalNet, x_BTCHW: Tensor, guidance_BTHW: Tensor, temperature: float) -> Logits:
    """Scores of clips, in eval mode."""
    temporal = net.temporal(released_tokens(net.dsn, x_BTCHW, guidance_BTHW))
    logits = net.classify(temporal.classes_BRD, temperature)
    attention_similarities(net, x_BTCHW)
    return logits


def released_tokens(dsn: DSN, x_BTCHW: Tensor, guidance_BTHW: Tensor) -> Tensor:
    """Tokens `[B, T, D]` by 3-D convolutions."""
    x = x_BTCHW.transpose(1, 2)
    for name, layer in dsn.layers.items():
        x = _layer_3d(layer, x)
        if dsn.frp is not None and name in dsn.guided:
            x = _frp_by_frames(dsn.frp, x, guidance_BTHW[:, None]) + x
    return dsn.linear(dsn.norm(x.mean((3, 4)).transpose(1, 2)))


def _layer_3d(layer: nn.Module, x_BCTHW: Tensor) -> Tensor:
    match layer:
        case SpatialConv():
            x_BCTHW = _padded(x_BCTHW, layer.kernel, layer.stride)
            stride = (1, layer.stride, layer.stride)
            x_BCTHW = F.conv3d(x_BCTHW, layer.conv.weight[:, :, None], None, stride)
            bn = layer.bn
            return F.relu(
                F.batch_norm(x_BCTHW, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
            )
        case SamePool():
            x_BCTHW = _padded(x_BCTHW, layer.kernel, layer.stride)
            size = (1, layer.kernel, layer.kernel)
            return F.max_pool3d(x_BCTHW, size, (1, layer.stride, layer.stride))
        case SpatialInception():
            around = (1, 1, 1, 1) if layer.strict_spatial else (1, 1, 1, 1, 1, 1)
            size = (1 if layer.strict_spatial else 3, 3, 3)
            pooled = F.max_pool3d(F.pad(x_BCTHW, around), size, 1)
            branches = [
                _layer_3d(layer.b0, x_BCTHW),
                _layer_3d(layer.b1b, _layer_3d(layer.b1a, x_BCTHW)),
                _layer_3d(layer.b2b, _layer_3d(layer.b2a, x_BCTHW)),
                _layer_3d(layer.b3b, pooled),
            ]
            return torch.cat(branches, 1)
    raise TypeError(f"no 3-D form of {type(layer).__name__}")


def _padded(x_BCTHW: Tensor, kernel: int, stride: int) -> Tensor:
    pads = [same_padding(size, kernel, stride) for size in reversed(x_BCTHW.shape[-2:])]
    return F.pad(x_BCTHW, [side for pad in pads for side in pad])


def _frp_by_frames(frp: FRP, x_BCTHW: Tensor, guidance_B1THW: Tensor) -> Tensor:
    frames, maps = x_BCTHW.unbind(2), list(guidance_B1THW.unbind(2))
    while maps[0].shape[-1] > x_BCTHW.shape[-1]:
        maps = [F.max_pool2d(one, 2) for one in maps]
    done = []
    for frame, one in zip(frames, maps, strict=True):
        guided = frame * (one + torch.ones_like(frame))
        pair = torch.stack([frame.flatten(1), guided.flatten(1)], 1)
        done.append(F.conv1d(pair, frp.taps.view(1, 2, 1)).view(frame.shape))
    return torch.stack(done, 2)


def attention_similarities(net: UnimodalNet, x_BTCHW: Tensor) -> Tensor:
    """Cosine similarity of every two attention maps of a clip, in a loop over pairs as released, `[B, RH, RH]`.

    The maps are those of noise tokens: the loop costs the same whatever they are.
    """
    batch, maps = len(x_BTCHW), []
    for branch in net.dtn.branches:
        assert isinstance(branch, Branch)
        block = branch.blocks[-1]
        assert isinstance(block, Block)
        width = branch.class_token.shape[-1]
        noise_BLD = torch.randn(batch, branch.frames + 1, width, device=x_BTCHW.device)
        attention = block.attention.attention(noise_BLD)[0]
        maps.append(F.interpolate(attention, (8, 8)).flatten(2))
    maps_BXY = torch.cat(maps, 1)
    count = maps_BXY.shape[1]
    similar = torch.zeros(batch, count, count)
    for clip in range(batch):
        for i in range(count):
            for j in range(count):
                similar[clip, i, j] = torch.cosine_similarity(maps_BXY[clip, i], maps_BXY[clip, j], dim=0)
    return similar
