"""What ``xbarc inspect --tile`` prints."""

from typing import Any

import numpy as np

from xbarc.cli.output import say
from xbarc.tile_view import TileView


def print_tile(view: TileView) -> None:
    """Print where a tile lies, its lines and signs, its failed devices, and what these leave."""
    tile = view.tile
    say(f"tile {tile.name} of layer {tile.layer}: {tile.rows} rows x {tile.cols} columns of weights")
    start, stop = view.rows
    whole = f", group {view.group}" if view.group else ""
    say(f"holds       rows {start} to {stop - 1}, columns {ranges(sorted(view.cols))}{whole}")
    if tile.slice or tile.replica or tile.copy_number:
        say(f"            slice {tile.slice}, replica {tile.replica}, copy {tile.copy_number}")
    for side, (array, rows, cols) in zip(("plus", "minus"), view.places, strict=False):
        say(f"{side:<11} array {array}, word lines {ranges(rows.tolist())}, bit lines {ranges(cols.tolist())}")
    turned = int((view.sign < 0).sum())
    in_order = list(view.cols) == sorted(view.cols)
    order = "in order" if in_order else f"ordered: {', '.join(map(str, view.cols[:8]))}{', …' * (tile.cols > 8)}"
    say(f"columns     {order}; {turned} of {tile.cols} stored with the opposite sign")
    for side, counts, gated in zip(("plus", "minus"), view.counts(), view.gated, strict=False):
        told = ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"
        off = f"; gated off {int(gated.sum())}" if gated.any() else ""
        say(f"{f'{side} fails':<11} {told}{off}")
    if view.failed_pairs:
        pairs, share = "pairs" if len(view.states) > 1 else "devices", view.failed_pairs / view.target.size
        say(f"failed      {view.failed_pairs} of {view.target.size} {pairs} ({share:.2%})")
    largest, rms = _residual(view)
    say(f"residual    rms {rms:.4f}, largest {largest:.4f} of a column's largest weight, against the float weights")
    if tile.adc_range:
        say(f"ADC range   {', '.join(f'{1e6 * value:.4g} uA' for value in tile.adc_range)}")


def tile_json(view: TileView) -> dict[str, Any]:
    """The machine form of `print_tile`, with the order and signs of all columns."""
    largest, rms = _residual(view)
    sides = zip(("plus", "minus"), view.places, view.counts(), view.gated, strict=False)
    return {
        "tile": view.tile.model_dump(mode="json"),
        "group": view.group,
        "rows": list(view.rows),
        "columns": list(view.cols),
        "signs": view.sign.tolist(),
        "sides": {
            side: {
                "array": array,
                "word_lines": rows.tolist(),
                "bit_lines": cols.tolist(),
                "failed": counts,
                "gated": int(gated.sum()),
            }
            for side, (array, rows, cols), counts, gated in sides
        },
        "failed_pairs": view.failed_pairs,
        "residual": {"rms": rms, "largest": largest},
    }


def ranges(numbers: list[int]) -> str:
    """Rising numbers, neighbours as ranges: ``0-3, 7, 9-12``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _residual(view: TileView) -> tuple[float, float]:
    return float(np.abs(view.residual).max()), float(np.sqrt((view.residual**2).mean()))
