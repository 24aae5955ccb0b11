"""The conductance of every device."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from compiler.assignment import Held, closed_form, compensated, joined, plain, split, target_of
from compiler.mapping import Block, Mapping, MatrixLayer, Placement, QuantizedLayer, Targets
from compiler.moments import Moments, moments_of
from compiler.raised_pairs import CommonMode
from compiler.step_errors import FIRST, StepErrors
from compiler.steps import ALL
from compiler.strips import takes_bias
from hwspec.errors import DataError
from runtime.pairs import PairRules, site_pairs
from runtime.physics.wires import share_out
from runtime.quantize import Float64, WeightCode, is_off
from runtime.report import ColumnReport, FailureReport, StepReport

_WORST = 5
"""Columns of a layer that the report names."""


@dataclass(frozen=True)
class Assign:
    """Give each weight to one device of its pair, slice by slice; the other stays at ``g_min``.

    Where failed devices are known, good ones make up for them: those of the same pair, then those of the same column,
    whose mean error the digital bias takes up (``physics.md`` section 5). Where only the rates of failures are, both
    devices of a pair are raised together to where failures change them least.

    Parameters
    ----------
    steps
        Of mapping around failures (`compiler.steps.STEPS`).
    robust
        Whether pairs are raised where failures are not known.
    progress
        Called with the number of layers whose failures are made up for, and of all.
    """

    steps: Collection[str] = ALL
    robust: bool = True
    progress: Callable[[int, int], None] | None = None
    name: ClassVar[str] = "assign"
    requires: ClassVar[tuple[str, ...]] = ("quantize", "place")

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `targets`; with failures known also `bias_shifts` and `residues`, and complete `step_errors`."""
        if mapping.faults is not None:
            return _around_failures(mapping, self.steps, self.progress)
        code = WeightCode.of(mapping.spec)
        raised = CommonMode.of(mapping.spec) if self.robust and mapping.robust else None
        targets = {}
        for layer in mapping.layers:
            quantized = mapping.quantized[layer.name]
            pairs = zip(mapping.grids[layer.name].blocks, mapping.placements[layer.name], strict=True)
            found = (_targets(quantized, block, placement, code) for block, placement in pairs)
            targets[layer.name] = tuple(one if raised is None else raised.apply(one) for one in found)
        return replace(mapping, targets=targets)


def _targets(quantized: QuantizedLayer, block: Block, placement: Placement, code: WeightCode) -> Targets:
    logical = quantized.normalized[block.group, block.rows, block.cols]
    physical = np.empty_like(logical)
    physical[placement.row_map] = logical[:, placement.col_order] * placement.col_sign
    plus, minus = code.devices(physical, block.slice)
    return Targets(plus=plus, minus=minus, gain=np.ones(block.shape[1]))


@dataclass(eq=False)
class _Piece:
    """The weights of one row block on one column block: its tiles' numbers, and what their pairs hold.

    `rounded` ``(cols, rows)`` is what good pairs hold, `before` what these hold when failures are not heeded, and
    `ungated` what they would if no word line were gated off; `absorbed` counts weights that failed devices do not
    change. `moments` are those of all rows whose covariance is known together, and `joint` weighs the errors of those.
    """

    numbers: list[int]
    blocks: list[Block]
    scale: Float64
    rounded: Float64
    moments: Moments
    joint: Float64
    ungated: Held
    before: Held
    held: Held
    absorbed: int = 0

    @property
    def weighting(self) -> Float64:
        """Of its own errors."""
        within = self.moments.within(self.blocks[0].rows)
        return np.ascontiguousarray(self.joint[within, within])

    @property
    def mean(self) -> Float64:
        """Of its inputs."""
        return self.moments.mean[self.moments.within(self.blocks[0].rows)]

    @property
    def key(self) -> tuple[int, int, int, int]:
        """Alike for pieces of the same columns whose inputs' covariance is known together."""
        block = self.blocks[0]
        return block.copy, block.group, self.moments.rows.start, block.cols.start


def _around_failures(mapping: Mapping, steps: Collection[str], progress: Callable[[int, int], None] | None) -> Mapping:
    rules, code = PairRules.of(mapping.spec, mapping.replicas), WeightCode.of(mapping.spec)
    found = mapping
    for number, layer in enumerate(mapping.layers, 1):
        pieces = list(_pieces(mapping, layer, rules, code, centred="bias" in steps and takes_bias(layer)))
        found = _assign_layer(found, layer, pieces, rules, code, steps)
        if progress:
            progress(number, len(mapping.layers))
    return found


