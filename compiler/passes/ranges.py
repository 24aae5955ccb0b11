"""The range of every ADC, found by running the assigned tiles on the calibration vectors."""

import hashlib
from collections.abc import Mapping as Table
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from compiler.mapping import Mapping
from compiler.passes.emit import emit
from compiler.passes.quantize import OFF_TIES
from compiler.report import build_report
from hwspec.effects import EFFECTS
from hwspec.spec import HardwareSpec
from runtime.arrays import calibration_codes
from runtime.physics.converters import phase_part
from runtime.program import TileProgram
from runtime.programming import ProgrammedChip, program_chip
from runtime.quantize import Float64
from runtime.tables import Phase, Tile, input_phases

_ALL = 1 << 30


@dataclass(frozen=True)
class Ranges:
    """Give each tile and phase the range that clips at most ``periphery.adc_clip_share`` of its conversions.

    The tiles run on an ideal chip: with the spec's wires and converters' curves, without spread, offsets or noise.
    """

    name: ClassVar[str] = "ranges"
    requires: ClassVar[tuple[str, ...]] = ("assign",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `adc_ranges` and `clipped`; where nothing needs a range there is none."""
        if not mapping.spec.periphery.needs_range:
            return replace(mapping, adc_ranges={layer.name: () for layer in mapping.layers}, clipped={})
        program = emit(mapping, build_report(mapping, {}), keep_source=False)
        ranges, clipped = tile_ranges(program)
        found: dict[str, list[tuple[float, ...]]] = {layer.name: [] for layer in mapping.layers}
        for tile in program.tables.tiles:
            found[tile.layer].append(ranges[tile.name])
        return replace(mapping, adc_ranges={name: tuple(tiles) for name, tiles in found.items()}, clipped=clipped)


def tile_ranges(program: TileProgram) -> tuple[dict[str, tuple[float, ...]], Table[str, float]]:
    """Ranges of each tile by its name, amperes a phase, and the share of conversions that each layer clips."""
    chip = program_chip(program, effects=EFFECTS.keys() - {"trim"})
    ranges: dict[str, tuple[float, ...]] = {}
    over, total = dict.fromkeys(program.layers, 0), dict.fromkeys(program.layers, 0)
    # Copies of a tile that conduct the same have the same currents.
    known: dict[bytes, tuple[tuple[float, ...], int, int]] = {}
    for tile in program.tables.tiles:
        key = _drive_and_devices(chip, tile) if program.layers[tile.layer].copies > 1 else None
        if key is None or key not in known:
            found, above, size = [], 0, 0
            for phase in input_phases(program.spec, program.layers[tile.layer].signed):
                current = tile_currents(chip, tile, phase)
                found.append(adc_range(current, program.spec))
                above += int((current > found[-1]).sum())
                size += current.size
            known[key or b""] = tuple(found), above, size
        ranges[tile.name], above, size = known[key or b""]
        over[tile.layer] += above
        total[tile.layer] += size
    return ranges, {name: over[name] / max(total[name], 1) for name in over}


def _drive_and_devices(chip: ProgrammedChip, tile: Tile) -> bytes | None:
    """A hash of what a tile's currents come from; None where no matrices say it all."""
    channels = chip.tiles[tile.name].channels
    if any(channel.networks for channel in channels):
        return None
    tensors = chip.program.tile_tensors[tile.name]
    found = hashlib.sha256(repr((tile.layer, chip.program.tile_starts[tile.name])).encode())
    for part in (tensors.row_map, *(channel.matrix for channel in channels)):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.digest()


def tile_currents(chip: ProgrammedChip, tile: Tile, phase: Phase) -> Float64:
    """Magnitudes of what a tile's converters see of its calibration vectors in one phase, amperes, all conversions."""
    drive, spec = chip.drive(tile.layer), chip.layer_spec(tile.layer)
    logical = calibration_codes(chip.program, drive.code_max, tile, _ALL)
    codes = np.empty_like(logical)
    codes[:, chip.program.tile_tensors[tile.name].row_map] = logical
    part = phase_part(codes, phase)
    shares = [drive.shares(part, number) for number in range(drive.digits)]
    channels = [channel for channel in chip.tiles[tile.name].channels if not channel.exact]
    currents = np.concatenate([channel.current(share, spec) for channel in channels for share in shares])
    magnitudes: Float64 = np.abs(currents)
    return magnitudes


def adc_range(current: Float64, spec: HardwareSpec) -> float:
    """The smallest range that clips at most the share allowed; one full cell where no current flows."""
    share = spec.periphery.adc_clip_share
    found = float(np.quantile(current, 1 - share, method="higher")) if current.size else 0.0
    return (found or spec.device.span * spec.periphery.v_read) * OFF_TIES
