"""Which axis of each input of a model counts samples."""

import re
from collections.abc import Callable, Sequence

Shape = tuple[int | str, ...]

_BATCH = re.compile(r"n|b|bs|.*batch.*", re.IGNORECASE)


def is_symbolic(dim: int | str) -> bool:
    """Tell whether a dimension is free; some exporters write -1 or 0 for one."""
    return isinstance(dim, str) or dim < 1


def sample_axes(shapes: Sequence[Shape]) -> tuple[int | None, ...]:
    """Find the axis of each input along which samples run.

    It is the first axis that is named like a batch; else the first that carries a symbol which leads some input; else
    the first symbolic one. That covers ``(batch, 3, h, w)`` and a recurrent state ``(2, batch, 128)``. A model whose
    batch is fixed (no symbolic dimension, or a leading 1 before free sizes, as in ``(1, 3, h, w)``) has its samples
    along the first axis as long as the leading axis of its first input with any.

    Parameters
    ----------
    shapes
        The shapes of the model's inputs.

    Returns
    -------
    tuple
        An axis for each input, or ``None`` for one without samples, such as a scalar: every batch repeats it whole.
    """
    batch = fixed_batch(shapes)
    if batch is not None:
        return tuple(_first(shape, lambda dim: dim == batch) for shape in shapes)
    leading = {shape[0] for shape in shapes if shape and is_symbolic(shape[0])}
    return tuple(_symbolic_axis(shape, leading) for shape in shapes)


def fixed_batch(shapes: Sequence[Shape]) -> int | None:
    """Find the batch size of a model that takes no other; ``None`` where the batch is free.

    Parameters
    ----------
    shapes
        The shapes of the model's inputs.
    """
    first = next((shape for shape in shapes if shape), ())
    if not first or not isinstance(first[0], int) or is_symbolic(first[0]):
        return None
    if not any(is_symbolic(dim) for shape in shapes for dim in shape):
        return first[0]
    leading = any(shape and is_symbolic(shape[0]) for shape in shapes)
    named = any(_names_batch(dim) for shape in shapes for dim in shape)
    return 1 if first[0] == 1 and not leading and not named else None


def _symbolic_axis(shape: Shape, leading: set[int | str]) -> int | None:
    for wanted in (_names_batch, leading.__contains__, is_symbolic):
        axis = _first(shape, wanted)
        if axis is not None:
            return axis
    return None


def _names_batch(dim: int | str) -> bool:
    return isinstance(dim, str) and _BATCH.fullmatch(dim) is not None


def _first(shape: Shape, wanted: Callable[[int | str], bool]) -> int | None:
    return next((axis for axis, dim in enumerate(shape) if wanted(dim)), None)
