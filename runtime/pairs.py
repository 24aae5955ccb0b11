"""The pairs of a site: what failures leave of each, and the rules that hold for all."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hwspec.array import Array
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.reach import isolation
from hwspec.spec import HardwareSpec
from runtime.layout import device_places
from runtime.pairs_numba import GATE_MINUS, GATE_PLUS, Bytes
from runtime.quantize import Float64, WeightCode, level_conductances

Line = tuple[int, int]
"""An array, and a word line of it."""


@dataclass(frozen=True, eq=False)
class PairRules:
    """What all pairs have in common; shares are ``(G - g_min) / (g_max - g_min)``.

    Attributes
    ----------
    levels : (levels,)
        Shares of a device's levels; empty when continuous.
    open_share
        Of a device at 0 S.
    unit
        Weight that a share of one stands for: 2 for single devices against a reference.
    weights, steps : (parts,)
        Of the pairs that hold one weight, the most significant first (`runtime.pairs_numba.nearest_parts`).
    slices, replicas : (parts,)
        Which slice and replica each of them is.
    """

    levels: Float64
    open_share: float
    unit: float
    weights: Float64
    steps: Float64
    slices: tuple[int, ...]
    replicas: tuple[int, ...]

    @classmethod
    def of(cls, spec: HardwareSpec, replicas: int = 1) -> "PairRules":
        """The rules of a spec."""
        device, code = spec.device, WeightCode.of(spec)
        table = level_conductances(device)
        parts = [(number, one) for number in reversed(range(spec.array.slices)) for one in range(replicas)]
        weights = np.array([code.slice_weight(number) / replicas for number, _ in parts])
        steps = np.zeros(len(parts))
        if spec.array.slices > 1:
            base = device.level_count or 2
            digits = [code.slice_weight(number) / (base - 1) if number else 0.0 for number, _ in parts]
            steps = np.array(digits) / replicas
        return cls(
            levels=np.zeros(0) if table is None else (table - device.g_min) / device.span,
            open_share=-device.g_min / device.span,
            unit=2.0 if spec.array.pairing == "reference" else 1.0,
            weights=weights,
            steps=steps,
            slices=tuple(number for number, _ in parts),
            replicas=tuple(one for _, one in parts),
        )


@dataclass(frozen=True, eq=False)
class SitePairs:
    """The pairs of one site.

    Attributes
    ----------
    plus, minus : (weight rows, weight cols)
        Shares of failed devices, NaN of good ones; `minus` of single devices is the reference, 0.5.
    gate : (weight rows, weight cols) uint8
        Which devices of a pair with a failed one can be gated off.
    single
        Whether weights are single devices.
    """

    plus: Float64
    minus: Float64
    gate: Bytes
    single: bool

    @property
    def failed(self) -> npt.NDArray[np.bool_]:
        """Pairs with a failed device."""
        return ~np.isnan(self.plus) if self.single else ~np.isnan(self.plus) | ~np.isnan(self.minus)


def site_pairs(spec: HardwareSpec, faults: FaultMap, number: int, gated: Collection[Line] = ()) -> SitePairs:
    """The pairs of the site whose first array has this number.

    Parameters
    ----------
    spec
        The hardware.
    faults
        Of the chip.
    number
        Of the array.
    gated
        Word lines whose devices are all gated off.
    """
    array, device = spec.array, spec.device
    rows, cols = np.arange(array.weight_rows), np.arange(array.weight_cols)
    shape = (array.weight_rows, array.weight_cols)
    own_gates = isolation(array, spec.failures) == "device"
    stuck_gates = [state for state, section in spec.failures.states() if section.isolatable]
    shares, gates = {}, np.zeros(shape, np.uint8)
    for side, (at, on_rows, on_cols) in device_places(number, rows, cols, array).items():
        stuck = faults.stuck(at)[np.ix_(on_rows, on_cols)]
        share = (stuck / (1 + stuck * device.r_access) - device.g_min) / device.span
        states = faults.states[at][np.ix_(on_rows, on_cols)]
        can = (states == State.OK) | np.isin(states, stuck_gates)
        off = np.isin(on_rows, [line for one, line in gated if one == at])
        share[off[:, None] & can] = -device.g_min / device.span
        shares[side] = share
        if own_gates:
            gates |= can.astype(np.uint8) * np.uint8(GATE_PLUS if side == "plus" else GATE_MINUS)
    single = "minus" not in shares
    if single:
        shares["minus"] = np.full(shape, 0.5)
        gates &= np.uint8(GATE_PLUS)
        gates[np.isnan(shares["plus"])] = 0
    else:
        gates[np.isnan(shares["plus"]) & np.isnan(shares["minus"])] = 0
    return SitePairs(shares["plus"], shares["minus"], gates, single)


def word_lines_of(array: Array, number: int, row: int) -> dict[str, Line]:
    """The word line of each side's devices of a row of a site."""
    found = device_places(number, np.array([row]), np.array([0]), array)
    return {side: (at, int(rows[0])) for side, (at, rows, _) in found.items()}
