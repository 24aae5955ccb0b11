"""Inline SVG: axes with round numbers, bars and labels."""

import math

from xbarc.page.markup import Html, element, quantity, scrolled, together


def svg(width: float, height: float, name: str, description: str, *children: str) -> Html:
    """A drawing that is as wide as there is room, in a box that scrolls where that is too narrow to read."""
    drawn = element(
        "svg",
        {"viewBox": f"0 0 {number(width)} {number(height)}", "role": "img", "class": "drawing"},
        element("title", None, name),
        element("desc", None, description),
        *children,
    )
    return scrolled(drawn, name)


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def rectangle(x: float, y: float, width: float, height: float, kind: str, title: str = "", opacity: float = 1) -> Html:
    """A rectangle; its title shows where the pointer rests."""
    attributes = {"x": number(x), "y": number(y), "width": number(width), "height": number(height), "class": kind}
    if opacity < 1:
        attributes["fill-opacity"] = number(opacity)
    return element("rect", attributes, *([element("title", None, title)] if title else []))


def line(start: tuple[float, float], end: tuple[float, float], kind: str) -> Html:
    """A line."""
    (x1, y1), (x2, y2) = start, end
    return element("line", {"x1": number(x1), "y1": number(y1), "x2": number(x2), "y2": number(y2), "class": kind})


def label(x: float, y: float, shown: str, anchor: str = "start", kind: str | None = None) -> Html:
    """Text whose baseline is at `y`."""
    return element("text", {"x": number(x), "y": number(y), "text-anchor": anchor, "class": kind}, shown)


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round numbers from `low` to `high`, at steps of 1, 2 or 5."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [step * count for count in range(first, first + most + 2) if step * count <= high + step * 1e-9]


def time_axis(left: float, width: float, top: float, bottom: float, seconds: float) -> Html:
    """Grid lines at round times below which they are named."""
    parts = []
    for at in ticks(0.0, seconds):
        x = left + width * at / seconds
        parts += [
            line((x, top), (x, bottom), "grid"),
            label(x, bottom + 14, quantity(at, "s") if at else "0", "middle"),
        ]
    return together(parts)
