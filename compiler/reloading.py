"""Layers in segments that are written to the same arrays one after another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from compiler.packing import Territory, sites_of
from hwspec.errors import DoesNotFit, FitReport

Territories = dict[str, tuple[Territory, ...]]


def in_segments(
    layers: Sequence[str], pack: Callable[[Sequence[str]], Territories], budget: int, per_site: int
) -> Territories:
    """The territories of all layers, the sites of each segment counted on from a multiple of the budget.

    A segment takes as many of the following layers as fit together. No other cut has fewer segments where fewer layers
    never need more sites, which tiles packed as rectangles (``--share all``) do not promise.

    Parameters
    ----------
    layers
        In the order in which they run.
    pack
        Gives the territories of some layers, sites counted from 0.
    budget
        Sites that there are.
    per_site
        Arrays of a site.

    Raises
    ------
    DoesNotFit
        If a layer alone needs more.
    """
    found: Territories = {}
    start, at = 0, 0
    while at < len(layers):
        fitting, count = _longest(layers[at:], pack, budget)
        if fitting is None:
            demand, bound = sites_of(pack([layers[at]])) * per_site, budget * per_site
            levers = (f"layer {layers[at]} kept digital with --digital", *FitReport.levers[:3])
            raise DoesNotFit(FitReport(demand, bound, demand - bound, levers=levers))
        found |= {
            name: tuple(replace(place, site=start + place.site) for place in places) for name, places in fitting.items()
        }
        start, at = start + budget, at + count
    return found


def segments_of(territories: Mapping[str, Sequence[Territory]], budget: int) -> int:
    """How many segments there are."""
    return -(-sites_of(territories) // budget)


def _longest(
    layers: Sequence[str], pack: Callable[[Sequence[str]], Territories], budget: int
) -> tuple[Territories | None, int]:
    """The territories of as many of the first layers as fit, and their number."""
    best: Territories | None = None
    for count in range(1, len(layers) + 1):
        tried = pack(layers[:count])
        if sites_of(tried) > budget:
            return best, count - 1
        best = tried
    return best, len(layers)
