"""Programs as they are mapped around failed devices: spare lines, replicas, gated devices, a digital residue."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.chip import Chip
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.reach import isolation
from hwspec.spec import HardwareSpec
from runtime.program import TILE_TENSORS, TileProgram
from runtime.quantize import WeightCode, off_target
from runtime.tables import Acc, Load, Loop, Mvm, Residue, Step, Store

FAILED: Mapping[str, object] = {
    "failures.unformed.rate": 0.05,
    "failures.overformed.rate": 0.05,
    "failures.overformed.conductance": "60 uS",
    "failures.overformed.model": "uniform",
    "failures.overformed.upper": "240 uS",
    "failures.overformed.isolatable": False,
    "failures.stuck_hrs.rate": 0.05,
    "failures.stuck_lrs.rate": 0.05,
    "failures.stuck_lrs.model": "normal",
    "failures.stuck_lrs.deviation": 0.1,
    "failures.retention.state": "stuck_hrs",
    "failures.retention.lifetime": "1 h",
    "failures.allow_unbounded": True,
}
"""Devices of every state, and some that lose theirs."""


def changed(program: TileProgram, tensors: Mapping[str, npt.NDArray[Any]] | None = None, **tables: Any) -> TileProgram:
    """The program with other tensors and tables."""
    merged = {**program.tensors, **(tensors or {})}
    return replace(program, tensors=merged, tables=program.tables.model_copy(update=tables))


def with_spec(program: TileProgram, fields: Mapping[str, object]) -> TileProgram:
    """The same program, targets and ranges included, on other hardware."""
    spec: HardwareSpec = program.spec.with_fields(dict(fields))
    return changed(program, spec=spec, spec_sha256=spec.sha256)


def with_body(program: TileProgram, edit: Callable[[Loop], list[Step]]) -> TileProgram:
    """The program with other steps in each loop."""
    steps = tuple(
        found.model_copy(update={"body": tuple(edit(found))}) if isinstance(found, Loop) else found
        for found in program.tables.instructions
    )
    return changed(program, instructions=steps)


def mapped_for(program: TileProgram, chip: Chip) -> TileProgram:
    """The program, as if it had been mapped around the failed devices of a chip."""
    faults = chip.fault_map
    return replace(changed(program, mapped_for=chip.sha256, faults_sha256=faults.sha256, robust=False), faults=faults)


def fault_map(program: TileProgram, failed: Mapping[tuple[int, int, int], tuple[State, float]]) -> FaultMap:
    """A map with these failed devices (array, word line, bit line) and what they conduct, siemens."""
    states = np.zeros((program.arrays, program.spec.array.rows, program.spec.array.cols), np.uint8)
    conductance = np.zeros(states.shape)
    for place, (state, siemens) in failed.items():
        states[place], conductance[place] = state, siemens
    return FaultMap(states, conductance[states != State.OK])


def chip_with(faults: FaultMap, seed: int | None = None) -> Chip:
    """A chip with these failed devices."""
    arrays, rows, cols = faults.shape
    return Chip(rows=rows, cols=cols, arrays=arrays, seed=seed, faults=faults)


def with_spare_lines(program: TileProgram, generator: np.random.Generator) -> TileProgram:
    """The program with the lines of each site moved apart, in order, wherever it has some to spare."""
    array, tensors = program.spec.array, dict(program.tensors)
    for key, count in (("word_lines", array.weight_rows), ("bit_lines", array.weight_cols)):
        used: dict[int, set[int]] = {}
        for tile in program.tables.tiles:
            lines = getattr(program.tile_tensors[tile.name], key)
            used.setdefault(tile.array, set()).update(lines.tolist())
        moved = {
            site: dict(zip(sorted(lines), sorted(generator.permutation(count)[: len(lines)].tolist()), strict=True))
            for site, lines in used.items()
        }
        for layer in program.layers:
            tensors[f"{layer}/{key}"] = np.array(
                [
                    moved[tile.array][line]
                    for tile in program.tables.tiles
                    if tile.layer == layer
                    for line in getattr(program.tile_tensors[tile.name], key).tolist()
                ],
                np.int32,
            )
    return replace(program, tensors=tensors)


def replicated(program: TileProgram, replicas: int, generator: np.random.Generator) -> TileProgram:
    """Every tile on so many sites, with its rows in another order on each."""
    tiles = [
        tile.model_copy(
            update={
                "name": f"{tile.name}r{replica}" if replica else tile.name,
                "array": tile.array + replica * program.arrays,
                "replica": replica,
            }
        )
        for replica in range(replicas)
        for tile in program.tables.tiles
    ]
    tensors = dict(program.tensors)
    for layer in program.layers:
        parts: dict[str, list[npt.NDArray[Any]]] = {key: [] for key in TILE_TENSORS}
        for replica in range(replicas):
            for tile in program.tables.tiles:
                if tile.layer != layer:
                    continue
                own = program.tile_tensors[tile.name]
                order = generator.permutation(tile.rows) if replica else np.arange(tile.rows)
                for key in TILE_TENSORS:
                    value = getattr(own, key)
                    if key in ("plus", "minus"):
                        value = value[order].ravel()
                    elif key == "row_map":
                        value = np.argsort(order)[value].astype(np.int32)
                    parts[key].append(value / replicas if key == "scale" else value)
        tensors |= {f"{layer}/{key}": np.concatenate(values) for key, values in parts.items()}

    def body(loop: Loop) -> list[Step]:
        steps: list[Step] = []
        for step in loop.body:
            if not isinstance(step, Acc):
                copies = replicas if isinstance(step, Mvm) else 1
                steps += [_copy(step, replica) for replica in range(copies)]
            else:
                steps += [_copy(step, replica) for replica in range(replicas)]
        return steps

    layers = tuple(layer.model_copy(update={"replicas": replicas}) for layer in program.tables.layers)
    return with_body(changed(program, tensors, tiles=tuple(tiles), layers=layers), body)


def _copy(step: Step, replica: int) -> Step:
    if not replica or not isinstance(step, Acc | Mvm):
        return step
    register = {"into": f"{step.into}r{replica}"} if isinstance(step, Mvm) else {"source": f"{step.source}r{replica}"}
    return step.model_copy(update={"tile": f"{step.tile}r{replica}", **register})


def with_residue(program: TileProgram, share: float, generator: np.random.Generator) -> TileProgram:
    """The program with random weights in digital memory, as many as this share of a layer's."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name, weight in program.weights.items():
        count = int(np.ceil(share * weight.size))
        tensors[f"{name}/residue_index"] = np.sort(generator.permutation(weight.size)[:count]).astype(np.int64)
        tensors[f"{name}/residue"] = generator.standard_normal(count)

    def body(loop: Loop) -> list[Step]:
        loads = {(step.start, step.stop): step.into for step in loop.body if isinstance(step, Load)}
        store = next(step for step in loop.body if isinstance(step, Store))
        added: list[Step] = [Residue(into=store.source, source=register) for register in loads.values()]
        at = loop.body.index(store)
        return [*loop.body[:at], *added, *loop.body[at:]]

    return with_body(changed(with_spec(program, {"periphery.residue": share}), tensors), body)


