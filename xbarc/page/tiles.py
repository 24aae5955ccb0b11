"""Section: pictures of the tiles that are furthest from their weights."""

import numpy as np

from hwspec.failures import State
from runtime.program import TileProgram
from xbarc.chip_plot import COLOURS, GATED, name_of
from xbarc.page.markup import Html, element, named, paragraph, quantity, section, together
from xbarc.page.picture import (
    BLUE_RED,
    ORANGE_PURPLE,
    Codes,
    Colour,
    block_of,
    colour_bar,
    picture,
    scale,
    shades,
    strongest,
)
from xbarc.tile_view import TileView, view_tile, worst_tiles

MOST = 24
"""Tiles that are drawn."""
_SIDE = 160
"""CSS pixels of the longer side of a picture."""
_SHORTEST = 24


def tiles(program: TileProgram) -> Html:
    """The tile with the largest error of each layer: targets, failed devices, and what is missing to the weights."""
    worst = sorted(worst_tiles(program).items(), key=lambda item: -item[1][1])[:MOST]
    order = {name: number for number, name in enumerate(program.layers)}
    chosen = [tile for _, (tile, _) in sorted(worst, key=lambda item: order[item[0]])]
    hidden = len(program.tiles) - len(chosen)
    span = quantity(program.spec.weight_span, "S")
    told = (
        f"The tile with the largest error of each layer, as it lies on its array; {len(chosen):,} of "
        f"{len(program.tiles):,} tiles are drawn, {hidden:,} are not. A pixel is a weight. Targets are differences of "
        f"the target conductances of a pair, 1 is {span}"
    )
    if program.spec.array.pairing == "reference":
        told = told.replace("of a pair", "to the reference")
    missed = "The residual is what the tile holds less the float weight, in units of the column's largest weight."
    known = (
        "Failed devices are those of the chip that the program is mapped for; the left half of a pixel is the plus "
        "device, the right half the minus device."
        if program.faults is not None
        else "No failed devices are known: the program suits any chip."
    )
    views = (_tile(view_tile(program, name), faults=program.faults is not None) for name in chosen)
    return section("tiles", "Tiles", paragraph(f"{told}. {missed} {known}"), element("div", {"class": "tiles"}, *views))


def _tile(view: TileView, *, faults: bool) -> Html:
    tile = view.tile
    rms = float(np.sqrt((view.residual**2).mean()))
    limit = float(np.abs(view.residual).max()) or 1.0
    part = "".join(f", {what} {at}" for what, at in (("slice", tile.slice), ("replica", tile.replica)) if at)
    down, across = block_of(view.target.shape)
    blocks = f" A pixel is the largest of {down} × {across} weights." if down * across > 1 else ""
    numbers = list(dict.fromkeys(str(number) for number, _, _ in view.places))
    where = f"array{'s' * (len(numbers) > 1)} {' and '.join(numbers)}"
    panels = [
        _values(view.target, 1.0, BLUE_RED, f"targets of tile {tile.name}", "target, share of range"),
        *([_failures(view)] if faults else []),
        _values(view.residual, limit, ORANGE_PURPLE, f"residual of tile {tile.name}", f"residual, rms {rms:.3g}"),
    ]
    caption = together(
        [
            "Tile ",
            named(tile.name),
            " of ",
            named(tile.layer),
            f"{part}: {tile.rows} × {tile.cols} weights on {where}.{blocks}",
        ]
    )
    return element(
        "figure", {"class": "tile"}, element("figcaption", None, caption), element("div", {"class": "panels"}, *panels)
    )


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of a picture in CSS pixels."""
    longest = max(shape)
    return max(_SHORTEST, round(_SIDE * shape[1] / longest)), max(_SHORTEST, round(_SIDE * shape[0] / longest))


def _values(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
    limit: float,
    stops: tuple[Colour, ...],
    alternative: str,
    what: str,
) -> Html:
    colours = scale(stops)
    image = picture(shades(strongest(values), limit), colours, alternative, *_size(values.shape))
    return element("div", {"class": "panel"}, image, colour_bar(colours, f"−{limit:.3g}", f"{limit:.3g}", what))


def _failures(view: TileView) -> Html:
    """Both devices of each pair beside each other, and a key of the states that there are."""
    off = len(State)
    shown = [np.where(gated, off, states) for states, gated in zip(view.states, view.gated, strict=True)]
    if not any(states.any() for states in shown):
        return element("div", {"class": "panel"}, paragraph("none of its devices has failed"))
    both = np.stack(shown, axis=2).reshape(view.tile.rows, -1)
    codes: Codes = strongest(both.astype(np.float64)).astype(np.uint8)
    colours = [_rgb(COLOURS[state]) for state in State] + [_rgb(GATED)]
    names = [*(name_of(state) for state in State), "gated off"]
    present = [number for number in range(1, len(names)) if (both == number).any()]
    keys = [
        element(
            "li",
            None,
            element("span", {"class": "swatch", "style": f"background:rgb({' '.join(map(str, colours[number]))})"}),
            f"{names[number].replace('_', ' ')} ({int((both == number).sum()):,})",
        )
        for number in present
    ]
    image = picture(codes, tuple(colours), f"failed devices of tile {view.tile.name}", *_size(view.target.shape))
    return element("div", {"class": "panel"}, image, element("ul", {"class": "states"}, *keys))


def _rgb(colour: str) -> Colour:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
