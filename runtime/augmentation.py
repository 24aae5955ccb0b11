"""Which random changes training images get."""

from collections.abc import Sequence
from dataclasses import dataclass

from hwspec.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """The largest changes of a training image; what comes from outside is 0.

    Attributes
    ----------
    shift, rotate, zoom : float
        Largest shift in pixels (fractions are interpolated), rotation in degrees, and relative change of size.
    crop : int
        Largest shift by whole pixels, which keeps the image sharp.
    flip : bool
        Mirror half of the images, left for right.
    erase : int
        Side in pixels of a square at a random place that is set to 0 (DeVries and Taylor, arXiv:1708.04552); what
        of it lies outside the image is lost.
    """

    shift: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    crop: int = 0
    flip: bool = False
    erase: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no change of an image."""
        for name, most in (("shift", 1e4), ("rotate", 180.0), ("zoom", 0.9)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
                raise DataError(f"augmentation {name}", f"must be a number from 0 to {most:g}", got=value)
        for name in ("crop", "erase"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise DataError(f"augmentation {name}", "must be a whole number from 0 up", got=value)
        if not isinstance(self.flip, bool):
            raise DataError("augmentation flip", "must be true or false", got=self.flip)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Refuse images ``(samples, channels, height, width)`` of which a change could leave nothing.

        Raises
        ------
        DataError
            With the name of the input.
        """
        side = min(shape[2:])
        for change, most in (("shift", side - 1), ("crop", side - 1), ("erase", side)):
            value = getattr(self, change)
            if value > most:
                requirement = f"must be at most {most} pixels for the images of input {name!r}"
                raise DataError(f"augmentation {change}", requirement, got=value)

    @property
    def on(self) -> bool:
        """Whether anything changes."""
        return self != Augmentation()
