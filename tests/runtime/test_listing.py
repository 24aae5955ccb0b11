"""The listing prints, and parses back to the same tables; what does not parse is refused by its line."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapped_programs import with_residue
from small_programs import compile_small, matmul

from hwspec.errors import ProgramError
from runtime.listing import parse_listing, print_listing
from runtime.tables import (
    Acc,
    Buffer,
    Gather,
    Host,
    Layer,
    Load,
    Loop,
    Mvm,
    Residue,
    Scatter,
    Store,
    Tables,
    TensorInfo,
    Tile,
)

NAMES = st.one_of(
    st.sampled_from(
        [
            "end",
            "loop",
            "a b",
            'say "hi"',
            "semi;colon",
            "x=1",
            "%x0",
            "line\nbreak",
            "tab\tand\x0bmore\x85\u2028",
            "back\\slash",
            '\\"',
            ") -> (",
            "a, b",
            ", ",
            "()",
            "ünïcödé 漢字 🎉",
            "'",
            " ",
            '"',
            "map=t cols",
            "{}",
            "null",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
INDEX = st.integers(0, 2**40)
COUNT = st.integers(1, 2**40)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
EXTENTS = st.lists(st.integers(1, 2**24), max_size=3).map(tuple)
MARGINS = st.lists(st.integers(0, 2**24), max_size=3).map(tuple)
PADDING = st.sampled_from(["none", "same_upper", "same_lower"])
PROGRAM = compile_small(matmul(3, 3))


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """Tables with every field at random; they need not make sense."""

    def some(strategy: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(strategy, max_size=2)))

    windows = {"strides": EXTENTS, "dilations": EXTENTS, "pads": MARGINS, "auto_pad": PADDING, "kernel": EXTENTS}
    row = {"name": NAMES, "channels": COUNT, "groups": COUNT, **windows}
    infos = st.builds(
        TensorInfo, name=NAMES, dtype=st.just("float32"), shape=st.lists(st.one_of(INDEX, NAMES), max_size=3).map(tuple)
    )
    step = st.one_of(
        st.builds(Load, into=NAMES, buffer=NAMES, gather=NAMES, start=INDEX, stop=COUNT),
        st.builds(Mvm, into=NAMES, tile=NAMES, source=NAMES, phase=st.sampled_from(["both", "+", "-"])),
        st.builds(Acc, into=NAMES, source=NAMES, tile=NAMES),
        st.builds(Residue, into=NAMES, source=NAMES),
        st.builds(Store, buffer=NAMES, source=NAMES, scatter=NAMES),
    )
    names = st.lists(NAMES, max_size=3).map(tuple)
    instruction = st.one_of(
        st.builds(Host, segment=NAMES, inputs=names, outputs=names),
        st.builds(Loop, layer=NAMES, windows=INDEX, body=st.lists(step, max_size=5).map(tuple)),
    )
    found: Tables = PROGRAM.tables.model_copy(
        update={
            "model_name": draw(NAMES),
            "calibration": draw(st.sampled_from(["data", "none"])),
            "seed": draw(st.integers()),
            "input_shapes": draw(st.dictionaries(NAMES, st.lists(INDEX, max_size=3).map(tuple), max_size=2)),
            "digital_nodes": some(NAMES),
            "mapped_for": draw(st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)),
            "inputs": some(infos),
            "outputs": some(infos),
            "buffers": some(st.builds(Buffer, name=NAMES, dtype=st.just("float16"))),
            "layers": some(
                st.builds(
                    Layer,
                    name=NAMES,
                    op=NAMES,
                    initializer=NAMES,
                    groups=COUNT,
                    rows=COUNT,
                    cols=COUNT,
                    full_scale=POSITIVE,
                    signed=st.booleans(),
                    replicas=st.integers(1, 16),
                )
            ),
            "gathers": some(st.builds(Gather, kind=st.sampled_from(["vectors", "patches"]), **row)),
            "scatters": some(
                st.builds(
                    Scatter,
                    kind=st.sampled_from(["vectors", "image", "fold"]),
                    output_padding=MARGINS,
                    output_shape=EXTENTS,
                    **row,
                )
            ),
            "tiles": some(
                st.builds(
                    Tile,
                    name=NAMES,
                    layer=NAMES,
                    array=INDEX,
                    rows=COUNT,
                    cols=COUNT,
                    slice=st.integers(0, 15),
                    replica=st.integers(0, 15),
                    adc_range=st.lists(POSITIVE, max_size=2).map(tuple),
                )
            ),
            "instructions": some(instruction),
        }
    )
    return found


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tables())
def test_prints_and_parses_back(given_tables: Tables) -> None:
    text = print_listing(given_tables)
    assert parse_listing(text) == given_tables
    assert text.isascii()


def test_comments_and_blank_lines_are_left_out() -> None:
    text = print_listing(PROGRAM.tables)
    busy = "\n\n; a comment\n".join(f'{line}   ; said "so"; twice' for line in text.splitlines())
    assert parse_listing(busy) == PROGRAM.tables


def test_a_listing_reads_like_assembly() -> None:
    text = print_listing(compile_small(matmul(3, 3, positive=True)).tables)
    body = text[text.index("host seg0") :]
    assert body.splitlines() == [
        "host seg0 (x) -> (a)",
        "loop layer windows=1",
        "  load %x0, act:a, gather=layer.in, rows=0:3",
        "  mvm %p0, tile=t0, %x0, phase=both",
        "  acc %y, %p0, map=t0 cols",
        "  store act:y, %y, scatter=layer.out",
        "end",
    ]


def test_a_residue_is_listed_where_it_is_added() -> None:
    program = with_residue(compile_small(matmul(9, 3)), 0.1, np.random.default_rng(0))
    text = print_listing(program.tables)
    assert "  residue %y, %x0\n  residue %y, %x1\n  store act:" in text
    assert parse_listing(text) == program.tables


GOOD = print_listing(PROGRAM.tables).splitlines()


@pytest.mark.parametrize(
    ("keyword", "bad"),
    [
        ("loop", "loop layer"),
        ("loop", "loop layer windows=-1"),
        ("loop", "loop layer windows=1 more"),
        ("loop", f"loop layer windows={10**20}"),
        ("loop", f"loop layer windows={'9' * 5000}"),
        ("loop", "host seg0 (x) -> (y"),
        ("loop", "host seg0 (x,) -> (y)"),
        ("loop", "host seg0 x -> y"),
        ("end", "end of it"),
        ("end", "ends"),
        ("  load", "  load x0, act:x, gather=layer.in, rows=0:3"),
        ("  load", "  load %x0, act:x, gather=layer.in, rows=0:0"),
        ("  load", "  load %x0, act:x, gather=layer.in, rows=0-3"),
        ("  load", "  loop inner windows=1"),
        ("  load", "  host seg0 (x) -> (y)"),
        ("  load", '  buffer  name="y" dtype="float32"'),
        ("  load", '  load %"", act:x, gather=layer.in, rows=0:3'),
        ("  mvm", "  mvm %p0, tile=t0, %x0, phase=*"),
        ("  mvm", "  mul %p0, tile=t0, %x0, phase=both"),
        ("  acc", "  acc %y, %p0, map=t0"),
        ("  acc", '  acc %y, %"p0, map=t0 cols'),
        ("  acc", '  acc %y, %p0, map=t0 cols "'),
        ("  store", '  store act:"\\q", %y, scatter=layer.out'),
        ("  acc", "  residue %y %x0"),
        ("  acc", "  residue %y, %x0, %x1"),
        ("  store", "  store act:y %y scatter=layer.out"),
        ("tile", 'tile name="t0"'),
        ("tile", "tile name=t0"),
        ("tile", 'tile    name="t0" layer="layer" array=0 rows=3 cols=3 array=2'),
        ("tile", 'tile    name="t0" layer="layer" array=0 rows=3 cols=3 adc_range=[NaN]'),
        ("tile", 'tile    name="t0" layer="layer" array=0 rows=3 cols=3 colour=3'),
        ("tile", 'tile    name="t0" layer="layer" array=-1 rows=3 cols=3'),
        ("buffer", "buffer [1, 2"),
        ("buffer", "program tiles=[]"),
        ("buffer", "program seed=4"),
        ("buffer", "program nested=" + "[" * 100_000),
        ("buffer", "nonsense"),
        ("buffer", "  acc %y, %p0, map=t0 cols"),
    ],
)
def test_a_malformed_line_is_named(keyword: str, bad: str) -> None:
    number = next(n for n, line in enumerate(GOOD) if line.startswith(keyword))
    lines = [*GOOD[:number], bad, *GOOD[number + 1 :]]
    with pytest.raises(ProgramError, match=f"^listing line {number + 1} is malformed"):
        parse_listing("\n".join(lines))


def test_a_loop_must_end() -> None:
    with pytest.raises(ProgramError, match="must close loop 'layer'"):
        parse_listing("\n".join(GOOD[:-1]))


@pytest.mark.parametrize("field", ["spec", "seed", "inputs", "model_sha256", "format_version"])
def test_a_wrong_program_line_is_named(field: str) -> None:
    lines = [f"program {field}={json.dumps([None])}" if line.startswith(f"program {field}=") else line for line in GOOD]
    with pytest.raises(ProgramError, match=f"not a valid program.*{field}"):
        parse_listing("\n".join(lines))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_other_text_is_refused_cleanly(text: str) -> None:
    with pytest.raises(ProgramError):
        parse_listing(text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, len("\n".join(GOOD)) - 1), st.characters(exclude_categories=["Cs"]))
def test_a_changed_character_is_refused_or_read(position: int, character: str) -> None:
    """Whatever one character becomes, there is a program or a `ProgramError`."""
    text = "\n".join(GOOD)
    with contextlib.suppress(ProgramError):
        assert isinstance(parse_listing(text[:position] + character + text[position + 1 :]), Tables)
