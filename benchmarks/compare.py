"""Two files of `benchmarks.speed` side by side: ``python -m benchmarks.compare OLD NEW``.

Exits 1 if a ratio grew by more than ``--worse`` (0.1: a tenth), or a work is gone.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def lines(old: dict[str, Any], new: dict[str, Any], worse: float) -> tuple[list[str], bool]:
    """A line for every work and number of threads of either file, and whether none got worse."""
    sides = [{(one["work"], one["threads"]): one for one in told["results"]} for told in (old, new)]
    found = [f"{'work':<20} {'threads':>7} {'old ratio':>9} {'new ratio':>9} {'change':>7} {'old MB':>7} {'new MB':>7}"]
    fine = True
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        was, now = (side.get(key) for side in sides)
        if was is None or now is None:
            found.append(f"{key[0]:<20} {key[1]:>7} {'only in the ' + ('new' if was is None else 'old') + ' file'}")
            fine = fine and now is not None
            continue
        change = now["ratio"] / was["ratio"] - 1
        fine = fine and change <= worse
        found.append(
            f"{key[0]:<20} {key[1]:>7} {was['ratio']:>9.2f} {now['ratio']:>9.2f} {change:>+7.1%} "
            f"{was['peak_mb']:>7} {now['peak_mb']:>7}" + ("  worse" if change > worse else "")
        )
    return found, fine


def main() -> None:
    """Print the comparison, and what differs between the machines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--worse", type=float, default=0.1, help="growth of a ratio that is too much; default 0.1")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (options.old, options.new))
    for name in sorted({*old["machine"], *new["machine"]}):
        was, now = old["machine"].get(name), new["machine"].get(name)
        if was != now:
            print(f"{name}: {was} in the old file, {now} in the new one")
    found, fine = lines(old, new, options.worse)
    print("\n".join(found))
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
