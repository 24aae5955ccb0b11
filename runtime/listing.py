"""The text form of a program's tables: prints, and parses back to the same tables.

Tables are lines of ``keyword key=value …`` with JSON values, fields at their default left out; instructions read like
assembly. ``;`` starts a comment.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from hwspec.errors import ProgramError
from runtime.tables import (
    Acc,
    Buffer,
    Gather,
    Host,
    Instruction,
    Layer,
    Load,
    Loop,
    Mvm,
    Residue,
    Row,
    Scatter,
    Step,
    Store,
    Tables,
    Tile,
)

_ROWS: dict[str, tuple[str, type[Row]]] = {
    "buffer": ("buffers", Buffer),
    "layer": ("layers", Layer),
    "gather": ("gathers", Gather),
    "scatter": ("scatters", Scatter),
    "tile": ("tiles", Tile),
}
_TABLES = {table for table, _ in _ROWS.values()} | {"instructions"}
_BARE = re.compile(r"[A-Za-z0-9_./:+\-#@~]+")
_TOKEN = rf'(?:"(?:[^"\\]|\\.)*"|{_BARE.pattern})'
_NAME = f"({_TOKEN})"
_NAMES = rf"\(((?:{_TOKEN}(?:, {_TOKEN})*)?)\)"
_KEY = re.compile(r"\s*([a-z0-9_]+)=")
_LOAD = re.compile(rf"load %{_NAME}, act:{_NAME}, gather={_NAME}, rows=(\d+):(\d+)")
_MVM = re.compile(rf"mvm %{_NAME}, tile={_NAME}, %{_NAME}, phase=(both|\+|-)")
_ACC = re.compile(rf"acc %{_NAME}, %{_NAME}, map={_NAME} cols")
_RESIDUE = re.compile(rf"residue %{_NAME}, %{_NAME}")
_STORE = re.compile(rf"store act:{_NAME}, %{_NAME}, scatter={_NAME}")
_LOOP = re.compile(rf"loop {_NAME} windows=(\d+)")
_HOST = re.compile(rf"host {_NAME} {_NAMES} -> {_NAMES}")


def print_listing(tables: Tables) -> str:
    """The listing of a program's tables and instructions."""
    return "\n".join(_lines(tables)) + "\n"


