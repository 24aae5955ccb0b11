"""The column march of `march` and its exact gradient as batched torch operations (``docs/physics.md``, Wires).

All arrays of a batch restart together, so that every step is one operation on the whole batch. Bit lines are solved as
dense matrices: more arithmetic than the compiled march does, and far fewer and larger steps, which is what a GPU wants.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.physics.march import GROWTH, LEAK

_WORKSPACE = 1 << 26
"""Numbers in the device matrices that are built at once."""


@dataclass(frozen=True)
class _Restart:
    """What the gradient needs of a restart: the state before it, its basis, and what came out of it."""

    voltages: Tensor
    currents: Tensor
    basis: Tensor
    scale: Tensor
    opened: Tensor
    divided: Tensor
    """Currents and outputs after the restart, before the columns of open lines are dropped."""


def march(g: Tensor, rw: Tensor, rb: Tensor, tape: list[_Restart] | None = None) -> Tensor:
    """Effective matrices (B, N, M) of a batch, column first, as `runtime.physics.march.march` of each.

    With a tape, every restart is recorded, and there is one after column 0 whatever the resistances.
    """
    batch, _, m = g.shape
    factors = _bit_line_factors(g, rb)
    restart, leak = _restarts(g, rw), _line_leaks(g)
    if tape is not None:
        restart[0] = True
    identity = torch.eye(m, dtype=g.dtype, device=g.device).expand(batch, m, m)
    voltages, currents, out = identity, torch.zeros_like(identity), torch.empty_like(g)
    for j, device, sensed in _devices(g, *factors, reverse=True):
        out[:, j] = (sensed[:, None] @ voltages)[:, 0]
        currents = currents + g[:, j, :, None] * (device @ voltages)
        opened = rw[:, j].isinf()
        finite = rw[:, j].masked_fill(opened, 0.0)[..., None]
        stepped = voltages + finite * currents
        if not restart[j]:
            voltages = stepped
            continue
        basis = torch.where(opened[..., None], currents + leak[..., None] * voltages, stepped)
        scale = 1.0 / basis.abs().amax(-1)
        basis = basis * scale[..., None]
        both = torch.cat([currents, out[:, j:]], 1)
        both = torch.linalg.solve(basis, both, left=False) * scale[:, None]
        if tape is not None:
            tape.append(_Restart(voltages, currents, basis, scale, opened, both))
        both = both.masked_fill(opened[:, None], 0.0)
        voltages, currents, out[:, j:] = identity, both[:, :m], both[:, m:]
    return out


def gradient(g: Tensor, rw: Tensor, rb: Tensor, out_bar: Tensor, want_rb: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to g, rw and rb, all (B, N, M), given that of the matrices; zero for open segments."""
    m = g.shape[2]
    tape: list[_Restart] = []
    march(g, rw, rb, tape)
    factors = _bit_line_factors(g, rb)
    restart, leak = _restarts(g, rw), _line_leaks(g)[..., None]
    restart[0] = True
    g_bar, rw_bar, rb_bar = torch.zeros_like(g), torch.zeros_like(g), torch.zeros_like(g)
    o_bar = out_bar.clone()
    u_bar = c_bar = voltages = currents = g.new_zeros((len(g), m, m))  # set by the restart after column 0
    for j, device, _ in _devices(g, *factors, reverse=False):
        opened = rw[:, j].isinf()[..., None]
        r = rw[:, j, :, None].masked_fill(opened, 0.0)
        if restart[j]:
            mark = tape.pop()
            voltages, currents = mark.voltages, mark.currents
            # The adjoint of the voltages follows from the others, since a change of basis changes nothing. Marching it
            # on instead would let its errors grow as the voltages do, and does not know what hangs beyond a break.
            both = torch.cat([c_bar, o_bar[:, j:]], 1)
            both = torch.cat([-(mark.divided.mT @ both), both], 1) * mark.scale.masked_fill(mark.opened, 0.0)[:, None]
            both = torch.linalg.solve(mark.basis.mT, both, left=False)
            u_bar, c_bar, o_bar[:, j:] = both[:, :m], both[:, m : 2 * m], both[:, 2 * m :]
            rw_bar[:, j] = (u_bar * currents).sum(-1).masked_fill(mark.opened, 0.0)
            c_bar = c_bar + torch.where(opened, 1.0, r) * u_bar
            u_bar = torch.where(opened, leak * u_bar, u_bar)
        else:
            rw_bar[:, j] = (u_bar * currents).sum(-1)
            c_bar = c_bar + r * u_bar
            voltages = voltages - r * currents
        e, e_bar = device @ voltages, device @ (c_bar + o_bar[:, j, None])
        g_bar[:, j] = (e * e_bar).sum(-1)
        flow, flow_bar = g[:, j, :, None] * e, g[:, j, :, None] * e_bar
        if want_rb:
            rb_bar[:, j] = -(flow.cumsum(1) * flow_bar.cumsum(1)).sum(-1)
        currents = currents - flow
        u_bar = u_bar + flow_bar
    return g_bar, rw_bar, rb_bar.masked_fill(rb.isinf(), 0.0)


