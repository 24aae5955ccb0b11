"""Figures of the devices, from their spread to their read noise."""

import numpy as np
from matplotlib.figure import Figure

from hwspec.device import CurrentVoltageLaw, Device, Drift
from hwspec.periphery import Periphery
from hwspec.spec import HardwareSpec
from runtime.channels import Channel, conversions, current_voltage, effective_volts
from runtime.physics.cells import Moment, device_cells, drift_seconds, read_sigma
from runtime.physics.converters import Drive
from runtime.physics.drift import draw_trajectory
from runtime.physics.noise import (
    advance_traps,
    clipped_moments,
    clipped_variance,
    draw_traps,
    telegraph_conductance,
    telegraph_moments,
)
from runtime.physics.readout import ColumnErrors, Readout
from runtime.physics.spread import (
    DAY,
    MILO,
    PCM,
    SpreadModel,
    WriteVerify,
    cmo_hfox,
    lognormal,
    program_cells,
    relative,
    wan2022,
    with_access_resistance,
)
from runtime.quantize import Float64
from studies.plot_style import BLUE, GREEN, GREY, ORANGE, RED, Effort, label, panels

US = 1e-6
DEVICE = Device(g_min=1e-6, g_max=1e-4, levels=None)


def spread(effort: Effort) -> Figure:
    """The standard deviation of each model over its range, and devices of one target."""
    figure, (left, right) = panels("spread of each model", "devices programmed to 20 µS")
    models: list[tuple[str, SpreadModel, float, float]] = [
        ("milo", MILO, 50, 225),
        ("wan2022", wan2022(), 0, 40),
        ("pcm", PCM, 0, 25),
        ("cmo_hfox, 2 %", cmo_hfox(0.02), 8, 90),
        ("cmo_hfox, 0.2 %", cmo_hfox(0.002), 8, 90),
        ("relative, share 0.02", relative(0.02), 1, 225),
    ]
    for name, model, low, high in models:
        target = np.linspace(low, high, 60)
        left.plot(target, model.sigma(target * US) / US, label=name, linestyle="--" if "relative" in name else "-")
    left.set_ylim(0, 6.6)
    label(left, "target conductance, µS", "standard deviation, µS", legend="upper right")
    left.legend(ncols=2, loc="upper right")
    bins = np.linspace(10, 34, 61)
    for name, model in (("wan2022", wan2022()), ("pcm", PCM), ("lognormal, log_sigma 0.15", lognormal(0.15))):
        found = program_cells(np.full(100 * effort.draws, 20 * US), model, np.random.default_rng(0)).conductance
        right.stairs(np.histogram(found / US, bins, density=True)[0], bins, label=name, linewidth=1.5)
    right.set_ylim(0, 0.56)
    label(right, "conductance, µS", "density, 1/µS")
    return figure


def programming(effort: Effort) -> Figure:
    """Write-verify: what is left after so many pulses, what they cost; and devices that failed."""
    titles = ("error that is left", "pulses that it takes", "1 % of devices fail")
    figure, (left, middle, right) = panels(*titles)
    target = np.full(50 * effort.draws, 20 * US)
    budgets = np.array([1, 2, 3, 5, 8, 12, 20, 32])
    for tolerance in (0.5, 1.0, 2.0):
        done = [
            program_cells(target, wan2022(), np.random.default_rng(1), verify=WriteVerify(int(most), tolerance * US))
            for most in budgets
        ]
        left.plot(
            budgets,
            [float(np.sqrt(np.mean((one.conductance - target) ** 2))) / US for one in done],
            marker="o",
            markersize=3,
            label=f"±{tolerance:g} µS",
        )
        middle.plot(budgets, [one.pulses.mean() for one in done], marker="o", markersize=3)
    for axis in (left, middle):
        axis.set_xscale("log", base=2)
        axis.set_xticks(2 ** np.arange(6), labels=[str(2**k) for k in range(6)])
    left.set_ylim(0)
    middle.set_ylim(0)
    label(left, "budget, pulses", "rms error, µS")
    label(middle, "budget, pulses", "mean pulses a device", legend=None)
    bins = np.linspace(-1, 30, 63)
    for name, verify in (("1 pulse", None), ("8 pulses, ±1 µS", WriteVerify(8, US))):
        found = program_cells(
            target, wan2022(), np.random.default_rng(2), failure_probability=0.01, failed_conductance=US, verify=verify
        )
        right.stairs(np.histogram(found.conductance / US, bins)[0] / target.size, bins, label=name, linewidth=1.5)
    right.set_yscale("log")
    right.set_ylim(1e-4, 8)
    label(right, "conductance, µS", "share of devices", legend="upper left")
    return figure


