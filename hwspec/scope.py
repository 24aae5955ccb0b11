"""What a spec cannot describe (``physics.md`` section 9): printed wherever a spec or a report is read."""

EXCLUDED = (
    "saturation of access transistors",
    "drop on the supply grid",
    "RC settling",
    "ADC reference kick-back",
    "half-select write disturb",
    "read-disturb kinetics",
    "thermal crosstalk",
    "voltage-mode and charge readout",
)