def parse_listing(text: str) -> Tables:
    """Read a listing back.

    Raises
    ------
    ProgramError
        Naming the line that is malformed.
    """
    fields: dict[str, Any] = {}
    rows: dict[str, list[Row]] = {table: [] for table, _ in _ROWS.values()}
    instructions: list[Instruction] = []
    loop: Loop | None = None
    body: list[Step] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        try:
            line = _without_comment(raw).strip()
            if not line:
                continue
            keyword = line.split(maxsplit=1)[0]
            if keyword == "program":
                for key, value in _keys(line[len(keyword) :]).items():
                    _require(key not in fields and key not in _TABLES, f"{key} may not be given here, or again")
                    fields[key] = value
            elif keyword in _ROWS:
                _require(loop is None, f"a {keyword} inside a loop")
                table, row = _ROWS[keyword]
                rows[table].append(row.model_validate(_keys(line[len(keyword) :])))
            elif keyword == "loop":
                _require(loop is None, "a loop inside a loop")
                name, windows = _match(_LOOP, line)
                loop, body = Loop(layer=_unquoted(name), windows=int(windows), body=()), []
            elif line == "end":
                if loop is None:
                    raise ValueError("an end without a loop")
                instructions.append(loop.model_copy(update={"body": tuple(body)}))
                loop = None
            elif keyword == "host":
                _require(loop is None, "a host segment inside a loop")
                name, inputs, outputs = _match(_HOST, line)
                instructions.append(Host(segment=_unquoted(name), inputs=_names(inputs), outputs=_names(outputs)))
            else:
                _require(loop is not None, "a step outside a loop")
                body.append(_step(keyword, line))
        except (ValueError, RecursionError) as error:
            raise ProgramError(f"listing line {number}", f"is malformed ({_reason(error)})", got=raw.strip()) from None
    if loop is not None:
        raise ProgramError("listing", f"must close loop {loop.layer!r} with an end")
    try:
        return Tables.model_validate({**fields, **rows, "instructions": instructions})
    except ValidationError as error:
        raise ProgramError("listing", f"is not a valid program ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
    return " ".join(str(error).split())


def _lines(tables: Tables) -> Iterator[str]:
    yield "; xbarc tile program: tables first, then what runs, in order"
    header = tables.model_dump(mode="json", exclude=_TABLES)
    for key, value in header.items():
        yield f"program {key}={_json(value)}"
    for keyword, (table, _) in _ROWS.items():
        yield ""
        for row in getattr(tables, table):
            dumped = row.model_dump(mode="json", exclude_defaults=True)
            yield f"{keyword:<7} " + " ".join(f"{key}={_json(value)}" for key, value in dumped.items())
    yield ""
    for instruction in tables.instructions:
        if isinstance(instruction, Host):
            names = [", ".join(map(_quoted, group)) for group in (instruction.inputs, instruction.outputs)]
            yield f"host {_quoted(instruction.segment)} ({names[0]}) -> ({names[1]})"
        else:
            yield f"loop {_quoted(instruction.layer)} windows={instruction.windows}"
            for step in instruction.body:
                yield "  " + _printed_step(step)
            yield "end"


def _printed_step(step: Step) -> str:
    q = _quoted
    match step:
        case Load():
            rows = f"rows={step.start}:{step.stop}"
            return f"load %{q(step.into)}, act:{q(step.buffer)}, gather={q(step.gather)}, {rows}"
        case Mvm():
            return f"mvm %{q(step.into)}, tile={q(step.tile)}, %{q(step.source)}, phase={step.phase}"
        case Acc():
            return f"acc %{q(step.into)}, %{q(step.source)}, map={q(step.tile)} cols"
        case Residue():
            return f"residue %{q(step.into)}, %{q(step.source)}"
        case Store():
            return f"store act:{q(step.buffer)}, %{q(step.source)}, scatter={q(step.scatter)}"


def _step(keyword: str, line: str) -> Step:
    u = _unquoted
    if keyword == "load":
        into, buffer, gather, start, stop = _match(_LOAD, line)
        return Load(into=u(into), buffer=u(buffer), gather=u(gather), start=int(start), stop=int(stop))
    if keyword == "mvm":
        into, tile, source, phase = _match(_MVM, line)
        return Mvm.model_validate({"into": u(into), "tile": u(tile), "source": u(source), "phase": phase})
    if keyword == "acc":
        into, source, tile = _match(_ACC, line)
        return Acc(into=u(into), source=u(source), tile=u(tile))
    if keyword == "residue":
        into, source = _match(_RESIDUE, line)
        return Residue(into=u(into), source=u(source))
    if keyword == "store":
        buffer, source, scatter = _match(_STORE, line)
        return Store(buffer=u(buffer), source=u(source), scatter=u(scatter))
    raise ValueError(f"no keyword {keyword!r}")


def _match(pattern: re.Pattern[str], line: str) -> tuple[str, ...]:
    found = pattern.fullmatch(line)
    _require(found is not None, f"expected the form {pattern.pattern.split()[0]} …")
    assert found is not None
    return found.groups()


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


def _keys(text: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    position = 0
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    while position < len(text):
        key = _KEY.match(text, position)
        _require(key is not None, f"expected key=value at {text[position:].strip()!r}")
        assert key is not None
        _require(key[1] not in result, f"{key[1]} is given twice")
        result[key[1]], position = decoder.raw_decode(text, key.end())
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _names(text: str) -> tuple[str, ...]:
    return tuple(_unquoted(token) for token in re.findall(_TOKEN, text))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _quoted(name: str) -> str:
    return name if _BARE.fullmatch(name) else _json(name)


def _unquoted(token: str) -> str:
    return str(json.loads(token)) if token.startswith('"') else token


def _without_comment(line: str) -> str:
    found = re.match(r'(?:[^";]|"(?:[^"\\]|\\.)*")*', line)
    assert found is not None
    _require(line[found.end() :][:1] != '"', "a quote that is not closed")
    return found[0]
