"""Figures of drivers, readout and converters."""

import numpy as np
from matplotlib.figure import Figure

from hwspec.periphery import Periphery
from hwspec.spec import HardwareSpec
from runtime.physics.converters import CodeRange, Drive, adc_codes, adc_thresholds
from runtime.physics.readout import ColumnErrors, Readout, draw_column_errors
from runtime.quantize import Float64, input_codes
from studies.plot_style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Effort, label, panels

FULL_SCALE = 50e-6
"""Amperes."""


def periphery(**fields: object) -> Periphery:
    """Drivers and converters of the preset `rram-128` without errors, but for these fields."""
    known = HardwareSpec.preset("rram-128").periphery.model_dump()
    return Periphery.model_validate(known | {"gain_sigma": 0.0, "offset_sigma": 0.0} | fields)


def readout(options: Periphery, errors: ColumnErrors) -> Readout:
    """The readout of some columns whose ADC has a range of 50 µA."""
    code_max = options.output_code_max
    codes = None if code_max is None else CodeRange.of(code_max, FULL_SCALE, unipolar=False)
    return Readout(
        errors=errors,
        codes=codes,
        lsb=0.0 if codes is None else codes.lsb,
        full_scale=FULL_SCALE,
        saturation=options.saturation,
        cubic=options.cubic,
        compliance=options.compliance,
        noise=options.readout_noise,
    )


def dac(effort: Effort) -> Figure:
    """Voltages of signed 4-bit drivers, and the digits of a bit-serial input."""
    del effort
    figure, (left, right) = panels("a driver of 4 bits, bipolar", "8-bit inputs by a 2-bit driver")
    x = np.linspace(-1.3, 1.3, 400)
    options = periphery(dac_bits=4)
    drive = Drive.of(options, signed=True)
    left.plot(x, x * options.v_read, color=GREY, linewidth=0.8, label="ideal (dac_bits null)")
    codes = input_codes(x, 1.0, drive.code_max, True)
    left.plot(x, drive.shares(codes, 0) * options.v_read, label="4 bits")
    label(left, "input, share of its full scale", "word-line voltage, V", legend="upper left")
    serial = periphery(dac_bits=2, input_bits=8, signed="two_phase")
    drive = Drive.of(serial, signed=False)
    codes = np.arange(0, 64, dtype=np.float64)
    for number, colour in zip(range(drive.digits - 1), (BLUE, ORANGE, GREEN), strict=True):
        volts = drive.shares(codes, number) * serial.v_read
        right.step(codes, volts + 0.25 * number, where="post", color=colour, linewidth=1)
        right.text(65, 0.25 * number, f"digit {number}", color=colour, va="bottom")
    right.set_xlim(0, 78)
    right.set_yticks([0, 0.2, 0.25, 0.45, 0.5, 0.7], labels=["0", "0.2"] * 3)
    label(right, "input code (the first 64 of 256)", "voltage of each read, V", legend=None)
    return figure


def dac_nonlinearity(effort: Effort) -> Figure:
    """The driver's curve, and the error that is left of whole inputs and of digits."""
    del effort
    figure, (left, right) = panels("curve of a driver", "error with k = 0.2, 8-bit inputs")
    y = np.linspace(-1, 1, 61)
    for k, colour in ((0.4, BLUE), (0.0, GREY), (-0.4, ORANGE)):
        drive = Drive.of(periphery(dac_bits=None, dac_nonlinearity=k), signed=True)
        left.plot(y, drive.shares(y, 0), color=colour, label=f"k = {k:g}")
    label(left, "share that is asked for", "share that is driven", legend="upper left")
    codes = np.arange(256.0)
    for bits, colour in ((8, BLUE), (4, ORANGE), (2, GREEN), (1, RED)):
        options = periphery(dac_bits=bits, input_bits=8, signed="two_phase", dac_nonlinearity=0.2)
        drive = Drive.of(options, signed=False)
        found = sum(drive.shares(codes, k) * drive.digit_weight(k) for k in range(drive.digits))
        right.plot(codes, 100 * (found - codes / 255), color=colour, linewidth=1, label=f"{bits}-bit driver")
    label(right, "input code", "error, % of full scale", legend="lower left")
    return figure


def columns(effort: Effort) -> Figure:
    """Gain errors and offsets of the columns of a chip, and what the readout's noise does to codes."""
    figure, (left, right) = panels("12 columns of a chip", "codes of one current")
    options = periphery(gain_sigma=0.01, offset_sigma=0.5)
    found = readout(options, draw_column_errors(options, 12, 1, 0))
    current = np.linspace(-FULL_SCALE, FULL_SCALE, 3)[:, None]
    error = (found.amplify(np.broadcast_to(current, (3, 12))) - current) / found.lsb
    left.plot(1e6 * current[:, 0], error, color=BLUE, linewidth=0.9)
    label(left, "current of the column, µA", "error, lsb", legend=None)
    rng = np.random.default_rng(2)
    lsb = readout(options, ColumnErrors.none(1)).lsb
    for sigma, colour in ((0.3, BLUE), (1.0, ORANGE)):
        noisy = readout(periphery(readout_noise=sigma), ColumnErrors.none(1))
        current = np.full((50 * effort.draws, 1), 20.3 * lsb)
        codes = noisy.convert(noisy.amplify(current, rng.standard_normal(current.shape)))[1]
        values, counts = np.unique(codes, return_counts=True)
        shift = 0.4 * (sigma > 0.5) - 0.2
        right.bar(values + shift, counts / codes.size, 0.38, color=colour, label=f"readout_noise {sigma:g} lsb")
    right.set_ylim(0, 1)
    right.axvline(20.3, color=GREY, linewidth=0.8)
    label(right, "ADC code (the line is the current in lsb)", "share of the conversions")
    return figure


