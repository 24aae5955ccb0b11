"""The tile program: what the compiler emits and everything else runs, verifies and reports."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.chip import Chip
from hwspec.failures import State
from hwspec.fault_map import FaultMap
from hwspec.spec import HardwareSpec
from runtime.layout import Place, Side, device_places
from runtime.listing import print_listing
from runtime.physics.spread import with_access_resistance
from runtime.quantize import Float64, WeightCode, is_off, target_siemens
from runtime.report import CompileReport
from runtime.tables import Gather, Layer, Scatter, Tables, Tile

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TileTensors:
    """The arrays of one tile, in the physical order of its lines.

    Attributes
    ----------
    plus, minus : (rows, cols)
        Target of each device of the pairs: level codes, or siemens where levels are continuous; `quantize.off_target`
        where a device is gated off. A single device against a reference is `plus`; `minus` is zero then.
    row_map : (rows,) int32
        Row of the tile (an index of `word_lines`) that element ``i`` of the loaded vector drives.
    col_map : (cols,) int32
        Element of the layer's result that column ``j`` of the tile (an index of `bit_lines`) contributes to.
    col_sign : (cols,) int8
        +1, or -1 where the pair is swapped and undone digitally.
    scale : (cols,) float64
        Weight that a conductance difference of `weight_span` stands for.
    gain : (cols,) float64
        Digital gain that makes up for what wires and the headroom of pre-distorted targets leave; else 1.
    word_lines : (rows,) int32
        Rows of weights on the site that the tile's rows lie on, strictly rising; others between them are not used.
    bit_lines : (cols,) int32
        Columns of weights on the site that the tile's columns lie on, strictly rising.
    """

    plus: npt.NDArray[Any]
    minus: npt.NDArray[Any]
    row_map: npt.NDArray[np.int32]
    col_map: npt.NDArray[np.int32]
    col_sign: npt.NDArray[np.int8]
    scale: Float64
    gain: Float64
    word_lines: npt.NDArray[np.int32]
    bit_lines: npt.NDArray[np.int32]


TILE_TENSORS = tuple(TileTensors.__dataclass_fields__)


@dataclass(frozen=True, eq=False)
class TileProgram:
    """A compiled model.

    `tensors` holds, for each layer, its tiles' arrays end to end (``<layer>/plus`` …), its bias, what that takes up of
    the errors that failed devices leave (``<layer>/bias_shift``, copy after copy, not always there) and, where digital
    memory holds some, its residue: weights ``<layer>/residue`` ``(k,)``, and where they lie in the flattened matrices,
    ``<layer>/residue_index`` ``(k,)``, rising. `weights` are the float weights a layer, ``(groups, rows, cols)``.
    `calibration` holds ``<layer>/range``, ``mean``, ``covariance`` and ``vectors``. `source` is the model as given, or
    None when it was left out. `faults` are the failed devices that the program was mapped around, as the chip's test
    saw them; None where it suits any chip.
    """

    tables: Tables
    tensors: Tensors
    segments: Mapping[str, bytes]
    weights: Tensors
    calibration: Tensors
    report: CompileReport
    source: bytes | None
    faults: FaultMap | None = None

    @property
    def spec(self) -> HardwareSpec:
        """The hardware that the program was compiled for."""
        return self.tables.spec

    @property
    def arrays(self) -> int:
        """Physical arrays that the program addresses."""
        return self.tables.arrays

    @cached_property
    def sha256(self) -> str:
        """Hash of what runs: tables (which hold the hashes of the model and of failed devices), tensors, segments."""
        digest = hashlib.sha256(self.tables.model_dump_json().encode())
        for name, values in sorted(self.tensors.items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        for name, segment in sorted(self.segments.items()):
            digest.update(name.encode() + segment)
        return digest.hexdigest()

    @cached_property
    def nominal_chip(self) -> Chip:
        """The chip that the program expects: nothing random, but the failed devices that it was mapped around."""
        ideal, faults = Chip.ideal(self.spec, max(self.arrays, 1)), self.tested_faults
        return ideal if faults is None else replace(ideal, arrays=faults.shape[0], faults=faults)

    def on(self, spec: HardwareSpec) -> "TileProgram":
        """The same program on hardware of another spec: nothing is decided anew."""
        return replace(self, tables=self.tables.model_copy(update={"spec": spec, "spec_sha256": spec.sha256}))

    @property
    def tested_faults(self) -> FaultMap | None:
        """The failed devices of physical arrays that the program was mapped around: `faults` has them a segment."""
        reload = self.tables.reload
        return self.faults if self.faults is None or reload is None else self.faults.first(reload)

    def met(self, faults: FaultMap | None) -> FaultMap | None:
        """The failed devices that each array of the tiles meets, from those of physical arrays."""
        reload = self.tables.reload
        if faults is None or reload is None:
            return faults
        return faults.first(reload).repeated(-(-self.tables.written // reload))

    def listing(self) -> str:
        """The program as text; `runtime.listing.parse_listing` reads it back."""
        return print_listing(self.tables)

    def save(self, path: str | Path, beside: Mapping[Path, bytes] | None = None) -> None:
        """Write the program to one file, atomically; `xbarc.load` reads it back.

        Parameters
        ----------
        path
            The file.
        beside
            Contents of other files, which are replaced with it or not at all.

        Raises
        ------
        ProgramError
            If it cannot be written.
        """
        from runtime.archive import save_program

        save_program(self, Path(path), beside)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """The layers by name."""
        return {layer.name: layer for layer in self.tables.layers}

    @cached_property
    def gathers(self) -> dict[str, Gather]:
        """The gathers by name."""
        return {gather.name: gather for gather in self.tables.gathers}

    @cached_property
    def scatters(self) -> dict[str, Scatter]:
        """The scatters by name."""
        return {scatter.name: scatter for scatter in self.tables.scatters}

    @cached_property
    def dtypes(self) -> dict[str, str]:
        """Types of the program's inputs and buffers by name."""
        inputs = {info.name: info.dtype for info in self.tables.inputs}
        return inputs | {buffer.name: buffer.dtype for buffer in self.tables.buffers}

    @cached_property
    def tiles(self) -> dict[str, Tile]:
        """The tiles by name."""
        return {tile.name: tile for tile in self.tables.tiles}

    @cached_property
    def tile_tensors(self) -> dict[str, TileTensors]:
        """The arrays of each tile by its name."""
        return split_tile_tensors(self.tables.tiles, self.tensors)

    def places(self, tile: str) -> dict[Side, Place]:
        """Where the devices of each side of a tile's pairs lie: array, word lines and bit lines."""
        return self._places[tile]

    @cached_property
    def _places(self) -> dict[str, dict[Side, Place]]:
        return {
            tile.name: device_places(tile.array, tensors.word_lines, tensors.bit_lines, self.spec.array)
            for tile, tensors in ((tile, self.tile_tensors[tile.name]) for tile in self.tables.tiles)
        }

    def bias(self, layer: str, *, exact: bool = False) -> Float64:
        """Digital bias of a layer, one for each element of its result (of its channels where results are folded).

        Where failed devices were mapped around it takes up the mean of the errors that they leave, unless the layer is
        to be exact, or has copies: each has a shift of its own then (`copy_shift`).
        """
        bias: Float64 = self.tensors[f"{layer}/bias"]
        return bias if exact or self.layers[layer].copies > 1 else bias + self.tensors.get(f"{layer}/bias_shift", 0.0)

    def copy_shift(self, layer: str, number: int) -> Float64 | None:
        """What the bias of one of several copies of a layer takes up of failed devices' errors; None for nothing."""
        copies, shift = self.layers[layer].copies, self.tensors.get(f"{layer}/bias_shift")
        return None if shift is None or copies == 1 else shift.reshape(copies, -1)[number]

    @cached_property
    def tile_starts(self) -> dict[str, int]:
        """First element of the layer's vectors that drives each tile, where a tile is driven for the first time."""
        starts: dict[str, int] = {}
        for loop in self.tables.loops:
            loads: dict[str, int] = {}
            for step in loop.body:
                if step.op == "load":
                    loads[step.into] = step.start
                elif step.op == "mvm":
                    starts.setdefault(step.tile, loads[step.source])
        return starts

    def target_conductances(self, tile: str) -> tuple[Float64, Float64]:
        """Target conductances (plus, minus) of a tile, siemens, each ``(rows, cols)``; minus may be the reference.

        Devices that are gated off have 0 S.
        """
        tensors, device = self.tile_tensors[tile], self.spec.device
        plus = target_siemens(device, tensors.plus)
        if self.spec.array.pairing == "reference":
            return plus, np.full_like(plus, self.spec.reference_conductance)
        return plus, target_siemens(device, tensors.minus)

    def stuck_conductances(self, tile: str) -> tuple[Float64, Float64]:
        """Conductances of failed devices of a tile by `faults`, as `target_conductances`; NaN of good ones."""
        faults = self.faults
        return self._sides(tile, np.nan, None if faults is None else faults.stuck)

    def failed_states(self, tile: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """States of the devices of a tile by `faults`, codes of `hwspec.failures.State`, as `target_conductances`."""
        faults = self.faults
        return self._sides(tile, int(State.OK), None if faults is None else lambda number: faults.states[number])

    def gated(self, tile: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Devices of a tile that are to be gated off, as `target_conductances`."""
        tensors, device = self.tile_tensors[tile], self.spec.device
        plus, minus = (is_off(device, targets) for targets in (tensors.plus, tensors.minus))
        return plus, minus & (self.spec.array.pairing != "reference")

    def assumed_conductances(self, tile: str) -> tuple[Float64, Float64]:
        """What the program expects devices of a tile to conduct, without access resistance; as `target_conductances`.

        Good devices are at their targets, failed ones where `faults` says, unless they are gated off.
        """
        return self._assumed(tile, 0.0)

    def _assumed(self, tile: str, r_access: float) -> tuple[Float64, Float64]:
        """As `assumed_conductances`, failed devices behind this resistance (ohms)."""
        parts = zip(self.target_conductances(tile), self.stuck_conductances(tile), self.gated(tile), strict=True)
        plus, minus = (
            np.where(np.isnan(stuck) | off, target, with_access_resistance(stuck, r_access))
            for target, stuck, off in parts
        )
        return plus, minus

    def _sides(
        self, tile: str, missing: float, of_array: Callable[[int], npt.NDArray[Any]] | None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Values of a tile's devices (plus, minus) from those of whole arrays; `missing` where there are none."""
        row, places = self.tiles[tile], self.places(tile)
        found: list[npt.NDArray[Any]] = [np.full((row.rows, row.cols), missing), np.full((row.rows, row.cols), missing)]
        if of_array is not None:
            for at, (number, rows, cols) in enumerate(places.values()):
                found[at] = of_array(number)[np.ix_(rows, cols)]
        return found[0], found[1]

    def part_weight(self, tile: str) -> float:
        """Share that a tile's full scale has in a weight: that of its slice, over all replicas of the layer."""
        row = self.tiles[tile]
        return WeightCode.of(self.spec).slice_weight(row.slice) / self.layers[row.layer].replicas

    def intended(self, tile: str, *, exact: bool = False) -> Float64:
        """What a tile's conductance differences should be, in units of `weight_span`, ``(rows, cols)`` as they lie.

        Parameters
        ----------
        tile
            Name of the tile.
        exact
            Whether to give what makes the layer's result that of its float weights (the most significant slice of
            the first replica holds all of a weight then), instead of weights on the devices' levels.
        """
        row, tensors = self.tiles[tile], self.tile_tensors[tile]
        layer, code = self.layers[row.layer], WeightCode.of(self.spec)
        group, start = divmod(self.tile_starts[tile], layer.rows)
        weights = self.weights[row.layer].astype(np.float64)
        block = weights[group, start : start + row.rows, tensors.col_map - group * layer.cols].T * tensors.col_sign
        if exact:
            whole = row.slice == self.spec.array.slices - 1 and row.replica == 0
            share = block / (tensors.scale * tensors.gain) * whole
        else:
            normalized = np.clip(block * (self.part_weight(tile) / tensors.scale), -1, 1)
            share = code.differences(code.round(normalized), row.slice)
        physical = np.empty_like(share)
        physical[tensors.row_map] = share
        return physical

    def decoded_weights(self, layer: str, *, r_access: float | None = None, copy: int = 0) -> Float64:
        """The weights that a layer's tiles (of one copy) and its digital residue stand for, ``(groups, rows, cols)``.

        Read from the instructions: what is loaded, driven and accumulated decides where a weight belongs. Good devices
        count with their targets, failed ones with what they conduct behind their access resistance: that of the spec,
        or `r_access` (ohms).
        """
        r_access = self.spec.device.r_access if r_access is None else r_access
        table = self.layers[layer]
        decoded = np.zeros((table.groups, table.rows, table.cols))
        loop = next(loop for loop in self.tables.loops if loop.layer == layer)
        starts: dict[str, int] = {}
        seen: set[tuple[str, int]] = set()
        for step in loop.body:
            if step.op == "load":
                starts[step.into] = step.start
            if step.op != "mvm" or (step.tile, starts[step.source]) in seen:
                continue
            if self.tiles[step.tile].copy_number != copy:
                continue
            start = starts[step.source]
            seen.add((step.tile, start))
            group, row = divmod(start, table.rows)
            tensors = self.tile_tensors[step.tile]
            plus, minus = self._assumed(step.tile, r_access)
            factor = tensors.col_sign * tensors.scale * tensors.gain / self.spec.weight_span
            block = (plus - minus)[tensors.row_map] * factor
            decoded[group, row : row + len(block), tensors.col_map - group * table.cols] += block.T
        index, values = self.residue(layer)
        decoded.ravel()[index] += values
        return decoded

    def residue(self, layer: str) -> tuple[npt.NDArray[np.int64], Float64]:
        """Weights of a layer in digital memory: where in its flattened ``(groups, rows, cols)``, and their values."""
        index = self.tensors.get(f"{layer}/residue_index", np.zeros(0, np.int64))
        return index, self.tensors.get(f"{layer}/residue", np.zeros(0))


def split_tile_tensors(tiles: tuple[Tile, ...], tensors: Tensors) -> dict[str, TileTensors]:
    """Cut the layers' flat tensors into tiles, in the order of the table."""
    at: dict[str, dict[str, int]] = {}
    result: dict[str, TileTensors] = {}
    for tile in tiles:
        position = at.setdefault(tile.layer, dict.fromkeys(TILE_TENSORS, 0))
        parts: dict[str, npt.NDArray[Any]] = {}
        for key in TILE_TENSORS:
            size = tile_tensor_size(key, tile)
            flat = tensors[f"{tile.layer}/{key}"]
            parts[key] = flat[position[key] : position[key] + size]
            position[key] += size
        for key in ("plus", "minus"):
            parts[key] = parts[key].reshape(tile.rows, tile.cols)
        result[tile.name] = TileTensors(**parts)
    return result


def tile_tensor_size(key: str, tile: Tile) -> int:
    """Elements that a tile has in its layer's flat tensor `key`."""
    if key in ("plus", "minus"):
        return tile.rows * tile.cols
    return tile.rows if key in ("row_map", "word_lines") else tile.cols
