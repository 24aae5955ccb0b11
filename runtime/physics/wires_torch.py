"""The torch twin of `wires`: effective matrices of crossbars with resistive wires, differentiable, on any device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwspec.errors import DataError
from runtime.physics import march_torch
from runtime.physics.wires import OPEN, kernels, share_out


def effective_matrix(
    G: Tensor,
    r_word: Tensor | float,
    r_bit: Tensor | float,
    r_driver: Tensor | float = 0.0,
    r_sense: Tensor | float = 0.0,
) -> Tensor:
    """Matrix of a crossbar with resistive wires, as `wires.effective_matrix`, with its exact gradient.

    The gradient (with respect to G and to every resistance) is that of the adjoint march of ``docs/physics.md``, Wires;
    it takes a few times as long as the matrix and its memory does not grow with the number of columns. An open
    (infinite) segment has the gradient zero. Second derivatives are not given.

    On a CPU the compiled march does the work, in float64 whatever the type of G; elsewhere torch does, in that type.

    Parameters
    ----------
    G : (..., M, N)
        Siemens; float32 or float64, on any device.
    r_word, r_bit : broadcastable to (..., M, N)
        Ohms of the segment left of each device, and below it.
    r_driver, r_sense
        Ohms; numbers or tensors without axes.

    Returns
    -------
    (..., N, M) of G's type
        Siemens.

    Raises
    ------
    DataError
        A ValueError: a shape does not fit, or a value is negative, NaN, or (conductances) infinite.
    """
    rw, rb = _segments(G, r_word, r_bit, r_driver, r_sense)
    m, n = G.shape[-2:]
    tall = m > n
    arrays = (G, rb, rw) if tall else (G, rw, rb)
    # As `wires.column_first`: the shorter lines become the word lines, by reciprocity.
    turned = [(a.flip(-2, -1) if tall else a.mT).reshape(-1, max(m, n), min(m, n)) for a in arrays]
    out: Tensor = _March.apply(*turned)  # type: ignore[no-untyped-call]
    return (out.flip(-2, -1).mT if tall else out).reshape(*G.shape[:-2], n, m)


def approximate_matrix(
    G: Tensor,
    r_word: Tensor | float,
    r_bit: Tensor | float,
    r_driver: Tensor | float = 0.0,
    r_sense: Tensor | float = 0.0,
) -> Tensor:
    """Closed form ``G / (1 + a + b)`` of `effective_matrix`, as `wires.approximate_matrix`; differentiable.

    Parameters, result and errors are those of `effective_matrix`.
    """
    rw, rb = _segments(G, r_word, r_bit, r_driver, r_sense)
    no_word, no_bit = rw.isinf(), rb.isinf()
    a = (rw.masked_fill(no_word, 0.0) * G.flip(-1).cumsum(-1).flip(-1)).cumsum(-1)
    b = (rb.masked_fill(no_bit, 0.0) * G.cumsum(-2)).flip(-2).cumsum(-2).flip(-2)
    cut = (no_word.cumsum(-1) + no_bit.flip(-2).cumsum(-2).flip(-2)) > 0
    return (G / (1.0 + a + b)).masked_fill(cut, 0.0).mT


class _March(torch.autograd.Function):
    """The march on arrays (B, N, M), column first, resistances with driver and sense included."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, rw: Tensor, rb: Tensor) -> Tensor:
        ctx.save_for_backward(g, rw, rb)
        compiled = kernels()
        if g.device.type != "cpu" or compiled is None:
            return march_torch.march(g, rw, rb)
        out = torch.empty(g.shape, dtype=torch.float64)

        def work(part: slice) -> None:
            compiled.march_all(*(_numpy(a[part]) for a in (g, rw, rb)), out[part].numpy())

        share_out(len(g), work)
        return out.to(g.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, out_bar: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        g, rw, rb = ctx.saved_tensors
        want_rb = ctx.needs_input_grad[2]
        compiled = kernels()
        if g.device.type != "cpu" or compiled is None:
            return march_torch.gradient(g, rw, rb, out_bar, want_rb)
        bars = [torch.zeros(g.shape, dtype=torch.float64) for _ in range(3)]

        def work(part: slice) -> None:
            arrays = (_numpy(a[part]) for a in (g, rw, rb, out_bar))
            compiled.gradient_all(*arrays, *(bar[part].numpy() for bar in bars), want_rb)

        share_out(len(g), work)
        g_bar, rw_bar, rb_bar = (bar.to(g.dtype) for bar in bars)
        return g_bar, rw_bar, rb_bar


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().to(torch.float64).contiguous().numpy()


def _segments(
    G: Tensor, r_word: Tensor | float, r_bit: Tensor | float, r_driver: Tensor | float, r_sense: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Ohms of every segment (..., M, N), ends included; torch does the gradient of this part."""
    if not isinstance(G, Tensor) or G.dtype not in (torch.float32, torch.float64):
        raise DataError("G", "must be a tensor of float32 or float64", got=getattr(G, "dtype", G))
    if G.ndim < 2 or 0 in G.shape[-2:]:
        hint = "its last axes are the word lines and the bit lines, one of each at least"
        raise DataError("G", "must have the shape (..., M, N)", got=tuple(G.shape), hint=hint)
    if not bool(((G >= 0) & G.isfinite()).all()):
        raise DataError("G", "must be finite conductances of at least 0 siemens")
    found = []
    for name, value, limit in (
        ("r_word", r_word, G.shape),
        ("r_bit", r_bit, G.shape),
        ("r_driver", r_driver, ()),
        ("r_sense", r_sense, ()),
    ):
        r = torch.as_tensor(value, dtype=G.dtype, device=G.device)
        try:
            fits = np.broadcast_shapes(r.shape, limit) == tuple(limit)
        except ValueError:
            fits = False
        if not fits:
            what = f"must broadcast to {tuple(limit)}, the shape of G" if limit else "must be one number"
            raise DataError(name, what, got=tuple(r.shape))
        if not bool((r >= 0).all()):
            raise DataError(name, "must be at least 0 ohms, and not NaN", hint="use infinity for an open line")
        found.append(r.masked_fill(r > OPEN, torch.inf).expand(limit))
    rw, rb, driver, sense = found
    rw, rb = rw.clone(), rb.clone()
    rw[..., 0] = rw[..., 0] + driver
    rb[..., -1, :] = rb[..., -1, :] + sense
    return rw, rb