def _bit_line_factors(g: Tensor, rb: Tensor) -> tuple[Tensor, Tensor]:
    """``march.bit_line_factors``."""
    opened = rb.isinf()
    finite = rb.masked_fill(opened, 0.0)
    keep, drop = torch.empty_like(g), torch.empty_like(g)
    s = torch.zeros_like(g[..., 0])
    for i in range(g.shape[-1]):
        s = s + g[..., i]
        share = 1.0 / (1.0 + finite[..., i] * s)
        free = torch.where(s > 0, 1.0 / s, 0.0)
        keep[..., i] = share.masked_fill(opened[..., i], 0.0)
        drop[..., i] = torch.where(opened[..., i], free, finite[..., i] * share)
        s = s * keep[..., i]
    return keep, drop


def _restarts(g: Tensor, rw: Tensor) -> list[bool]:
    """``march.restarts``, for the array of a batch that needs them most."""
    opened = rw.isinf()
    finite = rw.masked_fill(opened, 0.0)
    rises = torch.empty_like(g)
    seen = torch.zeros_like(g[:, 0])
    for j in reversed(range(g.shape[1])):
        seen = seen + g[:, j]
        rises[:, j] = torch.where(opened[:, j], torch.inf, finite[:, j] * seen)
        seen = seen / (1.0 + rises[:, j])
    growth: list[float] = (1.0 + 2.0 * rises).amax((0, 2)).tolist() if len(g) else [1.0] * g.shape[1]
    found = [False] * len(growth)
    bound = 1.0
    for j in reversed(range(len(growth))):
        bound *= growth[j]
        if bound > GROWTH or (j == 0 and bound > 1.0):
            found[j], bound = True, 1.0
    return found


def _line_leaks(g: Tensor) -> Tensor:
    """``march.line_leaks``: (B, M)."""
    leak = LEAK * g.sum(1)
    return torch.where(leak > 0, leak, 1.0)


def _devices(g: Tensor, keep: Tensor, drop: Tensor, *, reverse: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
    """``march.device_matrices`` of column after column: its number, (B, M, M) and (B, M)."""
    batch, n, m = g.shape
    step = max(1, _WORKSPACE // max(1, batch * m * m))
    starts = range(0, n, step)
    for start in reversed(starts) if reverse else starts:
        part = slice(start, min(start + step, n))
        matrix, sensed = _device_matrices(g[:, part], keep[:, part], drop[:, part])
        columns = range(part.start, part.stop)
        for j in reversed(columns) if reverse else columns:
            yield j, matrix[:, j - start], sensed[:, j - start]


def _device_matrices(g: Tensor, keep: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
    m = g.shape[-1]
    flow = g.new_zeros((*g.shape, m))
    above = torch.zeros_like(g)
    for i in range(m):
        flow[..., i, :] = above
        flow[..., i, i] = g[..., i]
        above = flow[..., i, :] * keep[..., i, None]
    below = torch.zeros_like(g)
    for i in reversed(range(m)):
        below = drop[..., i, None] * flow[..., i, :] + keep[..., i, None] * below
        flow[..., i, :] = -below
        flow[..., i, i] += 1.0
    return flow, above