def drift(effort: Effort) -> Figure:
    """A few devices of each technology over time, and the mean of many."""
    cases = (("pcm", 15.0, 30 * 365 * DAY), ("cmo_hfox", 40.0, 365 * DAY), ("wan2022", 20.0, 2 * DAY))
    figure, axes = panels(*(name for name, _, _ in cases))
    for axis, (name, target, end) in zip(axes, cases, strict=True):
        aims = np.full(20 * effort.draws, target * US)
        times = np.geomspace(0.1, end, 30)
        trajectory = draw_trajectory(name, aims, aims, np.random.default_rng(3))  # type: ignore[arg-type]
        found = np.array([trajectory.at(float(seconds)) for seconds in times]) / US
        axis.plot(times, found[:, :8], color=BLUE, linewidth=0.8, alpha=0.6)
        axis.plot(times, found.mean(1), color=RED, linewidth=2, label="mean of all")
        axis.set_xscale("log")
        axis.set_xticks([1, 3600, DAY], labels=["1 s", "1 h", "1 d"])
        axis.minorticks_off()
        label(axis, "time since programming", "conductance, µS" if axis is axes[0] else "", legend="lower left")
    return figure


def temperature(effort: Effort) -> Figure:
    """The factor on conductances, and how much faster drift runs."""
    del effort
    figure, (left, right) = panels("conductance of a device", "time that drift sees")
    celsius = np.linspace(0, 125, 26)
    target = np.full((1, 1), 50 * US)
    for coefficient in (0.002, 0.0, -0.002):
        found = [
            device_cells(
                DEVICE.model_copy(update={"temperature": float(t), "temperature_coefficient": coefficient}),
                target,
                np.ones((1, 1), bool),
                0.0,
                0,
                Moment(0, 0, 0.0),
            ).conductance.item()
            for t in celsius
        ]
        left.plot(celsius, np.array(found) / US, label=f"{coefficient:+g} / K" if coefficient else "0")
    label(left, "device.temperature, °C", "conductance, µS")
    for energy in (0.2, 0.5, 1.0):
        devices = [
            DEVICE.model_copy(update={"temperature": float(t), "drift": Drift(model="pcm", activation_energy=energy)})
            for t in celsius
        ]
        right.plot(celsius, [drift_seconds(one, 1.0) for one in devices], label=f"{energy:g} eV")
    right.set_yscale("log")
    label(right, "device.temperature, °C", "seconds of drift in one second")
    return figure


def access(effort: Effort) -> Figure:
    """A device in series with its access transistor."""
    del effort
    figure, (left, right) = panels("device and access in series", "what is left of a small change")
    device = np.linspace(0, 200, 41)
    for ohms in (0, 1000, 3000, 10000):
        seen = with_access_resistance(device * US, float(ohms)) / US
        left.plot(device, seen, label=f"{ohms / 1000:g} kΩ")
        right.plot(device, np.gradient(seen, device))
    right.set_ylim(0)
    label(left, "conductance of the device, µS", "conductance in series, µS")
    label(right, "conductance of the device, µS", "slope of the left", legend=None)
    return figure


def law(effort: Effort) -> Figure:
    """Current against voltage, and what it does to inputs coded as durations and as voltages."""
    del effort
    figure, (left, right) = panels("law of a device (50 µS, v_read 0.2 V)", "current of an input")
    volts, base = np.linspace(-0.3, 0.3, 61), HardwareSpec.preset("rram-128")
    laws = (
        ("ohmic", CurrentVoltageLaw()),
        ("cubic, alpha 5 / V", CurrentVoltageLaw(model="cubic", alpha=5)),
        ("sinh, alpha 12 / V", CurrentVoltageLaw(model="sinh", alpha=12)),
        ("ohmic, asymmetry 0.3", CurrentVoltageLaw(asymmetry=0.3)),
    )
    for name, one in laws:
        left.plot(volts, 50 * current_voltage(one, 0.2).current_shape(volts), label=name)
    label(left, "voltage across the device, V", "current, µA")
    shares = np.linspace(-1, 1, 61)
    for name, one, coding, style in (
        ("sinh, amplitude", laws[2][1], "amplitude", "-"),
        ("sinh, pulse_width", laws[2][1], "pulse_width", "--"),
        ("asymmetry, pulse_width", laws[3][1], "pulse_width", "-"),
    ):
        device = base.device.model_copy(update={"iv": one})
        periphery = base.periphery.model_copy(update={"input_coding": coding})
        spec = base.model_copy(update={"device": device, "periphery": periphery})
        right.plot(shares, effective_volts(shares, spec) / 0.2, linestyle=style, label=name)
    label(right, "input, share of full scale", "mean current, share of G v_read")
    return figure


