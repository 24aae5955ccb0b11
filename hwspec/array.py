"""The crossbar array: its size, and where the two devices of a differential pair lie."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwspec.units import Whole


class Array(BaseModel):
    """One crossbar of ``rows`` word lines and ``cols`` bit lines."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Whole = Field(gt=0, le=65536, description="word lines of one array")
    cols: Whole = Field(gt=0, le=65536, description="bit lines of one array")
    pairing: Literal["two_arrays", "neighbouring_columns"] = Field(
        description="whether the devices of a pair lie on two arrays or on neighbouring columns of one"
    )

    @model_validator(mode="after")
    def _pairs_fit(self) -> "Array":
        if self.pairing == "neighbouring_columns" and self.cols % 2:
            raise ValueError(f"cols must be even when pairs lie on neighbouring columns, not {self.cols}")
        return self

    @property
    def weight_cols(self) -> int:
        """Signed weights that one row of a site holds (a site is one array, or two with pairs on two arrays)."""
        return self.cols if self.pairing == "two_arrays" else self.cols // 2

    @property
    def arrays_per_site(self) -> int:
        """Physical arrays that a site of ``rows`` x ``weight_cols`` signed weights occupies."""
        return 2 if self.pairing == "two_arrays" else 1
