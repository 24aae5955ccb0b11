"""Moments of samples against closed forms, within the confidence interval that the samples themselves give."""

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_WIDE = 4.75
"""Half-width of the interval in standard errors: one false alarm in 500 000 checks; the seeds are fixed."""


def assert_moments(samples: Float64, mean: npt.ArrayLike, variance: npt.ArrayLike) -> None:
    """Each cell of ``samples (draws, *cells)`` has this mean and this variance, ``(*cells)``."""
    draws = len(samples)
    centred = samples - samples.mean(axis=0)
    found = (centred**2).mean(axis=0)
    rounding = 1e-12 * np.abs(samples).max(axis=0)  # what samples that do not vary may be off by
    _within("mean", samples.mean(axis=0) - mean, np.sqrt(found / draws), rounding)
    fourth = (centred**4).mean(axis=0)
    second_order = found / draws * _WIDE**2  # from the error of the mean, all that is left at a Bernoulli share of 1/2
    _within("variance", found - variance, np.sqrt(np.maximum(fourth - found**2, 0) / draws), second_order + rounding**2)


def _within(moment: str, error: Float64, standard_error: Float64, rounding: Float64) -> None:
    allowed = _WIDE * standard_error + rounding
    assert (np.abs(error) <= allowed).all(), f"{moment} is off by {error}, where {allowed} is allowed"
