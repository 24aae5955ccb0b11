"""What an evaluation found, and the reading of it from what ``xbarc eval --json`` printed."""

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwspec.errors import DataError

_MOST_BYTES = 1 << 26
_LARGEST = 1e12
"""Of numbers that can be drawn; a relative error beyond it says no more than this one."""


class LayerEval(BaseModel):
    """The metric with one layer on crossbars, and the rest in floating point."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    value: float


class EvalReport(BaseModel):
    """Outcome of an evaluation: ``accuracy`` where there are labels, else ``relative_error`` against the model.

    `ideal` is the program on a chip without failures, spread or noise; `chips` one value for each chip evaluated, the
    first of seed `seed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True, populate_by_name=True)

    model: str
    program_sha256: str = Field(description="hash of the program that was evaluated")
    metric: Literal["accuracy", "relative_error"]
    float_: float = Field(alias="float", description="the original model in onnxruntime")
    ideal: float
    chips: tuple[float, ...]
    mean: float = Field(description="over the chips")
    std: float = Field(description="from chip to chip")
    ci95: tuple[float, float] = Field(description="of the mean: bootstrap over chips and samples")
    worst: float = Field(description="of the chips")
    percentile5: float = Field(description="of the chips, on the worse side")
    good_chips: tuple[float, ...] | None = Field(
        description="each chip without failed devices, running the program for any chip"
    )
    drop: float | None = Field(description="by failures: mean over the chips of what they lose against themselves")
    drop_ci95: tuple[float, float] | None = Field(description="of the drop, paired: bootstrap over chips and samples")
    failed_devices: float = Field(description="mean share of the devices of the program's arrays")
    failed_pairs: float = Field(description="mean share of their pairs")
    remapped: bool = Field(description="whether the program was mapped for each chip")
    samples: int
    seed: int = Field(description="of the first chip")
    seconds: float = Field(description="between programming and the reads")
    effects: tuple[str, ...] = Field(description="physical effects that were on")
    trim: dict[str, tuple[float, float]] | None = Field(
        description="error of each layer's tiles on the first chip's known vectors, before and after its trim"
    )
    reestimated: dict[str, tuple[float, float]] | None = Field(
        default=None, description="error of each layer's results on the first chip, before and after re-estimation"
    )
    by_layer: tuple[LayerEval, ...] = ()
    onnxruntime_segments: dict[str, str] = Field(description="digital segments without torch translation, and why")
    warnings: tuple[str, ...]


def read_eval(path: Path) -> EvalReport:
    """Read what ``xbarc eval --json`` printed.

    Raises
    ------
    DataError
        If the file is not that.
    """
    subject = f"eval {path}"
    hint = "print it by: xbarc eval PROGRAM --data DATA --chips 16 --json > eval.json"
    try:
        if not path.is_file():
            raise DataError(subject, "must be an existing file", hint=hint)
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise DataError(subject, f"must have at most {_MOST_BYTES >> 20} MiB", got=size, hint=hint)
        data = path.read_bytes()
    except OSError as error:
        raise DataError(subject, f"cannot be read ({error.strerror})") from None
    requirement = "must be what `xbarc eval --json` prints"
    try:
        value = json.loads(data)  # in whichever encoding of Unicode a shell wrote it
    except (ValueError, RecursionError):
        raise DataError(subject, f"{requirement}, and is no JSON", hint=hint) from None
    if isinstance(value, dict) and isinstance(value.get("message"), str) and "error" in value:
        raise DataError(subject, f"{requirement}, and is an error of it", got=value["message"], hint=hint)
    try:
        found = EvalReport.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = f"{where}: {first['msg']}" if where else first["msg"]
        raise DataError(subject, requirement, got=told, hint=hint) from None
    _check_numbers(found, subject, hint)
    return found


def _check_numbers(found: EvalReport, subject: str, hint: str) -> None:
    if not found.chips:
        raise DataError(subject, "must have at least one chip", hint=hint)
    most = 1.0 if found.metric == "accuracy" else _LARGEST
    values = (
        found.float_,
        found.ideal,
        found.mean,
        found.std,
        found.worst,
        found.percentile5,
        *found.ci95,
        *found.chips,
        *(found.good_chips or ()),
        *(layer.value for layer in found.by_layer),
        *(abs(value) for value in (found.drop or 0.0, *(found.drop_ci95 or ()))),
    )
    for value in values:
        if not (math.isfinite(value) and 0 <= value <= most):
            raise DataError(subject, f"must have values from 0 to {most:g}", got=value, hint=hint)
