"""Section: energy and area by component."""

from collections.abc import Callable, Mapping, Sequence

from runtime.costing import CostReport
from runtime.writing import Reloading
from xbarc.page.drawing import label, line, rectangle, svg
from xbarc.page.markup import Cell, Html, count, element, named, paragraph, quantity, section, share, table, together
from xbarc.page.summary import area

_BAR, _LEFT, _WIDTH, _RIGHT = 20, 96, 300, 124


def components(costs: CostReport) -> Html:
    """Bars and a table of what each component takes."""
    energy, whole = costs.energy, costs.total_area
    total = sum(energy.values())
    names = [*energy, *(name for name in costs.area if name not in energy)]
    rows = [
        [Cell(shown(name)), *_pair(energy, name, total, _joules), *_pair(costs.area, name, whole, area)]
        for name in names
    ]
    rows.append([Cell("all"), *_all(total, _joules), *_all(whole, area)])
    columns = ("component", "energy a sample", "share of energy", "area", "share of area")
    writing = costs.programming
    written = (
        f"Writing the program onto a chip is apart: {quantity(writing.energy, 'J')} and {quantity(writing.time, 's')} "
        f"for {count(writing.devices, 'device')}, at most {count(writing.pulses, 'pulse')} each."
    )
    bars = [_bars("Energy a sample, pipelined", energy, _joules)]
    bars.append(_bars("Area", costs.area, area) if whole else paragraph("The spec gives no areas."))
    split = element("div", {"class": "beside"}, element("div", None, *bars), table(columns, rows, "Energy and area"))
    reloaded = [] if costs.reloading is None else _segments(costs.reloading)
    return section("components", "Energy and area by component", split, *(reloaded or [paragraph(written)]))


def _segments(found: Reloading) -> list[Html]:
    """What writing segments one after another takes, and what it wears."""
    rows = [
        [
            Cell(str(number), number),
            Cell(_names(segment.layers)),
            Cell(f"{segment.arrays:,}", segment.arrays),
            Cell(f"{segment.devices:,}", segment.devices),
            Cell(quantity(segment.write_time, "s"), segment.write_time),
            Cell(quantity(segment.energy, "J"), segment.energy),
        ]
        for number, segment in enumerate(found.segments, 1)
    ]
    batch, wear = f"{quantity(found.energy, 'J')} and {quantity(found.time, 's')} a batch", count(found.writes, "write")
    told = (
        f"Segments of layers are written to the same {count(found.arrays, 'array')} one after another, for every "
        f"{count(found.batch, 'sample')}: {batch}, counted above, and {wear} of an array, at most "
        f"{count(found.pulses, 'pulse')} on a device. Occupancy is that of one sample a batch, its gaps the writing."
    )
    columns = ("segment", "layers", "arrays", "devices", "writing", "energy of writing")
    return [element("h3", None, "Segments"), paragraph(told), table(columns, rows, "Segments")]


def _names(layers: Sequence[str]) -> Html:
    """A layer, or the first and the last of several."""
    if len(layers) == 1:
        return named(layers[0])
    return together([named(layers[0]), " to ", named(layers[-1]), f" ({len(layers)})"])


def shown(name: str) -> str:
    """Name of a component as it is read."""
    return {"dac": "DAC", "adc": "ADC"}.get(name, name.replace("_", " "))


def _joules(value: float) -> str:
    return quantity(value, "J")


def _pair(values: Mapping[str, float], name: str, total: float, told: Callable[[float], str]) -> list[Cell]:
    if name not in values:
        return [Cell("–"), Cell("–")]
    value = values[name]
    part = value / total if total else None
    return [Cell(told(value), value), Cell("–" if part is None else share(part), part)]


def _all(total: float, told: Callable[[float], str]) -> list[Cell]:
    return [Cell(told(total), total), Cell(share(1.0), 1.0) if total else Cell("–")]


def _bars(name: str, values: Mapping[str, float], told: Callable[[float], str]) -> Html:
    longest, total = max(values.values()) or 1.0, sum(values.values()) or 1.0
    drawn = []
    for at, (component, value) in enumerate(values.items()):
        y, width = 4 + at * _BAR, _WIDTH * value / longest
        words = f"{told(value)}, {share(value / total)}"
        drawn += [
            label(_LEFT - 8, y + 13, shown(component), "end"),
            rectangle(_LEFT, y + 2, width, _BAR - 5, "measure", f"{shown(component)}: {words}"),
            label(_LEFT + width + 6, y + 13, words),
        ]
    height = 8 + len(values) * _BAR
    drawn.append(line((_LEFT, 4), (_LEFT, height - 4), "axis"))
    described = ", ".join(f"{shown(component)} {told(value)}" for component, value in values.items())
    return together([element("h3", None, name), svg(_LEFT + _WIDTH + _RIGHT, height, name, described, *drawn)])
