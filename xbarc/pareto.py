"""The Pareto front: what no other choice beats."""

from collections.abc import Sequence

import numpy as np


def pareto_front(objectives: Sequence[Sequence[float]]) -> list[bool]:
    """Which points are on the front: no other is at least as good in every objective and better in one.

    Parameters
    ----------
    objectives : (points, objectives)
        Less is better in each. Equal points are on the front together; one with a NaN is never on it.
    """
    values = np.array(objectives, dtype=np.float64)
    if not values.size:
        return [False] * len(values)
    sound = values[~np.isnan(values).any(1)]
    front = []
    for point in values:
        beaten = ((sound <= point).all(1) & (sound < point).any(1)).any()
        front.append(not (beaten or np.isnan(point).any()))
    return front
