"""Which physical array holds which tile, and which of its lines hold which rows and columns."""

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from compiler.array_choice import choose_arrays
from compiler.gating import gate_lines
from compiler.mapping import Mapping, MatrixLayer, Placement
from compiler.moments import Moments, known_whole, moments_of
from compiler.orders import Order
from compiler.packing import Share, Territory, pack_grids, sites_of
from compiler.reloading import in_segments, segments_of
from compiler.step_errors import FIRST, Errors, StepErrors, joint_errors, squared
from compiler.steps import ALL
from compiler.strips import Strip, layer_strips, order_strip, placement_of, start_strip, takes_bias
from hwspec.errors import DataError, DoesNotFit, FitReport
from runtime.pairs import PairRules, SitePairs, site_pairs
from runtime.physics.wires import share_out

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Place:
    """Put tiles on arrays in order; small tiles share arrays. Rows and columns keep their order.

    A column of single devices against a reference whose weights are high on the whole is stored with the opposite sign
    (the flip code of ISAAC, ISCA 2016): its current is never above that of a column at half of the range.

    Where failed devices are known, arrays, lines and signs are chosen so that they hurt least (``physics.md`` section
    5), and no tile is worse off than in order.

    Parameters
    ----------
    share
        Which tiles may share an array (`compiler.packing.pack_layers`).
    steps
        Of mapping around failures (`compiler.steps.STEPS`).
    reload
        Whether layers that do not fit together are cut into segments that are written one after another.
    budget
        Physical arrays for that; None takes those of the chip (`chip.tiles`).
    progress
        Called with the number of row blocks whose lines are chosen, and of all.
    """

    share: Share = "layer"
    steps: Collection[str] = ALL
    reload: bool = False
    budget: int | None = None
    progress: Progress | None = None
    name: ClassVar[str] = "place"
    requires: ClassVar[tuple[str, ...]] = ("quantize",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `placements`; with failures known also `gated` and `step_errors`."""
        names, per_site = _in_turn(mapping), mapping.spec.array.arrays_per_site
        territories = self._packed(mapping, names)
        needed, bound = sites_of(territories) * per_site, mapping.spec.chip.arrays
        if self.reload:
            sites = self._arrays(mapping) // per_site
            if needed > sites * per_site:
                territories = in_segments(names, functools.partial(self._packed, mapping), sites, per_site)
                mapping = _on_segments(mapping, sites * per_site, segments_of(territories, sites))
                needed = sites_of(territories) * per_site
        elif bound is not None and needed > bound:
            raise DoesNotFit(self._misfit(mapping, names, needed, bound))
        arrays = {name: [place.site * per_site for place in places] for name, places in territories.items()}
        signs = {layer.name: column_signs(mapping, layer) for layer in mapping.layers}
        if mapping.faults is None:
            return replace(mapping, placements=_in_order(mapping, territories, arrays, signs))
        if needed > len(mapping.faults.states):
            raise DoesNotFit(self._misfit(mapping, names, needed, len(mapping.faults.states)))
        return _around_failures(mapping, territories, arrays, signs, self.steps, self.progress)

    def _packed(self, mapping: Mapping, names: Sequence[str]) -> dict[str, tuple[Territory, ...]]:
        """The territories of the tiles of these layers."""
        return pack_grids(
            {name: mapping.grids[name] for name in names},
            mapping.spec.array,
            share=self.share,
            spares=mapping.faults is not None and "spares" in self.steps,
        )

    def _arrays(self, mapping: Mapping) -> int:
        """Arrays that segments are written to."""
        per_site, bound = mapping.spec.array.arrays_per_site, self.budget or mapping.spec.chip.arrays
        if bound is None:
            hint = "give --array-budget, or a chip with a number of tiles (chip.tiles)"
            raise DataError("reload", "needs a number of arrays to write segments to", hint=hint)
        there = None if mapping.faults is None else len(mapping.faults.states)
        for most in (mapping.spec.chip.arrays, there):
            if most is not None and bound > most:
                raise DoesNotFit(FitReport(bound, most, bound - most, levers=(f"--array-budget {most} or less",)))
        if bound < per_site:
            raise DoesNotFit(FitReport(per_site, bound, per_site - bound, levers=("a chip with more arrays",)))
        return bound

    def _misfit(self, mapping: Mapping, names: Sequence[str], needed: int, bound: int) -> FitReport:
        """What to do where the arrays are too few."""
        report, per_site = FitReport(needed, bound, needed - bound), mapping.spec.array.arrays_per_site
        try:
            parts = in_segments(names, functools.partial(self._packed, mapping), bound // per_site, per_site)
        except DoesNotFit:  # one layer alone needs more
            return report
        told = f"--reload, which writes it in {segments_of(parts, bound // per_site)} segments one after another"
        return replace(report, levers=(*report.levers, told))


def _in_turn(mapping: Mapping) -> list[str]:
    """Names of the layers in the order in which they run."""
    names = {layer.name for layer in mapping.layers}
    return [step for step in mapping.lowered.steps if isinstance(step, str) and step in names]


def _on_segments(mapping: Mapping, arrays: int, segments: int) -> Mapping:
    """The mapping onto arrays that are written so many times; failed devices are there each time."""
    faults = None if mapping.faults is None else mapping.faults.first(arrays).repeated(segments)
    return replace(mapping, reload=arrays, faults=faults)


def _in_order(
    mapping: Mapping,
    territories: dict[str, tuple[Territory, ...]],
    arrays: dict[str, list[int]],
    signs: dict[str, npt.NDArray[np.int8]],
) -> dict[str, tuple[Placement, ...]]:
    found = {}
    for layer in mapping.layers:
        blocks, places = mapping.grids[layer.name].blocks, territories[layer.name]
        found[layer.name] = tuple(
            placement_of(array, place, Order.identity(*block.shape, signs[layer.name][block.group, block.cols]))
            for block, place, array in zip(blocks, places, arrays[layer.name], strict=True)
        )
    return found


def can_turn(mapping: Mapping) -> bool:
    """Whether a column can be stored with the opposite sign: listed levels need not lie evenly around the middle."""
    return mapping.spec.array.pairing != "reference" or not isinstance(mapping.spec.device.levels, tuple)


def column_signs(mapping: Mapping, layer: MatrixLayer) -> npt.NDArray[np.int8]:
    """Sign that each column is stored with where nothing is known of failures, ``(groups, N)``."""
    groups, _, cols = layer.weight.shape
    signs = np.ones((groups, cols), np.int8)
    if mapping.spec.array.pairing == "reference" and can_turn(mapping):
        signs[mapping.quantized[layer.name].normalized.sum(axis=1) > 0] = -1
    return signs


def _around_failures(
    mapping: Mapping,
    territories: dict[str, tuple[Territory, ...]],
    arrays: dict[str, list[int]],
    signs: dict[str, npt.NDArray[np.int8]],
    steps: Collection[str],
    progress: Progress | None = None,
) -> Mapping:
    """Placements for the chip whose failures are known."""
    assert mapping.faults is not None
    spec, faults = mapping.spec, mapping.faults

    @functools.cache
    def pairs(number: int) -> SitePairs:
        return site_pairs(spec, faults, number)

    strips = [
        strip
        for layer in mapping.layers
        for strip in layer_strips(
            mapping, layer, territories[layer.name], arrays[layer.name], signs[layer.name], centred="bias" in steps
        )
    ]
    rules = PairRules.of(spec, mapping.replicas)
    turn, router = can_turn(mapping), spec.array.router
    first: list[dict[str, Errors]] = [{}] * len(strips)
    later = list(first)
    chosen, done = list(strips), itertools.count(1)

    def start(part: slice) -> None:
        for at in range(part.start, part.stop):
            first[at] = start_strip(strips[at], pairs, rules, steps)

    def order(part: slice) -> None:
        for at in range(part.start, part.stop):
            chosen[at], later[at] = order_strip(chosen[at], pairs, rules, steps, turn=turn, router=router)
            if progress:
                progress(next(done), len(strips))

    share_out(len(strips), start)
    if "arrays" in steps:
        chosen = _on_chosen_arrays(mapping, strips, pairs, rules)
    share_out(len(strips), order)
    errors: dict[str, StepErrors] = {layer.name: StepErrors() for layer in mapping.layers}
    for at in _joint_rows(mapping, strips):
        found = joint_errors([{**first[one], **later[one]} for one in at])
        layer = strips[at[0]].layer
        told, worse = _judge(mapping, [strips[one] for one in at], found, centred="bias" in steps)
        errors[layer] += told
        if worse and "arrays" in steps:  # what it left is another tile's now: all stay where they are
            return _around_failures(mapping, territories, arrays, signs, set(steps) - {"arrays"}, progress)
        if worse:
            for one in at:
                chosen[one] = strips[one]
    placements: dict[str, dict[int, Placement]] = {layer.name: {} for layer in mapping.layers}
    for strip in chosen:
        placements[strip.layer] |= dict(zip(strip.numbers, strip.placements(), strict=True))
    placed = replace(
        mapping,
        placements={name: tuple(of[number] for number in sorted(of)) for name, of in placements.items()},
        step_errors=errors,
    )
    return replace(placed, gated=gate_lines(placed))


def _on_chosen_arrays(
    mapping: Mapping, strips: list[Strip], pairs: Callable[[int], SitePairs], rules: PairRules
) -> list[Strip]:
    """The strips on the arrays where they lose least, each within its segment."""
    assert mapping.faults is not None
    per_site, arrays = mapping.spec.array.arrays_per_site, len(mapping.faults.states)
    size = mapping.reload or arrays
    found = list(strips)
    for start in range(0, arrays, size):
        at = [one for one, strip in enumerate(strips) if start <= strip.arrays[0] < start + size]
        part = [strips[one] for one in at]
        if not part:
            continue
        needed = max(number for strip in part for number in strip.arrays) + per_site
        chosen = choose_arrays(part, pairs, rules, needed, min(start + size, arrays), per_site, turn=can_turn(mapping))
        for one, strip in zip(at, chosen, strict=True):
            found[one] = strip
    return found


def _joint_rows(mapping: Mapping, strips: list[Strip]) -> list[list[int]]:
    """Numbers of the strips whose inputs' covariance is known together."""
    found: dict[tuple[str, int, int, int], list[int]] = {}
    for at, strip in enumerate(strips):
        block, grid = strip.blocks[0], mapping.grids[strip.layer]
        whole = known_whole(mapping.statistics[strip.layer], grid)
        found.setdefault((strip.layer, block.copy, block.group, 0 if whole else block.rows.start), []).append(at)
    return list(found.values())


def _judge(
    mapping: Mapping, strips: list[Strip], found: dict[str, Errors], *, centred: bool
) -> tuple[StepErrors, bool]:
    """Errors of strips of one group by step, and whether the last step leaves any of their column blocks worse off."""
    layer = next(layer for layer in mapping.layers if layer.name == strips[0].layer)
    block = strips[0].blocks[0]
    parts = Moments.of_group(mapping.statistics[layer.name], mapping.grids[layer.name], block.group)
    moments = moments_of(parts, block.rows)
    raw, own = moments.weighting(centred=False), moments.weighting(centred=centred and takes_bias(layer))
    sums = {step: (sum(float((e**2).sum()) for e in of), float(squared(of, raw).sum())) for step, of in found.items()}
    weight = layer.weight[block.group, moments.rows].T.astype(np.float64)
    before, after = squared(found[FIRST], own), squared(found[list(found)[-1]], own)
    told = StepErrors(sums, float((weight**2).sum()), float(np.einsum("nk,nk->", weight @ raw, weight)))
    return told, bool((after > before * (1 + 1e-9)).any())
