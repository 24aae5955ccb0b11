"""How the figures of the documentation look, and how they are written: small, and the same bytes at every run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#1f6fb2", "#d9822b", "#2f8f5b", "#c23030", "#7c4fb0", "#6b7785"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
WIDTH = 7.3
"""Inches: 700 px in a browser."""

Corner = Literal["best", "upper right", "upper left", "lower left", "lower right", "center left"]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xbarc",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "savefig.dpi": 110,
    "path.simplify_threshold": 0.2,
}


@dataclass(frozen=True)
class Effort:
    """How much is computed for a figure: side of its arrays, and draws of what is sampled."""

    side: int = 128
    draws: int = 400


Draw = Callable[[Effort], Figure]


def panels(*titles: str, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """A figure of some panels beside each other, with these titles."""
    figure = Figure(figsize=(WIDTH, height))
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    return figure, axes


def label(axis: Axes, x: str, y: str, *, legend: Corner | None = "best") -> None:
    """Name the axes, and show the legend at this place."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if legend is not None:
        axis.legend(loc=legend)


def write(draw: Draw, effort: Effort, path: Path) -> None:
    """Draw a figure and write it; the suffix of the path is its format."""
    svg = path.suffix == ".svg"
    with mpl.rc_context(_STYLE):
        draw(effort).savefig(path, facecolor="white", metadata={"Date": None, "Creator": None} if svg else None)
    if svg:
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
