"""Run the model in floating point over calibration data, and record what each layer sees."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from compiler.floatmodel import FloatModel
from compiler.macs import count_macs, mac_values
from compiler.mapping import Array, LayerStatistics, Mapping, MatrixLayer, TileGrid
from hwspec.errors import DataError, ModelError, VerificationError
from runtime.geometry import gather_vectors, window_shape
from runtime.tables import TensorInfo

Batch = tuple[dict[str, npt.NDArray[Any]], int]
"""Inputs by name, and how many samples they hold."""

Batches = Callable[[Sequence[TensorInfo]], Iterator[Batch]]
"""Gives calibration batches for a model with these inputs."""

MAX_VECTORS = 2048
MAX_VECTOR_ELEMENTS = 1 << 18
MIN_VECTORS = 256
MAX_MOMENT_WINDOWS = 4096
"""Windows of a batch, at most, that moments are taken of."""
MAX_MOMENT_PRODUCTS = 1 << 31
"""Products of two inputs of a batch, at most: of wide layers fewer windows are taken."""
MAX_WHOLE_COVARIANCE = 1 << 21
"""Elements of a layer's covariance, at most, that is kept across row blocks (1448 rows of one group)."""
RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class Calibrate:
    """Record each layer's input range, moments and sampled vectors, and count windows and multiply-accumulates.

    Parameters
    ----------
    batches
        Gives the calibration inputs of a model with these inputs, batch by batch; None runs random inputs instead.
    progress
        Called with the number of samples done.
    """

    batches: Batches | None = None
    progress: Callable[[int], None] | None = None
    name: ClassVar[str] = "calibrate"
    requires: ClassVar[tuple[str, ...]] = ("partition",)

    def run(self, mapping: Mapping) -> Mapping:
        """Fill `statistics`, and the counts of the lowered graph.

        Raises
        ------
        DataError
            If there is no data, and random inputs cannot stand in for it.
        ModelError
            If a layer's inputs are not finite on this data.
        """
        if mapping.float_model is None:
            raise VerificationError("model", "must be lowered before it is calibrated")
        graph = mapping.lowered
        made = _tensors_of(mapping.float_model, {node.node for node in graph.digital})
        values = tuple(dict.fromkeys((*mac_values(mapping.float_model), *made.values())))
        model = FloatModel(_with_shapes(mapping.float_model, values), {layer.source for layer in graph.layers})
        wanted = [*{layer.source for layer in graph.layers}, *map(_shape_name, values)]
        collectors = {
            layer.name: _Collector(layer, mapping.grids[layer.name], _generator(mapping.seed, number))
            for number, layer in enumerate(graph.layers)
        }
        shapes: dict[str, tuple[int, ...]] = {}
        windows: dict[str, int] = {}
        samples = done = 0
        batches = self.batches(graph.inputs) if self.batches else random_batches(graph.inputs, mapping.seed)
        for feeds, count in batches:
            found = model.run(feeds, wanted) | feeds
            if not samples:
                samples = count
                shapes = {name: tuple(int(d) for d in found[_shape_name(name)]) for name in values}
                for layer in graph.layers:
                    windows[layer.name] = int(np.prod(window_shape(layer.gather, found[layer.source].shape))) // count
            for layer in graph.layers:
                collectors[layer.name].add(found[layer.source])
            done += count
            if self.progress:
                self.progress(done)
        if not samples:
            raise DataError("calibration data", "must hold at least one sample")
        macs = count_macs(mapping.float_model, shapes)
        layers = tuple(
            replace(layer, windows=windows[layer.name], macs=macs[layer.name] // samples) for layer in graph.layers
        )
        digital = tuple(
            node.model_copy(
                update={
                    "macs": macs[node.node] // samples if node.node in macs else node.macs,
                    "elements": -(-prod(shapes[made[node.node]]) // samples) if node.node in made else None,
                }
            )
            for node in graph.digital
        )
        warnings = () if self.batches else ("no calibration data: input and ADC ranges stem from random inputs",)
        return replace(
            mapping,
            calibration="data" if self.batches else "none",
            graph=replace(graph, layers=layers, digital=digital),
            statistics={name: collector.result() for name, collector in collectors.items()},
            warnings=(*mapping.warnings, *warnings),
        )


def _tensors_of(model: onnx.ModelProto, nodes: Collection[str]) -> dict[str, str]:
    """The first output of each of these nodes, where that is known to be a tensor."""
    values = (*model.graph.value_info, *model.graph.output)
    known = {value.name for value in values if value.type.HasField("tensor_type")}
    return {
        node.name: node.output[0]
        for node in model.graph.node
        if node.name in nodes and node.output and node.output[0] in known
    }


class _Collector:
    """Gathers the statistics of one layer's input vectors, batch by batch."""

    def __init__(self, layer: MatrixLayer, grid: TileGrid, generator: np.random.Generator) -> None:
        self._layer, self._generator = layer, generator
        length = layer.gather.length
        self._cap = min(MAX_VECTORS, max(MAX_VECTOR_ELEMENTS // length, MIN_VECTORS))
        whole = grid.groups * grid.rows**2 <= MAX_WHOLE_COVARIANCE
        parts = (slice(0, grid.rows),) if whole else grid.row_blocks
        rows = [slice(g * grid.rows + r.start, g * grid.rows + r.stop) for g in range(grid.groups) for r in parts]
        self._rows = rows
        widest = max(block.stop - block.start for block in rows)
        self._moment_windows = min(MAX_MOMENT_WINDOWS, max(MAX_MOMENT_PRODUCTS // (len(rows) * widest**2), MIN_VECTORS))
        self._low = self._high = 0.0
        self._count = 0
        self._sum = np.zeros(length)
        self._products = np.zeros((len(rows), widest, widest))
        self._vectors = np.zeros((0, length), layer.weight.dtype)
        self._keys = np.zeros(0)

    def add(self, x: Array) -> None:
        """Take in the layer's input of one batch."""
        low, high = float(x.min(initial=0)), float(x.max(initial=0))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError(
                f"node {self._layer.name!r} ({self._layer.op})",
                "gets inputs that are not finite on the calibration data",
                hint="calibrate with typical inputs",
            )
        self._low, self._high = min(self._low, low), max(self._high, high)
        total = int(np.prod(window_shape(self._layer.gather, x.shape)))
        # A uniform random key for each window: the smallest keys of all batches are a uniform sample of all windows.
        keys = self._generator.random(total)
        chosen = np.argsort(keys)[: max(self._moment_windows, self._cap)]
        vectors = gather_vectors(self._layer.gather, x, chosen)
        self._moments(vectors.astype(np.float64))
        kept = np.concatenate([self._keys, keys[chosen[: self._cap]]])
        pool = np.concatenate([self._vectors, vectors[: self._cap]])
        order = np.argsort(kept)[: self._cap]
        self._keys, self._vectors = kept[order], pool[order]

    def _moments(self, vectors: npt.NDArray[np.float64]) -> None:
        self._count += len(vectors)
        self._sum += vectors.sum(axis=0)
        for number, rows in enumerate(self._rows):
            part = vectors[:, rows]
            size = part.shape[1]
            self._products[number, :size, :size] += part.T @ part

    def result(self) -> LayerStatistics:
        """The statistics of all batches."""
        mean = self._sum / max(self._count, 1)
        covariance = self._products / max(self._count, 1)
        for number, rows in enumerate(self._rows):
            part = mean[rows]
            covariance[number, : len(part), : len(part)] -= np.outer(part, part)
        return LayerStatistics(
            low=self._low,
            high=self._high,
            mean=mean.astype(np.float32),
            covariance=covariance.astype(np.float32),
            vectors=self._vectors,
        )


def _generator(seed: int, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, 1, number]))


def _shape_name(value: str) -> str:
    return f"shape of {value}"


def _with_shapes(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """The model with the shapes of these values as further outputs: their data need not be kept."""
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    for value in values:
        name = _shape_name(value)
        opened.graph.node.append(helper.make_node("Shape", [value], [name], name))
        opened.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    return opened


def random_batches(inputs: Sequence[TensorInfo], seed: int) -> Iterator[Batch]:
    """Random samples, one at a time: normal floats, integers 0 and 1.

    Raises
    ------
    DataError
        If an input has open dimensions, or is of a type that cannot be made up.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    for _ in range(RANDOM_SAMPLES):
        yield {info.name: _random_input(info, inputs, generator) for info in inputs}, _batch_of(inputs)


def _batch_of(inputs: Sequence[TensorInfo]) -> int:
    """Samples in a random batch: 1 where the batch is symbolic, else the first input's leading dimension."""
    shape = inputs[0].shape if inputs else None
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1


def _random_input(info: TensorInfo, inputs: Sequence[TensorInfo], generator: np.random.Generator) -> Array:
    batch = {other.shape[0] for other in inputs if other.shape and isinstance(other.shape[0], str)}
    if any(isinstance(size, str) and size not in batch for size in info.shape):
        shape = ",".join(str(size) for size in info.shape)
        raise DataError(
            f"input {info.name!r}",
            f"has open dimensions ({shape})",
            hint=f"give calibration data, or its shape, e.g. --input-shape {info.name}=1,3,224,224",
        )
    shape_now = tuple(1 if isinstance(size, str) else size for size in info.shape)
    kind = np.dtype(info.dtype).kind if info.dtype not in ("other", "str") else "O"
    if kind == "f":
        return generator.standard_normal(shape_now).astype(info.dtype)
    if kind in "iub":
        return generator.integers(0, 2, shape_now).astype(info.dtype)
    raise DataError(f"input {info.name!r}", f"of type {info.dtype} cannot be made up", hint="give calibration data")
