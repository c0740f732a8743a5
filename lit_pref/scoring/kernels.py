"""Triton kernels over a tile of logits, which read it once forward and once backward.

The products themselves are the GPU library's. Each row, and backward each element, belongs to one program, so that
the order of sums is fixed and a resumed run gives the same bits. Only fp32 tiles. Without Triton this file can be
imported, and its kernels cannot be launched.
"""

from __future__ import annotations  # without Triton there is no `tl.constexpr`

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:  # builds of torch for CPUs do without it
    triton = None

BLOCK = 2048
WARPS = 8


def fold(
    x: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    targets: Tensor,
    start: int,
    sums: tuple[Tensor, Tensor, Tensor],
    out: Tensor | None = None,
) -> Tensor | None:
    """Add a tile to the sums of its rows: with `f = cap(scale · (x + bias))`, what `LogProbs.add` does.

    Args:
        x: (C, K) products of hidden states and weights, left as they are.
        bias: (K,) in fp32.
        scale: as in `Readout`.
        softcap: as in `Readout`.
        targets: (C,) the rows' targets, int64.
        start: the tile's first column in the vocabulary.
        sums: the rows' (C,) top, total and picked, as in `LogProbs`, overwritten.
        out: (C, K) of any floating dtype, to which `exp(f - top) d f / d (scale · (x + bias))` is written.

    Returns:
        With `out`, (C,) the factor by which sums relative to the earlier top must be multiplied.
    """
    rows, columns = x.shape
    fade = None if out is None else torch.empty_like(sums[0])
    with _on(x):
        _fold[(rows,)](
            *(x, x.stride(0), x if bias is None else bias, targets, *sums),
            *(x if out is None else out, 0 if out is None else out.stride(0), x if fade is None else fade),
            *(start, columns, scale, 1.0 if softcap is None else softcap),
            HAS_BIAS=bias is not None,
            HAS_CAP=softcap is not None,
            WRITES=out is not None,
            SIZE=BLOCK,
            num_warps=WARPS,
        )
    return fade


def logit_gradients(
    x: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    targets: Tensor,
    start: int,
    lse: Tensor,
    upstream: Tensor,
    out: Tensor,
) -> Tensor:
    """Write `upstream · (1[v = y] - exp(f_v - lse)) d f_v / d (scale · (x + bias))` to `out` (C, K), and return it.

    Args:
        x: (C, K) products of hidden states and weights; `out` may be the same tensor.
        bias: (K,) in fp32.
        scale: as in `Readout`.
        softcap: as in `Readout`.
        targets: (C,) the rows' targets, int64.
        start: the tile's first column in the vocabulary.
        lse: (C,) `log Σ_v exp(f_v)` over the whole vocabulary.
        upstream: (C,) the gradient by the log-probs, times the scale.
        out: of any floating dtype.
    """
    rows, columns = x.shape
    with _on(x):
        _logit_gradients[(rows, triton.cdiv(columns, BLOCK))](
            *(x, x.stride(0), x if bias is None else bias, targets, lse, upstream, out, out.stride(0)),
            *(start, columns, scale, 1.0 if softcap is None else softcap),
            HAS_BIAS=bias is not None,
            HAS_CAP=softcap is not None,
            SIZE=BLOCK,
            num_warps=WARPS,
        )
    return out


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Context in which x's device is the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()


def _jit(function: Callable[..., Any]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _logits(x, bias, offsets, inside, scale, cap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """Return the logits at some offsets of a row, and the slope of the soft-cap there."""
    f = tl.load(x + offsets, mask=inside, other=0.0)
    if HAS_BIAS:
        f += tl.load(bias + offsets, mask=inside, other=0.0)
    f *= scale
    slope = tl.full(f.shape, 1.0, tl.float32)
    if HAS_CAP:
        tanh = 2 * tl.sigmoid(2 * f / cap) - 1
        f = cap * tanh
        slope = 1 - tanh * tanh
    return f, slope


@_jit
def _fold(
    x,
    x_stride,
    bias,
    targets,
    tops,
    totals,
    picked,
    out,
    out_stride,
    fades,
    start,
    columns,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WRITES: tl.constexpr,
    SIZE: tl.constexpr,
):
    # The row is int64, because a tile may have more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    target = tl.load(targets + row) - start
    before = tl.load(tops + row)
    top = before
    total = tl.load(totals + row)
    own = tl.load(picked + row)
    for begin in range(0, columns, SIZE):
        offsets = begin + tl.arange(0, SIZE)
        inside = offsets < columns
        f, _ = _logits(x, bias, offsets, inside, scale, cap, HAS_BIAS, HAS_CAP)
        own += tl.sum(tl.where(inside & (offsets == target), f, 0.0), 0)
        f = tl.where(inside, f, float("-inf"))
        higher = tl.maximum(top, tl.max(f, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(f - higher), 0)
        top = higher
    tl.store(tops + row, top)
    tl.store(totals + row, total)
    tl.store(picked + row, own)
    if WRITES:
        tl.store(fades + row, tl.exp(before - top))
        out += row * out_stride
        for begin in range(0, columns, SIZE):
            offsets = begin + tl.arange(0, SIZE)
            inside = offsets < columns
            f, slope = _logits(x, bias, offsets, inside, scale, cap, HAS_BIAS, HAS_CAP)
            tl.store(out + offsets, (tl.exp(f - top) * slope).to(out.dtype.element_ty), mask=inside)


@_jit
def _logit_gradients(
    x,
    x_stride,
    bias,
    targets,
    lses,
    upstreams,
    out,
    out_stride,
    start,
    columns,
    scale,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = offsets < columns
    f, slope = _logits(x + row * x_stride, bias, offsets, inside, scale, cap, HAS_BIAS, HAS_CAP)
    target = tl.load(targets + row) - start
    one = tl.where(offsets == target, 1.0, 0.0)
    g = tl.load(upstreams + row) * (one - tl.exp(f - tl.load(lses + row))) * slope
    tl.store(out + row * out_stride + offsets, g.to(out.dtype.element_ty), mask=inside)
