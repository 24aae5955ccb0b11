"""Trials of a study: accuracies of emitted programs on chips, kept as they come, so that a killed study goes on."""

import base64
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import xbarc
from runtime.program import TileProgram
from xbarc.data.load import Dataset

FIRST_CHIP = 10_000
"""Seeds of the chips that are measured count from here; training draws its own from another sequence."""
BATCH = 250
TOLD_EVERY = 20
DRAWS = 2000
"""Of the bootstrap."""
Rows = npt.NDArray[np.float64]


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


def places(chip: int, each: int, samples: int) -> npt.NDArray[np.int64]:
    """Which of all samples the chip of a number sees, ``(each,)``: shuffled ones, where the one before stopped."""
    shuffled = np.random.default_rng(0).permutation(samples)
    found: npt.NDArray[np.int64] = shuffled[(chip * each + np.arange(each)) % samples]
    return found


def measure(
    program: TileProgram,
    chip_of: Callable[[int], xbarc.Chip | None],
    chips: int,
    data: Dataset,
    device: str,
    images: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Accuracy over chips of the seeds from `FIRST_CHIP` on, each with so many samples of its own (`places`).

    Mean, 95 % interval over chips and samples, that of each chip, and which samples each gets right (`packed`).
    """
    each = len(data) if images is None else min(images, len(data))
    found = [
        right(
            program,
            chip_of(FIRST_CHIP + chip),
            data.take(places(chip, each, len(data))),
            FIRST_CHIP + chip,
            device,
            **options,
        )
        for chip in range(chips)
    ]
    row = {"samples": each, "of": len(data), "right": [packed(one) for one in found]}
    mean, low, high = estimate(rights(row), len(data))
    accuracies = [round(float(one.mean()), 5) for one in found]
    return {"mean": mean, "ci95": [low, high], "chips": accuracies, **row}


def each_way(
    programs: Mapping[str, TileProgram],
    chip: xbarc.Chip,
    data: Dataset,
    seed: int,
    device: str,
    images: int,
) -> dict[str, Any]:
    """Accuracies of programs on one chip, and which samples they get right; the first also as if no device failed."""
    each = min(images, len(data))
    seen = data.take(places(seed - FIRST_CHIP, each, len(data)))
    found = {"fault-free": right(next(iter(programs.values())), chip, seen, seed, device, without=["failures"])}
    found |= {way: right(program, chip, seen, seed, device) for way, program in programs.items()}
    accuracies = {way: float(one.mean()) for way, one in found.items()}
    return {**accuracies, "samples": each, "of": len(data), "right": {way: packed(one) for way, one in found.items()}}


def packed(right: npt.NDArray[Any]) -> str:
    """Which samples a chip gets right, eight a byte, in Base64."""
    return base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()


def rights(row: Mapping[str, Any]) -> Rows:
    """Which samples each chip of a row of `measure` gets right, ``(chips, samples)``."""
    bits = [np.frombuffer(base64.b64decode(one), np.uint8) for one in row["right"]]
    return np.array([np.unpackbits(one, count=row["samples"]) for one in bits], np.float64)


def estimate(values: Rows, samples: int, of: Rows | None = None) -> tuple[float, float, float]:
    """Mean of what chips give on samples, and its 95 % interval by bootstrap over both.

    Where no sample was seen by two chips (`places`), chips are drawn anew together with their samples: these units are
    independent. One less is drawn than there are, which makes the variance unbiased (Rao and Wu, JASA 83, 1988).
    Otherwise chips are drawn, and samples, each for all the chips that saw it (Owen, Ann. Appl. Stat. 1, 2007: at most
    too wide).

    Parameters
    ----------
    values
        ``(chips, samples of a chip)``; differences are paired where both come from the same chips and samples.
    samples
        That all chips took theirs from.
    of
        What to give the sum of `values` as a share of; None takes ones, for the mean.
    """
    chips, each = values.shape
    dense = np.zeros((2, chips, samples), np.float32)
    for chip in range(chips):
        dense[0, chip, places(chip, each, samples)] = values[chip]
        dense[1, chip, places(chip, each, samples)] = 1.0 if of is None else of[chip]
    times, counts = _draws(chips, samples, apart=chips * each <= samples)
    over, under = (((times @ one) * counts).sum(1, dtype=np.float64) for one in dense)
    low, high = np.quantile(over / under, [0.025, 0.975])
    return float(values.sum() / (values.size if of is None else of.sum())), float(low), float(high)


@functools.cache
def _draws(chips: int, samples: int, *, apart: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """How often each chip and each sample is drawn, ``(DRAWS, chips)`` and ``(DRAWS or 1, samples)``."""
    generator = np.random.default_rng(0)
    times = generator.multinomial(max(chips - 1, 1) if apart else chips, np.full(chips, 1 / chips), DRAWS)
    if apart:
        return times.astype(np.float32), np.ones((1, samples), np.float32)
    counts = generator.multinomial(samples, np.full(samples, 1 / samples), DRAWS)
    return times.astype(np.float32), counts.astype(np.float32)


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
