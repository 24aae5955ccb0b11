"""Figures of the arrays: wires and their closed form, noise through wires, sneak paths, offsets, pre-distortion."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from hwspec.spec import HardwareSpec
from runtime.physics.network import solve_currents
from runtime.physics.noise_transfer import noise_transfer
from runtime.physics.predistortion import Predistorted, predistort
from runtime.physics.readout import draw_column_errors
from runtime.physics.wires import approximate_matrix, effective_matrix
from runtime.quantize import Float64
from studies.plot_style import BLUE, GREEN, GREY, ORANGE, RED, Effort, label, panels

LEVELS = np.linspace(1e-6, 1e-4, 16)
OHMS = np.array([0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
VOLTS = 0.2


def devices(side: int, seed: int = 0) -> Float64:
    """An array of levels from 1 to 100 µS, low ones more often: a mean of 23 µS."""
    generator = np.random.default_rng(seed)
    values = generator.lognormal(np.log(15e-6), 1.0, (side, side))
    return np.asarray(LEVELS[np.abs(values[..., None] - LEVELS).argmin(-1)])


def inputs(count: int, side: int, seed: int = 1) -> Float64:
    """Word-line voltages, uniform from 0 to v_read."""
    return np.asarray(VOLTS * np.random.default_rng(seed).random((count, side)))


def wires(effort: Effort) -> Figure:
    """What 1 ohm a segment leaves of every device's signal, and errors of the currents against the resistance."""
    figure, (left, right) = panels("W_eff / G at 1 Ω a segment", "error of the currents", height=3.2)
    side = effort.side
    G = np.full((side, side), 23e-6)
    shown = left.imshow((effective_matrix(G, 1.0, 1.0).T / G)[::2, ::2], extent=(0.5, side + 0.5, side + 0.5, 0.5))
    left.grid(visible=False)
    figure.colorbar(shown, ax=left, shrink=0.9)
    label(left, "column (drivers at the left)", "row (sense nodes at the bottom)", legend=None)
    G, volts = devices(side), inputs(8, side)
    errors: dict[str, list[float]] = {"ignored": [], "closed_form": [], "exact": []}
    for ohms in OHMS.tolist():
        solved = solve_currents(G, volts, r_word=ohms, r_bit=ohms, tolerance=1e-12)
        for name, W in (
            ("ignored", G.T),
            ("closed_form", approximate_matrix(G, ohms, ohms)),
            ("exact", effective_matrix(G, ohms, ohms)),
        ):
            errors[name].append(float(np.linalg.norm(volts @ W.T - solved) / np.linalg.norm(solved)))
    for name, colour in (("ignored", GREY), ("closed_form", ORANGE), ("exact", BLUE)):
        right.plot(OHMS, errors[name], marker="o", markersize=3, color=colour, label=name)
    right.set_xscale("log")
    right.set_yscale("log")
    label(right, "resistance of a segment, Ω", "relative error", legend="center left")
    return figure


