"""The crossbar array: its size, its wires, and where the devices of a weight lie."""

from typing import Literal

from pydantic import Field, model_validator

from hwspec.device import Section
from hwspec.units import Ohm, Siemens, Whole

Cell = Literal["1T1R", "2T2R", "1R"]
Pairing = Literal["two_arrays", "neighbouring_columns", "neighbouring_rows", "reference"]


class Array(Section):
    """One crossbar of ``rows`` word lines and ``cols`` bit lines.

    The two devices of a weight lie on two arrays, on neighbouring columns (subtracted at the sense nodes), or on
    neighbouring rows (driven with opposite voltages, subtracted on the bit line). With ``reference`` a weight is one
    device against a reference current midway between those of g_min and g_max: ``w = 2 s - 1``.
    """

    rows: Whole = Field(gt=0, le=65536, description="word lines of one array")
    cols: Whole = Field(gt=0, le=65536, description="bit lines of one array")
    pairing: Pairing = Field(
        description="where the two devices of a pair lie: two_arrays, neighbouring_columns or neighbouring_rows; "
        "reference is one device against a middle reference"
    )
    cell: Cell = Field(
        default="1T1R",
        description="1T1R: a transistor in series with each device; 2T2R: a pair whose two transistors have gates of "
        "their own; 1R: no transistor, so that nothing can be gated off",
    )
    router: bool = Field(
        default=False,
        description="whether each tile can take its inputs in an order of its own; otherwise tiles that the same "
        "inputs drive share one order",
    )
    slices: Whole = Field(
        default=1, ge=1, le=16, description="bit slicing: devices (or pairs) that hold one weight's digits"
    )
    unused: Siemens = Field(default=0.0, ge=0, le=1e3, description="conductance of devices that no tile uses")
    unselected: Literal["grounded", "floating", "half", "third"] = Field(
        default="grounded",
        description="lines of an array that a tile does not use: at 0 V, open, at v_read / 2, or rows at v_read / 3 "
        "and columns at 2 v_read / 3",
    )
    r_word: Ohm = Field(default=0.0, ge=0, le=1e12, description="resistance of one word-line segment")
    r_bit: Ohm = Field(default=0.0, ge=0, le=1e12, description="resistance of one bit-line segment")
    r_driver: Ohm = Field(default=0.0, ge=0, le=1e12, description="output resistance of a word-line driver")
    r_sense: Ohm = Field(default=0.0, ge=0, le=1e12, description="input resistance of a column's sense amplifier")
    wire_model: Literal["exact", "closed_form"] = Field(
        default="exact", description="how wires are solved: the exact march, or G / (1 + a + b)"
    )

    @model_validator(mode="after")
    def _pairs_fit(self) -> "Array":
        if self.pairing == "neighbouring_columns" and self.cols % 2:
            raise ValueError(f"cols must be even when pairs lie on neighbouring columns, not {self.cols}")
        if self.pairing == "neighbouring_rows" and self.rows % 2:
            raise ValueError(f"rows must be even when pairs lie on neighbouring rows, not {self.rows}")
        if self.cell == "2T2R" and self.pairing == "reference":
            raise ValueError("cell 2T2R holds a pair of devices: choose a pairing other than reference")
        if self.wire_model == "closed_form" and self.unselected != "grounded":
            raise ValueError("wire_model closed_form needs unselected lines that are grounded; choose exact")
        return self

    @property
    def wired(self) -> bool:
        """Whether any resistance of the wires is above zero."""
        return any((self.r_word, self.r_bit, self.r_driver, self.r_sense))

    @property
    def weight_rows(self) -> int:
        """Rows of weights on one site (a site is one array, or two with pairs on two arrays)."""
        return self.rows // 2 if self.pairing == "neighbouring_rows" else self.rows

    @property
    def weight_cols(self) -> int:
        """Weights (slices of them) that one row of a site holds."""
        return self.cols // 2 if self.pairing == "neighbouring_columns" else self.cols

    @property
    def arrays_per_site(self) -> int:
        """Physical arrays that a site of ``weight_rows`` x ``weight_cols`` weights occupies."""
        return 2 if self.pairing == "two_arrays" else 1

    @property
    def devices_per_weight(self) -> int:
        """Devices that hold one slice of a weight."""
        return 1 if self.pairing == "reference" else 2
