"""What users pass as data (arrays, files, image folders, built-in sets), checked against a model's inputs."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hwspec.errors import DataError
from hwspec.npz import ArrayHeader, read_npy, read_npz
from hwspec.zip_archive import reading
from runtime.inputs import cast_input, element_type
from runtime.tables import TensorInfo
from xbarc.data.array_check import LABELS, cast_labels, check_arrays, is_input
from xbarc.data.image_folder import Progress, decode_images, open_image_folder
from xbarc.data.sample_axis import fixed_batch, is_symbolic, sample_axes

BUILT_IN = ("digits",)
"""Names of the built-in sets."""

_DIGITS_TRAIN = 1437  # of 1797; the other 360 are the test split
_IMAGE_CHANNELS = (1, 3)

Normalize = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation a channel."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples for a model, in the model's own types.

    Attributes
    ----------
    inputs : dict of arrays
        All samples of each input of the model, by name.
    labels : (samples,) int64 or None
        Class of each sample.
    classes : tuple of str or None
        Names of the classes, where the source knows them.
    axes : mapping of str to int or None
        Axis of each input along which samples run; ``None`` for an input that every batch repeats whole. An input
        that is not listed has its samples along axis 0.
    fixed_batch : int or None
        Batch size of a model that takes no other.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    fixed_batch: int | None = None

    def __len__(self) -> int:
        """Count the samples."""
        for name, array in self.inputs.items():
            axis = self.axes.get(name, 0)
            if axis is not None:
                return int(array.shape[axis])
        return 1

    def take(self, indices: Sequence[int] | np.ndarray | slice) -> "Dataset":
        """Select samples, in the order of ``indices``; a slice gives views."""
        chosen = {}
        for name, array in self.inputs.items():
            axis = self.axes.get(name, 0)
            chosen[name] = array if axis is None else array[(slice(None),) * axis + (indices,)]
        labels = None if self.labels is None else self.labels[indices]
        return Dataset(chosen, labels, self.classes, self.axes, self.fixed_batch)

    def batches(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Cut the samples into batches, in order; the last one may be smaller.

        Parameters
        ----------
        size
            Samples a batch. A model with a fixed batch gets that many instead, and a trailing incomplete batch is
            dropped.

        Raises
        ------
        DataError
            ``size`` is not positive, or there are fewer samples than the fixed batch.
        """
        if size < 1:
            raise DataError("batch size", "must be positive", got=size)
        samples = len(self)
        if self.fixed_batch is not None:
            size = self.fixed_batch
            samples = _whole_batches(samples, size)
        return (self.take(slice(start, min(start + size, samples))).inputs for start in range(0, samples, size))


