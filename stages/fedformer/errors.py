"""Errors of a model over all windows of a split, on scaled values (card, "Metrics").

Shapes: W windows, B batch, O horizon, C variates.
"""

import torch
from torch import Tensor, nn

from stages.fedformer.data import Series, Split, batch, windows_of
from stages.fedformer.params import Recipe

EVALUATION_BATCH = 32
COMPAT_BATCH = 32  # the published protocol drops the last test windows that do not fill such a batch


@torch.no_grad()
def window_errors(
    model: nn.Module, series: Series, split: Split, recipe: Recipe, horizon: int
) -> tuple[Tensor, Tensor]:
    """Mean squared and mean absolute error of every window of a split, `[W]`, float64, in order, with stride
    1.
    """
    model.eval()
    starts = windows_of(series.borders, split, recipe.seq_len, horizon)
    squared, absolute = [], []
    for first in range(0, len(starts), EVALUATION_BATCH):
        chosen = list(starts[first : first + EVALUATION_BATCH])
        inputs, truth_BOC = batch(series, chosen, recipe.seq_len, recipe.label_len, horizon)
        difference = (model(*inputs) - truth_BOC).double()
        squared.append(difference.square().mean((1, 2)))
        absolute.append(difference.abs().mean((1, 2)))
    return torch.cat(squared), torch.cat(absolute)


def forecast_metrics(squared_W: Tensor, absolute_W: Tensor, drop_last_compat: int | None) -> dict[str, float]:
    """`mse` and `mae` over all windows, or over those that fill whole batches of `drop_last_compat`."""
    kept = (
        len(squared_W) if drop_last_compat is None else len(squared_W) // drop_last_compat * drop_last_compat
    )
    return {"mse": float(squared_W[:kept].mean()), "mae": float(absolute_W[:kept].mean())}
