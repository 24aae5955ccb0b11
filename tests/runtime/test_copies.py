"""Copies of a layer's matrix, each with its band of a sample's windows: what is computed, trained, kept and counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agreement import assert_agree, assert_same_values, in_float64, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from small_programs import SmallModel, compile_small, small_models, small_spec, small_specs
from test_backward import gradient
from test_blocks import MODELS, SPECS, shrink

import xbarc
from compiler.compile import CompileOptions, finish, run_compile
from compiler.frontend import load_model
from hwspec.chip import Chip
from hwspec.errors import ProgramError
from hwspec.spec import HardwareSpec
from runtime.check import check_program
from runtime.costing import COMPONENTS, cost
from runtime.engine import Engine
from runtime.geometry import copy_windows
from runtime.listing import parse_listing
from runtime.program import TileProgram
from runtime.programming import program_chip
from runtime.reference import Reference
from runtime.tables import window_bands

QUIET: dict[str, Any] = {"device.read_noise.share": 0.0, "periphery.readout_noise": 0.0}


def with_copies(model: SmallModel, spec: HardwareSpec, copies: int, chip: Chip | None = None) -> TileProgram:
    options = CompileOptions(copies=copies)
    return finish(run_compile(load_model(model.proto), spec, options, None, chip))


@given(st.integers(0, 100), st.integers(1, 20), st.integers(0, 4))
def test_bands_take_every_window_once(windows: int, copies: int, samples: int) -> None:
    """In order, none longer than a fair share rounded up."""
    bands = window_bands(windows, copies)
    assert [window for band in bands for window in band] == list(range(windows))
    assert len(bands) == copies
    assert max(map(len, bands)) == -(-windows // copies)
    found = copy_windows((samples, windows), copies)
    assert sorted(np.concatenate(found).tolist()) == list(range(samples * windows))
    for band, numbers in zip(bands, found, strict=True):
        assert set((numbers % max(windows, 1)).tolist()) == (set(band) if samples else set())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_models(), small_specs(), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_copies_compute_what_one_matrix_does(model: SmallModel, spec: HardwareSpec, copies: int, seed: int) -> None:
    """On an ideal chip, in both engines; the program is sound, and each copy holds the weights."""
    one, more = in_float64(compile_small(model, spec)), in_float64(with_copies(model, spec, copies))
    check_program(more)
    x = model.inputs(seed)
    (wanted,) = Reference(program_chip(one))(x)
    assert_same_values(Reference(program_chip(more))(x)[0], wanted)
    assert_agree(program_chip(more), x)
    (layer,) = more.tables.layers
    for number in range(layer.copies):
        np.testing.assert_array_equal(more.decoded_weights("layer", copy=number), one.decoded_weights("layer"))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("model", ["conv", "depthwise", "grouped", "fold", "signal"])
def test_engine_agrees_with_the_reference_on_a_chip(model: str, spec: str) -> None:
    """Each copy has devices and converters of its own."""
    program = in_float64(with_copies(MODELS[model], small_spec(SPECS[spec]), 3))
    assert program.tables.layers[0].copies == 3
    assert_agree(sampled(program), MODELS[model].inputs(1))


@pytest.mark.parametrize("model", ["conv", "depthwise", "fold", "volume"])
@pytest.mark.parametrize("cut", [False, True])
def test_compiled_blocks_agree_with_torch(model: str, cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise: outputs and gradients."""
    if cut:
        shrink(monkeypatch)
    chip = sampled(in_float64(with_copies(MODELS[model], small_spec({"periphery.adc_bits": None, **QUIET}), 3)))
    x = torch.from_numpy(MODELS[model].inputs(2, batch=5)).double()
    engines = [Engine(chip, dtype=torch.float64, blocks=blocks) for blocks in (True, False)]
    found, wanted = (engine(x.numpy())[0] for engine in engines)
    assert_same_values(found, wanted)
    factor = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (gradient(engine, x, factor) for engine in engines)
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def test_only_its_own_band_is_computed_by_a_copy() -> None:
    """A copy without conductance leaves its band of every sample without products, and no other."""
    program = in_float64(with_copies(MODELS["conv"], small_spec({"device.levels": None, **QUIET}), 4))
    silent = dict(program.tensors)
    for side in ("plus", "minus"):
        values = silent[f"layer/{side}"].copy()
        at = 0
        for tile in program.tables.tiles:
            size = tile.rows * tile.cols
            if tile.copy_number == 1:
                values[at : at + size] = program.spec.device.g_min
            at += size
        silent[f"layer/{side}"] = values
    x = MODELS["conv"].inputs(1)
    before, after = (
        Engine(program_chip(one), dtype=torch.float64)(x)[0] for one in (program, replace(program, tensors=silent))
    )
    windows = before.reshape(*before.shape[:2], -1)
    changed = (after.reshape(windows.shape) != windows).any(1)
    band = window_bands(windows.shape[-1], 4)[1]
    assert changed[:, band].all()
    assert changed.sum() == len(x) * len(band)
    assert not after.reshape(windows.shape)[:, :, band].any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["conv", "grouped", "fold"]))