def load_data(
    source: str | Path | Mapping[str, np.ndarray] | np.ndarray,
    inputs: Sequence[TensorInfo],
    *,
    split: str | None = None,
    normalize: Normalize | None = None,
    limit: int | None = None,
    seed: int = 0,
    learning: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read data and check it against the inputs of a model.

    Parameters
    ----------
    source
        Arrays by the names of the model's inputs, and optionally ``labels``; one array for a model with one input;
        the path of an ``.npz`` or ``.npy`` file; the path of an image folder or of a zip file of one; or the name of
        a built-in set (``digits``).
    inputs
        The inputs of the model.
    split
        Sub-folder of an image folder; ``train`` or ``test`` of a built-in set.
    normalize
        Mean and standard deviation, one a channel or one for all: images in [0, 1] become ``(x - mean) / std``.
    limit
        Use a random subset of at most this many samples, with as many of each class as can be where there are labels.
        The subset of a smaller limit is part of that of a larger one.
    seed
        Chooses the subset.
    learning
        Whether something is learnt or set by the samples: of a built-in set, these are then those of ``train`` where no
        split is named, else those of ``test``.
    progress
        Called with the number of images decoded and the number in all.

    Returns
    -------
    Dataset
        For a model with a fixed batch, samples after the last whole batch are left out.

    Raises
    ------
    DataError
        The data is missing, damaged, or of another name, shape or type than the model wants.
    """
    if limit is not None and limit < 1:
        raise DataError("limit", "must be positive", got=limit)
    if seed < 0:
        raise DataError("seed", "must not be negative", got=seed)
    if not isinstance(source, str | Path):
        arrays = source if isinstance(source, Mapping) else _alone(source, inputs, "array")
        _refuse_image_options(split, normalize, "arrays")
        return _finish(_from_arrays(arrays, inputs), limit, seed)
    path = Path(source)
    if source in BUILT_IN:
        return _finish(_digits(inputs, split or ("train" if learning else "test"), normalize), limit, seed)
    with reading(f"data '{path}'"):
        found = path.exists()
    if not found:
        near = difflib.get_close_matches(str(source), BUILT_IN, n=1)
        hint = f"did you mean the built-in set '{near[0]}'?" if near else ""
        raise DataError("data", "must be a file, a folder or a built-in set", got=str(source), hint=hint)
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"data '{path}'", "must be a regular file or a folder")  # a pipe would be waited for
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _images(path, inputs, split, normalize, limit, seed, progress)
    _refuse_image_options(split, normalize, f"'{path}'")
    if path.suffix.lower() == ".npz":
        return _finish(_from_arrays(read_npz(path, lambda headers: check_arrays(headers, inputs)), inputs), limit, seed)
    if path.suffix.lower() == ".npy":
        return _finish(_from_arrays(_alone(read_npy(path), inputs, f"file '{path}'"), inputs), limit, seed)
    raise DataError("data", "must be .npz, .npy, an image folder, or a .zip of one", got=str(path))


def class_balanced(labels: np.ndarray | None, samples: int, limit: int, seed: int) -> np.ndarray:
    """Draw a random subset with as many samples of each class as can be.

    Parameters
    ----------
    labels : (samples,) integers or None
        Class of each sample; ``None`` draws from all alike.
    samples
        Number of samples.
    limit
        Samples to draw at most.
    seed
        Chooses the subset. Raw bits of PCG64 are used, which numpy promises never to change.

    Returns
    -------
    (min(limit, samples),) int64
        Indices of the subset, ascending.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, samples]))
    within, between = bits.random_raw(samples), bits.random_raw(samples)
    classes = np.zeros(samples, dtype=np.int64) if labels is None else labels
    order = np.lexsort((within, classes))
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    rank = np.empty(samples, dtype=np.int64)
    rank[order] = np.arange(samples) - np.repeat(starts, np.diff(np.append(starts, samples)))
    return np.sort(np.lexsort((between, rank))[:limit])


def _finish(data: Dataset, limit: int | None, seed: int) -> Dataset:
    """Apply the limit, then leave out what follows the last whole batch of a fixed size."""
    if limit is not None and limit < len(data):
        data = data.take(class_balanced(data.labels, len(data), limit, seed))
    if data.fixed_batch is None or len(data) % data.fixed_batch == 0:
        return data
    return data.take(slice(0, _whole_batches(len(data), data.fixed_batch)))


def _whole_batches(samples: int, batch: int) -> int:
    if samples < batch:
        raise DataError("data", f"must hold at least {batch} samples, the fixed batch of the model", got=samples)
    return samples // batch * batch


def _alone(array: np.ndarray, inputs: Sequence[TensorInfo], subject: str) -> dict[str, np.ndarray]:
    if len(inputs) != 1:
        names = tuple(info.name for info in inputs)
        hint = f"the model has {len(inputs)} inputs; pass arrays by name"
        raise DataError(subject, f"must come with the names of the model's inputs, {names}", hint=hint)
    return {inputs[0].name: array}


def _refuse_image_options(split: str | None, normalize: Normalize | None, what: str) -> None:
    if split is not None:
        raise DataError("split", f"is for image folders and built-in sets, and {what} has none", got=split)
    if normalize is not None:
        raise DataError("normalize", f"is for images; {what} must hold the values that the model takes")


# Arrays


