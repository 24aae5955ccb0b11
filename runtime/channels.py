"""The conversions of a tile: what each column's current is made of, and what its readout makes of it (numpy).

A tile has one channel where the currents of a pair are subtracted before their conversion, and two where their codes
are. `runtime.engine` computes the same with many tiles at once.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from hwspec.device import CurrentVoltageLaw
from hwspec.spec import HardwareSpec
from runtime.layout import Lines
from runtime.physics.converters import CodeRange, Drive, phase_part
from runtime.physics.network import CurrentVoltage, solve_currents
from runtime.physics.readout import ColumnErrors, Readout
from runtime.quantize import Float64
from runtime.tables import Phase

if TYPE_CHECKING:
    import torch

    ArrayT = TypeVar("ArrayT", npt.NDArray[Any], "torch.Tensor")
else:
    ArrayT = TypeVar("ArrayT")

NoiseKind = Literal["read", "readout"]
NoiseSource = Callable[[str, Phase, int, NoiseKind, tuple[int, ...]], Float64]
"""Standard normal numbers for a tile, phase, channel and kind, of the shape ``(digits, windows, cols)``."""

_SINGULAR = 1e-9
"""Share of a variance below which reads of one vector count as fully correlated."""


@dataclass(frozen=True, eq=False)
class Network:
    """An array whose currents are no linear function of the voltages: solved for each input vector.

    Attributes
    ----------
    conductance
        Of all devices, ``(array rows, array cols)``, siemens.
    driven
        Rows of the array that take the inputs, and the sign that they take them with.
    cols
        Columns that the tile reads.
    sign
        With which the currents go into the channel.
    held_rows, held_cols
        Voltages of lines that the tile does not use, and of the virtual grounds, volts.
    floating_rows, floating_cols
        Lines that are connected to nothing.
    """

    conductance: Float64
    driven: tuple[tuple[Lines, int], ...]
    cols: Lines
    sign: int
    held_rows: Float64
    held_cols: Float64
    floating_rows: npt.NDArray[np.bool_]
    floating_cols: npt.NDArray[np.bool_]

    def current(self, volts: Float64, spec: HardwareSpec) -> Float64:
        """Currents of the tile's columns for word-line voltages ``(windows, rows)``, amperes ``(windows, cols)``."""
        lines = np.broadcast_to(self.held_rows, (len(volts), len(self.held_rows))).copy()
        for rows, sign in self.driven:
            lines[:, rows] = sign * volts
        array = spec.array
        found = solve_currents(
            self.conductance,
            lines,
            current_voltage(spec.device.iv, spec.periphery.v_read),
            r_word=array.r_word,
            r_bit=array.r_bit,
            r_driver=array.r_driver,
            r_sense=array.r_sense,
            sense_volts=self.held_cols,
            floating_rows=self.floating_rows,
            floating_cols=self.floating_cols,
        )
        current: Float64 = self.sign * found[:, self.cols]
        return current


@dataclass(frozen=True, eq=False)
class Channel:
    """One conversion of each column of a tile, in the physical order of its rows and columns.

    Attributes
    ----------
    sign
        With which its codes go into the result.
    matrix
        Current of each column for one volt on each row, ``(rows, cols)``, siemens.
    variance
        What each row's devices add to the variance of the current for one volt, siemens²; None without read noise.
    static
        Current of each column without any input, amperes; None for none.
    errors
        Of readout and converters.
    exact
        Whether it is a digital product, neither noisy nor converted.
    networks
        Arrays whose current comes on top of the matrix's: there the matrix is zero, but for a reference.
    """

    sign: int
    matrix: Float64
    variance: Float64 | None
    static: Float64 | None
    errors: ColumnErrors
    exact: bool = False
    networks: tuple[Network, ...] = ()

    def current(self, shares: Float64, spec: HardwareSpec) -> Float64:
        """Current of each column for word lines at these shares of v_read, amperes ``(windows, cols)``."""
        found: Float64 = effective_volts(shares, spec) @ self.matrix
        if self.static is not None:
            found = found + self.static
        return found + self.network_current(shares, spec) if self.networks else found

    def network_current(self, shares: Float64, spec: HardwareSpec) -> Float64:
        """What the networks add to `current`."""
        if spec.periphery.input_coding == "amplitude":
            terms = [network.current(shares * spec.periphery.v_read, spec) for network in self.networks]
        else:
            terms = [_pulsed(network, shares, spec) for network in self.networks]
        total: Float64 = np.sum(terms, axis=0)
        return total


def _pulsed(network: Network, shares: Float64, spec: HardwareSpec) -> Float64:
    """Mean current over pulses of v_read as long as the inputs: between two ends of pulses nothing changes."""
    durations = np.unique(np.abs(shares))
    ends = durations if durations[0] == 0 else np.concatenate([[0.0], durations])
    v_read = spec.periphery.v_read
    total: Float64 = (1 - ends[-1]) * network.current(np.zeros_like(shares), spec)
    for begin, end in itertools.pairwise(ends):
        on = np.where(np.abs(shares) > begin, np.sign(shares), 0.0)
        total = total + (end - begin) * network.current(on * v_read, spec)
    return total


