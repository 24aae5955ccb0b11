"""Quantities as people read them."""

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))
_ROUNDS_UP = 0.9995
"""From this share of a prefix on three digits are those of the prefix: 0.9999 mJ is 1 mJ, not 1e+03 uJ."""


def engineering(value: float, unit: str) -> str:
    """A quantity with a prefix, three digits: ``1.25e-6`` J as ``1.25 uJ``."""
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * _ROUNDS_UP:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value / 1e-12:.3g} p{unit}" if value else f"0 {unit}"
