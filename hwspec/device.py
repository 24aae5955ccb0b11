"""The memory device: what conductances it can be programmed to."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwspec.units import Siemens, Whole


class Device(BaseModel):
    """One resistive memory device.

    Conductances are programmed within ``[g_min, g_max]``, either continuously (``levels: null``) or to one of
    ``levels`` values spaced uniformly in conductance. A pair of devices represents the weight
    ``(g_plus - g_minus) / (g_max - g_min)`` in [-1, 1], so ``levels`` levels of a device give ``2 levels - 1`` weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    g_min: Siemens = Field(ge=1e-15, le=1e3, description="lowest programmable conductance")
    g_max: Siemens = Field(ge=1e-15, le=1e3, description="highest programmable conductance")
    levels: Whole | None = Field(ge=2, le=65536, description="programmable levels of one device; null is continuous")

    @model_validator(mode="after")
    def _ordered(self) -> "Device":
        if self.g_min >= self.g_max:
            raise ValueError(f"g_min must be below g_max ({self.g_max:g} S), not {self.g_min:g} S")
        return self

    @property
    def span(self) -> float:
        """``g_max - g_min``, siemens: the conductance difference that represents a weight of one."""
        return self.g_max - self.g_min
