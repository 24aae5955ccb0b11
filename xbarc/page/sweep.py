"""Section: a sweep over specs, where its results are given."""

import base64
import importlib.util
from pathlib import Path

from xbarc.figure import drawn
from xbarc.page.markup import Cell, Html, described, element, named, paragraph, percent, scrolled, section, share, table
from xbarc.sweeping.plot import SIZE, draw_sweep
from xbarc.sweeping.statistics import PointStatistics, SweepReport


def sweep(report: SweepReport) -> Html:
    """Metric and yield over what varies: a figure, and a row a point."""
    unit = report.metric.replace("_", " ")
    facts = [
        ("In floating point", percent(report.original)),
        ("Samples", f"{report.samples:,}"),
        ("Trials", f"{sum(point.chips for point in report.points):,}"),
        ("Good chips are within", report.told_loss),
    ]
    programs = ("program",) if report.several_programs else ()
    columns = (*programs, *report.axes, "chips", unit, "95 % interval", "worst", "yield")
    rows = [_row(report, point) for point in report.points]
    told = "A trial is one chip. The interval is Student's, over chips; the yield is the share of good chips."
    return section(
        "sweep",
        "Sweep",
        described(facts, "cards"),
        paragraph(told),
        *_figure(report),
        table(columns, rows, f"{unit.capitalize()} and yield"),
    )


def _row(report: SweepReport, point: PointStatistics) -> list[Cell]:
    cells = [Cell(named(Path(point.program).name))] if report.several_programs else []
    for axis in report.axes:
        value = point.values.get(axis.split(",")[0])
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        cells.append(Cell(shown, float(str(value)) if numeric else None))
    cells.append(Cell(f"{point.chips:,}", point.chips))
    if point.mean is None or point.worst is None or point.chip_yield is None:
        return [*cells, *(Cell("–") for _ in range(4))]
    interval = "–" if point.ci95 is None else f"{percent(point.ci95[0])} to {percent(point.ci95[1])}"
    return [
        *cells,
        Cell(percent(point.mean), point.mean),
        Cell(interval, None if point.ci95 is None else point.ci95[0]),
        Cell(percent(point.worst), point.worst),
        Cell(share(point.chip_yield), point.chip_yield),
    ]


def _figure(report: SweepReport) -> list[Html]:
    """The figure, where matplotlib is installed; the table says the same."""
    if importlib.util.find_spec("matplotlib") is None or not any(point.chips for point in report.points):
        return []
    content = drawn("svg", SIZE, lambda figure: draw_sweep(figure, report))
    source = "data:image/svg+xml;base64," + base64.b64encode(content).decode()
    alternative = f"{report.metric.replace('_', ' ').capitalize()} and yield over {', '.join(report.axes)}"
    width, height = (round(96 * inches) for inches in SIZE)
    return [
        scrolled(element("img", {"src": source, "alt": alternative, "width": width, "height": height}), alternative)
    ]
