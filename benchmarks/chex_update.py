"""One CHEX update of a whole ResNet-50: the Gram route against SVDs and projectors written out plainly.

Both sides do, for all 36 prunable layers, leverage scores of the masked weights and projection residuals of
the pruned channels on the restored weights. The direct route takes a thin SVD of every d x C matrix, and the
projector on the kept channels as a d x d matrix through a pseudo-inverse. (In float64 on both sides, so that
results compare.)

    python -m benchmarks.chex_update [--threads 1] [--repeats 3]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.column_subset import leverage_scores
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.regrow import projection_residual
from stages.chex.method.resnet import build

SPARSITY = 0.7


def gram(weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    scores = leverage_scores(weight, n)
    order = scores.argsort(descending=True, stable=True)
    return scores, projection_residual(weight, order[:n], order[n:])


def direct(weight: Tensor, n: int) -> tuple[Tensor, Tensor]:
    X_dC = weight.flatten(1).T.double()
    V_Ck = torch.linalg.svd(X_dC, full_matrices=False).Vh[:n].T
    scores = V_Ck.norm(dim=1)
    order = scores.argsort(descending=True, stable=True)
    X_dn, X_dm = X_dC[:, order[:n]], X_dC[:, order[n:]]
    projector_dd = X_dn @ torch.linalg.pinv(X_dn.T @ X_dn, hermitian=True) @ X_dn.T
    return scores, (X_dm - projector_dd @ X_dm).norm(dim=0)


def seconds(route: Callable[[Tensor, int], tuple[Tensor, Tensor]], weights: list[Tensor]) -> float:
    start = time.perf_counter()
    for weight in weights:
        route(weight, max(1, round(len(weight) * (1 - SPARSITY))))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = build("resnet50", 1000, norm_scale=0.5)
    groups, _ = find_channel_groups(model, torch.zeros(1, 3, 64, 64))
    weights = [model.get_parameter(f"{g.name}.weight").detach() for g in groups]
    worst = 0.0
    for weight in weights:
        n = round(len(weight) * (1 - SPARSITY))
        if weight[0].numel() >= len(weight):  # wide: the direct route keeps more vectors than there is rank
            worst = max(
                worst,
                *(
                    float((a - b).abs().max())
                    for a, b in zip(gram(weight, n), direct(weight, n), strict=True)
                ),
            )
    runs = [(seconds(gram, weights), seconds(direct, weights)) for _ in range(options.repeats)]
    fast, slow = (min(times) for times in zip(*runs, strict=True))

    with torch.no_grad():
        for group in groups:
            for span in group.norms:
                model.get_parameter(f"{span.module}.weight").uniform_(0.1, 1)
    config = ExplorerConfig(t_max=180, period=2, sparsity=SPARSITY, delta0=0.3)
    explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(0))
    explorer.initialise()
    start = time.perf_counter()
    explorer.step(2)
    whole = time.perf_counter() - start

    print(f"ResNet-50, {len(groups)} layers, S = {SPARSITY}, {options.threads} thread(s)")
    print(f"{'scores and residuals, Gram route':<44}{fast:>8.2f} s")
    print(f"{'scores and residuals, SVD and projectors':<44}{slow:>8.2f} s")
    print(f"{'ratio':<44}{slow / fast:>8.1f}")
    print(f"{'largest difference (layers with d >= C)':<44}{worst:>8.0e}")
    print(f"{'whole ChannelExplorer.step':<44}{whole:>8.2f} s")


if __name__ == "__main__":
    main()
