"""A picture of one tile: targets, failed devices, what the pairs hold, and what is missing to the float weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwspec.atomic import write_atomically
from hwspec.errors import DataError
from hwspec.failures import State
from runtime.quantize import Float64
from xbarc.chip_plot import COLOURS, FORMATS, GATED, name_of
from xbarc.tile_view import TileView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_tile(view: TileView, path: Path) -> None:
    """Draw the four panels of a tile, as it lies on its array.

    Parameters
    ----------
    view
        The tile.
    path
        Of the figure, ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    DataError
        If matplotlib is not installed, the format is another one, or the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"output {path}", f"must end in {', '.join(FORMATS)}", got=path.suffix or path.name)
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("matplotlib", "must be installed for plots", hint="pip install xbarc[plots]") from None
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw_tile(figure, view)
    kind = path.suffix.lower().removeprefix(".")
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)  # equal tiles give equal figures
    try:
        with rc_context({"svg.hashsalt": "xbarc"}):
            write_atomically(path, lambda stream: figure.savefig(stream, format=kind, dpi=150, metadata=dated))
    except OSError as error:
        raise DataError(f"output {path}", f"cannot be written ({error.strerror})") from None


def draw_tile(figure: "Figure", view: TileView) -> None:
    """Draw the four panels into an empty figure."""
    tile = view.tile
    numbers_of = {"slice": tile.slice, "replica": tile.replica, "copy": tile.copy_number}
    part = "".join(f", {what} {number}" for what, number in numbers_of.items() if number)
    numbers = list(dict.fromkeys(str(number) for number, _, _ in view.places))
    arrays = f"array{'s' * (len(numbers) > 1)} {' and '.join(numbers)}"
    figure.suptitle(f"tile {tile.name} of layer {tile.layer}{part}: {tile.rows}x{tile.cols} weights on {arrays}")
    (targets, failures), (held, residual) = figure.subplots(2, 2)
    _draw_values(figure, targets, view.target, 1.0, "RdBu_r", "share of the range")
    targets.set_title("targets")
    _draw_failures(failures, view)
    _draw_values(figure, held, view.held, 1.0, "RdBu_r", "share of the range")
    held.set_title("what the pairs hold")
    largest = float(np.abs(view.residual).max())
    _draw_values(figure, residual, view.residual, largest or 1.0, "PuOr_r", "share of the column's largest weight")
    rms = float(np.sqrt((view.residual**2).mean()))
    residual.set_title(f"difference to the float weights: rms {rms:.2g}")


def _draw_values(figure: "Figure", axes: "Axes", values: Float64, limit: float, colours: str, what: str) -> None:
    image = axes.imshow(values, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
    beyond = bool((np.abs(values) > limit * (1 + 1e-9)).any())
    figure.colorbar(image, ax=axes, label=what, extend="both" if beyond else "neither")
    _name_axes(axes)


def _draw_failures(axes: "Axes", view: TileView) -> None:
    """Both devices of each pair beside each other: plus on the left half of its cell, minus on the right one."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    off = len(State)
    shown = [np.where(gated, off, states) for states, gated in zip(view.states, view.gated, strict=True)]
    both = np.stack(shown, axis=2).reshape(view.tile.rows, -1)
    colours = [*(COLOURS[state] for state in State), GATED]
    extent = (-0.5, view.tile.cols - 0.5, view.tile.rows - 0.5, -0.5)
    axes.imshow(
        both,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        interpolation="nearest",
        aspect="auto",
        extent=extent,
    )
    sides = view.counts()
    keys = []
    for state in State:
        if state == State.OK:
            keys.append(Patch(facecolor=COLOURS[state], edgecolor="#999999", label="good"))
            continue
        name = name_of(state)
        numbers = [side[name] for side in sides]
        if any(numbers):
            keys.append(Patch(color=COLOURS[state], label=f"{name} ({' + '.join(map(str, numbers))})"))
    if any(gated.any() for gated in view.gated):
        numbers = [int(gated.sum()) for gated in view.gated]
        keys.append(Patch(color=GATED, label=f"gated off ({' + '.join(map(str, numbers))})"))
    axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, fontsize="small")
    axes.set_title("failed devices: plus left, minus right in each cell" if len(view.states) > 1 else "failed devices")
    _name_axes(axes)


def _name_axes(axes: "Axes") -> None:
    axes.set_xlabel("column, as they lie")
    axes.set_ylabel("row, as they lie")
