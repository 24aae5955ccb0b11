"""Effects of the fields of `chip` and `costs`: what a program takes changes with each as it should."""

import pytest
from spec_effects import Fields, effect, pair

from hwspec.errors import DoesNotFit
from hwspec.spec import HardwareSpec
from runtime.costing import CostReport, cost, peak
from runtime.timing import read_time


def costs(field: str, one: object, other: object, fixed: Fields | None = None) -> tuple[CostReport, CostReport]:
    """What programs take whose specs differ in a field."""
    first, second = pair(field, one, other, fixed)
    return cost(first), cost(second)


def _energy(name: str, field: str) -> None:
    """An energy of an action is in proportion to its component's."""
    one, other = costs(field, 1e-12, 3e-12)
    assert one.energy[name] > 0
    assert other.energy[name] == pytest.approx(3 * one.energy[name])
    assert {key for key in one.energy if one.energy[key] != pytest.approx(other.energy[key])} == {name}


def _area(name: str, field: str) -> None:
    one, other = costs(field, 1e-12, 3e-12)
    assert one.area[name] > 0
    assert other.area[name] == pytest.approx(3 * one.area[name])
    assert {key for key in one.area if one.area[key] != pytest.approx(other.area[key])} == {name}


def _power(name: str) -> None:
    one, other = costs(f"costs.{name}.power", 0.0, 1.0)
    count = {"core": one.cores, "tile": one.tiles, "chip": 1}[name]
    assert other.energy["static"] - one.energy["static"] == pytest.approx(count * one.pipelined.interval)


for _name in ("dac", "sample_hold", "shift_add"):
    effect(f"costs.{_name}.energy")(lambda name=_name: _energy(name, f"costs.{name}.energy"))  # type: ignore[misc]
    effect(f"costs.{_name}.area")(lambda name=_name: _area(name, f"costs.{name}.area"))  # type: ignore[misc]
for _name in ("buffer", "link"):
    effect(f"costs.{_name}.energy")(lambda name=_name: _energy(name, f"costs.{name}.energy"))  # type: ignore[misc]
for _name in ("core", "tile", "chip"):
    effect(f"costs.{_name}.power")(lambda name=_name: _power(name))  # type: ignore[misc]
    effect(f"costs.{_name}.area")(lambda name=_name: _area(name, f"costs.{name}.area"))  # type: ignore[misc]
effect("costs.digital.area")(lambda: _area("digital", "costs.digital.area"))
effect("costs.array.cell_area")(lambda: _area("array", "costs.array.cell_area"))


