"""Random shifts and mirrorings of image batches, on the device where they lie."""

import torch
from torch import Generator, Tensor


def crop_flip(x_BCHW: Tensor, generator: Generator, pad: int = 4) -> Tensor:
    """Random shifts by up to `pad` pixels (zeros come in) and mirrorings, each image its own."""
    batch, _, height, width = x_BCHW.shape
    padded = torch.nn.functional.pad(x_BCHW, (pad, pad, pad, pad))
    top_B, left_B = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator).to(x_BCHW.device)
    flip_B = (torch.rand(batch, generator=generator) < 0.5).to(x_BCHW.device)
    row_BH = top_B[:, None] + torch.arange(height, device=x_BCHW.device)
    column_BW = left_B[:, None] + torch.arange(width, device=x_BCHW.device)
    column_BW = torch.where(flip_B[:, None], column_BW.flip(1), column_BW)
    image_B11 = torch.arange(batch, device=x_BCHW.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image_B11, row_BH[:, :, None], column_BW[:, None, :]].permute(
        0, 3, 1, 2
    )
