"""Figures as files: one style, the same bytes for the same content, written whole or not at all."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from hwspec.atomic import write_atomically
from hwspec.errors import DataError
from xbarc.chip_plot import FORMATS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1f6fb2", "#d9822b", "#2f8f5b", "#c23030", "#7c4fb0", "#6b7785")
INK, FAINT = "#333f4a", "#6b7785"


def check_plot(path: Path) -> None:
    """Check that a figure can be drawn, before the work that leads to it.

    Raises
    ------
    DataError
        If matplotlib is not installed, or the format is another one.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"output {path}", f"must end in {', '.join(FORMATS)}", got=path.suffix or path.name)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise DataError("matplotlib", "must be installed for plots", hint="pip install xbarc[plots]") from None


def drawn(kind: str, size: tuple[float, float], draw: "Callable[[Figure], None]") -> bytes:
    """The content of a figure.

    Parameters
    ----------
    kind
        ``png``, ``svg`` or ``pdf``.
    size
        Width and height, inches.
    draw
        Draws into an empty figure.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dated = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}.get(kind)
    style: dict[Any, Any] = {"svg.hashsalt": "xbarc", "svg.fonttype": "none", "font.size": 9, "axes.axisbelow": True}
    with rc_context({**style, "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"]}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, dpi=150, facecolor="white", metadata=dated)
    content = stream.getvalue()
    if kind == "svg":  # no white space at the ends of lines
        content = b"\n".join(line.rstrip() for line in content.splitlines()) + b"\n"
    return content


def save_figure(path: Path, size: tuple[float, float], draw: "Callable[[Figure], None]") -> None:
    """Draw a figure into a file of the format that its name ends in.

    Raises
    ------
    DataError
        If matplotlib is not installed, or the file cannot be written.
    """
    check_plot(path)
    content = drawn(path.suffix.lower().removeprefix("."), size, draw)

    def put(stream: BinaryIO) -> None:
        stream.write(content)

    try:
        write_atomically(path, put)
    except OSError as error:
        raise DataError(f"output {path}", f"cannot be written ({error.strerror})") from None


def colour(index: int, of: int) -> "tuple[float, ...] | str":
    """One of `of` colours that can be told apart."""
    if of <= len(COLOURS):
        return COLOURS[index]
    from matplotlib import colormaps

    return colormaps["viridis"](0.9 * index / (of - 1))
