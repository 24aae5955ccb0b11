"""What exploring hardware specs found: one record a point, and the file that a killed run goes on from."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from hwspec.atomic import write_atomically
from hwspec.errors import DataError
from xbarc.pareto import pareto_front
from xbarc.spec_grid import Axis

Metric = Literal["accuracy", "relative_error"]
_MOST_BYTES = 1 << 30


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Quality(_Record):
    """The metric of a point, as `xbarc.evaluate` measures it."""

    mean: float = Field(description="over the chips")
    worst: float = Field(description="of the chips")
    std: float = Field(description="from chip to chip")
    ci95: tuple[float, float] = Field(description="of the mean: bootstrap over chips and samples")
    ideal: float = Field(description="on a chip without failures, spread or noise")
    chips: tuple[float, ...] = Field(description="each chip; the ideal one where the spec has nothing random")


class PointCost(_Record):
    """What the program of a point takes, as `runtime.costing.cost` tells it, pipelined."""

    energy: float = Field(description="joules a sample")
    interval: float = Field(description="seconds from one sample to the next")
    latency: float = Field(description="seconds from the start of a sample to its end")
    area: float = Field(description="square metres")
    arrays: int
    tops: float = Field(description="tera-operations a second")
    tops_per_watt: float


class Misfit(_Record):
    """By how much a program does not fit its chip."""

    demand: int
    bound: int
    unit: str


class ExplorePoint(_Record):
    """One point of the grid."""

    number: int = Field(description="in the grid, the last axis moving fastest")
    values: dict[str, JsonValue] = Field(description="of the varied fields")
    state: Literal["done", "does_not_fit", "invalid"]
    on_front: bool = Field(
        default=False,
        description="whether no other is at least as good in quality, energy, interval and area and better in one",
    )
    quality: Quality | None = None
    cost: PointCost | None = None
    misfit: Misfit | None = None
    reason: str | None = Field(default=None, description="why the spec is refused")


class ExploreReport(_Record):
    """Quality and cost of one model over a grid of hardware specs."""

    format_version: Literal[1] = 1
    model: str
    spec: str = Field(description="what the points start from")
    identity: dict[str, str] = Field(description="hashes of all that decides the numbers")
    axes: tuple[Axis, ...]
    fixed: dict[str, JsonValue]
    grid: int = Field(description="points of the whole grid")
    drawn: int = Field(description="points of it that are looked at")
    metric: Metric = Field(description="accuracy; or the relative error of the outputs against the original model")
    original: float | None = Field(description="the metric of the original model in onnxruntime")
    samples: int
    chips: int = Field(description="sampled for each point, of the seeds from `seed` on")
    seed: int
    seconds: float = Field(description="between programming and the reads")
    warnings: tuple[str, ...]
    points: tuple[ExplorePoint, ...] = Field(description="that are done so far, by number")

    def with_points(self, points: Mapping[int, ExplorePoint], **update: object) -> Self:
        """These points, the front marked."""
        ordered = [points[number] for number in sorted(points)]
        done = [point for point in ordered if point.state == "done"]
        front = dict(
            zip(
                (point.number for point in done),
                pareto_front([self.objectives(point) for point in done]),
                strict=True,
            )
        )
        marked = tuple(point.model_copy(update={"on_front": front.get(point.number, False)}) for point in ordered)
        return self.model_copy(update={**update, "points": marked})

    def objectives(self, point: ExplorePoint) -> tuple[float, float, float, float]:
        """Quality, energy, interval and area of a point that is done, less being better."""
        assert point.quality is not None
        assert point.cost is not None
        quality = -point.quality.mean if self.metric == "accuracy" else point.quality.mean
        return quality, point.cost.energy, point.cost.interval, point.cost.area

    @property
    def ranked(self) -> list[ExplorePoint]:
        """The points that are done, the best quality first, then the least energy."""
        return sorted((point for point in self.points if point.state == "done"), key=self.objectives)

    @property
    def front(self) -> list[ExplorePoint]:
        """The points on the front, the best quality first."""
        return [point for point in self.ranked if point.on_front]

    def of_state(self, state: str) -> list[ExplorePoint]:
        """The points that ended like this."""
        return [point for point in self.points if point.state == state]

    def save(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all; `load` reads it back."""
        _write(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report from the file that `save` wrote; raises `DataError` where it is none."""
        subject = f"results {path}"
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise DataError(subject, f"must be at most {_MOST_BYTES} bytes long")
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(subject, f"cannot be read ({error.strerror})") from None
        except ValidationError as error:
            reason = error.errors()[0]
            where = ".".join(map(str, reason["loc"]))
            raise DataError(subject, f"must be a file that tune-spec wrote ({where} {reason['msg']})") from None

    def save_csv(self, path: Path) -> None:
        """Write one row a point, in SI units, whole or not at all."""
        fields = [field for axis in self.axes for field in axis.fields]
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        costs = ("energy_j", "interval_s", "latency_s", "area_m2", "arrays", "tops", "tops_per_watt")
        writer.writerow(["number", "state", "front", *fields, self.metric, "worst", *costs, "reason"])
        for point in self.points:
            quality = ["", ""] if point.quality is None else [point.quality.mean, point.quality.worst]
            cost = [""] * len(costs) if point.cost is None else list(point.cost.model_dump().values())
            values = [point.values[field] for field in fields]
            writer.writerow(
                [point.number, point.state, int(point.on_front), *values, *quality, *cost, told_reason(point)]
            )
        _write(path, rows.getvalue())


def told_reason(point: ExplorePoint) -> str:
    """Why a point has no numbers."""
    if point.misfit is not None:
        return f"needs {point.misfit.demand} {point.misfit.unit}, the chip has {point.misfit.bound}"
    return point.reason or ""


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Sequence[str]:
    """What differs between two identities."""
    return [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


def _write(path: Path, text: str) -> None:
    def put(stream: BinaryIO) -> None:
        stream.write(text.encode())

    try:
        write_atomically(path, put)
    except OSError as error:
        raise DataError(f"output {path}", f"cannot be written ({error.strerror})") from None
