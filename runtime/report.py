"""The compile report: what was mapped, what it takes, what stayed digital and why."""

from pydantic import BaseModel, ConfigDict, Field


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerReport(_Record):
    """One mapped layer."""

    name: str = Field(description="name of the ONNX node that it came from")
    op: str
    groups: int
    rows: int = Field(description="word lines that one group needs")
    cols: int = Field(description="signed weights a row of one group")
    windows: int = Field(description="input vectors of one sample")
    tiles: int = Field(description="logical tiles")
    arrays: int = Field(description="physical arrays")
    cells: int = Field(description="physical cells that hold weights, both devices of a pair counted")
    utilisation: float = Field(description="share of the cells of its arrays that hold weights")
    partial_sums: int = Field(description="partial sums of one sample that are added up digitally")
    macs: int = Field(description="multiply-accumulates of one sample")
    weight_error: float = Field(description="relative root-mean-square error of the mapped weights")
    calibration_clipped: float = Field(description="share of the calibration conversions that the ADC clips")


class DigitalNode(_Record):
    """One node that stayed digital."""

    node: str
    op: str
    reason: str
    macs: int | None = Field(description="multiply-accumulates of one sample; None where they cannot be told")
    constant_weight: bool = Field(description="whether one operand is a constant, so that it might have been mapped")


class Totals(_Record):
    """Sums over the layers and the model."""

    nodes: int = Field(description="nodes of the cleaned model")
    mapped_nodes: int
    tiles: int
    arrays: int
    cells: int
    utilisation: float
    partial_sums: int
    macs: int = Field(description="all multiply-accumulates of one sample, products of two activations included")
    mapped_macs: int
    constant_weight_macs: int


class CompileReport(_Record):
    """What the compiler did. MACs and windows are those of one sample."""

    model: str
    spec: str
    layers: tuple[LayerReport, ...]
    digital: tuple[DigitalNode, ...]
    totals: Totals
    segments: int = Field(description="digital segments")
    calibration: str = Field(description="where the ranges come from")
    warnings: tuple[str, ...]
    seconds: dict[str, float] = Field(description="time of each pass")