def noise_wires(effort: Effort) -> Figure:
    """Spread of currents by 1 % noise of the devices behind wires: one number an output, against a sampler of cells."""
    figure, (left, right) = panels("spread of the currents", "error of the spread")
    side = effort.side // 2
    G, rng = devices(side), np.random.default_rng(2)
    volts, fresh = inputs(32, side), inputs(4, side, 9)
    plain = np.sqrt(fresh**2 @ (0.01 * G) ** 2)
    found: dict[str, list[float]] = {"moments": [], "attenuated as the signal once": [], "cells sampled": []}
    for ohms in OHMS.tolist():
        attenuation = effective_matrix(G, ohms, ohms).T / G
        transfer = noise_transfer(G, volts, ohms, ohms)
        drawn = G * (1 + 0.01 * rng.standard_normal((effort.draws, side, side)))
        sampled = (effective_matrix(drawn, ohms, ohms) @ fresh.T).std(0, ddof=1).T
        for name, spread in (
            ("moments", np.sqrt(fresh**2 @ ((0.01 * G) ** 2 * transfer))),
            ("attenuated as the signal once", np.sqrt(fresh**2 @ (0.01 * G * attenuation) ** 2)),
            ("cells sampled", sampled),
        ):
            found[name].append(float(np.sqrt(np.mean((spread / plain) ** 2))))
    left.axhline(1.0, color=GREY, label="wires ignored")
    left.plot(OHMS, found["attenuated as the signal once"], color=ORANGE, linestyle="--", label="by W_eff / G")
    left.plot(OHMS, found["moments"], color=BLUE, label="by noise_transfer")
    left.errorbar(
        OHMS,
        found["cells sampled"],
        yerr=2 * np.array(found["cells sampled"]) / np.sqrt(2 * effort.draws * side * 4) + 1e-9,
        fmt="o",
        color=RED,
        markersize=4,
        label="every cell sampled",
    )
    truth = np.array(found["cells sampled"])
    for name, values, colour, style in (
        ("wires ignored", np.ones(len(OHMS)), GREY, "-"),
        ("by W_eff / G", np.array(found["attenuated as the signal once"]), ORANGE, "--"),
        ("by noise_transfer", np.array(found["moments"]), BLUE, "-"),
    ):
        right.plot(OHMS, 100 * (values / truth - 1), color=colour, linestyle=style, label=name)
    for axis in (left, right):
        axis.set_xscale("log")
    label(left, "resistance of a segment, Ω", "relative to no wires", legend="lower left")
    label(right, "resistance of a segment, Ω", "%")
    return figure


def sneak_paths(effort: Effort) -> Figure:
    """A tile in the corner of an array: what the lines beside it add, by the devices that lie there."""
    figure, (left, right) = panels("without wires", "with 1 Ω a segment")
    side, used = effort.side // 2, effort.side // 4
    tile, volts = devices(used, 4), np.zeros((6, side))
    volts[:, :used] = inputs(6, used, 5)
    own = np.arange(side) < used
    siemens = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]) * 1e-6
    places = np.arange(len(siemens))
    for axis, ohms in ((left, 0.0), (right, 1.0)):
        base = _corner(tile, side, 0.0)
        wanted = solve_currents(base, volts, r_word=ohms, r_bit=ohms)[:, :used]
        for scheme, colour in (("grounded", BLUE), ("floating", ORANGE), ("half", GREEN), ("third", RED)):
            row = {"half": VOLTS / 2, "third": VOLTS / 3}.get(scheme, 0.0)
            col = {"half": VOLTS / 2, "third": 2 * VOLTS / 3}.get(scheme, 0.0)
            floats = ~own if scheme == "floating" else None
            lines = np.where(own, volts, row)
            errors = []
            for unused in siemens:
                found = solve_currents(
                    _corner(tile, side, float(unused)),
                    lines,
                    r_word=ohms,
                    r_bit=ohms,
                    sense_volts=np.where(own, 0.0, col),
                    floating_rows=floats,
                    floating_cols=floats,
                )[:, :used]
                errors.append(max(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)), 1e-5))
            axis.plot(places, errors, marker="o", markersize=3, color=colour, label=scheme)
        axis.set_yscale("log")
        axis.set_ylim(5e-6, 300)
        axis.minorticks_off()
        axis.set_xticks(places, labels=[f"{1e6 * one:g}" for one in siemens])
        label(axis, "devices beside the tile, µS", "change of the currents", legend="upper left")
    return figure


def _corner(tile: Float64, side: int, unused: float) -> Float64:
    G = np.full((side, side), unused)
    G[: len(tile), : len(tile)] = tile
    return G


