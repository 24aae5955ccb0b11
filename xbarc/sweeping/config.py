"""Sweeps from YAML files."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hwspec.errors import DataError, shown

_MOST_BYTES = 1 << 20
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("data", "split", "normalize", "model", "time", "only", "without", "design", "scheduler", "output"), (str,)
    ),
    **dict.fromkeys(("csv", "parquet", "plot"), (str,)),
    **dict.fromkeys(
        ("chips", "max_chips", "points", "limit", "seed", "batch", "processes", "workers"),
        (int,),
    ),
    **dict.fromkeys(("until_ci", "loss"), (int, float)),
    **dict.fromkeys(("remap", "resume", "yes"), (bool,)),
    "programs": (str, list),
    "vary": (dict,),
    "set": (dict,),
}
KEYS = tuple(_KINDS)
"""What a file may hold: the options of ``xbarc sweep``, and ``programs``."""


def read_config(path: Path) -> dict[str, Any]:
    """Read the options of a sweep; names may have hyphens in place of underscores.

    Raises
    ------
    DataError
        If the file cannot be read, or a key does not exist or has a value of another type.
    """
    subject = f"config {path}"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(subject, f"must be at most {_MOST_BYTES} bytes long")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(subject, f"cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise DataError(subject, "must be valid YAML") from None
    if not isinstance(found, dict):
        raise DataError(subject, "must be a mapping of options", hint="programs: [model.xbar]")
    return dict(_checked(subject, *item) for item in found.items())


def _checked(subject: str, name: object, value: object) -> tuple[str, object]:
    key = str(name).replace("-", "_")
    if key not in _KINDS:
        close = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(KEYS)}"
        raise DataError(f"{subject}: {shown(name)}", "is no option of a sweep", hint=hint)
    kinds = _KINDS[key]
    if key == "time" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    if not fits:
        told = " or ".join(
            {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(
                kind, "a mapping" if kind is dict else "a list"
            )
            for kind in kinds
        )
        raise DataError(f"{subject}: {key}", f"must be {told}", got=value)
    if isinstance(value, Mapping) and not all(isinstance(one, str) for one in value):
        raise DataError(f"{subject}: {key}", "must have names of fields as keys", got=value)
    return key, value
