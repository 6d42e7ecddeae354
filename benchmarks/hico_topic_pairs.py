"""HiCo's topic predictor: two products of N rows against a multi-layer perceptron on all N² concatenated pairs.

Forward and backward, float32, N clips of d = 128, hidden width 256; time is the median of interleaved runs, memory what
autograd keeps for the backward pass (saved tensors, each storage counted once).

    python -m benchmarks.hico_topic_pairs [--threads 1] [--runs 5]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from stages.hico.method.heads import TopicPredictor


def pairwise(predictor: TopicPredictor, t_Nd: Tensor) -> Tensor:
    """The official form: both orders of every pair, concatenated, through the perceptron; `[N, N, 2]`."""
    count, width = t_Nd.shape
    left, right = (x.expand(count, count, width) for x in (t_Nd[:, None], t_Nd[None]))
    orders = torch.cat([left, right], -1), torch.cat([right, left], -1)
    return torch.cat([predictor.second(torch.relu(predictor.first(pair))) for pair in orders], -1)


def saved_bytes(form: Callable[[], Tensor]) -> int:
    """Bytes that the graph of `form` keeps."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = form()
    assert result.requires_grad
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("N clips   form         ms   times   MiB kept   times   largest difference")
    for count in (48, 96, 192, 384):
        predictor = TopicPredictor()
        t_Nd = torch.nn.functional.normalize(torch.randn(count, 128), dim=1).requires_grad_()
        forms: dict[str, Callable[[], Tensor]] = {
            "two matmuls": lambda p=predictor, t=t_Nd: p(t),
            "all pairs": lambda p=predictor, t=t_Nd: pairwise(p, t),
        }
        logits = forms["two matmuls"]()
        gap = (torch.stack([logits, logits.T], -1) - forms["all pairs"]()).abs().max().item()
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(options.runs):
            for name, form in forms.items():
                start = time.perf_counter()
                form().sum().backward()
                seconds[name].append(time.perf_counter() - start)
        times = {name: median(values) for name, values in seconds.items()}
        kept = {name: saved_bytes(form) for name, form in forms.items()}
        for name in forms:
            print(
                f"{count:7d}   {name:11s} {1e3 * times[name]:6.1f} {times[name] / times['two matmuls']:7.1f} "
                f"{kept[name] / 2**20:10.1f} {kept[name] / kept['two matmuls']:7.1f}   {gap:.1e}"
            )


if __name__ == "__main__":
    main()
