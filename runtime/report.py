"""The compile report: what was mapped, what it takes, what stayed digital and why."""

from pydantic import BaseModel, ConfigDict, Field

from hwspec.scope import EXCLUDED


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WireReport(_Record):
    """What wires and access resistance do to a layer on its calibration vectors, and what pre-distortion leaves of it.

    Errors are relative to the exact products without wires, root-mean-square over the layer's tiles that put out
    anything on those vectors. The last three are None where targets were not pre-distorted.
    """

    closed_form_error: float = Field(description="of the currents by the closed form, against the exact solution")
    error: float = Field(description="of the outputs, with the weights' own targets")
    error_with_gain: float | None = Field(description="the same with a digital gain a column")
    error_predistorted: float | None = Field(description="with pre-distorted targets and a gain a column")
    headroom: float | None = Field(description="smallest share of the signal range that a column keeps")


class StepReport(_Record):
    """Errors of a layer after a step of mapping around failed devices, relative root-mean-square."""

    step: str = Field(description="identity: in order, failures not heeded; then each step of the mapping")
    weight_error: float = Field(description="of the weights against the model's")
    output_error: float = Field(description="of the outputs on inputs like those of the calibration, as predicted")


class ColumnReport(_Record):
    """A column of a layer and its predicted error."""

    column: int = Field(description="of all groups' columns")
    output_error: float = Field(description="root-mean-square error over that of the column's exact output")


class FailureReport(_Record):
    """What failed devices do to a layer on the chip that it was mapped for, and what the mapping leaves of it."""

    devices: int = Field(description="that hold weights")
    failed: int = Field(description="of these, failed ones")
    pairs: int = Field(description="pairs that hold weights (single devices where there are no pairs)")
    failed_pairs: int = Field(description="of these, pairs with a failed device")
    absorbed: int = Field(description="weights with a failed device that are as good as on good ones")
    gated: int = Field(description="devices that are gated off")
    residue: int = Field(description="weights that digital memory corrects")
    steps: tuple[StepReport, ...]
    worst_columns: tuple[ColumnReport, ...] = Field(description="the worst first")


class LayerReport(_Record):
    """One mapped layer."""

    name: str = Field(description="name of the ONNX node that it came from")
    op: str
    groups: int
    rows: int = Field(description="word lines that one group needs")
    cols: int = Field(description="signed weights a row of one group")
    windows: int = Field(description="input vectors of one sample")
    tiles: int = Field(description="logical tiles")
    copies: int = Field(default=1, description="of its matrix, which share out the windows of a sample")
    arrays: int = Field(description="physical arrays")
    cells: int = Field(description="physical cells that hold weights, both devices of a pair counted")
    utilisation: float = Field(description="share of the cells of its arrays that hold its weights")
    partial_sums: int = Field(description="partial sums of one sample that are added up digitally")
    macs: int = Field(description="multiply-accumulates of one sample")
    weight_error: float = Field(description="relative root-mean-square error of the mapped weights")
    calibration_clipped: float = Field(description="share of the calibration conversions that the ADC clips")
    wires: WireReport | None = Field(default=None, description="None without wire or access resistance")
    failures: FailureReport | None = Field(default=None, description="None where no failed devices are known")
    shares_with: tuple[str, ...] = Field(
        default=(), description="other layers with tiles on its arrays, which cannot run at the same time as it"
    )


class DigitalNode(_Record):
    """One node that stayed digital."""

    node: str
    op: str
    reason: str
    macs: int | None = Field(description="multiply-accumulates of one sample; None where they cannot be told")
    elements: int | None = Field(default=None, description="of its first output, of one sample; None where unknown")
    constant_weight: bool = Field(description="whether one operand is a constant, so that it might have been mapped")


class Totals(_Record):
    """Sums over the layers and the model."""

    nodes: int = Field(description="nodes of the cleaned model")
    mapped_nodes: int
    tiles: int
    arrays: int = Field(description="physical ones, however often they are written")
    cells: int
    utilisation: float = Field(description="share of the devices of arrays that hold weights, each segment's counted")
    partial_sums: int
    macs: int = Field(description="all multiply-accumulates of one sample, products of two activations included")
    mapped_macs: int
    constant_weight_macs: int
    shared_arrays: int = Field(default=0, description="physical arrays that hold tiles of more than one layer")


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
    mapped_for: str | None = Field(default=None, description="hash of the chip whose failed devices were mapped around")
    reachable: tuple[float, float] = Field(
        default=(-1.0, 1.0), description="lowest and highest weight that failures can leave, in units of full scale"
    )
    effects: tuple[str, ...] = Field(description="physical effects that the spec has")
    excluded: tuple[str, ...] = Field(default=EXCLUDED, description="physics that is not modelled")
    seconds: dict[str, float] = Field(description="time of each pass")