@effect("chip.arrays_per_core")
def _arrays_per_core() -> None:
    one, other = costs("chip.arrays_per_core", 2, 4)
    assert one.arrays == other.arrays
    assert (one.cores, other.cores) == (-(-one.arrays // 2), -(-one.arrays // 4))


@effect("chip.cores_per_tile")
def _cores_per_tile() -> None:
    one, other = costs("chip.cores_per_tile", 1, 2, {"chip.arrays_per_core": 2})
    assert (one.tiles, other.tiles) == (-(-one.arrays // 2), -(-one.arrays // 4))


@effect("chip.tiles")
def _tiles() -> None:
    small = {"chip.arrays_per_core": 1, "chip.cores_per_tile": 1}
    program, _ = pair("chip.tiles", None, 1000, small)
    pair("chip.tiles", None, program.arrays, small)
    with pytest.raises(DoesNotFit) as refused:
        pair("chip.tiles", None, program.arrays - 1, small)
    assert (refused.value.report.demand, refused.value.report.gap) == (program.arrays, 1)


@effect("costs.node")
def _node() -> None:
    one, other = costs("costs.node", 32e-9, 64e-9)
    assert other.energy["adc"] == pytest.approx(2**1.8800369 * one.energy["adc"])


@effect("costs.t_read")
def _t_read() -> None:
    one, other = costs("costs.t_read", 100e-9, 200e-9)
    for first, second in zip(one.layers, other.layers, strict=True):
        assert second.vector_time == pytest.approx(2 * first.vector_time)
    assert other.energy["array"] == pytest.approx(2 * one.energy["array"])


@effect("costs.overlap")
def _overlap() -> None:
    one, other = pair("costs.overlap", True, False)
    converted = min(one.spec.periphery.columns_per_adc, one.spec.array.weight_cols) / one.spec.costs.adc.rate
    assert read_time(one.spec) == pytest.approx(100e-9)
    assert read_time(other.spec) == pytest.approx(100e-9 + converted)


@effect("costs.adc.model")
def _adc_model() -> None:
    given: Fields = {"costs.adc.energy": 2e-12, "costs.adc.area": 1e-9}
    one, other = costs("costs.adc.model", "fixed", "ramp", given)
    steps = 2 ** (HardwareSpec.preset("rram-128").periphery.adc_bits or 0) / 2
    assert other.energy["adc"] == pytest.approx(steps * one.energy["adc"])
    assert other.layers[0].vector_time > one.layers[0].vector_time


@effect("costs.adc.rate")
def _adc_rate() -> None:
    one, other = pair("costs.adc.rate", 1e6, 2e6)
    assert read_time(one.spec) == pytest.approx(2 * read_time(other.spec))
    assert cost(one).layers[0].limit == "adc"


@effect("costs.adc.energy")
def _adc_energy() -> None:
    one, other = costs("costs.adc.energy", 1e-12, 3e-12, {"costs.adc.model": "fixed", "costs.adc.area": 1e-9})
    assert one.energy["adc"] == pytest.approx(1e-12 * sum(layer.conversions for layer in one.layers))
    assert other.energy["adc"] == pytest.approx(3 * one.energy["adc"])


@effect("costs.adc.area")
def _adc_area() -> None:
    one, other = costs("costs.adc.area", 1e-9, 3e-9, {"costs.adc.model": "fixed", "costs.adc.energy": 1e-12})
    assert other.area["adc"] == pytest.approx(3 * one.area["adc"])


@effect("costs.array.model")
def _array_model() -> None:
    spec = HardwareSpec.preset("rram-128")
    assert spec.costs.array.model == "conductances"
    fixed = spec.with_fields({"costs.array.model": "fixed", "costs.array.energy": 30e-12})
    assert peak(fixed).tile_power["array"] > peak(spec).tile_power["array"] == 0


@effect("costs.array.energy")
def _array_energy() -> None:
    one, other = costs("costs.array.energy", 1e-12, 3e-12, {"costs.array.model": "fixed"})
    reads = sum(layer.reads for layer in one.layers) * 2  # pairs on two arrays
    assert one.energy["array"] == pytest.approx(1e-12 * reads)
    assert other.energy["array"] == pytest.approx(3 * one.energy["array"])


@effect("costs.buffer.rate")
def _buffer_rate() -> None:
    one, other = costs("costs.buffer.rate", 1e3, 2e3)
    assert one.layers[0].limit == "transfer"
    assert one.layers[0].time == pytest.approx(2 * other.layers[0].time)


@effect("costs.link.rate")
def _link_rate() -> None:
    one, other = costs("costs.link.rate", 1e3, 2e3)
    assert one.layers[0].time == pytest.approx(2 * other.layers[0].time)


@effect("costs.digital.energy")
def _digital_energy() -> None:
    from small_programs import matmul

    one, other = (
        cost(program)
        for program in pair("costs.digital.energy", 1e-12, 3e-12, model=matmul(8, 8, seed=1, positive=True))
    )
    assert one.energy["digital"] == pytest.approx(8e-12)  # the Abs before the layer
    assert other.energy["digital"] == pytest.approx(24e-12)


@effect("costs.digital.rate")
def _digital_rate() -> None:
    from small_programs import matmul

    one, other = pair("costs.digital.rate", 1e3, 2e3, model=matmul(8, 8, seed=1, positive=True))
    assert cost(one).pipelined.interval == pytest.approx(8e-3)
    assert cost(other).pipelined.interval == pytest.approx(4e-3)


@effect("costs.write.energy")
def _write_energy() -> None:
    one, other = costs("costs.write.energy", 1e-12, 3e-12)
    assert one.programming.energy == pytest.approx(1e-12 * one.programming.devices)
    assert other.programming.energy == pytest.approx(3 * one.programming.energy)


@effect("costs.write.time")
def _write_time() -> None:
    one, other = costs("costs.write.time", 1e-7, 3e-7)
    assert one.programming.time > 0
    assert other.programming.time == pytest.approx(3 * one.programming.time)


@effect("costs.write.parallel")
def _write_parallel() -> None:
    one, other = costs("costs.write.parallel", 1, 8)
    assert one.programming.time == pytest.approx(8 * other.programming.time)
