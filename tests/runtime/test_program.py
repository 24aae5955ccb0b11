"""A program: its tensors cut into tiles, its decoded weights, its way to disk and back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import SmallModel, compile_small, map_small, matmul, place_and_emit, small_models, small_specs

from hwspec.spec import HardwareSpec
from runtime.archive import load_program
from runtime.listing import parse_listing
from runtime.program import TILE_TENSORS, tile_tensor_size
from runtime.quantize import WeightCode


@settings(max_examples=40, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.integers(0, 2**32 - 1))
def test_decoded_weights_lie_within_half_a_level(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    """Read back through orders, signs and scales, each weight is the model's own, rounded to a level."""
    program = place_and_emit(map_small(model, spec, "quantize"), np.random.default_rng(seed))
    weight = program.weights["layer"].astype(np.float64)
    scale = np.abs(weight).max(axis=1, keepdims=True)
    error = np.abs(program.decoded_weights("layer") - weight)
    half_gap = WeightCode.of(spec).half_gap(np.clip(weight / np.where(scale, scale, 1), -1, 1))
    assert (error <= scale * half_gap + 1e-9 * scale).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.integers(0, 2**32 - 1))
def test_tile_tensors_cover_the_flat_tensors(model: SmallModel, spec: HardwareSpec, seed: int) -> None:
    program = place_and_emit(map_small(model, spec, "quantize"), np.random.default_rng(seed))
    for key in TILE_TENSORS:
        parts = [getattr(program.tile_tensors[tile.name], key).ravel() for tile in program.tables.tiles]
        np.testing.assert_array_equal(np.concatenate(parts), program.tensors[f"layer/{key}"])
        assert [part.size for part in parts] == [tile_tensor_size(key, tile) for tile in program.tables.tiles]


def test_target_conductances_are_the_levels() -> None:
    program = compile_small(matmul(12, 12))
    device = program.spec.device
    assert isinstance(device.levels, int)
    step = (device.g_max - device.g_min) / (device.levels - 1)
    for tile in program.tables.tiles:
        codes = program.tile_tensors[tile.name]
        for found, code in zip(program.target_conductances(tile.name), (codes.plus, codes.minus), strict=True):
            assert found.shape == (tile.rows, tile.cols)
            np.testing.assert_allclose(found, device.g_min + code * step, rtol=1e-12)


def test_arrays_count_both_of_a_pair() -> None:
    model = matmul(16, 16)
    assert compile_small(model).arrays == 2 * 4
    one = HardwareSpec.preset("rram-128").model_copy(
        update={"array": {"rows": 8, "cols": 8, "pairing": "neighbouring_columns"}}
    )
    assert compile_small(model, one).arrays == 8


@settings(max_examples=25, deadline=None, derandomize=True)
@given(small_models(), small_specs())
def test_save_and_load_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, model: SmallModel, spec: HardwareSpec
) -> None:
    folder = tmp_path_factory.mktemp("programs")
    program = compile_small(model, spec)
    program.save(folder / "a.xbar")
    loaded = load_program(folder / "a.xbar")
    assert loaded.tables == program.tables
    assert loaded.report == program.report
    assert dict(loaded.segments) == dict(program.segments)
    assert loaded.source == program.source
    for name in ("tensors", "weights", "calibration"):
        mine, theirs = getattr(program, name), getattr(loaded, name)
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert theirs[key].dtype == value.dtype
            assert theirs[key].tobytes() == np.ascontiguousarray(value).tobytes()
            assert theirs[key].shape == value.shape
    loaded.save(folder / "b.xbar")
    assert (folder / "a.xbar").read_bytes() == (folder / "b.xbar").read_bytes()
    assert parse_listing(loaded.listing()) == program.tables


def test_a_program_without_its_source(tmp_path: Path) -> None:
    program = place_and_emit(map_small(matmul(4, 4), HardwareSpec.preset("ideal"), "quantize"))
    program.save(tmp_path / "a.xbar")
    assert load_program(tmp_path / "a.xbar").source is None
