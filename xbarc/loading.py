"""Reading programs, without what compiling and running them needs."""

from pathlib import Path

from hwspec.errors import ProgramError
from runtime.archive import load_program
from runtime.program import TileProgram


def load(path: str | Path) -> TileProgram:
    """Read a program from a file and validate it; raises `ProgramError` naming what is wrong."""
    path = Path(path)
    try:
        return load_program(path)
    except ProgramError:
        if path.suffix.lower() == ".onnx" and path.is_file():
            hint = f"compile it first: xbarc compile {path}"
            raise ProgramError(f"program {path}", "must be a tile program, and is an ONNX model", hint=hint) from None
        raise
