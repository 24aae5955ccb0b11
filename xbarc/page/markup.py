"""HTML and SVG from elements: whatever is not markup already is escaped, wherever it comes from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from xbarc.quantities import engineering

_REPLACED = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000)], "\ufffd")
"""Characters that no page may hold."""
_VOID = frozenset(("img", "meta", "rect", "line", "circle", "path", "stop"))
LONGEST_NAME = 48
_TIED = "\u00a0"


class Html(str):
    """Text that is markup."""

    __slots__ = ()


def element(tag: str, attributes: Mapping[str, object] | None = None, *children: str) -> Html:
    """An element; children and values of attributes are escaped unless they are `Html`."""
    given = "".join(f' {name}="{text(value)}"' for name, value in (attributes or {}).items() if value is not None)
    if tag in _VOID and not children:
        return Html(f"<{tag}{given}/>")
    return Html(f"<{tag}{given}>{''.join(map(text, children))}</{tag}>")


def text(value: object) -> Html:
    """A value as text of a page; `Html` stays as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value).translate(_REPLACED)))


def together(parts: Iterable[str]) -> Html:
    """Parts one after another."""
    return Html("".join(map(text, parts)))


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name with its middle left out where it is long."""
    if len(name) <= longest:
        return name
    tail = longest // 3
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"


def named(name: str, longest: int = LONGEST_NAME) -> Html:
    """A name from the model, whatever direction it is written in; whole in its title where it is shortened."""
    short = shortened(name, longest)
    return element("bdi", {"title": name if short != name else None}, short)


def quantity(value: float, unit: str) -> str:
    """A quantity with a prefix and three digits, which no line break parts from its unit."""
    return engineering(value, unit).replace(" u", " µ").replace(" ", _TIED)


def share(value: float) -> str:
    """A share in percent with three digits or two decimals: ``12.5 %``, ``0.03 %``."""
    hundredths = 100 * value
    if 0 < hundredths < 0.005:
        return f"<0.01{_TIED}%"
    digits = 0 if hundredths in (0, 100) else 1 if hundredths >= 9.995 else 2
    shown = f"{hundredths:.{digits}f}"
    return f"{shown}{_TIED}%"


def percent(value: float) -> str:
    """An accuracy or an error in percent with two decimals."""
    return f"{100 * value:.2f}{_TIED}%"


def count(number: int, what: str) -> str:
    """So many of something: ``1 tile``, ``1,024 tiles``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and the number that it is sorted by where it is one."""

    shown: str
    value: float | None = None


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, *, sortable: bool = True) -> Html:
    """A table in a box of its own that scrolls; the first column names the row."""
    numeric = [any(row[number].value is not None for row in rows) for number in range(len(columns))]
    head = together(
        element("th", {"scope": "col", "class": "number" if numeric[number] else None}, column)
        for number, column in enumerate(columns)
    )
    body = []
    for row in rows:
        cells = [element("th", {"scope": "row", **_sorted_by(row[0])}, row[0].shown)]
        for number, cell in enumerate(row[1:], 1):
            kind = {"class": "number"} if numeric[number] else {}
            cells.append(element("td", {**kind, **_sorted_by(cell)}, cell.shown))
        body.append(element("tr", None, *cells))
    whole = element(
        "table",
        {"class": "sortable" if sortable else None},
        element("caption", None, caption),
        element("thead", None, element("tr", None, head)),
        element("tbody", None, *body),
    )
    return scrolled(whole, caption)


def _sorted_by(cell: Cell) -> dict[str, object]:
    return {} if cell.value is None else {"data-value": repr(float(cell.value))}


def scrolled(content: Html, label: str) -> Html:
    """A box that scrolls sideways by itself, also with the keyboard."""
    return element("div", {"class": "scroll", "role": "region", "tabindex": "0", "aria-label": label}, content)


def section(identity: str, heading: str, *children: str) -> Html:
    """A section of the page."""
    title = element("h2", {"id": f"{identity}-heading"}, heading)
    return element("section", {"id": identity, "aria-labelledby": f"{identity}-heading"}, title, *children)


def paragraph(content: str) -> Html:
    """A paragraph."""
    return element("p", None, content)


def described(pairs: Iterable[tuple[str, str]], kind: str) -> Html:
    """A list of terms, each with what it is."""
    parts = [element("div", None, element("dt", None, term), element("dd", None, value)) for term, value in pairs]
    return element("dl", {"class": kind}, *parts)
