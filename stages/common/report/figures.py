"""Figures as SVG files whose bytes depend on nothing but what they show."""

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from stages.common.stage.files import write_atomic

mpl.rcParams.update(
    {
        "svg.hashsalt": "encore",  # element ids must not be random
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "legend.fontsize": 7,
    }
)


def write_svg(figure: Figure, path: Path) -> None:
    """Write a figure atomically as SVG without date or version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    write_atomic(path, buffer.getvalue())
