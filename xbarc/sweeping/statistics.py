"""What trials say of a point: mean over chips, its 95 % interval, the worst chip and the yield."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from scipy import stats

from xbarc.sweeping.store import FIXED, read_facts, read_rows

CONFIDENCE = 0.95


class PointStatistics(BaseModel):
    """The trials of one point together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str
    values: dict[str, JsonValue] = Field(description="of what varies or is fixed")
    chips: int = Field(description="trials that are done")
    failed: int = Field(description="trials that could not be run")
    mean: float | None = Field(description="of the metric over chips")
    ci95: tuple[float, float] | None = Field(
        description="of the mean: Student's interval over chips, as far as values can lie; None for one"
    )
    std: float | None = Field(description="from chip to chip")
    worst: float | None = Field(description="of the chips")
    chip_yield: float | None = Field(description="share of chips within the loss")


class SweepReport(BaseModel):
    """The points of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_sha256: str = Field(description="of the original model")
    metric: str
    original: float = Field(description="the metric of the original model in onnxruntime")
    samples: int
    loss: float = Field(description="within which a chip counts as good: below (errors: above) the original's metric")
    axes: tuple[str, ...] = Field(description="what varies; fields that move together are separated by commas")
    points: tuple[PointStatistics, ...]

    @property
    def told_loss(self) -> str:
        """The loss as text: ``1 point``, ``0.5 points``."""
        points = f"{100 * self.loss:g}"
        return f"{points} point" if points == "1" else f"{points} points"

    @property
    def several_programs(self) -> bool:
        """Whether there are points of more than one program."""
        return len({point.program for point in self.points}) > 1


def report_of(path: Path, loss: float = 0.01) -> SweepReport:
    """The report of everything in a file of results, as it is now.

    Parameters
    ----------
    path
        That `xbarc sweep` wrote.
    loss
        As for `xbarc.sweep`.

    Raises
    ------
    DataError
        If it is none.
    """
    facts, rows = read_facts(path), read_rows(path)
    original, accuracy = float(facts["original"]), facts["metric"] == "accuracy"
    points: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        points.setdefault(row["point"], []).append(row)
    found = []
    for of_point in points.values():
        first = of_point[0]
        values = {name: value for name, value in first.items() if name not in FIXED}
        done = {row["chip_seed"]: row["value"] for row in of_point if row["state"] == "done"}
        failed = len(of_point) - len(done)
        found.append(
            statistics_of(first["program"], values, done, failed, original=original, loss=loss, accuracy=accuracy)
        )
    names = dict.fromkeys(name for point in found for name in point.values)
    return SweepReport(
        model_sha256=facts["model"],
        metric=facts["metric"],
        original=original,
        samples=int(facts["samples"]),
        loss=loss,
        axes=tuple(_together(list(names), found)),
        points=tuple(found),
    )


def _together(names: list[str], points: list[PointStatistics]) -> list[str]:
    """Names of fields that vary; those that have the same values everywhere as one, separated by commas."""
    axes: dict[str, list[str]] = {}
    for name in names:
        values = [json.dumps(point.values.get(name)) for point in points]
        if len(set(values)) > 1:
            axes.setdefault(json.dumps(values), []).append(name)
    return [",".join(together) for together in axes.values()]


def width95(values: "np.ndarray | list[float]") -> float:
    """Width of the 95 % interval of the mean over chips; infinite for one."""
    found = np.asarray(values, np.float64)
    if found.size < 2:
        return math.inf
    return float(2 * stats.t.ppf(0.5 + CONFIDENCE / 2, found.size - 1) * found.std(ddof=1) / math.sqrt(found.size))


def statistics_of(
    program: str,
    values: Mapping[str, JsonValue],
    of_chips: Mapping[int, float],
    failed: int,
    *,
    original: float,
    loss: float,
    accuracy: bool,
) -> PointStatistics:
    """Statistics of a point.

    Parameters
    ----------
    program, values
        What the point is.
    of_chips
        The metric of each chip, by its seed.
    failed
        Trials that could not be run.
    original
        The metric of the original model.
    loss
        By how much a good chip may be worse.
    accuracy
        Whether more is better.
    """
    found = np.array([of_chips[seed] for seed in sorted(of_chips)], np.float64)
    if not found.size:
        nothing: dict[str, None] = dict.fromkeys(("mean", "ci95", "std", "worst", "chip_yield"))
        return PointStatistics(program=program, values=dict(values), chips=0, failed=failed, **nothing)
    mean, half = float(found.mean()), width95(found) / 2
    lost = original - found if accuracy else found - original
    return PointStatistics(
        program=program,
        values=dict(values),
        chips=found.size,
        failed=failed,
        mean=mean,
        ci95=(max(mean - half, 0.0), min(mean + half, 1.0 if accuracy else math.inf)) if found.size > 1 else None,
        std=float(found.std(ddof=1)) if found.size > 1 else 0.0,
        worst=float(found.min() if accuracy else found.max()),
        chip_yield=float(np.mean(lost <= loss + 1e-12)),
    )
