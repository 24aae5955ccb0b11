"""The physical effects of a spec, each switchable alone: which fields it stands for, and what switches it off."""

import difflib
from collections.abc import Collection, Iterable
from functools import reduce
from typing import Any, TypeVar

from pydantic import BaseModel

from hwspec.device import CurrentVoltageLaw, Drift, Spread, Telegraph
from hwspec.errors import DataError
from hwspec.failures import Lines, Retention
from hwspec.periphery import Trim
from hwspec.spec import HardwareSpec

_Model = TypeVar("_Model", bound=BaseModel)

EFFECTS: dict[str, dict[str, Any]] = {
    "failures": {
        "failures.unformed.rate": 0.0,
        "failures.overformed.rate": 0.0,
        "failures.stuck_hrs.rate": 0.0,
        "failures.stuck_lrs.rate": 0.0,
        "failures.clusters.rate": 0.0,
        "failures.lines": Lines(),
    },
    "retention": {"failures.retention": Retention()},
    "spread": {"device.spread": Spread()},
    "programming_failures": {"device.programming.failure_rate": 0.0},
    "drift": {"device.drift": Drift()},
    "temperature": {"device.temperature": 25.0},
    "access": {"device.r_access": 0.0},
    "iv": {"device.iv": CurrentVoltageLaw()},
    "telegraph": {"device.telegraph": Telegraph()},
    "read_noise": {
        "device.read_noise.model": "none",
        "device.read_noise.sigma": 0.0,
        "device.read_noise.share": 0.0,
    },
    "wires": {"array.r_word": 0.0, "array.r_bit": 0.0, "array.r_driver": 0.0, "array.r_sense": 0.0},
    "sneak_paths": {"array.unselected": "grounded"},
    "dac": {"periphery.dac_bits": None, "periphery.input_bits": None},
    "dac_nonlinearity": {"periphery.dac_nonlinearity": 0.0},
    "sense_offset": {"periphery.sense_offset_sigma": 0.0},
    "readout": {"periphery.gain_sigma": 0.0, "periphery.offset_sigma": 0.0},
    "saturation": {"periphery.saturation": 0.0, "periphery.cubic": 0.0, "periphery.compliance": None},
    "readout_noise": {"periphery.readout_noise": 0.0},
    "adc": {"periphery.adc_bits": None},
    "adc_errors": {
        "periphery.adc_gain_sigma": 0.0,
        "periphery.adc_offset_sigma": 0.0,
        "periphery.adc_inl_sigma": 0.0,
        "periphery.adc_dnl_sigma": 0.0,
    },
    "trim": {"periphery.trim": Trim()},
}
"""Name of each effect, and the values of its fields without it."""

OF_A_CHIP = frozenset(
    {
        "failures",
        "retention",
        "spread",
        "programming_failures",
        "drift",
        "telegraph",
        "read_noise",
        "sense_offset",
        "readout",
        "readout_noise",
        "adc_errors",
    }
)
"""Effects that differ from one chip or read to the next: an ideal chip has none of them."""

QUANTISATION = frozenset({"dac", "adc"})
"""Effects of the converters' resolution: with these alone a chip computes what the program says."""


def chosen_effects(only: Iterable[str] | None = None, without: Iterable[str] = ()) -> frozenset[str]:
    """Names of the effects that stay on.

    Parameters
    ----------
    only
        Effects to keep; None keeps all.
    without
        Effects to switch off.

    Raises
    ------
    DataError
        If a name is no effect.
    """
    without = list(without)
    only = None if only is None else list(only)
    for name in [*(only or ()), *without]:
        if name not in EFFECTS:
            close = difflib.get_close_matches(name, EFFECTS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(EFFECTS)}"
            raise DataError(f"effect {name!r}", "does not exist", hint=hint)
    return frozenset(EFFECTS if only is None else only) - frozenset(without)


def with_effects(spec: HardwareSpec, keep: Collection[str]) -> HardwareSpec:
    """The spec with every effect switched off that is not in `keep`.

    An ablation may combine what no hardware does (an offset in lsb without an ADC): the result is not validated.
    """
    off = {path: value for name, fields in EFFECTS.items() if name not in keep for path, value in fields.items()}
    return reduce(lambda changed, item: _set(changed, item[0].split("."), item[1]), off.items(), spec)


def active_effects(spec: HardwareSpec) -> list[str]:
    """Effects that a spec has, in the order of `EFFECTS`."""
    return [name for name, fields in EFFECTS.items() if any(_get(spec, path) != off for path, off in fields.items())]


def _get(spec: HardwareSpec, path: str) -> Any:
    return reduce(getattr, path.split("."), spec)


def _set(model: _Model, path: list[str], value: Any) -> _Model:
    name, *rest = path
    inner = _set(getattr(model, name), rest, value) if rest else value
    return BaseModel.model_copy(model, update={name: inner})