def _pieces(
    mapping: Mapping, layer: MatrixLayer, rules: PairRules, code: WeightCode, *, centred: bool
) -> Iterator[_Piece]:
    assert mapping.faults is not None
    grid, placements = mapping.grids[layer.name], mapping.placements[layer.name]
    numbers_of_sites = {placement.array for placement in placements}
    bare = {number: site_pairs(mapping.spec, mapping.faults, number) for number in numbers_of_sites}
    sites = bare
    if mapping.gated:
        sites = {number: site_pairs(mapping.spec, mapping.faults, number, mapping.gated) for number in bare}
    found: dict[tuple[int, int, int, int], list[int]] = {}
    for number, block in enumerate(grid.blocks):
        found.setdefault((block.copy, block.group, block.rows.start, block.cols.start), []).append(number)
    moments_of_group = [Moments.of_group(mapping.statistics[layer.name], grid, group) for group in range(grid.groups)]
    weightings: dict[tuple[int, int], tuple[Moments, Float64]] = {}
    for numbers in found.values():
        numbers.sort(key=lambda number: (-grid.blocks[number].slice, grid.blocks[number].replica))
        blocks = [grid.blocks[number] for number in numbers]
        group = blocks[0].group
        moments = moments_of(moments_of_group[group], blocks[0].rows)
        key = group, moments.rows.start
        if key not in weightings:
            weightings[key] = moments, moments.weighting(centred=centred)
        quantized = mapping.quantized[layer.name]
        places = [placements[number] for number in numbers]
        held = ungated = plain(quantized, layer.weight, blocks, places, sites, rules, code)
        if mapping.gated:
            ungated = plain(quantized, layer.weight, blocks, places, bare, rules, code)
        scale = quantized.scale[blocks[0].group, blocks[0].cols]
        rounded = quantized.normalized[blocks[0].group, blocks[0].rows, blocks[0].cols].T
        yield _Piece(numbers, blocks, scale, rounded, *weightings[key], ungated, held, held)


def _assign_layer(
    mapping: Mapping,
    layer: MatrixLayer,
    pieces: list[_Piece],
    rules: PairRules,
    code: WeightCode,
    steps: Collection[str],
) -> Mapping:
    """Targets, bias and residue of a layer."""

    def fit(part: slice) -> None:
        for piece in pieces[part]:
            rounding = np.abs(piece.rounded - piece.held.target)
            if "pair" in steps:
                piece.held = closed_form(piece.held, piece.weighting, rules)
            off = np.abs(piece.held.value - piece.held.target)
            piece.absorbed = int((piece.ungated.failed & (off <= rounding + 1e-9)).sum())

    share_out(len(pieces), fit)
    errors = mapping.step_errors.get(layer.name)
    if errors is not None and "bias" in steps and takes_bias(layer):
        errors = errors.then("bias", _sums(pieces))
    size = layer.weight.size
    budget = int(np.ceil(mapping.spec.periphery.residue * size)) if "residue" in steps else 0
    if budget and mapping.grids[layer.name].copies > 1:
        hint = "leave out the step residue (--without-steps residue)"
        raise DataError(f"layer {layer.name!r}", "must have one copy for digital memory to correct weights", hint=hint)
    pinned = [np.zeros(piece.held.target.shape, bool) for piece in pieces]
    if budget:
        pinned = worst_weights([(piece.held, piece.weighting, piece.scale) for piece in pieces], budget)
    columns = _columns(pieces)

    def make_up(part: slice) -> None:
        for numbers in columns[part]:
            joint = pieces[numbers[0]].joint
            held, before = joined([pieces[at].held for at in numbers]), joined([pieces[at].before for at in numbers])
            fixed = np.concatenate([pinned[at] for at in numbers], axis=1)
            if "pair" in steps:
                held = held.where_better(before, joint)
            if "compensation" in steps:
                held = compensated(held, joint, rules, pinned=fixed)
            for at, one in zip(numbers, split(held, [pieces[at].held for at in numbers]), strict=True):
                pieces[at].held = one

    share_out(len(columns), make_up)
    groups, _, cols = layer.weight.shape
    residue, shift = np.zeros(layer.weight.shape), np.zeros((mapping.grids[layer.name].copies, groups, cols))
    for piece, fixed in zip(pieces, pinned, strict=True):
        block, held = piece.blocks[0], piece.held
        left = held.target - held.value
        if budget:
            residue[block.group, block.rows, block.cols] = (left * fixed * piece.scale[:, None]).T
        if "bias" in steps and takes_bias(layer):
            shift[block.copy, block.group, block.cols] += (
                held.failed.any(1) * piece.scale * ((left * ~fixed) @ piece.mean)
            )
        piece.held = replace(held, value=np.where(fixed, held.target, held.value))
    if errors is not None:
        # All rows of a column decide together whether its closed form is taken: the last step was told block by block.
        last = "compensation" if "compensation" in steps else list(errors.sums)[-1]
        errors = errors if last == FIRST else errors.then(last, _sums(pieces))
        errors = errors.then("residue", _sums(pieces)) if budget else errors
    targets: dict[int, Targets] = {}
    for piece in pieces:
        for part, number in enumerate(piece.numbers):
            placement = mapping.placements[layer.name][number]
            targets[number] = target_of(mapping, piece.held, part, placement, code)
    kept = np.flatnonzero(residue)
    off = sum(int(is_off(mapping.spec.device, side).sum()) for one in targets.values() for side in _sides(one, rules))
    report = _report(layer, pieces, rules, errors or StepErrors(), gated=off, residue=len(kept))
    return replace(
        mapping,
        failures={**mapping.failures, layer.name: report},
        targets={**mapping.targets, layer.name: tuple(targets[number] for number in range(len(targets)))},
        bias_shifts={**mapping.bias_shifts, layer.name: shift},
        residues={**mapping.residues, **({layer.name: (kept, residue.ravel()[kept])} if len(kept) else {})},
        step_errors=mapping.step_errors if errors is None else {**mapping.step_errors, layer.name: errors},
    )


