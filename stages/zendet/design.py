"""A backbone for your budget: `python -m stages.zendet.design OUT --flops 300e6 --size 224 --layers 49`.

Searches without data or training and writes the folder OUT: `structure.txt` (the authors' form), `backbone.onnx` (its
stages C2 .. C5, batch and sides free), `backbone.safetensors` (its fresh weights), `pareto.svg` and `pareto.csv`
(what smaller budgets give). In Python the network is `MasterNet(read_structure(Path("OUT/structure.txt")))`.

The score grows with depth above all: choose `--layers` (ResNet-50 has 49) by what you can train. Milliseconds come
from `--latency-table`: a file of the authors' (`conv_data.out*`), or `cpu`, which measures convolutions here first.
"""

import argparse
import csv
import io
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from stages.common.report.figures import write_svg
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.progress import progress
from stages.common.stage.run import run, seed_everything
from stages.zendet.latency_table import read_latency_table
from stages.zendet.method.budget import Budget
from stages.zendet.method.cost import count_flops, count_layers, count_params
from stages.zendet.method.entropy import EntropyScorer
from stages.zendet.method.evolution import EvolutionarySearch
from stages.zendet.method.latency import LatencyTable, cpu_grid, profile_cpu
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.published import INITIAL_DETECTION, INITIAL_MOBILE
from stages.zendet.method.spaces import SPACES, round8
from stages.zendet.method.structure import DIVISOR, Structure, dump_structure

INITIAL = {"k1kxk1": INITIAL_DETECTION, "k1dwk1": INITIAL_MOBILE}
SHARES = (0.125, 0.25, 0.5, 0.75)  # of the budget, for the Pareto figure
HALVINGS = 8
COLUMNS = ("share of the budget", "score", "flops", "params", "layers", "ms")


def main() -> None:
    """Search, and write the folder."""
    arguments = read_arguments()
    seed_everything(arguments.seed)
    torch.set_num_threads(1)
    budget = Budget(
        arguments.size,
        arguments.flops,
        arguments.params,
        arguments.layers,
        arguments.latency,
        latency_model(arguments),
    )
    rows, best = [], None
    with progress("zendet design", len(SHARES) + 1) as bar:
        for share in (*SHARES, 1.0):
            smaller = scaled(budget, share)
            start = shrunk(INITIAL[arguments.space], smaller)
            if start is not None:
                best = find(smaller, start, arguments)
                rows.append((share, best))
            bar.advance(note=f"{share:g} of the budget")
    if best is None or rows[-1][0] != 1.0:
        least = budget.violation(shrink(INITIAL[arguments.space], HALVINGS))
        raise ParameterError(f"no structure keeps to the budget: the smallest start has {least}")
    write(arguments.output, best, [table_row(share, s, budget) for share, s in rows], arguments.size)
    print(f"score {EntropyScorer(arguments.size)(best):.1f}")
    print(f"{count_flops(best, arguments.size) / 1e6:.1f} MFLOPs at {arguments.size} px, ", end="")
    print(f"{count_params(best) / 1e6:.3f} M parameters, {count_layers(best)} layers", end="")
    print(f", {budget.latency_of(best):.3f} ms" if budget.latency_of else "")
    print(
        f"written to {arguments.output}/: structure.txt, backbone.onnx, backbone.safetensors, pareto.svg, pareto.csv"
    )
    print(f"as a network: MasterNet(read_structure(Path({str(arguments.output / 'structure.txt')!r})))")


