"""Samples that an exploration calibrates with and measures quality on."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from hwspec.errors import DataError
from runtime.tables import TensorInfo
from xbarc.api import Data
from xbarc.data.load import Dataset, class_balanced, load_data
from xbarc.exploration_report import Metric

Reader = Callable[[Sequence[TensorInfo]], Dataset]
"""Reads samples for the inputs of a model, which are known once it is cleaned."""


def read_samples(
    data: Data | Reader | None, inputs: Sequence[TensorInfo], limit: int | None, seed: int
) -> Dataset | None:
    """Samples for the inputs of a model, at most so many."""
    if data is None:
        return None
    if isinstance(data, Dataset):
        return _some(data, limit, seed)
    return _some(data(inputs), limit, seed) if callable(data) else load_data(data, inputs, limit=limit, seed=seed)


def _some(data: Dataset, limit: int | None, seed: int) -> Dataset:
    """The subset that `load_data` would take with this limit."""
    if limit is None or limit >= len(data):
        return data
    if limit < 1:
        raise DataError("images", "must be positive", got=limit)
    return data.take(class_balanced(data.labels, len(data), limit, seed))


def judged_samples(
    data: Dataset | None, calibration: Dataset | None, metric: Metric | None, images: int | None, seed: int
) -> tuple[Metric, Dataset]:
    """The metric, and the samples to measure it on."""
    if metric not in (None, "accuracy", "relative_error"):
        raise DataError("metric", "must be accuracy or relative_error", got=metric)
    if metric == "accuracy" and (data is None or data.labels is None):
        raise DataError("data", "must have labels for accuracy", hint="the error of the outputs needs none")
    if data is None:
        if calibration is None:
            hint = "--data, labelled for accuracy; or --calib for the error of the outputs"
            raise DataError("data", "must be given to measure quality on", hint=hint)
        return "relative_error", dataclasses.replace(_some(calibration, images, seed), labels=None)
    if metric == "relative_error" or data.labels is None:
        return "relative_error", dataclasses.replace(data, labels=None)
    return "accuracy", data


def hash_of(data: Dataset) -> str:
    """Hash of samples and labels."""
    found = hashlib.sha256()
    for name, array in [*sorted(data.inputs.items()), ("labels", data.labels)]:
        if array is not None:
            found.update(f"{name} {array.dtype} {array.shape} ".encode())
            text = array.dtype.hasobject
            found.update(repr(array.tolist()).encode() if text else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