def sense_offset(effort: Effort) -> Figure:
    """Currents by the offsets of virtual grounds, and how far the sum over W is from the exact ones behind wires."""
    figure, (left, right) = panels("32 columns of a chip, σ = 1 mV", "a sum over W, behind wires")
    G = devices(effort.side)
    periphery = HardwareSpec.preset("rram-128").periphery.model_copy(update={"sense_offset_sigma": 1e-3})
    offsets = draw_column_errors(periphery, effort.side, 11, 0).sense_offset
    full, quarter = G.sum(0), G[: effort.side // 4].sum(0)
    left.bar(np.arange(32), -1e6 * (offsets * full)[:32], color=ORANGE, label=f"{effort.side} rows")
    left.bar(np.arange(32), -1e6 * (offsets * quarter)[:32], color=BLUE, label=f"{effort.side // 4} rows")
    label(left, "column", "current without input, µA")
    errors: dict[str, list[float]] = {"each column its own offset": [], "the same offset in all columns": []}
    for ohms in OHMS.tolist():
        W = effective_matrix(G, ohms, ohms).T
        for name, volts in zip(errors, (offsets, np.full(effort.side, 1e-3)), strict=True):
            exact = solve_currents(G, np.zeros(effort.side), r_word=ohms, r_bit=ohms, sense_volts=volts)
            found = -volts * W.sum(0)
            errors[name].append(float(np.linalg.norm(found - exact) / np.linalg.norm(exact)))
    for (name, values), colour in zip(errors.items(), (ORANGE, BLUE), strict=True):
        right.plot(OHMS, 100 * np.array(values), marker="o", markersize=3, color=colour, label=name)
    right.set_xscale("log")
    right.set_ylim(-1, 40)
    label(right, "resistance of a segment, Ω", "error of these currents, %", legend="upper left")
    return figure


def predistortion(effort: Effort) -> Figure:
    """Products of a tile behind wires, as mapped and with moved targets, and errors against the resistance."""
    titles = ("products behind 5 Ω a segment", "error on fresh inputs")
    figure, (left, right) = panels(*titles)
    side, rng = effort.side // 2, np.random.default_rng(7)
    w = (0.4 * rng.standard_normal((side, side))).clip(-1, 1)
    target = np.rint(15 * w) / 15 * (LEVELS[-1] - LEVELS[0])
    calibration, fresh = inputs(64, side, 8), inputs(200, side, 9)
    wanted = fresh @ target
    errors: dict[str, list[float]] = {
        name: [] for name in ("as mapped", "one gain a column", "16 levels", "continuous")
    }
    for ohms in OHMS.tolist():
        marched = partial(_marched, ohms)
        plus, minus = LEVELS[0] + target.clip(0), LEVELS[0] + (-target).clip(0)
        before = fresh @ np.subtract(*marched(plus, minus))
        levels = predistort(plus, minus, marched, calibration, LEVELS[0], LEVELS[-1], LEVELS)
        free = predistort(plus, minus, marched, calibration, LEVELS[0], LEVELS[-1])
        after = [_products(found, fresh, ohms) for found in (levels, free)]
        gain = (before * wanted).sum(0) / (before**2).sum(0)
        for name, got in zip(errors, (before, gain * before, *after), strict=True):
            errors[name].append(float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
        if ohms == OHMS[-1]:
            some = np.s_[:8, ::8]
            for name, got, colour in (("as mapped", before, ORANGE), ("pre-distorted, 16 levels", after[0], BLUE)):
                left.plot(
                    1e6 * wanted[some].ravel(), 1e6 * got[some].ravel(), ".", markersize=4, color=colour, label=name
                )
    left.axline((0, 0), slope=1, color=RED, linewidth=0.8)
    label(left, "wanted, µA", "column current with its gain, µA")
    for (name, values), colour in zip(errors.items(), (GREY, ORANGE, BLUE, GREEN), strict=True):
        right.plot(OHMS, values, marker="o", markersize=3, color=colour, label=name)
    right.set_xscale("log")
    right.set_yscale("log")
    label(right, "resistance of a segment, Ω", "relative error", legend="lower right")
    return figure


def _marched(ohms: float, plus: Float64, minus: Float64) -> tuple[Float64, Float64]:
    """Effective conductances of a tile whose pairs lie on two arrays."""
    W = effective_matrix(np.stack([plus, minus]), ohms, ohms).swapaxes(1, 2)
    return W[0], W[1]


def _products(found: Predistorted, volts: Float64, ohms: float) -> Float64:
    return np.asarray(found.gain * (volts @ np.subtract(*_marched(ohms, found.plus, found.minus))))


FIGURES = {
    "wires": wires,
    "noise-wires": noise_wires,
    "sneak-paths": sneak_paths,
    "sense-offset": sense_offset,
    "predistortion": predistortion,
}
"""By the name of their file."""
