"""Which physical arrays take which tiles: an assignment within windows of neighbouring sites."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from compiler.orders import cheapest
from compiler.strips import Pairs, Strip
from runtime.pairs import PairRules
from runtime.physics.wires import share_out
from runtime.quantize import Float64

WINDOW = 8
"""Sites that choose among each other's arrays: costs grow with its square, gains fade."""


def choose_arrays(
    strips: Sequence[Strip], pairs: Pairs, rules: PairRules, first: int, arrays: int, per_site: int, *, turn: bool
) -> list[Strip]:
    """The strips, their tiles on the arrays where they lose least.

    Sites choose in windows, each among the arrays of its own sites and its share of those that the program does not
    need.

    Parameters
    ----------
    strips
        Of all layers, on arrays in order.
    pairs, rules
        Of the chip.
    first
        Arrays that the strips need in order.
    arrays
        That the chip has.
    per_site
        Arrays of a site.
    turn
        Whether columns can be stored with the opposite sign.
    """
    tiles: dict[int, list[tuple[int, int]]] = {}
    for at, strip in enumerate(strips):
        for tile, array in enumerate(strip.arrays):
            tiles.setdefault(array, []).append((at, tile))
    sites = sorted(tiles)
    spare = list(range(first, arrays - per_site + 1, per_site))
    windows = [sites[start : start + WINDOW] for start in range(0, len(sites), WINDOW)]
    surplus = [spare[number :: len(windows)][:WINDOW] for number in range(len(windows))]
    tasks = {}
    for strip_at, strip in enumerate(strips):
        for tile, task in enumerate(strip.tasks(pairs)):
            tasks[strip_at, tile] = task
    chosen: dict[int, int] = {}

    def cost(site: int, array: int) -> float:
        total, found = 0.0, pairs(array)
        for at, tile in tiles[site]:
            place = strips[at].territories[tile]
            moved = tasks[at, tile].on(found, place.rows, place.cols)
            total += cheapest(moved, strips[at].orders[tile], rules, turn=turn)
        return total

    def work(part: slice) -> None:
        for number in range(part.start, part.stop):
            window = windows[number]
            candidates = [*window, *surplus[number]]
            costs: Float64 = np.array([[cost(site, array) for array in candidates] for site in window])
            at, to = linear_sum_assignment(costs)
            for one, other in zip(at, to, strict=True):
                chosen[window[one]] = candidates[other]

    share_out(len(windows), work)
    return [replace(strip, arrays=tuple(chosen[array] for array in strip.arrays)) for strip in strips]