def current_voltage(law: CurrentVoltageLaw, v_read: float) -> CurrentVoltage:
    """The law of a spec's devices: a cubic's ``alpha`` there is the root of the one here."""
    alpha = law.alpha**2 if law.model == "cubic" else law.alpha
    return CurrentVoltage(law.model, alpha, law.asymmetry, v_read)


def effective_volts(shares: Float64, spec: HardwareSpec) -> Float64:
    """Voltages that an ohmic device would give the same mean current at as these do, where wires have no resistance."""
    volts, law = shares * spec.periphery.v_read, spec.device.iv
    if law.linear:
        return volts
    if spec.periphery.input_coding == "amplitude":
        return current_voltage(law, spec.periphery.v_read).current_shape(volts)
    return np.where(volts < 0, (1 + law.asymmetry) * volts, volts)


def correlated(variances: "Callable[[int, int], ArrayT]", draws: "list[ArrayT]") -> "list[ArrayT]":
    """Gaussian numbers with the covariance ``variances(k, l)`` of reads k and l, by a Cholesky factorisation.

    Reads that follow from the others (a digit that is zero everywhere) get no number of their own.
    """
    factor: dict[tuple[int, int], ArrayT] = {}
    found = []
    for k in range(len(draws)):
        own = variances(k, k)
        left = own
        for j in range(k):
            value = variances(k, j)
            for i in range(j):
                value = value - factor[k, i] * factor[j, i]
            kept = factor[j, j] > 0
            factor[k, j] = value / (factor[j, j] + (1 - kept * 1.0)) * kept
            left = left - factor[k, j] ** 2
        factor[k, k] = (left * (left > _SINGULAR * own)) ** 0.5
        total = factor[k, k] * draws[k]
        for j in range(k):
            total = total + factor[k, j] * draws[j]
        found.append(total)
    return found


@dataclass(frozen=True, eq=False)
class Converted:
    """What one conversion did: codes, currents ``(windows, cols)`` in amperes, and its share in the tile's result.

    Attributes
    ----------
    codes
        Of the ADC.
    before
        Current that it rounded and clipped.
    estimate
        Current that the codes stand for.
    weight
        With which the estimate goes into the result.
    adc
        Its codes; None where it is ideal.
    """

    codes: Float64
    before: Float64
    estimate: Float64
    weight: float
    adc: CodeRange | None


def conversions(
    channels: tuple[Channel, ...],
    readout: Callable[[Channel], Readout],
    drive: Drive,
    spec: HardwareSpec,
    codes: Float64,
    phase: Phase,
    noise: Callable[[int, NoiseKind, tuple[int, ...]], Float64],
) -> Iterator[Converted]:
    """All conversions of a tile in one phase: of each channel, digit by digit.

    Parameters
    ----------
    channels
        Of the tile.
    readout
        Gives the readout of a channel.
    drive
        How the codes become voltages.
    spec
        With the effects that are on.
    codes
        DAC codes in the order of the tile's rows, ``(windows, rows)``.
    phase
        Which part of them is driven.
    noise
        Gives standard normal numbers for a channel's number, kind and shape.
    """
    part = phase_part(codes, phase)
    shares = [drive.shares(part, number) for number in range(drive.digits)]
    for number, channel in enumerate(channels):
        read = readout(channel)
        currents = [channel.current(share, spec) for share in shares]
        shape = (drive.digits, *currents[0].shape)
        if channel.variance is not None:
            volts = [effective_volts(share, spec) for share in shares]
            added = _read_noise(channel, volts, spec, noise(number, "read", shape))
            currents = [current + extra for current, extra in zip(currents, added, strict=True)]
        own = noise(number, "readout", shape) if read.noise and not channel.exact else None
        for digit, current in enumerate(currents):
            weight = channel.sign * drive.digit_weight(digit)
            if channel.exact:
                yield Converted(current, current, current, weight, None)
                continue
            before = read.amplify(current, None if own is None else own[digit])
            before, found, estimate = read.convert(before)
            yield Converted(found, before, estimate, weight, read.codes)


def _read_noise(channel: Channel, volts: list[Float64], spec: HardwareSpec, draws: Float64) -> list[Float64]:
    """Noise currents of each digit's read, amperes."""
    power = channel.variance
    assert power is not None
    if spec.device.read_noise.correlation == "per_read" or len(volts) == 1:
        return [np.sqrt(v**2 @ power) * z for v, z in zip(volts, draws, strict=True)]
    return correlated(lambda k, j: (volts[k] * volts[j]) @ power, list(draws))
