"""One optimizer step: AdamFamily against torch's multi-tensor Adam and a plain per-tensor AdaBound.

All optimizers get the same parameters and gradients; their steps alternate in one process, median of the steps.

    python -m benchmarks.adam_step [--tensors 100] [--size 100000] [--threads 1] [--steps 15]
"""

import argparse
import time
from statistics import median

import torch
from torch import nn

from stages.adam.method.adabound import AdaBound
from stages.adam.method.adam_family import AdamFamily

TORCH, PLAIN = "torch.optim.Adam(foreach=True)", "plain AdaBound, tensor by tensor"
MEMBERS = ("sgdm", "adam", "amsgrad", "adafom", "adam_plus", "adabound", "rmsprop", "adagrad")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tensors", type=int, default=100)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    params = [nn.Parameter(torch.randn(options.size, device=device)) for _ in range(options.tensors)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizers: dict[str, torch.optim.Optimizer] = {
        TORCH: torch.optim.Adam(params, lr=1e-6, foreach=True),
        PLAIN: AdaBound(params, lr=1e-6),
        **{
            f"AdamFamily {name}": AdamFamily(params, lr=1e-6, member=name, bounds=(0.2, 5.0))
            for name in MEMBERS
        },
        "AdamFamily adam, bias-corrected": AdamFamily(
            params, lr=1e-6, init_first_moment="zeros", bias_correction=True
        ),
        "AdamFamily adam, scale not tracked": AdamFamily(params, lr=1e-6, track_scale=False),
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for run in range(-2, options.steps):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if run >= 0:
                times[name].append(time.perf_counter() - start)

    medians = {name: median(values) for name, values in times.items()}
    print(
        f"{options.tensors} tensors of {options.size} on {device}, {options.threads} thread(s), "
        f"median of {options.steps} alternating steps"
    )
    print(f"{'':<36}{'ms':>8}{'/ torch Adam':>14}{'plain AdaBound /':>18}")
    for name, value in medians.items():
        print(f"{name:<36}{value * 1e3:>8.2f}{value / medians[TORCH]:>14.2f}{medians[PLAIN] / value:>18.2f}")


if __name__ == "__main__":
    main()
