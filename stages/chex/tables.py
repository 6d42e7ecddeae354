"""What the comparison tables of the three studies share: labels of the rows, latencies, columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from stages.chex.latency import latency_ratio
from stages.chex.measures import structure_key
from stages.chex.study import Job, Part, Study, setting_of
from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.stage.progress import progress

LABELS = {
    "dense": "dense",
    "uniform": "uniform widths, from scratch",
    "random": "random pruning, fine-tuned",
    "l1": "magnitude (L1), fine-tuned",
    "bn": "network slimming (BN scale), fine-tuned",
    "chex": "**CHEX**",
    "chex-prune-once": "CHEX, prune only (once, early)",
    "chex-no-regrow": "CHEX, no regrow (gradual pruning)",
    "chex-random-regrow": "CHEX, random regrow",
    "chex-no-realloc": "CHEX, no re-allocation",
    "chex-wide-l1": "CHEX, L1 in wide layers (as released for images)",
    "chex-uniform-random": "CHEX, uniform widths and random regrow (as released for Mask R-CNN)",
}
LATENCY_REPEATS = 15
Speedups = dict[tuple[Job[str], str], float]  # of a network and a path within it: dense over slim latency


class Column(NamedTuple):
    """A column of a comparison table: what it shows of a metric's values over seeds."""

    title: str
    metric: str
    show: Callable[[pd.Series], str]


def number(title: str, metric: str, digits: int, unit: float = 1.0) -> Column:
    """Mean and standard deviation, in multiples of `unit`."""
    return Column(title, metric, lambda values: mean_std(values / unit, digits))


REDUCTION = Column("reduction", "macs_fraction", lambda values: f"{1 - values.mean():.0%}")
PARAMS = number("params (k)", "params", 1, 1e3)


def scale_note(scale: str) -> str:
    """How a title names the scale."""
    return "small scale, not the paper's setting" if scale == "quick" else f"{scale} scale"


def measure_speedups(
    study: Study[Part], timed: Mapping[Part, Iterable[str]], batch: int, timings: Timings
) -> Speedups:
    """Dense over slim latency of the first seed's networks on one CPU thread.

    Args:
        study: whose slim networks are there.
        timed: which paths within the network of each part; "" is all of it.
        batch: inputs of a forward pass.
        timings: what is known already.
    """
    seed, cpu, speedups = study.seeds[0], torch.device("cpu"), Speedups()
    jobs = [job for method in study.methods for job in study.jobs(method, seed)]
    with progress(f"{study.name} latency", len(jobs)) as bar:
        for job in jobs:
            dense, slim = study.network(job.part, seed), study.trained(job, cpu)
            shape = tuple(study.example(job.part, batch).shape)
            for path in timed[job.part]:
                pair = dense.get_submodule(path), slim.get_submodule(path)
                name = " ".join(filter(None, (job.part, path, f"batch {batch}", structure_key(pair[1]))))
                measure = partial(speedup, *pair, shape)
                speedups[Job[str](*job), path] = timings.measure(name, measure)[0]
            bar.advance()
    return speedups


def speedup(dense: nn.Module, slim: nn.Module, shape: tuple[int, ...]) -> list[float]:
    """Dense over slim latency on inputs of a shape, as the one number of a list that is kept."""
    return [latency_ratio(dense, slim, shape, LATENCY_REPEATS).ratio]


def latency_note(study: Study[Part], batch: int, timings: Timings) -> str:
    """How the latencies of a table were measured."""
    return (
        f"Latency: the physically slim network of seed {study.seeds[0]}, median of {LATENCY_REPEATS} interleaved runs, "
        f"batch {batch}, one thread, {timings.machine}; above 1 is faster than dense."
    )


def comparison_table(
    study: Study[Part],
    part: Part,
    results: pd.DataFrame,
    columns: Sequence[Column],
    speedups: Speedups,
    timed: Mapping[str, str],
) -> str:
    """A markdown table with a line for the dense network and for every method at every target.

    Args:
        study, part: whose networks.
        results: rows of this part.
        columns: of the metrics.
        speedups: latencies.
        timed: path within the network -> title of its latency's column.
    """

    def line(method: str, target: float | None) -> list[str]:
        chosen = results[(results["method"] == method) & (results["setting"] == setting_of(target))]
        by_metric = chosen.set_index("metric")["value"]
        job = Job[str](part, method, target, study.seeds[0])
        after = method != "dense" and study.rows[method].choose == "after training"
        return [
            LABELS[method],
            "half of the steps" if after else "no",
            "–" if target is None else f"{target:.0%}",
            *(column.show(by_metric.loc[[column.metric]]) for column in columns),
            *(f"{speedups.get((job, path), 1.0):.2f}" for path in timed),
        ]

    lines = [line("dense", None)]
    for target in sorted(study.parts[part].prune.flops, reverse=True):
        lines += [line(method, target) for method in study.methods]
    header = ["method", "pre-trained?", "FLOPs target", *(c.title for c in columns), *timed.values()]
    return markdown_table(header, lines)