def test_each_copy_is_mapped_around_its_own_failures(seed: int, name: str) -> None:
    """The bias takes up what failed devices of each copy leave; engines agree, and the program verifies."""
    fields = {"failures.stuck_lrs.rate": 0.05, "failures.stuck_hrs.rate": 0.05, "array.router": True, **QUIET}
    spec, model = small_spec(fields), MODELS[name]
    chip = Chip.sample(spec, with_copies(model, spec, 2).arrays, seed)
    program = with_copies(model, spec, 2, chip)
    check_program(program)
    assert xbarc.verify(program).passed
    first, second = (program.copy_shift("layer", number) for number in range(2))
    if name != "fold":
        assert first is not None
        assert second is not None
        assert not np.array_equal(first, second)
    assert_agree(program_chip(in_float64(program), chip), model.inputs(1))


def test_what_is_kept(tmp_path: Path) -> None:
    """Copies survive files, listings, another mapping, other weights and training."""
    model, spec = MODELS["conv"], small_spec(QUIET)
    program = with_copies(model, spec, 3)
    program.save(tmp_path / "a.xbar")
    assert xbarc.load(tmp_path / "a.xbar").tables == program.tables
    assert parse_listing(program.listing()) == program.tables
    assert xbarc.remap(program).tables == program.tables
    assert xbarc.compile(model.proto, like=program).tables.layers == program.tables.layers
    module = xbarc.to_torch(program)
    with torch.no_grad():
        for weight in module.weights:
            weight *= 0.5
    half = module.program
    for number in range(3):
        np.testing.assert_array_equal(half.decoded_weights("layer", copy=number), half.decoded_weights("layer"))


def test_a_tile_of_no_copy_is_refused() -> None:
    program = with_copies(MODELS["conv"], small_spec(), 2)
    tiles = tuple(tile.model_copy(update={"copy_number": 2}) for tile in program.tables.tiles)
    with pytest.raises(ProgramError, match="must be of one of 2 copies"):
        check_program(replace(program, tables=program.tables.model_copy(update={"tiles": tiles})))


def test_a_copy_with_other_weights_does_not_verify() -> None:
    program = with_copies(MODELS["conv"], small_spec(), 2)
    values = program.tensors["layer/plus"].copy()
    last = program.tables.tiles[-1]
    assert last.copy_number == 1
    values[-last.rows * last.cols :] = 0
    assert xbarc.verify(program).passed
    assert not xbarc.verify(replace(program, tensors={**program.tensors, "layer/plus": values})).passed


@settings(max_examples=30, deadline=None, derandomize=True)
@given(small_models(), st.integers(2, 6), st.sampled_from(["none", "inputs", "layer", "all"]))
def test_copies_never_lower_throughput(model: SmallModel, copies: int, share: Any) -> None:
    """They do the same work: reads, conversions and dynamic energy are those of one matrix."""
    options = CompileOptions(share_arrays=share)
    one, more = (
        cost(finish(run_compile(load_model(model.proto), small_spec(), replace(options, copies=count), None)))
        for count in (1, copies)
    )
    for mode in ("pipelined", "layer_by_layer"):
        assert getattr(more, mode).interval <= getattr(one, mode).interval * (1 + 1e-9)
    for before, after in zip(one.layers, more.layers, strict=True):
        assert (after.reads, after.conversions) == (before.reads, before.conversions)
    for name in COMPONENTS[:-1]:
        if name != "array" or share in ("none", "inputs"):
            assert more.energy[name] == pytest.approx(one.energy[name], rel=1e-9)
