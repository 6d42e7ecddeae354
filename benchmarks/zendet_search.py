"""The authors' search setting: seconds and score of 16k and 100k evaluations, and what one score costs.

18.8 GFLOPs at 480 px, 91 layers, population 256, from their initial structure, closed form. "One score" compares
the cached scorer of the search with the plain analytic score and with Monte-Carlo (one image of 128 px, MAE-DET-S).

    python -m benchmarks.zendet_search [--seeds 2] [--processes 2]
"""

import argparse
import time
from collections.abc import Callable
from random import Random

import torch

from stages.zendet.method.entropy import EntropyScorer, entropy_score
from stages.zendet.method.published import INITIAL_DETECTION, MAEDET_S
from stages.zendet.method.spaces import K1KXK1Space
from stages.zendet.official_search import LAYERS, SIZE, official_search


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for evaluations in (16_000, 100_000):
        for islands in (1, options.processes):
            for seed in range(options.seeds):
                search = official_search("entropy", seed, evaluations, islands)
                start, cpu = time.perf_counter(), time.process_time()
                result = search.run(processes=islands)
                wall, cpu = time.perf_counter() - start, time.process_time() - cpu
                print(
                    f"{evaluations:6d} evaluations, {islands} island(s), seed {seed}: {wall:6.2f} s "
                    f"({cpu:.2f} s CPU of this process), score {result.ranked[0][0]:.1f}",
                    flush=True,
                )
    rng, space, walk = Random(0), K1KXK1Space(LAYERS, SIZE), [INITIAL_DETECTION]
    for _ in range(500):
        walk.append(space.mutate(walk[-1], rng))
    scorer = EntropyScorer(SIZE)
    fast = seconds(lambda: [scorer(structure) for structure in walk]) / len(walk)
    plain = seconds(lambda: [entropy_score(structure, SIZE) for structure in walk]) / len(walk)
    generator = torch.Generator().manual_seed(0)
    drawn = seconds(
        lambda: entropy_score(MAEDET_S, 128, method="monte_carlo", batch=1, repeats=1, generator=generator)
    )
    print(
        f"one score: {1e6 * fast:.0f} us in a search, {1e6 * plain:.0f} us plain, {1e3 * drawn:.0f} ms by Monte-Carlo"
    )


if __name__ == "__main__":
    main()
