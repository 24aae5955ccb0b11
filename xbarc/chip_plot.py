"""Pictures of fault maps: a figure of one array, and text for terminals."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hwspec.atomic import write_atomically
from hwspec.chip import Chip
from hwspec.errors import ChipError, DataError
from hwspec.failures import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
LETTERS = {
    State.OK: ".",
    State.UNFORMED: "u",
    State.OVERFORMED: "o",
    State.STUCK_HRS: "h",
    State.STUCK_LRS: "l",
}
"""What stands for a state in text."""

COLOURS = {
    State.OK: "#eeeeee",
    State.UNFORMED: "#1f77b4",
    State.OVERFORMED: "#d62728",
    State.STUCK_HRS: "#17becf",
    State.STUCK_LRS: "#ff7f0e",
}
"""What stands for a state in figures."""
GATED = "#444444"
"""The same for devices that are gated off."""

_BINS = 40
_MICRO = 1e6


def name_of(state: State) -> str:
    """A state as specs and people write it."""
    return state.name.lower()


def array_states(chip: Chip, array: int) -> npt.NDArray[np.uint8]:
    """States of one array, ``(rows, cols)``.

    Raises
    ------
    ChipError
        If the chip has no such array.
    """
    if not 0 <= array < chip.arrays:
        raise ChipError(f"array {array}", f"must be from 0 to {chip.arrays - 1}, the arrays of the chip")
    states: npt.NDArray[np.uint8] = chip.fault_map.states[array]
    return states


def text_picture(states: npt.NDArray[np.uint8], width: int, height: int) -> tuple[list[str], tuple[int, int]]:
    """Lines of one character a block of devices: ``.`` where all are good, else that of the most frequent failure.

    Parameters
    ----------
    states
        ``(rows, cols)``, codes of `State`.
    width, height
        The most characters a line and the most lines.

    Returns
    -------
    lines
        From the first row down.
    block
        Rows and columns of devices that one character stands for.
    """
    rows, cols = states.shape
    block = math.ceil(rows / height), math.ceil(cols / width)
    down, across = math.ceil(rows / block[0]), math.ceil(cols / block[1])
    padded = np.zeros((down * block[0], across * block[1]), np.uint8)
    padded[:rows, :cols] = states
    blocks = padded.reshape(down, block[0], across, block[1])
    counts = np.stack([(blocks == state).sum((1, 3)) for state in State if state != State.OK])
    codes = np.where(counts.any(0), counts.argmax(0) + 1, 0)
    return ["".join(LETTERS[State(code)] for code in line) for line in codes], block


def plot_array(chip: Chip, path: Path, array: int = 0) -> None:
    """Draw the states of one array, and a histogram of what the failed devices of the whole chip conduct.

    Parameters
    ----------
    chip
        With its fault map.
    path
        Of the figure, ``.png``, ``.svg`` or ``.pdf``.
    array
        Which array to draw.

    Raises
    ------
    DataError
        If matplotlib is not installed, the format is another one, or the file cannot be written.
    ChipError
        If the chip has no such array.
    """
    if path.suffix.lower() not in FORMATS:
        raise DataError(f"output {path}", f"must end in {', '.join(FORMATS)}", got=path.suffix or path.name)
    states = array_states(chip, array)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise DataError("matplotlib", "must be installed for plots", hint="pip install xbarc[plots]") from None
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_states(left, states)
    left.set_title(f"array {array} of {chip.arrays}: {np.count_nonzero(states)} of {states.size} devices failed")
    _draw_conductances(right, chip)
    kind = path.suffix.lower().removeprefix(".")
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)  # equal maps give equal figures
    try:
        write_atomically(path, lambda stream: figure.savefig(stream, format=kind, dpi=150, metadata=dated))
    except OSError as error:
        raise DataError(f"output {path}", f"cannot be written ({error.strerror})") from None


def _draw_states(axes: "Axes", states: npt.NDArray[np.uint8]) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = [COLOURS[state] for state in State]
    axes.imshow(states, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5, interpolation="nearest")
    counts = np.bincount(states.ravel(), minlength=len(colours))
    keys = [Patch(color=COLOURS[state], label=f"{name_of(state)} ({counts[state]})") for state in State]
    axes.legend(handles=keys, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    axes.set_xlabel("bit line")
    axes.set_ylabel("word line")


def _draw_conductances(axes: "Axes", chip: Chip) -> None:
    faults = chip.fault_map
    codes = faults.states[faults.states != State.OK]
    siemens = faults.conductance * _MICRO
    present = [state for state in State if (codes == state).any()]
    if present:
        low, high = siemens.min(), siemens.max()
        edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
        axes.hist(
            [siemens[codes == state] for state in present],
            bins=edges.tolist(),
            stacked=True,
            color=[COLOURS[state] for state in present],
            label=[name_of(state) for state in present],
        )
        axes.legend(frameon=False)
    axes.set_title(f"failed devices of all arrays: {faults.failed}")
    axes.set_xlabel("conductance (µS)")
    axes.set_ylabel("devices")
