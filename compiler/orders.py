"""Which of a tile's lines holds which of its rows and columns, so that failed devices hurt least.

Columns are free for each tile; one order of the rows holds for all tiles that the same inputs drive, unless the spec
has a router. Each order is a linear assignment on what weights lose on pairs (``physics.md`` section 5, steps 2, 3).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from runtime.pairs import PairRules, SitePairs
from runtime.pairs_numba import Bytes, add_row_costs, column_costs
from runtime.quantize import Float64

Indices = npt.NDArray[np.int64]
_ROUNDS = 3
"""Times that rows and columns are ordered in turn."""


@dataclass(frozen=True, eq=False)
class TileTask:
    """A tile whose rows and columns look for lines.

    Attributes
    ----------
    weights : (rows, cols)
        What its pairs should hold, in [-1, 1].
    importance : (rows,)
        Variance of the inputs.
    column_importance : (cols,)
        Square of each column's scale.
    plus, minus, gate : (lines for columns, lines for rows)
        Of the pairs that it may use, the bit lines first.
    """

    weights: Float64
    importance: Float64
    column_importance: Float64
    plus: Float64
    minus: Float64
    gate: Bytes

    @classmethod
    def of(
        cls,
        weights: Float64,
        importance: Float64,
        column_importance: Float64,
        pairs: SitePairs,
        rows: slice,
        cols: slice,
    ) -> "TileTask":
        """A tile on a territory of a site."""
        nothing = np.empty((0, 0))
        task = cls(
            np.ascontiguousarray(weights), importance, column_importance, nothing, nothing, np.empty((0, 0), np.uint8)
        )
        return task.on(pairs, rows, cols)

    def on(self, pairs: SitePairs, rows: slice, cols: slice) -> "TileTask":
        """The same tile on a territory of another site."""
        plus, minus = (np.ascontiguousarray(side[rows, cols].T) for side in (pairs.plus, pairs.minus))
        return replace(self, plus=plus, minus=minus, gate=np.ascontiguousarray(pairs.gate[rows, cols].T))


@dataclass(frozen=True, eq=False)
class Order:
    """Where a tile's rows and columns lie.

    Attributes
    ----------
    row_line : (rows,)
        Line of each row, counted from the first of the tile's territory.
    col_line : (cols,)
        Line of each column, likewise.
    sign : (cols,) int8
        -1 where a column is stored with the opposite sign.
    """

    row_line: Indices
    col_line: Indices
    sign: npt.NDArray[np.int8]

    @classmethod
    def identity(cls, rows: int, cols: int, sign: npt.NDArray[np.int8] | None = None) -> "Order":
        """Every row and column on the line of its number."""
        return cls(np.arange(rows), np.arange(cols), np.ones(cols, np.int8) if sign is None else sign)


def choose_orders(
    tasks: Sequence[TileTask],
    start: Sequence[Order],
    rules: PairRules,
    steps: Collection[str],
    *,
    signs: bool,
    router: bool,
) -> dict[str, tuple[Order, ...]]:
    """Orders of the tiles that the same inputs drive, after each step.

    Parameters
    ----------
    tasks
        The tiles; they have the same rows.
    start
        Their orders before.
    rules
        Of the pairs.
    steps
        Which of ``sign``, ``columns``, ``spares`` and ``rows`` to take.
    signs
        Whether a column can be stored with the opposite sign at all.
    router
        Whether each tile can take its inputs in an order of its own.

    Returns
    -------
    dict
        The orders by the step that found them; the last are those to use.
    """
    found: dict[str, tuple[Order, ...]] = {}
    turn = signs and "sign" in steps
    current = tuple(start)

    def columns(lines: str) -> tuple[Order, ...]:
        return tuple(
            _order_columns(task, order, rules, lines, turn=turn) for task, order in zip(tasks, current, strict=True)
        )

    if turn:
        current = found["sign"] = columns("none")
    lines = "none"
    for step, reach in (("columns", "own"), ("spares", "all")):
        if step in steps:
            lines = reach
            current = found[step] = columns(lines)
    if "rows" in steps:
        for _ in range(_ROUNDS):
            alone = [slice(at, at + 1) for at in range(len(tasks))] if router else [slice(None)]
            current = tuple(
                order
                for part in alone
                for order in _order_rows(tasks[part], current[part], rules, spares="spares" in steps)
            )
            if lines != "none" or turn:
                current = columns(lines)
        found["rows"] = current
    return found


def cheapest(task: TileTask, order: Order, rules: PairRules, *, turn: bool) -> float:
    """What a tile loses on its lines with its columns at their best, its rows as they are."""
    costs, _ = _column_costs(task, order, rules, turn=turn)
    return float(costs[linear_sum_assignment(costs)].sum())


def _column_costs(
    task: TileTask, order: Order, rules: PairRules, *, turn: bool
) -> tuple[Float64, npt.NDArray[np.bool_]]:
    """Costs ``(lines, cols)`` of each column on each line, and where the opposite sign is cheaper."""
    lines, rows = task.plus.shape
    row_at = np.full(rows, -1)
    row_at[order.row_line] = np.arange(len(order.row_line))
    costs, flipped = np.empty((2, lines, task.weights.shape[1]))
    column_costs(
        task.weights, task.importance, row_at, task.plus, task.minus, task.gate, rules.open_share, rules.unit, costs,
        flipped,
    )  # fmt: skip
    costs *= task.column_importance
    if not turn:
        kept = order.sign < 0
        return np.where(kept, flipped * task.column_importance, costs), np.broadcast_to(kept, costs.shape)
    flipped *= task.column_importance
    # Where both cost the same a column stays as it is: its sign may serve another purpose (the flip code).
    return np.minimum(costs, flipped), np.where(order.sign < 0, flipped <= costs, flipped < costs)


def _order_columns(task: TileTask, order: Order, rules: PairRules, lines: str, *, turn: bool) -> Order:
    """The columns on the lines that cost least: where they are (none), on the lines in use (own), or on any (all)."""
    costs, turned = _column_costs(task, order, rules, turn=turn)
    cols = len(order.col_line)
    if lines == "none":
        at = order.col_line
    else:
        free = np.arange(len(costs)) if lines == "all" else np.sort(order.col_line)
        chosen, column = linear_sum_assignment(costs[free])
        at = np.empty(cols, np.int64)
        at[column] = free[chosen]
        if costs[at, np.arange(cols)].sum() >= costs[order.col_line, np.arange(cols)].sum():
            at = order.col_line
    sign = np.where(turned[at, np.arange(cols)], -1, 1).astype(np.int8)
    return replace(order, col_line=at, sign=sign)


def _order_rows(
    tasks: Sequence[TileTask], orders: Sequence[Order], rules: PairRules, *, spares: bool
) -> tuple[Order, ...]:
    """One order of the rows for all tiles."""
    rows, at = len(orders[0].row_line), orders[0].row_line
    height = min(task.plus.shape[1] for task in tasks)
    costs = np.zeros((height, rows))
    for task, order in zip(tasks, orders, strict=True):
        column_at = np.full(len(task.plus), -1)
        column_at[order.col_line] = np.arange(len(order.col_line))
        weights = np.ascontiguousarray((task.weights * order.sign).T)
        plus, minus = (np.ascontiguousarray(side[:, :height]) for side in (task.plus, task.minus))
        gate = np.ascontiguousarray(task.gate[:, :height])
        add_row_costs(
            weights, task.importance, task.column_importance, column_at, plus, minus, gate, rules.open_share,
            rules.unit, costs,
        )  # fmt: skip
    free = np.arange(height) if spares else np.sort(at)
    chosen, row = linear_sum_assignment(costs[free])
    new = np.empty(rows, np.int64)
    new[row] = free[chosen]
    if costs[new, np.arange(rows)].sum() >= costs[at, np.arange(rows)].sum():
        return tuple(orders)
    return tuple(replace(order, row_line=new) for order in orders)
