"""One physical chip: a number of arrays of one geometry, and which of their devices have failed."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hwspec.atomic import write_atomically
from hwspec.errors import ChipError, DoesNotFit, FitReport
from hwspec.fault_map import FaultMap, sample_faults, with_map_errors
from hwspec.spec import HardwareSpec

_SEED_WORDS = 4


@dataclass(frozen=True)
class Chip:
    """A chip on which a program can run. Two chips are equal when their hashes are.

    Parameters
    ----------
    rows, cols
        Word lines and bit lines of each array.
    arrays
        Number of physical arrays.
    seed
        Of its devices' spread, failures and trajectories, and of its columns' offsets; None is an ideal chip, which
        has none of these but the failed devices it is given, and whose devices are read without noise.
    faults
        Its failed devices; None is none. A map without any becomes None.

    Raises
    ------
    ChipError
        If a size, the seed or the shape of the faults is wrong.
    """

    rows: int
    cols: int
    arrays: int
    seed: int | None = None
    faults: FaultMap | None = None

    def __post_init__(self) -> None:
        """Refuse a chip without arrays, and faults of another chip."""
        for name in ("rows", "cols", "arrays"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ChipError(f"chip.{name}", "must be a positive integer", got=value)
        if self.seed is not None and (
            not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 1 << 128
        ):
            raise ChipError("chip.seed", "must be a whole number from 0 to 2^128 - 1", got=self.seed)
        if self.faults is not None:
            if self.faults.shape != self.shape:
                raise ChipError("chip.faults", f"must be of {_sizes(self.shape)}", got=_sizes(self.faults.shape))
            if not self.faults.failed:
                object.__setattr__(self, "faults", None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Arrays, rows and columns."""
        return self.arrays, self.rows, self.cols

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of its sizes, its seed and its failed devices, in hexadecimal digits."""
        parts = [*map(str, self.shape), str(self.seed), "" if self.faults is None else self.faults.sha256]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @classmethod
    def ideal(cls, spec: HardwareSpec, arrays: int) -> "Chip":
        """A chip of `arrays` arrays without failures, spread or offsets."""
        return cls(rows=spec.array.rows, cols=spec.array.cols, arrays=arrays)

    @classmethod
    def sample(cls, spec: HardwareSpec, arrays: int, seed: int) -> "Chip":
        """A chip as it comes from the line: what the spec leaves to chance is drawn from the seed.

        Array k of a seed is the same however many arrays there are.
        """
        chip = cls(rows=spec.array.rows, cols=spec.array.cols, arrays=arrays, seed=seed)
        if not spec.failures.at_start:
            return chip
        return replace(chip, faults=sample_faults(spec.failures, spec.device, spec.array, arrays, seed))

    @classmethod
    def load(cls, path: str | Path, spec: HardwareSpec | None = None, *, arrays: int | None = None) -> "Chip":
        """Read a chip that `save` wrote, or a measured map (``.npz`` or ``.csv``, see `hwspec.measured_map`).

        Parameters
        ----------
        path
            The file.
        spec
            Of the technology: tells failed devices by their conductances, or what devices in a failure state conduct.
            What `save` wrote holds both; when given, arrays must be of its size.
        arrays
            Of the chip, where the file does not go on to the last one: those after it are good.

        Raises
        ------
        ChipError
            If the file cannot be read, is no map, or needs a spec to be one.
        """
        from hwspec.measured_map import read_map

        found = read_map(Path(path), spec, arrays=arrays)
        count, rows, cols = found.faults.shape
        return cls(rows=rows, cols=cols, arrays=count, seed=found.seed, faults=found.faults)

    def save(self, path: str | Path) -> None:
        """Write the chip as an ``.npz`` file, whole or not at all.

        It holds ``states`` (arrays, rows, cols) of uint8, ``conductance`` (failed,) in siemens and, unless the chip is
        ideal, ``seed`` as four words of 32 bits, the lowest first.

        Raises
        ------
        ChipError
            If the file cannot be written; one that was there before stays as it was.
        """
        faults = self.fault_map
        members: dict[str, npt.NDArray[Any]] = {"states": faults.states, "conductance": faults.conductance}
        if self.seed is not None:
            members["seed"] = np.array([self.seed >> 32 * word & 0xFFFFFFFF for word in range(_SEED_WORDS)], np.uint32)
        try:
            write_atomically(Path(path), lambda stream: np.savez_compressed(stream, allow_pickle=False, **members))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ChipError(f"chip {path}", f"cannot be written ({reason})") from None

    @property
    def fault_map(self) -> FaultMap:
        """Its fault map; that of a chip without failed devices has none."""
        return FaultMap(np.zeros(self.shape, np.uint8), np.zeros(0)) if self.faults is None else self.faults

    def as_tested(self, spec: HardwareSpec) -> "Chip":
        """The chip as its test sees it: with the errors of the spec's ``failures.map_errors`` in its fault map.

        It is this chip itself when the test makes no errors, and for an ideal chip, which nothing random is drawn for.
        """
        errors = spec.failures.map_errors
        if self.seed is None or not (errors.missed or errors.false):
            return self
        return replace(self, faults=with_map_errors(self.faults, self.shape, errors, spec.device, self.seed))

    def check_fits(self, spec: HardwareSpec, arrays: int) -> None:
        """Check that this chip takes a program for `spec` that addresses `arrays` arrays.

        Raises
        ------
        ChipError
            If its arrays are of another size; `DoesNotFit` if there are too few.
        """
        self.check_size(spec)
        if self.arrays < arrays:
            raise DoesNotFit(FitReport(demand=arrays, bound=self.arrays, gap=arrays - self.arrays))

    def check_size(self, spec: HardwareSpec) -> None:
        """Raise `ChipError` unless this chip's arrays are of the size of the spec's."""
        wanted = (spec.array.rows, spec.array.cols)
        if (self.rows, self.cols) != wanted:
            raise ChipError(
                "chip", f"must have arrays of {wanted[0]}x{wanted[1]} for {spec.name}", got=f"{self.rows}x{self.cols}"
            )


def _sizes(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} arrays of {shape[1]}x{shape[2]}"