def telegraph(effort: Effort) -> Figure:
    """One slow trap over time, and the current of a column of fast ones: sampled, and by its moments."""
    figure, (left, right) = panels("a slow trap, read every second", "a column of 64 fast traps")
    rng = np.random.default_rng(5)
    state, trace = draw_traps((1,), 0.4, rng), []
    for _ in range(300):
        trace.append(float(telegraph_conductance(20 * US, 0.1, state)[0]) / US)
        state = advance_traps(state, 1.0, 20.0, 0.4, rng)
    left.step(np.arange(300), trace, linewidth=1)
    label(left, "time, s", "conductance, µS", legend=None)
    left.set_title("a slow trap (correlation_time 20 s)")
    G, volts = rng.uniform(1, 100, 64) * US, 0.2 * rng.random(64)
    states = rng.random((100 * effort.draws, 64)) < 0.4
    current = telegraph_conductance(G, 0.1, states) @ volts
    mean, variance = telegraph_moments(G, 0.1, 0.4)
    centre, sigma = 1e6 * float(mean @ volts), 1e6 * float(np.sqrt(variance @ volts**2))
    bins = np.linspace(centre - 4 * sigma, centre + 4 * sigma, 49)
    right.stairs(np.histogram(1e6 * current, bins, density=True)[0], bins, color=GREY, label="traps sampled")
    x = np.linspace(bins[0], bins[-1], 81)
    density = np.exp(-(((x - centre) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
    right.plot(x, density, color=RED, label="Gaussian of their moments")
    right.set_ylim(0, 1.35 * density.max())
    label(right, "current of the column, µA", "density, 1/µA", legend="upper left")
    return figure


def read_noise(effort: Effort) -> Figure:
    """Standard deviation of each model, what clipping at 0 S does, and noise of bit-serial reads."""
    titles = ("noise of a device", "clipped at 0 S, σ = 1 µS", "8-bit inputs in digits")
    figure, (left, middle, right) = panels(*titles)
    base = HardwareSpec.preset("rram-128")
    for model, low, high, colour in (
        ("proportional", 1, 90, BLUE),
        ("pcm", 0, 25, ORANGE),
        ("cmo_hfox", 9, 88.2, GREEN),
    ):
        noise = base.device.read_noise.model_copy(update={"model": model, "share": 0.01})
        G = np.linspace(low, high, 60) * US
        for seconds, style in ((1.0, "-"), (DAY, "--")):
            name = {"proportional": "proportional, 1 %"}.get(model, f"{model}, {'1 s' if style == '-' else '1 day'}")
            if model != "proportional" or style == "-":
                sigma = read_sigma(noise, G, G, seconds) / US
                left.plot(G / US, sigma, color=colour, linestyle=style, label=name)
    left.set_ylim(0, 2.1)
    label(left, "conductance, µS", "standard deviation, µS", legend="upper right")
    G = np.linspace(0, 3, 61) * US
    middle.plot(G / US, (clipped_moments(G, US)[0] - G) / US, label="added to the mean")
    middle.plot(G / US, np.sqrt(clipped_variance(G, US)) / US, label="standard deviation")
    middle.set_ylim(0)
    label(middle, "conductance, µS", "moment, µS")
    drivers = (1, 2, 4, 8)
    for correlation, colour in (("per_read", BLUE), ("per_vector", ORANGE)):
        found = [_bit_serial(bits, correlation, effort) for bits in drivers]
        right.plot(drivers, found, marker="o", color=colour, label=correlation)
    right.set_xticks(drivers)
    right.set_ylim(0, 1.25)
    label(right, "bits of the DAC", "noise, relative to one read", legend="lower right")
    return figure


def _bit_serial(bits: int, correlation: str, effort: Effort) -> float:
    """Sampled noise of a column for uniform 8-bit inputs, relative to inputs driven whole."""
    spec = HardwareSpec.preset("ideal")
    noise = spec.device.read_noise.model_copy(update={"model": "constant", "sigma": US, "correlation": correlation})
    periphery = Periphery(
        **(spec.periphery.model_dump() | {"dac_bits": bits, "input_bits": 8, "signed": "two_phase"}),
    )
    spec = spec.model_copy(
        update={"device": spec.device.model_copy(update={"read_noise": noise}), "periphery": periphery}
    )
    drive, rng = Drive.of(periphery, signed=False), np.random.default_rng(6)
    codes: Float64 = rng.integers(0, 256, (25 * effort.draws, 16)).astype(np.float64)
    matrix = np.full((16, 1), 1e-5)
    channel = Channel(1, matrix, np.full((16, 1), US**2), None, ColumnErrors.none(1))
    readout = Readout(ColumnErrors.none(1), None, 0.0, 0.0, 0.0, 0.0, None, 0.0)
    found = np.zeros((len(codes), 1))
    for one in conversions(
        (channel,),
        lambda _: readout,
        drive,
        spec,
        codes,
        "both",
        lambda _number, _kind, shape: rng.standard_normal(shape),
    ):
        found += one.estimate * one.weight
    volts = codes / 255 * periphery.v_read
    expected = np.sqrt((volts**2).sum(1).mean()) * US
    return float((found - volts @ matrix).std() / expected)


FIGURES = {
    "spread": spread,
    "programming": programming,
    "drift": drift,
    "temperature": temperature,
    "access": access,
    "iv": law,
    "telegraph": telegraph,
    "read-noise": read_noise,
}
"""By the name of their file."""
