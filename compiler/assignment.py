"""The devices of the weights that the same inputs reach on the same columns: closed form, then compensation.

Weights here are in units of their column's scale and in logical order, a column at a time; a column that is stored with
the opposite sign has its pairs turned round.
"""

from collections.abc import Mapping as Table
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compiler.descent_numba import descend
from compiler.mapping import Block, Mapping, Placement, QuantizedLayer, Targets
from runtime.layout import device_places
from runtime.pairs import PairRules, SitePairs
from runtime.pairs_numba import OFF, Bytes, fit
from runtime.quantize import Float64, WeightCode, off_target

SWEEPS = 40
"""Passes of the coordinate descent over a column, at most."""
ROUNDS = 6
"""Times that two weights of a column move at once, at most."""


@dataclass(frozen=True, eq=False)
class Held:
    """What the pairs of a strip of weights hold.

    Attributes
    ----------
    target, value : (cols, rows)
        Weights wanted, and held.
    plus, minus, gate : (cols, rows, parts)
        Of the pairs (`runtime.pairs.SitePairs`), turned round where the column's sign is -1.
    devices : (cols, rows, parts, 2)
        Plus and minus by number (`runtime.pairs_numba`).
    sign : (parts, cols)
        Of the columns.
    failed : (cols, rows)
        Weights with a failed device.
    """

    target: Float64
    value: Float64
    plus: Float64
    minus: Float64
    gate: Bytes
    devices: Float64
    sign: npt.NDArray[np.int8]
    failed: npt.NDArray[np.bool_]

    def error(self, weighting: Float64) -> Float64:
        """``e' H e`` of each column, in units of its scale."""
        e = self.value - self.target
        found: Float64 = np.einsum("nk,nk->n", e @ weighting, e)
        return found

    def where_better(self, other: "Held", weighting: Float64) -> "Held":
        """Each column as it is held here, or by another strip of the same pairs where that errs less."""
        worse = self.error(weighting) > other.error(weighting)
        if not worse.any():
            return self
        return replace(
            self,
            value=np.where(worse[:, None], other.value, self.value),
            devices=np.where(worse[:, None, None, None], other.devices, self.devices),
        )


def plain(
    quantized: QuantizedLayer,
    weight: npt.NDArray[np.floating],
    blocks: Sequence[Block],
    placements: Sequence[Placement],
    sites: Table[int, SitePairs],
    rules: PairRules,
    code: WeightCode,
) -> Held:
    """A strip as it is mapped without regard to failures, and what it holds with them.

    Parameters
    ----------
    quantized, weight
        Of the layer; `weight` is ``(groups, K, N)``.
    blocks, placements
        Of the strip's parts, in the order of the rules.
    sites
        Pairs of each site by its first array.
    rules, code
        Of the devices.
    """
    block = blocks[0]
    scale = quantized.scale[block.group, block.cols]
    target = np.clip(weight[block.group, block.rows, block.cols].astype(np.float64) / scale, -1, 1).T
    rounded = quantized.normalized[block.group, block.rows, block.cols].T
    shape = (*target.shape, len(blocks))
    plus, minus, gate = np.empty(shape), np.empty(shape), np.empty(shape, np.uint8)
    devices, signs = np.empty((*shape, 2)), np.empty((len(blocks), len(target)), np.int8)
    failed = np.zeros(target.shape, bool)
    for number, (part, placement) in enumerate(zip(blocks, placements, strict=True)):
        pairs = sites[placement.array]
        rows = placement.word_lines[placement.row_map]
        position = np.empty(len(target), np.int64)
        position[placement.col_order] = np.arange(len(target))
        cols, sign = placement.bit_lines[position], placement.col_sign[position]
        at = np.ix_(rows, cols)
        sides = [pairs.plus[at].T, pairs.minus[at].T]
        gates = pairs.gate[at].T
        failed |= pairs.failed[at].T
        found = numbers(code, rounded * sign[:, None], part.slice)
        turned = sign < 0
        plus[..., number] = np.where(turned[:, None], sides[1], sides[0])
        minus[..., number] = np.where(turned[:, None], sides[0], sides[1])
        gate[..., number] = np.where(turned[:, None], gates >> 1 | (gates & 1) << 1, gates)
        devices[..., number, :] = np.where(turned[:, None, None], found[..., ::-1], found)
        signs[number] = sign
    held = Held(target, rounded, plus, minus, gate, devices, signs, failed)
    return replace(held, value=values(held, rules))


