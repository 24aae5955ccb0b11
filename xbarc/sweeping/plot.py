"""Figures of a sweep: curves with bands, heat maps of two variables, and yield."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwspec.errors import DataError
from xbarc.figure import FAINT, check_plot, colour, save_figure
from xbarc.sweeping.statistics import PointStatistics, SweepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDE = 10.0
"""Where the largest value of an axis is so many times the least, it is drawn logarithmically."""
_HEAT = 3
"""Values that both of two variables must have, at least, for a heat map."""
SIZE = (7.3, 3.4)


def plot_sweep(report: SweepReport, path: Path) -> None:
    """Draw the metric and the yield over what varies.

    One variable makes curves, with its 95 % interval as a band and the worst chip as dots; a further one colours them.
    Two of three or more numbers each, on a full grid, make heat maps.

    Parameters
    ----------
    report
        With at least one point that is done.
    path
        Of the figure, ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    DataError
        If matplotlib is not installed, nothing is done, or the file cannot be written.
    """
    check_plot(path)
    if not any(point.chips for point in report.points):
        raise DataError("plot", "needs a trial that is done, and there is none")
    save_figure(path, SIZE, lambda figure: draw_sweep(figure, report))


def draw_sweep(figure: "Figure", report: SweepReport) -> None:
    """Draw both panels into an empty figure."""
    left, right = figure.subplots(1, 2)
    numeric = [axis for axis in report.axes if _is_numeric(report, axis)]
    if len(report.axes) == 2 and len(numeric) == 2 and not report.several_programs and _full(report, *numeric):
        _draw_heat(figure, left, report, numeric, "mean")
        _draw_heat(figure, right, report, numeric, "chip_yield")
        return
    across = max(numeric, key=lambda axis: len(_values(report, axis)), default=None)
    rest = [axis for axis in report.axes if axis != across]
    series: dict[str, list[PointStatistics]] = {}
    for point in report.points:
        if point.chips:
            series.setdefault(_told(report, point, rest), []).append(point)
    for number, (told, points) in enumerate(series.items()):
        _draw_curve(left, right, report, points, across, told, colour(number, len(series)))
    unit = report.metric.replace("_", " ")
    left.set_ylabel(f"{unit} (%)")
    right.set_ylabel(f"chips within {report.told_loss} of the original (%)")
    right.set_ylim(-4, 104)
    left.axhline(100 * report.original, color=FAINT, linestyle="--", linewidth=1)
    for axes in (left, right):
        axes.set_xlabel(across or "")
        axes.grid(color="#e3e7eb", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        if across is not None and _is_wide(_values(report, across)):
            axes.set_xscale("log")
    if len(series) > 1:
        handles, labels = left.get_legend_handles_labels()
        title = ", ".join(rest) or None
        columns = max(1, min(len(labels), 5))
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, title=title, frameon=False, fontsize=8
        )


def _draw_curve(
    left: "Axes",
    right: "Axes",
    report: SweepReport,
    points: Sequence[PointStatistics],
    across: str | None,
    told: str,
    shade: Any,
) -> None:
    x = np.arange(len(points), dtype=np.float64)
    if across is not None:
        x = np.array([point.values[_name(across)] for point in points], np.float64)
    order = np.argsort(x, kind="stable")
    x, ordered = x[order], [points[index] for index in order]
    mean, low, high, worst, good = 100 * np.array([_numbers(point) for point in ordered]).T
    left.fill_between(x, low, high, color=shade, alpha=0.2, linewidth=0)
    left.plot(x, mean, "o-", color=shade, markersize=3.5, linewidth=1.2, label=told or report.metric)
    left.plot(x, worst, "v", color=shade, markersize=3, alpha=0.6)
    right.plot(x, good, "o-", color=shade, markersize=3.5, linewidth=1.2)


def _numbers(point: PointStatistics) -> tuple[float, float, float, float, float]:
    """Mean, both ends of its interval, the worst chip and the yield."""
    nothing = float("nan")
    mean = nothing if point.mean is None else point.mean
    low, high = point.ci95 or (mean, mean)
    worst, good = (nothing if value is None else value for value in (point.worst, point.chip_yield))
    return mean, low, high, worst, good


def _draw_heat(figure: "Figure", axes: "Axes", report: SweepReport, names: Sequence[str], what: str) -> None:
    across, up = ([*sorted(_values(report, name))] for name in names)
    grid = np.full((len(up), len(across)), np.nan)
    for point in report.points:
        value = getattr(point, what)
        if value is not None:
            x, y = (point.values[_name(name)] for name in names)
            grid[up.index(float(str(y))), across.index(float(str(x)))] = 100 * value
    drawn = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(across)), [f"{value:.3g}" for value in across], rotation=45 if len(across) > 5 else 0)
    axes.set_yticks(range(len(up)), [f"{value:.3g}" for value in up])
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    unit = report.metric.replace("_", " ")
    axes.set_title(f"{unit} (%)" if what == "mean" else f"chips within {report.told_loss} (%)", fontsize=9)
    figure.colorbar(drawn, ax=axes)
    if grid.size <= 64:
        middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
        for (row, column), value in np.ndenumerate(grid):
            shade = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=shade)


def _told(report: SweepReport, point: PointStatistics, axes: Sequence[str]) -> str:
    """What tells a curve from others."""
    parts = [Path(point.program).name] if report.several_programs else []
    return ", ".join([*parts, *(_shown(point.values.get(_name(axis))) for axis in axes)])


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name(axis: str) -> str:
    return axis.split(",")[0]


def _is_numeric(report: SweepReport, axis: str) -> bool:
    found = [point.values.get(_name(axis)) for point in report.points]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)


def _values(report: SweepReport, axis: str) -> list[float]:
    return sorted({float(str(point.values[_name(axis)])) for point in report.points})


def _full(report: SweepReport, first: str, second: str) -> bool:
    shape = [len(_values(report, axis)) for axis in (first, second)]
    return min(shape) >= _HEAT and shape[0] * shape[1] == len(report.points)


def _is_wide(values: Sequence[float]) -> bool:
    return values[0] > 0 and values[-1] > _WIDE * values[0]
