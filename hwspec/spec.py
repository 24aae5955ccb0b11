"""The hardware spec: one frozen model describes one technology."""

import difflib
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwspec.array import Array
from hwspec.atomic import write_atomically
from hwspec.costs import Costs, Organisation
from hwspec.device import Device
from hwspec.errors import SpecError, shown
from hwspec.failures import Failures
from hwspec.periphery import Periphery
from hwspec.reach import check_bounded
from hwspec.scope import EXCLUDED
from hwspec.units import format_quantity, unit_of

PRESETS = Path(__file__).parent / "presets"
_MAX_SPEC_BYTES = 1 << 18
_MAX_REASONS = 8
_MOST_CODES = 1 << 32
_DEFAULT = "default"
_UNSOURCED = "no source given"


class _Loader(yaml.SafeLoader):
    """YAML without aliases, and with each key once: PyYAML lets the last of several win."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a spec has no aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = sorted(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, other in itertools.pairwise(keys):
            if key == other:
                raise yaml.YAMLError(f"{key} is given twice")
        return super().construct_mapping(node, deep)


class HardwareSpec(BaseModel):
    """The hardware that a model is compiled for.

    Read one with `preset`, `load` or `from_fields`; each raises `SpecError` with a hint when something is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[\w.+-]+$", description="name of the technology")
    device: Device
    failures: Failures = Failures()
    array: Array
    periphery: Periphery
    chip: Organisation = Organisation()
    costs: Costs = Costs()
    sources: dict[str, str] = Field(
        default_factory=dict, description="where each value comes from: dotted name of a field or section to source"
    )

    @model_validator(mode="after")
    def _sources_name_fields(self) -> Self:
        paths = [path.split(".") for path, _ in self.fields()]
        known = {".".join(parts[:length]): None for parts in paths for length in range(1, len(parts) + 1)}
        for path in self.sources:
            if path not in known:
                raise ValueError(f"sources names {path!r}, which is no field of the spec{_did_you_mean(path, known)}")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.array.slices > 1 and not isinstance(self.device.levels, int):
            raise ValueError(
                "array.slices above 1 need device.levels to be a number of uniform levels: they are the base of the "
                f"digits, not {shown(self.device.levels)}"
            )
        if self.array.slices > 1 and self.device.level_count**self.array.slices > _MOST_CODES:  # type: ignore[operator]
            raise ValueError(
                f"array.slices must leave a weight at most {_MOST_CODES} values; take fewer or fewer levels"
            )
        if self.array.pairing == "neighbouring_rows" and self.periphery.subtract == "after":
            raise ValueError(
                "periphery.subtract must be before where pairs lie on neighbouring rows: the bit line subtracts them"
            )
        return self

    @model_validator(mode="after")
    def _failures_fit(self) -> Self:
        cell, isolation = self.array.cell, self.failures.isolation
        if cell == "1R" and self.device.r_access:
            raise ValueError("device.r_access must be 0 in 1R cells: they have no transistor in series")
        if isolation == "device" and cell != "2T2R":
            raise ValueError(
                f"failures.isolation device needs array.cell 2T2R, whose devices have own gates, not {cell}"
            )
        if isolation == "line" and cell == "1R":
            raise ValueError("failures.isolation line needs transistors: choose array.cell 1T1R or 2T2R, not 1R")
        if self.failures.failed_pair == "zero" and self.array.pairing == "reference":
            raise ValueError("failures.failed_pair zero needs pairs: choose an array.pairing other than reference")
        check_bounded(self.device, self.array, self.failures)
        return self

    @classmethod
    def from_fields(cls, fields: object, *, where: str = "spec") -> Self:
        """Validate a spec given as nested mappings; raises `SpecError` naming each wrong field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _spec_error(cls, error, where) from None

    @classmethod
    def preset(cls, name: str) -> Self:
        """The preset of this name; `presets` lists them."""
        if name not in cls.presets():
            names = ", ".join(cls.presets())
            raise SpecError(
                f"preset {shown(name)}", f"does not exist (there are {names})", hint=_close(name, cls.presets())
            )
        return cls.load(PRESETS / f"{name}.yaml")

    @classmethod
    def presets(cls) -> list[str]:
        """Names of the presets that come with xbarc."""
        return sorted(path.stem for path in PRESETS.glob("*.yaml"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a spec from a YAML or JSON file."""
        path = Path(path)
        try:
            with path.open("rb") as stream:
                content = stream.read(_MAX_SPEC_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SpecError(f"spec {path}", f"cannot be read ({reason})") from None
        if len(content) > _MAX_SPEC_BYTES:
            raise SpecError(f"spec {path}", f"must be at most {_MAX_SPEC_BYTES} bytes long")
        try:
            fields = yaml.load(content.decode(), Loader=_Loader)
        except Exception as error:  # PyYAML lets ValueError, KeyError, RecursionError and others of its parts through
            reason = shown(" ".join(str(error).split()))
            raise SpecError(f"spec {path}", f"is not valid YAML ({reason})") from None
        if isinstance(fields, dict) and "base" in fields:
            base = fields.pop("base")
            if not isinstance(base, str) or base not in cls.presets():
                names = ", ".join(cls.presets())
                hint = _close(base, cls.presets()) if isinstance(base, str) else ""
                raise SpecError(f"spec {path}", f"must have a preset as its base ({names})", got=base, hint=hint)
            merged = _merged(cls.preset(base).model_dump(), fields)
            merged["sources"] = _merged_sources(cls.preset(base).sources, fields)
            fields = merged
        return cls.from_fields(fields, where=f"spec {path}")

    @classmethod
    def resolve(cls, spec: "HardwareSpec | str | Path") -> "HardwareSpec":
        """A spec from a spec, a preset's name, or the path of a file."""
        if isinstance(spec, HardwareSpec):
            return spec
        text = str(spec)
        if text in cls.presets():
            return cls.preset(text)
        if Path(text).suffix in {".yaml", ".yml", ".json"} or len(Path(text).parts) > 1 or _is_file(text):
            return cls.load(text)
        return cls.preset(text)

    def save(self, path: str | Path) -> None:
        """Write the spec as YAML, with units, atomically."""
        text = self.to_yaml().encode()

        def write(stream: BinaryIO) -> None:
            stream.write(text)

        write_atomically(Path(path), write)

    def to_yaml(self) -> str:
        """The spec as YAML text, quantities with units, and what is not modelled; `load` reads it back unchanged."""
        text: str = yaml.safe_dump(self._with_units(), sort_keys=False, allow_unicode=True, width=120)
        return text + f"# not modelled: {'; '.join(EXCLUDED)}\n"

    def source_of(self, path: str) -> str:
        """Where the value of a field comes from: its own source, that of its section, or that it is the default."""
        found = _covering(self.sources, path)
        if found is not None:
            return found
        return _DEFAULT if self.is_default(path) else _UNSOURCED

    def is_default(self, path: str) -> bool:
        """Whether a field has a default, and this value."""
        return path in _defaults() and dict(self.fields())[path] == _defaults()[path]

    @property
    def weight_span(self) -> float:
        """Conductance difference that stands for a weight of one, siemens: half the span against a middle reference."""
        return self.device.span / (2 if self.array.pairing == "reference" else 1)

    @property
    def reference_conductance(self) -> float:
        """Conductance of the middle reference that single devices are read against, siemens."""
        return (self.device.g_min + self.device.g_max) / 2

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A validated copy; `update` may be nested, and names only the fields that change."""
        del deep  # the model is frozen: a deep copy would be indistinguishable
        return type(self).from_fields(_merged(self.model_dump(), update or {}))

    def with_fields(self, values: Mapping[str, object]) -> Self:
        """A validated copy with fields given by dotted name, e.g. ``{"periphery.adc_bits": 6}``."""
        self.check_names(values)
        update: dict[str, Any] = {}
        for path, value in values.items():
            section = update
            *parents, leaf = path.split(".")
            for parent in parents:
                section = section.setdefault(parent, {})
            section[leaf] = value
        return self.model_copy(update=update)

    def with_failure_rates(self, factor: float) -> Self:
        """A copy with the rates of all failures (devices, lines and clusters) times this factor, at most 1 in all."""
        if factor == 1:
            return self
        update = self.failures.rates_times(factor)
        return self.with_fields({f"failures.{name}": rate for name, rate in update.items()}) if update else self

    def check_names(self, names: Iterable[str]) -> None:
        """Raise `SpecError` for the first of these dotted names that is no field."""
        known = dict(self.fields())
        for path in names:
            if path not in known:
                raise SpecError(path, "is no field of the spec", hint=_close(path, known))

    def fields(self) -> Iterator[tuple[str, object]]:
        """Dotted name and value of every field but `sources`."""
        yield from _leaves(self.model_dump(exclude={"sources"}))

    def fields_with_units(self) -> Iterator[tuple[str, object]]:
        """As `fields`, with quantities as text with units."""
        yield from _leaves({name: value for name, value in self._with_units().items() if name != "sources"})

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of everything but the sources: two specs with equal hashes describe the same hardware."""
        text = json.dumps(self.model_dump(mode="json", exclude={"sources"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _with_units(self) -> dict[str, Any]:
        return _in_units(self, self.model_dump(mode="json"))


def _in_units(model: BaseModel, dumped: dict[str, Any]) -> dict[str, Any]:
    """A dumped model with the quantities of its fields, and of its sections, as text with units."""
    for name, info in type(model).model_fields.items():
        value, unit = getattr(model, name), unit_of(info)
        if isinstance(value, BaseModel):
            _in_units(value, dumped[name])
        elif unit is not None:
            if isinstance(value, tuple):
                dumped[name] = [format_quantity(one, unit) for one in value]
            elif isinstance(value, float):
                dumped[name] = format_quantity(value, unit)
    return dumped


@functools.cache
def _defaults() -> dict[str, object]:
    """Dotted name and default of every field that has one."""

    def of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
        for name, info in model.model_fields.items():
            section = info.annotation
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from of(section, f"{prefix}{name}.")
            elif not info.is_required():
                yield f"{prefix}{name}", info.default

    return dict(of(HardwareSpec))


def _merged_sources(base: Mapping[str, str], fields: Mapping[str, Any]) -> object:
    """Sources of a spec with a base: those of the base but for the fields that change, and its own."""
    own = fields.get("sources", {})
    if not isinstance(own, dict):
        return own
    changed = {path for path, _ in _leaves({key: value for key, value in fields.items() if key != "sources"})}
    merged = {path: source for path, source in base.items() if path not in changed} | own
    for path in changed - own.keys():
        if _covering(merged, path) is not None:  # the base's source of a section is not that of a value that changes
            merged[path] = _covering(own, path) or _UNSOURCED
    return merged


def _covering(sources: Mapping[str, str], path: str) -> str | None:
    """The source of a field, or of the closest section around it that has one."""
    parts = path.split(".")
    known = (sources.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((source for source in known if source is not None), None)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # the name is too long for one
        return False


def _merged(base: dict[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in update.items():
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, Mapping) and isinstance(base.get(key), dict) and key != "sources":
            result[key] = _merged(base[key], value)
        else:
            result[key] = value
    return result


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _close(name: str, known: "Mapping[str, object] | list[str]") -> str:
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {match[0]!r}?" if match else ""


def _did_you_mean(name: str, known: Mapping[str, object]) -> str:
    hint = _close(name, known)
    return f"; {hint}" if hint else ""


def _fields_at(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """Names of the fields of the section at this path; none where no section is."""
    for part in path:
        found = model.model_fields.get(str(part))
        section = None if found is None else found.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        model = section
    return list(model.model_fields)


def _spec_error(cls: type[HardwareSpec], error: ValidationError, where: str) -> SpecError:
    reasons = []
    for detail in error.errors()[:_MAX_REASONS]:
        path = ".".join(str(part) for part in detail["loc"])[:200]
        if detail["type"] == "extra_forbidden":
            hint = _close(str(detail["loc"][-1]), _fields_at(cls, detail["loc"][:-1]))
            reasons.append(f"{path} is no field of the spec" + (f"; {hint}" if hint else ""))
        elif detail["type"] == "missing":
            reasons.append(f"{path} must be given")
        elif detail["type"] == "value_error":
            reason = str(detail["ctx"]["error"])
            names_field = reason.split()[0].split(".")[0] in _fields_at(cls, detail["loc"])
            reasons.append(f"{path}{'.' if path and names_field else ' '}{reason}".strip())
        else:
            message = detail["msg"].replace("Input should", "must", 1)
            reasons.append(f"{path} {message}, not {shown(detail['input'])}".strip())
    if error.error_count() > _MAX_REASONS:
        reasons.append(f"and {error.error_count() - _MAX_REASONS} more")
    return SpecError(where, "is not valid: " + "; ".join(reasons))