def _from_arrays(arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo]) -> Dataset:
    try:
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
    except ValueError as error:
        raise DataError("data", f"must be rectangular arrays: {error}") from error
    check_arrays({name: ArrayHeader(array.shape, array.dtype) for name, array in arrays.items()}, inputs)
    cast = {info.name: cast_input(arrays[info.name], info) for info in inputs}
    axes = sample_axes([info.shape for info in inputs])
    labels = None if is_input(LABELS, inputs) else arrays.get(LABELS)
    return Dataset(
        cast,
        None if labels is None else cast_labels(labels),
        None,
        {info.name: axis for info, axis in zip(inputs, axes, strict=True)},
        fixed_batch([info.shape for info in inputs]),
    )


# Images


def _images(
    path: Path,
    inputs: Sequence[TensorInfo],
    split: str | None,
    normalize: Normalize | None,
    limit: int | None,
    seed: int,
    progress: Progress | None,
) -> Dataset:
    info, channels, size = _image_input(inputs)
    scale = _checked_normalize(normalize, channels)
    with open_image_folder(path, split) as folder:
        samples = len(folder.files)
        chosen = class_balanced(folder.labels, samples, min(limit or samples, samples), seed)
        images = decode_images(folder, chosen.tolist(), channels=channels, size=size, progress=progress)
        labels, classes = folder.labels[chosen], folder.classes
    data = _from_arrays({info.name: scale(images)}, inputs)
    return _finish(Dataset(data.inputs, labels, classes, data.axes, data.fixed_batch), None, seed)


def _image_input(inputs: Sequence[TensorInfo]) -> tuple[TensorInfo, int, tuple[int | None, int | None]]:
    """Find the channels and the size of the images that a model takes."""
    hint = "pass the data as .npz with the names of the inputs"
    if len(inputs) != 1:
        raise DataError("model", "must have one input to take images", got=[info.name for info in inputs], hint=hint)
    info = inputs[0]
    subject = f"input '{info.name}'"
    if len(info.shape) != 4 or info.shape[1] not in _IMAGE_CHANNELS:
        raise DataError(
            subject, "must be (samples, 1 or 3 channels, height, width) for images", got=info.shape, hint=hint
        )
    if element_type(info).kind != "f":
        raise DataError(subject, "must be a floating-point type for images", got=info.dtype, hint=hint)
    height, width = (None if is_symbolic(dim) else int(dim) for dim in info.shape[2:])
    return info, int(info.shape[1]), (height, width)


def _checked_normalize(normalize: Normalize | None, channels: int) -> Callable[[np.ndarray], np.ndarray]:
    """Check mean and standard deviation; return what applies them, in place, to (n, channels, height, width)."""
    if normalize is None:
        return lambda images: images
    for values in normalize:
        if len(values) not in (1, channels) or not all(math.isfinite(value) for value in values):
            raise DataError("normalize", f"must have one finite number a channel, {channels} here, or one", got=values)
    mean, std = (np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1) for values in normalize)
    if not (std > 0).all():
        raise DataError("normalize", "must have a positive standard deviation", got=normalize[1])

    def scale(images: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # values out of range are refused with those of any source
            images -= mean
            images /= std
        return images

    return scale


def _digits(inputs: Sequence[TensorInfo], split: str, normalize: Normalize | None) -> Dataset:
    """scikit-learn's 8×8 digits as (n, 1, 8, 8) float32 in [0, 1], shuffled once and for all."""
    if split not in ("train", "test"):
        near = difflib.get_close_matches(split, ("train", "test"), n=1)
        hint = f"did you mean '{near[0]}'?" if near else ""
        raise DataError("split of data 'digits'", "must be 'train' or 'test'", got=split, hint=hint)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data 'digits'", "needs scikit-learn", hint="pip install 'xbarc[demo]'") from error
    loaded = load_digits()
    order = np.argsort(np.random.PCG64(0).random_raw(len(loaded.target)), kind="stable")
    chosen = order[:_DIGITS_TRAIN] if split == "train" else order[_DIGITS_TRAIN:]
    images = (loaded.images[chosen] / 16.0).astype(np.float32)[:, np.newaxis]
    scale = _checked_normalize(normalize, channels=1)
    labels = loaded.target[chosen].astype(np.int64)
    data = _from_arrays(_alone(scale(images), inputs, "data 'digits'"), inputs)
    return Dataset(data.inputs, labels, tuple(str(digit) for digit in range(10)), data.axes, data.fixed_batch)