def saturation(effort: Effort) -> Figure:
    """Curves of the readout."""
    del effort
    figure, (left, right) = panels("saturation and cubic", "compliance")
    y = np.linspace(-1.5, 1.5, 61)
    cases: tuple[tuple[str, dict[str, object], str], ...] = (
        ("linear", {}, GREY),
        ("saturation 0.2", {"saturation": 0.2}, BLUE),
        ("saturation 1", {"saturation": 1.0}, GREEN),
        ("cubic -0.1", {"cubic": -0.1}, ORANGE),
        ("cubic 0.1", {"cubic": 0.1}, RED),
    )
    for name, fields, colour in cases:
        found = readout(periphery(**fields), ColumnErrors.none(1))
        left.plot(y, found.amplify(y[:, None] * FULL_SCALE) / FULL_SCALE, color=colour, label=name)
    label(left, "current, share of the ADC's range", "output, share of the range", legend="upper left")
    for limit, colour in ((None, GREY), (60e-6, BLUE), (40e-6, ORANGE)):
        found = readout(periphery(compliance=limit), ColumnErrors.none(1))
        text = "null" if limit is None else f"{1e6 * limit:g} µA"
        right.plot(1e6 * y * FULL_SCALE, 1e6 * found.amplify(y[:, None] * FULL_SCALE), color=colour, label=text)
    label(right, "current of the column, µA", "current that is read, µA", legend="upper left")
    return figure


def adc(effort: Effort) -> Figure:
    """Steps of an ADC, and its error against the range for normal currents."""
    figure, (left, right) = panels("4 bits, range 50 µA", "error for normal currents")
    x = np.linspace(-70e-6, 70e-6, 500)
    codes = CodeRange.of(7, FULL_SCALE, unipolar=False)
    left.plot(1e6 * x, adc_codes(x / codes.lsb, codes), label="subtracted before")
    unipolar = CodeRange.of(7, FULL_SCALE, unipolar=True)
    left.plot(1e6 * x, adc_codes(x / unipolar.lsb, unipolar), "--", linewidth=1, label="after: codes from 0 up")
    label(left, "current, µA", "code", legend="upper left")
    current = np.random.default_rng(3).standard_normal(50 * effort.draws)
    ranges = np.geomspace(1, 16, 33)
    for bits, colour in ((4, BLUE), (6, ORANGE), (8, GREEN), (10, PURPLE)):
        errors = []
        for top in ranges:
            scale = CodeRange.of((1 << (bits - 1)) - 1, float(top), unipolar=False)
            errors.append(float(np.std(adc_codes(current / scale.lsb, scale) * scale.lsb - current)))
        right.plot(ranges, errors, color=colour, label=f"{bits} bits")
    clipped = float(np.quantile(np.abs(current), 0.999))
    right.axvline(clipped, color=GREY, linewidth=0.8)
    right.text(clipped * 1.05, 0.45, "0.1 % clipped", color=GREY)
    right.set_xscale("log", base=2)
    right.set_xticks([1, 2, 4, 8, 16], labels=["1", "2", "4", "8", "16"])
    right.set_yscale("log")
    right.set_ylim(3e-4, 1)
    label(right, "range, σ of the current", "rms error, σ of the current", legend="lower left")
    right.legend(ncols=2, loc="lower left")
    return figure


def adc_errors(effort: Effort) -> Figure:
    """Steps of converters with errors, and how far their thresholds lie off."""
    del effort
    figure, (left, right) = panels("an ADC of 4 bits", "thresholds of three ADCs of 6 bits")
    x = np.linspace(-9, 9, 500)
    codes = CodeRange.of(7, FULL_SCALE, unipolar=False)
    steps: Float64 = 0.25 * np.random.default_rng(4).standard_normal((1, 14))
    for name, bow, moved, colour in (
        ("ideal", 0.0, None, GREY),
        ("INL: a bow of 1 lsb", 1.0, None, BLUE),
        ("DNL: steps moved", 0.0, steps, ORANGE),
    ):
        thresholds = adc_thresholds(codes, np.array([bow]), moved)
        left.plot(x, adc_codes(x[:, None], codes, thresholds)[:, 0], color=colour, linewidth=1.2, label=name)
    label(left, "current, lsb", "code", legend="upper left")
    options = periphery(adc_bits=6, adc_inl_sigma=1.0, adc_dnl_sigma=0.2)
    found = readout(options, draw_column_errors(options, 24, 9, 0))
    moved_thresholds = found.thresholds()
    assert moved_thresholds is not None
    ideal = np.arange(moved_thresholds.shape[1]) - (moved_thresholds.shape[1] - 1) / 2
    for number, colour in enumerate((BLUE, ORANGE, GREEN)):
        name = f"columns {8 * number} to {8 * number + 7}"
        right.step(ideal, moved_thresholds[8 * number] - ideal, color=colour, linewidth=1, label=name)
    right.set_ylim(-2, 3)
    label(right, "threshold, lsb", "distance from ideal, lsb", legend="upper left")
    return figure


FIGURES = {
    "dac": dac,
    "dac-nonlinearity": dac_nonlinearity,
    "readout": columns,
    "saturation": saturation,
    "adc": adc,
    "adc-errors": adc_errors,
}
"""By the name of their file."""