def with_gated(program: TileProgram, share: float, generator: np.random.Generator) -> TileProgram:
    """The program with this share of its devices gated off; of its rows, where a gate belongs to a word line.

    On pairs of neighbouring columns both devices of a pair share a word line. Failed devices whose gate has failed too
    stay as they are.
    """
    spec = program.spec
    kind, dtype = isolation(spec.array, spec.failures), WeightCode.of(spec).dtype
    stubborn = [state for state, section in spec.failures.states() if not section.isolatable]
    tensors: dict[str, npt.NDArray[Any]] = {}
    lines: dict[tuple[int, int], bool] = {}
    for layer in program.layers:
        sides: dict[str, list[npt.NDArray[Any]]] = {"plus": [], "minus": []}
        for tile in program.tables.tiles:
            if tile.layer != layer:
                continue
            own, states = program.tile_tensors[tile.name], program.failed_states(tile.name)
            places = program.places(tile.name)
            for side, failed in zip(("plus", "minus"), states, strict=True):
                targets = getattr(own, side).astype(dtype)
                if side in places:
                    number, rows, _ = places[side]
                    off = generator.random(targets.shape) < share
                    if kind == "line":
                        chosen = [
                            lines.setdefault((number, int(row)), bool(generator.random() < share)) for row in rows
                        ]
                        off = np.broadcast_to(np.array(chosen)[:, None], targets.shape)
                        assert not np.isin(failed, stubborn).any()
                    targets[off & ~np.isin(failed, stubborn)] = off_target(spec.device)
                sides[side].append(targets.ravel())
        tensors |= {f"{layer}/{side}": np.concatenate(parts) for side, parts in sides.items()}
    return changed(program, tensors)
