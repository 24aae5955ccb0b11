"""Which random changes training images get."""

from dataclasses import dataclass


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

    @property
    def on(self) -> bool:
        """Whether anything changes."""
        return self != Augmentation()
