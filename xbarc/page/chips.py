"""Section: accuracy across chips, where an evaluation is given."""

from collections.abc import Sequence

from xbarc.eval_report import EvalReport
from xbarc.page.drawing import label, line, number, rectangle, svg, ticks
from xbarc.page.markup import Cell, Html, described, element, named, paragraph, percent, section, table

_LEFT, _WIDTH, _STRIP, _TOP = 150, 640, 64, 26
_SPREAD = 36
"""Height over which the points of a strip are spread, so that equal ones can be told apart."""
_MOST = 2000
"""Points of a strip that are drawn."""

Strip = tuple[str, Sequence[float], float, tuple[float, float] | None]
"""Name, values, their mean, and its interval where it is known."""


def chips(found: EvalReport) -> Html:
    """A strip of one point a chip, with mean and interval, and what was measured."""
    unit = found.metric.replace("_", " ")
    several = len(found.chips) > 1
    low, high = found.ci95
    of = "accuracies" if found.metric == "accuracy" else "relative errors of outputs"
    facts = [
        ("In floating point", percent(found.float_)),
        ("Ideal chip", percent(found.ideal)),
        ("Mean", percent(found.mean)),
        ("95 % interval of the mean", f"{percent(low)} to {percent(high)}"),
        ("Chips", f"{len(found.chips):,}, from seed {found.seed} on" if several else "1"),
        ("Samples", f"{found.samples:,}"),
    ]
    if several:
        percentile = 5 if found.metric == "accuracy" else 95
        worst = f"{percent(found.worst)}; percentile {percentile}: {percent(found.percentile5)}"
        facts += [("From chip to chip", f"{100 * found.std:.2f} points"), ("Worst chip", worst)]
    if found.drop is not None and found.drop_ci95 is not None:
        low, high = (100 * end for end in found.drop_ci95)
        facts.append(("Lost by failures", f"{100 * found.drop:.2f} points ({low:.2f} to {high:.2f})"))
    facts.append(("Effects", ", ".join(found.effects) or "none"))
    strips: list[Strip] = [("chips", found.chips, found.mean, found.ci95)]
    if found.good_chips:
        strips.append(("without failures", found.good_chips, sum(found.good_chips) / len(found.good_chips), None))
    rows = [[Cell(named(layer.layer)), Cell(percent(layer.value), layer.value)] for layer in found.by_layer]
    left_out = max(len(found.chips) - _MOST, 0)
    told = f"One point a chip; the line is the mean of the {of}, the band its 95 % interval over chips and samples."
    if left_out:
        told += f" {left_out:,} chips are counted and not drawn."
    return section(
        "chips",
        f"{unit.capitalize()} across chips",
        described(facts, "cards"),
        paragraph(told),
        _strips(found, strips, unit),
        *([element("h3", None, "One layer on crossbars"), table(("layer", unit), rows, "By layer")] if rows else []),
    )


def _strips(found: EvalReport, strips: Sequence[Strip], unit: str) -> Html:
    values = [found.float_, found.ideal, *found.ci95, *(value for _, points, _, _ in strips for value in points)]
    span = max(values) - min(values) or 0.01
    low, high = min(values) - 0.05 * span, max(values) + 0.05 * span

    def at(value: float) -> float:
        return _LEFT + _WIDTH * (value - low) / (high - low)

    bottom = _TOP + len(strips) * _STRIP
    drawn = []
    for tick in ticks(low, high):
        x = at(tick)
        drawn += [
            line((x, _TOP), (x, bottom), "grid"),
            label(x, bottom + 14, f"{100 * tick:.6g} %" if abs(tick) > span * 1e-6 else "0 %", "middle"),
        ]
    for row, (name, points, mean, interval) in enumerate(strips):
        middle = _TOP + (row + 0.5) * _STRIP
        drawn.append(label(_LEFT - 10, middle + 4, name, "end"))
        if interval is not None:
            width = max(1.0, at(interval[1]) - at(interval[0]))
            title = f"95 % interval {percent(interval[0])} to {percent(interval[1])}"
            drawn.append(rectangle(at(interval[0]), middle - 24, width, 48, "interval", title))
        drawn += [
            _point(at(value), middle, chip, f"chip {found.seed + chip}: {percent(value)}")
            for chip, value in enumerate(points[:_MOST])
        ]
        drawn.append(line((at(mean), middle - 26), (at(mean), middle + 26), "mean"))
    for name, value, kind in (("float", found.float_, "float"), ("ideal", found.ideal, "ideal")):
        drawn.append(line((at(value), _TOP - 4), (at(value), bottom), kind))
        drawn.append(label(at(value), _TOP - (16 if name == "float" else 6), name, "middle"))
    told = f"{unit} of {len(found.chips)} chips, mean {percent(found.mean)}"
    return svg(_LEFT + _WIDTH + 40, bottom + 24, f"{unit.capitalize()} of each chip", told, *drawn)


def _point(x: float, middle: float, chip: int, title: str) -> Html:
    """Spread by the golden ratio: neighbours in order are far apart, the same on every page."""
    y = middle + _SPREAD * ((chip * 0.6180339887 + 0.5) % 1 - 0.5)
    attributes = {"cx": number(x), "cy": number(y), "r": "3.2", "class": "chip"}
    return element("circle", attributes, element("title", None, title))
