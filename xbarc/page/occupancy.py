"""Section: which arrays are busy when, in the pipeline and one instruction after another."""

from collections.abc import Iterator
from dataclasses import dataclass

from runtime.program import TileProgram
from runtime.timing import DIGITAL, Schedule
from xbarc.page.drawing import label, number, rectangle, svg, time_axis
from xbarc.page.markup import Html, element, paragraph, quantity, section, share, shortened

_ROWS = 48
"""Rows of a chart at most; more arrays share rows."""
_HEIGHT, _LEFT, _WIDTH, _TOP = 14, 110, 760, 6
_COLOURS = 6
_THINNEST = 0.7
_FULL = 0.7
"""From this share of busy arrays on a row is dark enough for light numbers."""


@dataclass(frozen=True)
class Busy:
    """A part of a row of the chart: an instruction that keeps arrays of the row busy.

    Attributes
    ----------
    stage
        Number of the instruction.
    start, stop
        Seconds.
    part
        Mean share of the row's arrays that are busy from start to stop.
    """

    stage: int
    start: float
    stop: float
    part: float


def groups_of(found: Schedule, most: int = _ROWS) -> list[list[int]]:
    """Arrays in rising order, in at most so many rows: one a row, or else those together that run the same layers.

    Where that still gives too many rows, neighbours share them.
    """
    arrays = sorted(found.occupancy)
    if len(arrays) <= most:
        return [[array] for array in arrays]
    runs: dict[int, list[int]] = {array: [] for array in arrays}
    for at, stage in enumerate(found.stages):
        for array in stage.resources:
            if array in runs:
                runs[array].append(at)
    groups: list[list[int]] = []
    for array in arrays:
        if groups and runs[groups[-1][0]] == runs[array]:
            groups[-1].append(array)
        else:
            groups.append([array])
    size = -(-len(groups) // most)
    return [[array for group in groups[at : at + size] for array in group] for at in range(0, len(groups), size)]


def busy_parts(found: Schedule, arrays: list[int], length: float) -> Iterator[Busy]:
    """What keeps these arrays busy within `length` seconds, in which everything that goes on beyond starts anew."""
    for at, (stage, start) in enumerate(zip(found.stages, found.starts, strict=True)):
        times = [stage.resources[array] for array in arrays if array in stage.resources]
        longest = max(times, default=0.0)
        if not longest:
            continue
        part, begin = sum(times) / (longest * len(arrays)), start % length
        yield Busy(at, begin, min(begin + longest, length), part)
        if begin + longest > length * (1 + 1e-9):
            yield Busy(at, 0.0, begin + longest - length, part)


def occupancy(program: TileProgram, piped: Schedule, serial: Schedule) -> Html:
    """Two charts of arrays against time."""
    arrays = sorted(piped.occupancy)
    groups = groups_of(piped)
    shared = "; arrays that run the same layers, or neighbours, share a row, the paler the fewer of them are busy"
    each = shared if len(groups) < len(arrays) else ""
    mean = {
        name: sum(found.occupancy.values()) / len(arrays) if arrays else 0.0
        for name, found in (("piped", piped), ("serial", serial))
    }
    told = f"Numbers are those of the instructions above{each}."
    crowded = (
        f"In the pipeline a sample starts every {quantity(piped.interval, 's')}, and what one interval shows repeats; "
        f"arrays are busy {share(mean['piped'])} of the time. One instruction after another, they are busy "
        f"{share(mean['serial'])} of the {quantity(serial.interval, 's')} that a sample takes."
    )
    return section(
        "occupancy",
        "Occupancy over time",
        paragraph(f"{told} {crowded}"),
        element("h3", None, "Pipelined, one interval"),
        _chart(program, piped, groups, piped.interval, "Occupancy of arrays in one interval of the pipeline"),
        element("h3", None, "Layer by layer, one sample"),
        _chart(program, serial, groups, serial.interval, "Occupancy of arrays layer by layer"),
    )


def _chart(program: TileProgram, found: Schedule, groups: list[list[int]], length: float, name: str) -> Html:
    if not length:
        return paragraph("Windows are known only when the program runs, and so are times.")
    rows = [[DIGITAL], *groups]
    bottom = _TOP + len(rows) * _HEIGHT
    drawn = [time_axis(_LEFT, _WIDTH, _TOP, bottom, length)]
    for at, arrays in enumerate(rows):
        y = _TOP + at * _HEIGHT
        drawn.append(label(_LEFT - 6, y + _HEIGHT - 3, _row_name(arrays), "end"))
        for busy in busy_parts(found, arrays, length):
            drawn += _bar(program, found, busy, y, length)
    height, width = bottom + 22, _LEFT + _WIDTH + 40
    told = f"{len(groups)} rows of arrays over {quantity(length, 's')}"
    return svg(width, height, name, told, *drawn)


def _row_name(arrays: list[int]) -> str:
    if arrays == [DIGITAL]:
        return "digital units"
    return f"array {arrays[0]}" if len(arrays) == 1 else f"arrays {arrays[0]}–{arrays[-1]}"


def _bar(program: TileProgram, found: Schedule, busy: Busy, y: float, length: float) -> list[Html]:
    x = _LEFT + _WIDTH * busy.start / length
    width = max(_THINNEST, _WIDTH * (busy.stop - busy.start) / length)
    digital = program.tables.instructions[busy.stage].op == "host"
    kind = "digital" if digital else f"stage{busy.stage // 2 % _COLOURS}"
    title = (
        f"{busy.stage + 1}. {shortened(found.stages[busy.stage].name)}: {quantity(busy.start, 's')} to "
        f"{quantity(busy.stop, 's')}"
    )
    parts = [rectangle(x, y + 1, width, _HEIGHT - 2, kind, title, max(0.2, busy.part))]
    shown = number(busy.stage + 1)
    if width > 7 * len(shown) + 2:
        kind = "inside" if busy.part > _FULL else "over"
        parts.append(label(x + width / 2, y + _HEIGHT - 3.5, shown, "middle", kind))
    return parts
