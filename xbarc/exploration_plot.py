"""A figure of an exploration: quality against energy and against area, the front as a line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwspec.errors import DataError
from xbarc.exploration_report import ExplorePoint, ExploreReport
from xbarc.figure import FAINT, INK, check_plot, colour, save_figure
from xbarc.pareto import pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 10.0
"""Where the largest cost is so many times the least, the axis is logarithmic."""
_APART = (24.0, 11.0)
"""Points of the page between two numbers of points, at least one way."""


def plot_exploration(report: ExploreReport, path: Path) -> None:
    """Draw quality against energy and against area.

    Parameters
    ----------
    report
        With at least one point that is done.
    path
        Of the figure, ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    DataError
        If matplotlib is not installed, no point is done, or the file cannot be written.
    """
    check_plot(path)
    if not report.ranked:
        raise DataError("plot", "needs a point that fits its chip, and there is none")
    save_figure(path, (7.3, 3.5), lambda figure: draw_exploration(figure, report))


def draw_exploration(figure: "Figure", report: ExploreReport) -> None:
    """Draw both panels and their legend into an empty figure."""
    from matplotlib.ticker import EngFormatter

    left, right = figure.subplots(1, 2, sharey=True)
    energies = _draw_panel(left, report, lambda point: point.cost.energy if point.cost else np.nan)
    areas = _draw_panel(right, report, lambda point: point.cost.area * 1e6 if point.cost else np.nan)
    left.set_xlabel("energy a sample")
    left.xaxis.set_major_formatter(EngFormatter(unit="J"))
    right.set_xlabel("area (mm²)")
    unit = "accuracy (%)" if report.metric == "accuracy" else "relative error of outputs (%)"
    left.set_ylabel(unit)
    handles, labels = left.get_legend_handles_labels()
    columns = min(len(labels), 5)
    title = f"colours: {report.axes[0].name}"
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title, frameon=False, fontsize=8)
    figure.draw_without_rendering()  # sets where points lie on the page
    for axes, named in ((left, energies), (right, areas)):
        _name_points(axes, named)


def _draw_panel(
    axes: "Axes", report: ExploreReport, of: Callable[[ExplorePoint], float]
) -> list[tuple[float, float, int]]:
    """Draw one panel; gives cost, quality and number of the points on its line, those on the front of all first."""
    points = report.ranked
    costs = np.array([of(point) for point in points])
    quality = np.array([100 * point.quality.mean if point.quality else np.nan for point in points])
    better = -1.0 if report.metric == "accuracy" else 1.0
    best = pareto_front([(cost, better * value) for cost, value in zip(costs, quality, strict=True)])
    line = sorted((number for number, found in enumerate(best) if found), key=lambda number: costs[number])
    axes.plot(costs[line], quality[line], color=INK, linewidth=1.2, zorder=1, label="front of the panel")
    axis = report.axes[0]
    for index, value in enumerate(axis.values):
        here = np.array([point.values[axis.fields[0]] == value for point in points])
        front = np.array([point.on_front for point in points])
        shade = colour(index, len(axis.values))
        axes.scatter(costs[here & ~front], quality[here & ~front], s=16, color=shade, alpha=0.35, linewidths=0)
        axes.scatter(
            costs[here & front], quality[here & front], s=30, color=shade, linewidths=0.6, edgecolors="white", zorder=2
        )
        if here.any():
            axes.scatter([], [], s=30, color=shade, label="null" if value is None else str(value))
    if report.metric == "accuracy" and report.original is not None:
        axes.axhline(100 * report.original, color=FAINT, linestyle="--", linewidth=1, label="original model")
    if costs.min() > 0 and costs.max() > _WIDE * costs.min():
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.margins(0.08, 0.1)
    axes.grid(color="#e3e7eb", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    line.sort(key=lambda number: (not points[number].on_front, better * quality[number]))
    return [(costs[number], quality[number], points[number].number) for number in line]


def _name_points(axes: "Axes", named: Sequence[tuple[float, float, int]]) -> None:
    """Numbers of points, as in the table, where one does not hide another."""
    placed: list[tuple[float, float]] = []
    scale = 72 / axes.figure.dpi
    for x, y, number in named:
        across, up = axes.transData.transform((x, y)) * scale
        if any(abs(across - a) < _APART[0] and abs(up - b) < _APART[1] for a, b in placed):
            continue
        placed.append((across, up))
        axes.annotate(f"{number}", (x, y), xytext=(5, -8), textcoords="offset points", fontsize=7, color=INK)