def _report(
    layer: MatrixLayer, pieces: list[_Piece], rules: PairRules, errors: StepErrors, *, gated: int, residue: int
) -> FailureReport:
    """What failed devices leave of a layer."""
    single = rules.unit > 1
    failed = pairs = failed_pairs = 0
    columns = np.zeros((2, layer.weight.shape[0], layer.weight.shape[2]))
    for piece in pieces:
        held, block = piece.held, piece.blocks[0]
        stuck = np.stack((~np.isnan(piece.ungated.plus), ~np.isnan(piece.ungated.minus)))
        alone = stuck.all(0) if single else stuck.any(0)
        failed += int(alone.sum() if single else stuck.sum())
        pairs, failed_pairs = pairs + alone.size, failed_pairs + int(alone.sum())
        nothing, weighting = replace(held, value=np.zeros_like(held.value)), piece.weighting
        for at, one in enumerate((held, nothing)):
            columns[at, block.group, block.cols] += one.error(weighting)
    relative = np.sqrt(columns[0] / np.maximum(columns[1], 1e-300)).ravel()
    worst = np.argsort(-relative, kind="stable")[:_WORST]
    scale = errors.weights or 1.0, errors.outputs or 1.0
    return FailureReport(
        devices=pairs if single else 2 * pairs,
        failed=failed,
        pairs=pairs,
        failed_pairs=failed_pairs,
        absorbed=sum(piece.absorbed for piece in pieces),
        gated=gated,
        residue=residue,
        steps=tuple(
            StepReport(step=step, weight_error=(one / scale[0]) ** 0.5, output_error=(max(other, 0) / scale[1]) ** 0.5)
            for step, (one, other) in errors.sums.items()
        ),
        worst_columns=tuple(ColumnReport(column=int(at), output_error=float(relative[at])) for at in worst),
    )


def _sides(targets: Targets, rules: PairRules) -> tuple[npt.NDArray[Any], ...]:
    """Targets of all devices; those of single ones have no minus side."""
    return (targets.plus,) if rules.unit > 1 else (targets.plus, targets.minus)


def _columns(pieces: list[_Piece]) -> list[list[int]]:
    """Numbers of the pieces whose errors add up in the same columns, by an input covariance known together."""
    together: dict[tuple[int, int, int, int], list[int]] = {}
    for at, piece in enumerate(pieces):
        together.setdefault(piece.key, []).append(at)
    return list(together.values())


def _sums(pieces: list[_Piece]) -> tuple[float, float]:
    """Squared errors of a layer's weights and outputs."""
    weights = sum(float(p.scale**2 @ ((p.held.value - p.held.target) ** 2).sum(1)) for p in pieces)
    outputs = [
        float(pieces[at[0]].scale ** 2 @ joined([pieces[one].held for one in at]).error(pieces[at[0]].joint))
        for at in _columns(pieces)
    ]
    return weights, sum(outputs)


def worst_weights(held: list[tuple[Held, Float64, Float64]], budget: int) -> list[npt.NDArray[np.bool_]]:
    """Which weights digital memory corrects: those with failed devices whose errors cost most, up to a budget.

    Parameters
    ----------
    held
        Pieces of a layer: what they hold, the weighting of their errors, the scales of their columns.
    budget
        Weights of the layer.
    """
    costs = [
        one.failed * (one.value - one.target) ** 2 * np.diagonal(weighting) * scale[:, None] ** 2
        for one, weighting, scale in held
    ]
    together = np.concatenate([cost.ravel() for cost in costs])
    order = np.argsort(-together, kind="stable")[:budget]
    chosen = np.zeros(len(together), bool)
    chosen[order[together[order] > 0]] = True
    ends = np.cumsum([cost.size for cost in costs])[:-1]
    return [part.reshape(cost.shape) for part, cost in zip(np.split(chosen, ends), costs, strict=True)]