def read_arguments() -> argparse.Namespace:
    """Command-line arguments; a wrong one is told in one line.

    Raises:
        ParameterError: unknown, missing or out of range.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> "None":  # type: ignore[override]
            raise ParameterError(f"{self.prog}: {message}")

    parser = Parser(prog="python -m stages.zendet.design", description="Search a backbone for a budget.")
    parser.add_argument("output", type=Path, help="folder to write (replaced as a whole)")
    parser.add_argument("--flops", type=float, help="multiply-adds of one image, for example 300e6")
    parser.add_argument(
        "--params", type=lambda text: int(float(text)), help="of the backbone, for example 5e6"
    )
    parser.add_argument("--layers", type=int, default=49, help="convolutions, shortcuts not counted")
    parser.add_argument("--latency", type=float, help="milliseconds of one batch")
    parser.add_argument("--latency-table", help="a table of the authors, or 'cpu': measured here")
    parser.add_argument("--batch", type=int, default=1, help="of the latency")
    parser.add_argument("--size", type=int, default=224, help="side of the image, a multiple of 32")
    parser.add_argument(
        "--space", choices=list(SPACES), default="k1kxk1", help="ResNet-like or MobileNet-like"
    )
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--population", type=int, default=256)
    parser.add_argument("--islands", type=int, default=2, help="that evolve apart, one process each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.flops is None and arguments.params is None and arguments.latency is None:
        parser.error("give a budget: --flops, --params or --latency")
    if (arguments.latency is None) != (arguments.latency_table is None):
        parser.error("--latency and --latency-table: give both or neither")
    for name in ("flops", "params", "latency", "layers", "batch", "evaluations", "population", "islands"):
        value = getattr(arguments, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            parser.error(f"--{name} = {value}: must be greater than 0")
    if arguments.size < DIVISOR or arguments.size % DIVISOR:
        parser.error(f"--size = {arguments.size}: must be a multiple of {DIVISOR}")
    return arguments


class NetworkLatency:
    """Milliseconds of a structure by a table; what the table cannot tell is too slow."""

    def __init__(self, table: LatencyTable, side: int, batch: int) -> None:
        self.table, self.side, self.batch = table, side, batch

    def __call__(self, structure: Structure) -> float:
        """Milliseconds of one batch."""
        try:
            return self.table.predict_network(structure, self.side, self.batch)
        except KeyError:
            return math.inf


def latency_model(arguments: argparse.Namespace) -> NetworkLatency | None:
    """How long a structure takes, if that is limited."""
    if arguments.latency_table is None:
        return None
    if arguments.latency_table == "cpu":
        grid = cpu_grid(arguments.size, depthwise=arguments.space == "k1dwk1")
        table = LatencyTable(profile_cpu(grid, arguments.batch))
    else:
        table = read_latency_table(Path(arguments.latency_table))
    return NetworkLatency(table, arguments.size, arguments.batch)


def scaled(budget: Budget, share: float) -> Budget:
    """A part of a budget; the layers stay, since the score depends on them above all."""
    return replace(
        budget,
        flops=None if budget.flops is None else share * budget.flops,
        params=None if budget.params is None else int(share * budget.params),
        latency=None if budget.latency is None else share * budget.latency,
    )


def shrink(structure: Structure, halvings: int) -> Structure:
    """A structure with all widths halved so many times."""
    blocks, cin = [], 3
    for block in structure:
        cout = round8(block.cout / 2**halvings)
        mid = round8(block.mid / 2**halvings) if block.mid else 0
        blocks.append(block._replace(cin=cin, cout=cout, mid=mid))
        cin = cout
    return tuple(blocks)


def shrunk(structure: Structure, budget: Budget) -> Structure | None:
    """The widest shrunk structure within a budget, at most a quarter of it if possible (card, section 5)."""
    fitting = [s for s in (shrink(structure, h) for h in range(HALVINGS + 1)) if budget.holds(s)]
    roomy = [s for s in fitting if scaled(budget, 0.25).holds(s)]
    return next(iter(roomy or fitting), None)


def find(budget: Budget, start: Structure, arguments: argparse.Namespace) -> Structure:
    """The structure with the highest score within a budget."""
    space = SPACES[arguments.space](arguments.layers, arguments.size)
    search = EvolutionarySearch(
        space,
        budget,
        EntropyScorer(arguments.size),
        start,
        arguments.evaluations,
        arguments.population,
        arguments.seed,
        arguments.islands,
    )
    return search.run(processes=len(os.sched_getaffinity(0))).best


def table_row(share: float, structure: Structure, budget: Budget) -> tuple[float, ...]:
    """The numbers of one point of the Pareto figure."""
    ms = budget.latency_of(structure) if budget.latency_of else math.nan
    return (
        share,
        EntropyScorer(budget.size)(structure),
        count_flops(structure, budget.size),
        count_params(structure),
        count_layers(structure),
        ms,
    )


def write(folder: Path, structure: Structure, rows: list[tuple[float, ...]], size: int) -> None:
    """Write the folder as a whole."""
    net = MasterNet(structure).eval()
    names = [f"C{stage + 1}" for stage in net.out_indices]
    with output_dir(folder) as output:
        (output / "structure.txt").write_text(dump_structure(structure))
        save_file(net.state_dict(), output / "backbone.safetensors")
        batch, height, width = (torch.export.Dim(name) for name in ("batch", "height32", "width32"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
            torch.onnx.export(
                net,
                (torch.zeros(2, 3, size, size),),
                output / "backbone.onnx",
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: batch, 2: DIVISOR * height, 3: DIVISOR * width},),
                external_data=False,
                verbose=False,
            )
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
        (output / "pareto.csv").write_text(table.getvalue())
        write_svg(pareto(rows), output / "pareto.svg")


def pareto(rows: list[tuple[float, ...]]) -> Figure:
    """Best score by FLOPs and by parameters, a point per part of the budget."""
    figure = Figure(figsize=(7, 3))
    columns = [(2, "FLOPs"), (3, "parameters"), *([(5, "ms")] if rows[0][5] == rows[0][5] else [])]
    for axes, (column, label) in zip(figure.subplots(1, len(columns)), columns, strict=True):
        axes.plot([row[column] for row in rows], [row[1] for row in rows], "o-", color="C3")
        axes.set(xscale="log", xlabel=label, ylabel="entropy score")
    return figure


if __name__ == "__main__":
    run(main)
