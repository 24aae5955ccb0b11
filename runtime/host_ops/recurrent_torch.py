"""Recurrent layers: LSTM, GRU and RNN, in ONNX's order of gates and axes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runtime.host_ops.node_torch import HostNode, only_integer, only_text, refuse_any, translates

_TRAIN = True  # changes nothing without dropout, but cuDNN has no gradient otherwise
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}


def _refuse_recurrent(node: HostNode) -> str:
    if node.has_input(4):
        return "sequence_lens is not translated"
    if node.has_input(7):
        return "peepholes are not translated"
    if "clip" in node.attributes:
        return "clip is not translated"
    given = tuple(name.lower() for name in node.texts("activations"))
    directions = 2 if node.text("direction", "forward") == "bidirectional" else 1
    if node.op == "RNN":
        return "" if set(given) <= {"tanh"} or set(given) == {"relu"} else f"activations {given} are not translated"
    return "" if given in ((), _ACTIVATIONS[node.op] * directions) else f"activations {given} are not translated"


_REFUSALS = refuse_any(
    _refuse_recurrent,
    only_integer("layout", 0, 0),
    only_integer("input_forget", 0, 0),
    only_text("direction", "forward", "forward", "reverse", "bidirectional"),
)


def _reordered(weights: Tensor, order: Sequence[int]) -> Tensor:
    """The blocks of gates of ``(gates * hidden, ...)`` in another order."""
    gates = weights.chunk(len(order))
    return torch.cat([gates[place] for place in order])


def _flat_weights(w: Tensor, r: Tensor, b: Tensor | None, order: Sequence[int]) -> list[Tensor]:
    """Torch's list of weights: input, recurrent and both biases, one direction after the other."""
    weights = []
    for direction in range(w.shape[0]):
        blocks = [w[direction], r[direction]]
        if b is not None:
            blocks += b[direction].chunk(2)
        weights += [_reordered(block, order) for block in blocks]
    return weights


def _initial(state: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    """The state before the first step, ``(directions, batch, hidden)``; zeros unless given. cuDNN takes no view."""
    return x.new_zeros((r.shape[0], x.shape[1], r.shape[2])) if state is None else state.contiguous()


def _time_axes(y: Tensor, directions: int) -> Tensor:
    """``(time, batch, directions * hidden)`` to ONNX's ``(time, directions, batch, hidden)``."""
    return y.reshape(*y.shape[:2], directions, -1).transpose(1, 2)


def _both_ways(node: HostNode, x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """``run`` over time, or against it for ``direction=reverse``; torch knows no such direction by itself."""
    if node.text("direction", "forward") != "reverse":
        return run(x)
    y, *states = run(x.flip(0))
    return (y.flip(0), *states)


@translates("LSTM", refuses=_REFUSALS)
def lstm(
    node: HostNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    _lengths: None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gates stand in the order i, o, f, c; torch has i, f, c, o."""
    weights, directions = _flat_weights(w, r, b, (0, 2, 3, 1)), r.shape[0]

    def run(sequence: Tensor) -> tuple[Tensor, ...]:
        states = (_initial(hidden, x, r), _initial(cell, x, r))
        y, last, last_cell = torch.lstm(
            sequence, states, weights, b is not None, 1, 0.0, _TRAIN, directions == 2, False
        )
        return _time_axes(y, directions), last, last_cell

    return _both_ways(node, x, run)


@translates("GRU", refuses=_REFUSALS)
def gru(
    node: HostNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    _lengths: None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gates stand in the order z, r, h; torch has r, z, h. Torch resets after the product, ONNX by default before."""
    directions = r.shape[0]
    state = _initial(hidden, x, r)
    if node.integer("linear_before_reset", 0):
        weights = _flat_weights(w, r, b, (1, 0, 2))

        def run(sequence: Tensor) -> tuple[Tensor, ...]:
            y, last = torch.gru(sequence, state, weights, b is not None, 1, 0.0, _TRAIN, directions == 2, False)
            return _time_axes(y, directions), last

        return _both_ways(node, x, run)
    ways = []
    for direction in range(directions):
        bias = torch.zeros_like(w[0, :, 0]).repeat(2) if b is None else b[direction]
        backwards = direction == 1 or node.text("direction", "forward") == "reverse"
        y = _reset_before(x.flip(0) if backwards else x, w[direction], r[direction], bias, state[direction])
        ways.append((y.flip(0) if backwards else y, y[-1]))
    return torch.stack([y for y, _ in ways], 1), torch.stack([last for _, last in ways])


def _reset_before(x: Tensor, w: Tensor, r: Tensor, bias: Tensor, state: Tensor) -> Tensor:
    """The GRU that resets the state before its product with the recurrent weights; ``(time, batch, hidden)``."""
    input_bias, state_bias = bias.chunk(2)
    update_w, reset_w, new_w = (x @ w.T + (input_bias + state_bias)).chunk(3, -1)
    update_r, reset_r, new_r = r.chunk(3)
    steps = []
    for time in range(x.shape[0]):
        update = torch.sigmoid(update_w[time] + state @ update_r.T)
        reset = torch.sigmoid(reset_w[time] + state @ reset_r.T)
        new = torch.tanh(new_w[time] + (reset * state) @ new_r.T)
        state = (1 - update) * new + update * state
        steps.append(state)
    return torch.stack(steps)


@translates("RNN", refuses=_REFUSALS)
def rnn(
    node: HostNode,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    _lengths: None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Tanh by default, or relu."""
    weights, directions = _flat_weights(w, r, b, (0,)), r.shape[0]
    function = torch.rnn_relu if "relu" in [name.lower() for name in node.texts("activations")] else torch.rnn_tanh

    def run(sequence: Tensor) -> tuple[Tensor, ...]:
        state = _initial(hidden, x, r)
        y, last = function(sequence, state, weights, b is not None, 1, 0.0, _TRAIN, directions == 2, False)
        return _time_axes(y, directions), last

    return _both_ways(node, x, run)
