"""Trials of a study: accuracies of emitted programs on chips, kept as they come, so that a killed study goes on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import xbarc
from runtime.program import TileProgram
from xbarc.data.load import Dataset
from xbarc.evaluation import bootstrap

FIRST_CHIP = 10_000
"""Seeds of the chips that are measured count from here; training draws its own from another sequence."""
BATCH = 250
TOLD_EVERY = 20


def right(
    program: TileProgram,
    chip: xbarc.Chip | None,
    data: Dataset,
    seed: int,
    device: str,
    *,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    reestimate: Dataset | None = None,
) -> npt.NDArray[Any]:
    """Which samples a program gets right on a chip, ``(samples,) bool``; options as for `xbarc.simulate`."""
    simulation = xbarc.simulate(
        program, chip=chip, device=device, seed=seed, only=only, without=without, reestimate=reestimate
    )
    found = [simulation(batch)[0].argmax(1) for batch in data.batches(BATCH)]
    labels = data.labels
    assert labels is not None
    return np.asarray(np.concatenate(found) == labels)


def measure(
    program: TileProgram,
    chip_of: Callable[[int], xbarc.Chip | None],
    chips: int,
    data: Dataset,
    device: str,
    **options: Any,
) -> dict[str, Any]:
    """Accuracy over chips of the seeds from `FIRST_CHIP` on: mean, 95 % interval (chips and samples), each chip."""
    seeds = range(FIRST_CHIP, FIRST_CHIP + chips)
    rows = np.array([right(program, chip_of(seed), data, seed, device, **options) for seed in seeds], np.float64)
    low, high = bootstrap(rows, 0)
    each = [round(float(value), 5) for value in rows.mean(1)]
    return {"mean": float(rows.mean()), "ci95": [low, high], "chips": each, "samples": rows.shape[1]}


def tell(what: str, done: int, total: int | None) -> None:
    """Print how a training goes, every so many steps."""
    if done % TOLD_EVERY == 0 or done == total:
        print(f"{what} ({done} of {total})", flush=True)


class Results:
    """The results of a study in one JSON file, by name; written whole after each.

    Parameters
    ----------
    path
        The file; what it holds is not done again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What is there under a name; made first where it is missing."""
        if name not in self.found:
            self.found[name] = make()
            self.save()
        return self.found[name]

    def save(self) -> None:
        """Write everything."""
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


def merged(paths: Sequence[Path]) -> dict[str, Any]:
    """Results of several files together."""
    found: dict[str, Any] = {}
    for path in paths:
        found |= json.loads(path.read_text(encoding="utf-8"))
    return found
