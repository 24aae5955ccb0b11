"""One physical chip: a number of arrays of one geometry."""

from dataclasses import dataclass

from hwspec.errors import ChipError
from hwspec.spec import HardwareSpec


@dataclass(frozen=True)
class Chip:
    """A chip on which a program can run.

    Parameters
    ----------
    rows, cols
        Word lines and bit lines of each array.
    arrays
        Number of physical arrays.
    seed
        Of its devices' spread, failures and trajectories, and of its columns' offsets; None is an ideal chip, which
        has none of these, and whose devices are read without noise.
    """

    rows: int
    cols: int
    arrays: int
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse a chip without arrays."""
        for name in ("rows", "cols", "arrays"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ChipError(f"chip.{name}", "must be a positive integer", got=value)
        if self.seed is not None and (
            not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 1 << 128
        ):
            raise ChipError("chip.seed", "must be a whole number from 0 to 2^128 - 1", got=self.seed)

    @classmethod
    def ideal(cls, spec: HardwareSpec, arrays: int) -> "Chip":
        """A chip of `arrays` arrays without failures, spread or offsets."""
        return cls(rows=spec.array.rows, cols=spec.array.cols, arrays=arrays)

    @classmethod
    def sample(cls, spec: HardwareSpec, arrays: int, seed: int) -> "Chip":
        """A chip as it comes from the line: what the spec leaves to chance is drawn from the seed.

        Array k of a seed is the same however many arrays there are.
        """
        return cls(rows=spec.array.rows, cols=spec.array.cols, arrays=arrays, seed=seed)

    def check_fits(self, spec: HardwareSpec, arrays: int) -> None:
        """Raise `ChipError` unless this chip takes a program for `spec` that addresses `arrays` arrays."""
        wanted = (spec.array.rows, spec.array.cols)
        if (self.rows, self.cols) != wanted:
            raise ChipError(
                "chip", f"must have arrays of {wanted[0]}x{wanted[1]} for {spec.name}", got=f"{self.rows}x{self.cols}"
            )
        if self.arrays < arrays:
            raise ChipError("chip", f"must have at least {arrays} arrays for this program", got=self.arrays)
