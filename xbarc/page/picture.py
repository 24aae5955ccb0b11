"""Small pictures of matrices: PNG in the page itself, a pixel an element, few colours."""

import base64
import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from xbarc.page.markup import Html, element

Codes = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SHADES = 31
"""Colours of a scale from the lowest to the highest value; odd, so that zero has one of its own."""
_LARGEST = 256
"""Pixels a side; larger matrices are drawn in blocks."""
BLUE_RED: tuple[Colour, ...] = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))
ORANGE_PURPLE: tuple[Colour, ...] = ((179, 88, 6), (253, 184, 99), (247, 247, 247), (178, 171, 210), (84, 39, 136))


def scale(stops: tuple[Colour, ...]) -> tuple[Colour, ...]:
    """So many shades between colours as a scale has."""
    at = np.linspace(0, len(stops) - 1, SHADES)
    parts = [np.interp(at, range(len(stops)), [stop[part] for stop in stops]) for part in range(3)]
    return tuple((int(red), int(green), int(blue)) for red, green, blue in np.rint(np.stack(parts, 1)))


def shades(values: npt.NDArray[np.float64], limit: float) -> Codes:
    """Numbers of the shades of values from ``-limit`` to ``limit``; those beyond take the last."""
    middle = (SHADES - 1) / 2
    codes: Codes = np.rint(np.clip(values / limit, -1, 1) * middle + middle).astype(np.uint8)
    return codes


def block_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that a pixel of a picture stands for."""
    return math.ceil(shape[0] / _LARGEST), math.ceil(shape[1] / _LARGEST)


def strongest(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The element of largest magnitude of each block of a matrix."""
    down, across = block_of(values.shape)
    if (down, across) == (1, 1):
        return values
    rows, cols = math.ceil(values.shape[0] / down), math.ceil(values.shape[1] / across)
    padded = np.zeros((rows * down, cols * across))
    padded[: values.shape[0], : values.shape[1]] = values
    blocks = padded.reshape(rows, down, cols, across).transpose(0, 2, 1, 3).reshape(rows, cols, -1)
    found: npt.NDArray[np.float64] = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)[..., 0]
    return found


def picture(codes: Codes, colours: tuple[Colour, ...], alternative: str, width: int, height: int) -> Html:
    """An image of codes in these colours, shown this many CSS pixels large."""
    image = Image.fromarray(codes, "P")
    image.putpalette([part for colour in colours for part in colour])
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, bits=max(1, (len(colours) - 1).bit_length()))
    source = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    sized = f"aspect-ratio:{width}/{height}"  # both devices of a pair lie within the width of a weight
    given = {"src": source, "alt": alternative, "width": width, "height": height, "class": "matrix", "style": sized}
    return element("img", given)


def colour_bar(colours: tuple[Colour, ...], low: str, high: str, what: str) -> Html:
    """A scale of colours with the values at its ends and zero between them."""
    stops = ",".join(f"rgb({red} {green} {blue})" for red, green, blue in colours)
    bar = element("span", {"class": "bar", "style": f"background:linear-gradient(90deg,{stops})"})
    ends = element("span", {"class": "ends"}, *(element("span", None, end) for end in (low, "0", high)))
    return element("div", {"class": "scale"}, bar, ends, element("span", {"class": "what"}, what))
