"""Figures of failed devices: what pairs can still hold, what mapping around them leaves, and loss of retention."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compiler.steps import STEPS
from hwspec.chip import Chip
from hwspec.device import Device
from hwspec.failures import Failures, Retention
from hwspec.reach import failed_share, reachable_set
from hwspec.spec import HardwareSpec
from runtime.physics.drift import accelerated
from runtime.physics.retention import lost_devices
from runtime.physics.spread import DAY
from runtime.program import TileProgram
from runtime.quantize import Float64
from studies.chip_plots import matrix_program
from studies.plot_style import BLUE, GREEN, GREY, ORANGE, RED, Effort, label, panels
from xbarc.api import remap

_PAIRS = (
    ("ok", "ok", False),
    ("unformed", "ok", False),
    ("ok", "unformed", False),
    ("stuck_hrs", "ok", False),
    ("stuck_lrs", "ok", False),
    ("ok", "stuck_lrs", False),
    ("stuck_hrs", "stuck_hrs", False),
    ("stuck_lrs", "stuck_hrs", False),
    ("overformed", "ok", False),
    ("overformed", "ok", True),
    ("overformed", "stuck_hrs", True),
)
"""States of plus and minus, and whether each device has a gate of its own."""
_SHORTED = 3.0
"""Conductance of the overformed devices, in units of g_max."""


def reachable(_: Effort) -> Figure:
    """Weights that pairs with failed devices can hold, for two ranges of conductance."""
    ranges = (("1 to 100 µS", 1e-6, 1e-4), ("5 to 30 kΩ", 1 / 30e3, 1 / 5e3))
    figure, axes = panels(*(f"devices of {name}" for name, _, _ in ranges), height=3.6)
    names = [f"{plus}, {minus}{', gated' * gate}" for plus, minus, gate in _PAIRS]
    for axis, (_name, g_min, g_max) in zip(axes, ranges, strict=True):
        for place, (plus, minus, gate) in enumerate(_PAIRS):
            shares = [
                float(failed_share(state, siemens, g_min=g_min, g_max=g_max))
                for state in (plus, minus)
                for siemens in (_SHORTED * g_max if state == "overformed" else None,)
            ]
            open_share = -g_min / (g_max - g_min)
            for low, high in reachable_set(*shares, gate_pos=gate, gate_neg=gate, open_share=open_share):
                colour = BLUE if -1 + open_share <= low and high <= 1 - open_share else RED
                axis.plot([low, high], [-place, -place], color=colour, linewidth=5, solid_capstyle="butt")
                axis.plot([low, high], [-place, -place], "|", color=colour, markersize=8)
        for edge in (-1, 1):
            axis.axvline(edge, color=GREY, linewidth=0.8, linestyle="--")
        axis.set_yticks(-np.arange(len(_PAIRS)), labels=names if axis is axes[0] else [""] * len(_PAIRS))
        axis.set_xlim(-1.6, 4.2)
        label(axis, "weight", "", legend=None)
    return figure


def mapping(effort: Effort) -> Figure:
    """Errors of the weights of a tile as mapped in order and by all steps, and the outputs' error after each step."""
    side = max(effort.side // 2, 32)
    spec = HardwareSpec.preset("rram-128-faulty-lrs").with_fields({"array.rows": side, "array.cols": side})
    program, _, _ = matrix_program(spec, side - side // 8)
    chip = Chip.sample(spec, program.arrays, seed=1)
    mapped = {name: remap(program, chip, steps=steps) for name, steps in (("in order", ()), ("all steps", None))}
    figure, (left, middle, right) = panels("weights, in order", "weights, all steps", "error of the outputs")
    for axis, found in zip((left, middle), mapped.values(), strict=True):
        _draw_errors(axis, found)
    report = mapped["all steps"].report.layers[0].failures
    assert report is not None
    steps = {step.step: 100 * step.output_error for step in report.steps}
    names = ["identity", *(name for name in STEPS if name in steps)]
    places = np.arange(len(names))[::-1]
    right.barh(places, [steps[name] for name in names], color=[GREY, *[BLUE] * (len(names) - 1)])
    right.set_yticks(places, labels=names)
    right.grid(visible=False, axis="y")
    label(right, "%, after each step", "", legend=None)
    return figure


def _draw_errors(axis: Axes, program: TileProgram) -> None:
    """What the pairs of a layer of one tile hold, less its weights, in logical order."""
    name = next(iter(program.layers))
    weights = program.weights[name].astype(np.float64)
    error: Float64 = (program.decoded_weights(name) - weights)[0] / np.abs(weights).max()
    axis.imshow(error, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none", aspect="auto")
    axis.grid(visible=False)
    rms = float(np.sqrt((error**2).mean()))
    label(axis, f"column (rms error {rms:.3f})", "row", legend=None)


def retention(effort: Effort) -> Figure:
    """Share of the devices that have lost their state, by the law and by devices that are drawn."""
    figure, (left, right) = panels("10 years at 25 °C", "against temperature, 0.6 eV")
    years = 10 * 365 * DAY
    times = np.geomspace(DAY, 100 * years, 40)
    some = np.geomspace(DAY, 100 * years, 7)
    device = Device(g_min=1e-6, g_max=1e-4, levels=None)
    for shape, colour in ((0.5, BLUE), (1.0, ORANGE), (2.0, GREEN)):
        left.plot(times / DAY, _lost_share(times, years, shape), color=colour, label=f"shape {shape:g}")
        failures = Failures(retention=Retention(state="stuck_hrs", lifetime=years, shape=shape))
        size = (effort.side, effort.side)
        drawn = [lost_devices(failures, device, size, 0, 1, time)[0].mean() for time in some]
        left.plot(some / DAY, 100 * np.array(drawn), ".", color=colour)
    for celsius, colour in ((25, BLUE), (85, ORANGE), (125, RED)):
        faster = times * accelerated(1.0, 0.6, float(celsius))
        right.plot(times / DAY, _lost_share(faster, years, 1.0), color=colour, label=f"{celsius} °C")
    for axis in (left, right):
        axis.set_xscale("log")
        label(
            axis, "days after programming", "% of the devices", legend="upper left" if axis is left else "lower right"
        )
    return figure


def _lost_share(seconds: Float64, lifetime: float, shape: float) -> Float64:
    found: Float64 = -100 * np.expm1(-((seconds / lifetime) ** shape))
    return found


FIGURES = {"reachable": reachable, "mapping": mapping, "retention": retention}
"""By the name of their file."""
