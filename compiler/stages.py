"""Files that show what each pass did, for ``--save-stages``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.mapping import Mapping
from hwspec.errors import DataError
from runtime.tables import Host


def make_stages_folder(folder: Path) -> None:
    """Make the folder that stages are written into, and those above it; raises `DataError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--save-stages {folder}", f"must be a folder that can be made ({error.strerror})") from None


def write_stage(folder: Path, number: int, name: str, mapping: Mapping) -> None:
    """Write ``<number>-<pass>.json``, and the model beside it where the pass changed the model."""
    stem = folder / f"{number}-{name}"
    model = {"clean": mapping.cleaned, "lower": mapping.float_model}.get(name)
    if model is not None:
        stem.with_suffix(".onnx").write_bytes(model.SerializeToString(deterministic=True))
    decided = _STAGES[name](mapping)
    stem.with_suffix(".json").write_text(json.dumps(decided, indent=1) + "\n", encoding="utf-8")


def _clean(mapping: Mapping) -> dict[str, Any]:
    assert mapping.cleaned is not None
    graph = mapping.cleaned.graph
    return {"nodes": [[node.name, node.op_type] for node in graph.node], "initializers": len(graph.initializer)}


def _lower(mapping: Mapping) -> dict[str, Any]:
    graph = mapping.lowered
    return {
        "layers": {
            layer.name: {
                "op": layer.op,
                "matrix": list(layer.weight.shape),
                "source": layer.source,
                "target": layer.target,
                "gather": layer.gather.model_dump(mode="json", exclude_defaults=True),
                "scatter": layer.scatter.model_dump(mode="json", exclude_defaults=True),
            }
            for layer in graph.layers
        },
        "steps": [step.model_dump(mode="json") if isinstance(step, Host) else step for step in graph.steps],
        "digital": [node.model_dump(mode="json") for node in graph.digital],
    }


def _partition(mapping: Mapping) -> dict[str, Any]:
    return {
        name: {"row_blocks": len(grid.row_blocks), "col_blocks": len(grid.col_blocks), "tiles": len(grid.blocks)}
        for name, grid in mapping.grids.items()
    }


def _calibrate(mapping: Mapping) -> dict[str, Any]:
    return {
        name: {"low": found.low, "high": found.high, "vectors": len(found.vectors)}
        for name, found in mapping.statistics.items()
    }


def _quantize(mapping: Mapping) -> dict[str, Any]:
    return {
        name: {"full_scale": found.full_scale, "signed": found.signed, "scale": found.scale.tolist()}
        for name, found in mapping.quantized.items()
    }


def _duplicate(mapping: Mapping) -> dict[str, Any]:
    return {name: {"copies": grid.copies, "tiles": len(grid.blocks)} for name, grid in mapping.grids.items()}


def _place(mapping: Mapping) -> dict[str, Any]:
    return {
        name: [[placement.array, int(placement.word_lines[0]), int(placement.bit_lines[0])] for placement in found]
        for name, found in mapping.placements.items()
    }


def _assign(mapping: Mapping) -> dict[str, Any]:
    return {
        name: [{"plus_sum": float(t.plus.sum()), "minus_sum": float(t.minus.sum())} for t in found]
        for name, found in mapping.targets.items()
    }


def _predistort(mapping: Mapping) -> dict[str, Any]:
    return {name: found.model_dump(mode="json") for name, found in mapping.wires.items()}


def _ranges(mapping: Mapping) -> dict[str, Any]:
    return {
        name: {"adc_ranges": [list(tile) for tile in found], "clipped": mapping.clipped.get(name, 0.0)}
        for name, found in mapping.adc_ranges.items()
    }


_STAGES: dict[str, Callable[[Mapping], dict[str, Any]]] = {
    "clean": _clean,
    "lower": _lower,
    "partition": _partition,
    "calibrate": _calibrate,
    "quantize": _quantize,
    "duplicate": _duplicate,
    "place": _place,
    "assign": _assign,
    "predistort": _predistort,
    "ranges": _ranges,
}
