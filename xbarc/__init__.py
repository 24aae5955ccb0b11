"""xbarc: compiles trained ONNX models onto resistive crossbar tiles and runs the result as the chip would.

>>> import xbarc
>>> program = xbarc.compile("model.onnx", spec="rram-128", calibration=x)
>>> program.save("model.xbar")
>>> outputs = xbarc.simulate(program)(x)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwspec.chip import Chip as Chip
    from hwspec.errors import ChipError as ChipError
    from hwspec.errors import DataError as DataError
    from hwspec.errors import ModelError as ModelError
    from hwspec.errors import ModelFileError as ModelFileError
    from hwspec.errors import ProgramError as ProgramError
    from hwspec.errors import SpecError as SpecError
    from hwspec.errors import VerificationError as VerificationError
    from hwspec.errors import XbarcError as XbarcError
    from hwspec.spec import HardwareSpec as HardwareSpec
    from runtime.augmentation import Augmentation as Augmentation
    from runtime.costing import CostReport as CostReport
    from runtime.costing import cost as cost
    from runtime.program import TileProgram as TileProgram
    from runtime.report import CompileReport as CompileReport
    from runtime.tuning import TuneOptions as TuneOptions
    from xbarc.api import Simulation as Simulation
    from xbarc.api import compile_model as compile
    from xbarc.api import remap as remap
    from xbarc.api import simulate as simulate
    from xbarc.eval_report import EvalReport as EvalReport
    from xbarc.evaluation import evaluate as evaluate
    from xbarc.exploration import tune_spec as tune_spec
    from xbarc.exploration_report import ExploreReport as ExploreReport
    from xbarc.finetuning import FinetuneResult as FinetuneResult
    from xbarc.finetuning import finetune as finetune
    from xbarc.finetuning import to_torch as to_torch
    from xbarc.loading import load as load
    from xbarc.page.build import report_page as report_page
    from xbarc.sweeping.statistics import SweepReport as SweepReport
    from xbarc.sweeping.sweep import sweep as sweep
    from xbarc.verification import VerifyReport as VerifyReport
    from xbarc.verification import verify_program as verify

_ROOMS = {
    "Chip": "hwspec.chip",
    "HardwareSpec": "hwspec.spec",
    **dict.fromkeys(
        (
            "ChipError",
            "DataError",
            "ModelError",
            "ModelFileError",
            "ProgramError",
            "SpecError",
            "VerificationError",
            "XbarcError",
        ),
        "hwspec.errors",
    ),
    "TileProgram": "runtime.program",
    "Augmentation": "runtime.augmentation",
    "TuneOptions": "runtime.tuning",
    **dict.fromkeys(("FinetuneResult", "finetune", "to_torch"), "xbarc.finetuning"),
    "CompileReport": "runtime.report",
    **dict.fromkeys(("CostReport", "cost"), "runtime.costing"),
    "load": "xbarc.loading",
    "report_page": "xbarc.page.build",
    **dict.fromkeys(("Simulation", "remap", "simulate"), "xbarc.api"),
    "EvalReport": "xbarc.eval_report",
    "evaluate": "xbarc.evaluation",
    "ExploreReport": "xbarc.exploration_report",
    "tune_spec": "xbarc.exploration",
    "SweepReport": "xbarc.sweeping.statistics",
    "sweep": "xbarc.sweeping.sweep",
    "VerifyReport": "xbarc.verification",
}
_RENAMED = {"compile": ("xbarc.api", "compile_model"), "verify": ("xbarc.verification", "verify_program")}

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "verify", *_ROOMS]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import xbarc`` stays fast."""
    room, attribute = _RENAMED.get(name, (_ROOMS.get(name), name))
    if room is None:
        raise AttributeError(f"module 'xbarc' has no attribute {name!r}")
    return getattr(importlib.import_module(room), attribute)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