def numbers(code: WeightCode, weights: Float64, number: int) -> Float64:
    """Numbers of the devices (plus, minus) that a slice of weights has without failures, ``(..., 2)``."""
    plus, minus = (np.asarray(side, np.float64) for side in code.devices(weights, number))
    if code.device.levels is None:
        plus, minus = ((side - code.device.g_min) / code.device.span for side in (plus, minus))
    return np.clip(np.stack((plus, minus), -1), 0, None)


def values(held: Held, rules: PairRules) -> Float64:
    """What the devices of a strip make of its weights, ``(cols, rows)``."""
    shares = []
    for side, stuck, bit in ((0, held.plus, 1), (1, held.minus, 2)):
        number = held.devices[..., side]
        share = number if not len(rules.levels) else rules.levels[np.maximum(number, 0).astype(np.int64)]
        off = (number == OFF) & (held.gate & bit > 0)
        shares.append(np.where(off, rules.open_share, np.where(np.isnan(stuck), share, stuck)))
    found: Float64 = rules.unit * ((shares[0] - shares[1]) @ rules.weights)
    return found


def closed_form(held: Held, weighting: Float64, rules: PairRules) -> Held:
    """Each weight with a failed device as close as its own pairs can hold it, where that lowers a column's error."""
    devices, value = held.devices.copy(), held.value.copy()
    fit(
        held.target, held.plus, held.minus, held.gate, held.failed.astype(np.uint8), rules.weights, rules.steps,
        rules.levels, rules.open_share, rules.unit, devices, value,
    )  # fmt: skip
    return replace(held, devices=devices, value=value).where_better(held, weighting)


def compensated(
    held: Held, weighting: Float64, rules: PairRules, *, pinned: npt.NDArray[np.bool_] | None = None
) -> Held:
    """The good devices of each column that has failed ones make up for them (`compiler.descent_numba.descend`).

    Parameters
    ----------
    held
        A strip.
    weighting
        Of the errors, ``(rows, rows)``.
    rules
        Of the pairs.
    pinned
        Weights ``(cols, rows)`` that digital memory corrects: they count as exact.
    """
    columns = held.failed.any(1)
    if not columns.any():
        return held
    fixed = np.zeros(held.target.shape, bool) if pinned is None else pinned
    value = np.where(fixed, held.target, held.value)[columns]
    devices = held.devices[columns]
    descend(
        weighting, held.target[columns], value, held.plus[columns], held.minus[columns], held.gate[columns],
        rules.weights, rules.steps, rules.levels, rules.open_share, rules.unit, fixed[columns].astype(np.uint8),
        devices, SWEEPS, ROUNDS if len(rules.levels) else 0, np.empty((len(value), 2)),
    )  # fmt: skip
    all_devices = held.devices.copy()
    all_devices[columns] = devices
    found = replace(held, devices=all_devices)
    exact = held.value.copy()
    exact[columns] = values(found, rules)[columns]
    return replace(found, value=exact)


def joined(parts: Sequence[Held]) -> Held:
    """Strips of the same columns, one below the other, as one; their signs are the first one's."""
    if len(parts) == 1:
        return parts[0]
    rows = ("target", "value", "plus", "minus", "gate", "devices", "failed")
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in rows})


def split(held: Held, parts: Sequence[Held]) -> list[Held]:
    """What `joined` put together, cut again into strips like these."""
    found, start = [], 0
    for part in parts:
        rows = slice(start, start + part.target.shape[1])
        found.append(replace(part, value=held.value[:, rows], devices=held.devices[:, rows]))
        start = rows.stop
    return found


def target_of(mapping: Mapping, held: Held, part: int, placement: Placement, code: WeightCode) -> Targets:
    """The targets of a tile, one part of what a strip of weights holds, in the physical order of its lines."""
    device = mapping.spec.device
    turned = held.sign[part] < 0
    found = held.devices[:, :, part, :]
    found = np.where(turned[:, None, None], found[..., ::-1], found)
    numbers = np.empty((len(placement.row_map), len(held.target), 2))
    numbers[placement.row_map] = found[placement.col_order].swapaxes(0, 1)
    for side, (array, lines, _) in enumerate(
        device_places(placement.array, placement.word_lines, placement.bit_lines, mapping.spec.array).values()
    ):
        gated = [line for number, line in mapping.gated if number == array]
        numbers[np.isin(lines, gated), :, side] = OFF
    if device.levels is None:
        siemens = np.where(numbers == OFF, 0.0, device.g_min + numbers * device.span)
        plus, minus = siemens[..., 0], siemens[..., 1]
    else:
        codes = np.where(numbers == OFF, off_target(device), numbers).astype(code.dtype)
        plus, minus = codes[..., 0], codes[..., 1]
    if code.single:
        minus = np.zeros_like(plus)
    return Targets(np.ascontiguousarray(plus), np.ascontiguousarray(minus), np.ones(len(held.target)))
