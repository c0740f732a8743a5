"""The forward and the backward pass over tiles of logits: what each adds to its sums."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_pref.scoring.products import sliced, transposed
from lit_pref.scoring.readout import Columns, Operands, Readout
from lit_pref.scoring.statistics import LogProbs, Statistics
from lit_pref.scoring.tiles import TilePosition, Workspace, slices, tile_shape


def forward_tiles(
    operands: Operands,
    targets: Tensor,
    logps: LogProbs,
    statistics: Statistics,
    against: Readout | None,
    unit: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """Fill `logps`, `statistics` and, for a frozen head, `unit`; return the logits if `keep`.

    `finish_unit_gradient` makes a gradient of `unit` afterwards.
    """
    cap, dtype = operands.readout.softcap, operands.products.dtype
    kept, others = list[Tensor](), None if against is None else against.operands()
    workspace = Workspace(targets.device, dtype)
    reference_workspace = workspace if others is None else Workspace(targets.device, others.products.dtype)
    aside = keep or bool(statistics.needs) or (cap is not None and unit is not None)  # f itself is still needed
    row_tile, column_tile = _tile_shape(operands.readout)
    for columns in slices(operands.readout.vocabulary, column_tile):
        part, other = operands.over(columns), None if others is None else others.over(columns)
        for rows in slices(len(targets), row_tile):
            position = TilePosition.of(targets, rows, columns)
            f = part.tile(rows, out=None if keep else workspace("f", position.shape))
            if keep:
                kept.append(f)
            e = workspace("e", position.shape) if aside else f
            fade = logps.add(f, position, out=e)
            if statistics.needs:
                g = None
                if other is not None and other.vocabulary:
                    both = position.narrow(other.vocabulary)
                    g = other.tile(rows, out=reference_workspace("g", both.shape)).to(dtype)
                statistics.add(f, e, fade, g, position, workspace)
            if unit is not None and part.weight is not None:
                if cap is not None:
                    e *= _slope(f, cap, out=f)
                operands.products.add(unit[rows].mul_(fade[:, None]), operands.products.summands(e), part.weight)
    return kept


def forward_tiles_by_kernels(
    kernels: Any, operands: Operands, targets: Tensor, logps: LogProbs, unit: Tensor | None, keep: bool
) -> list[Tensor]:
    """Do what `forward_tiles` does without statistics, by kernels; return products without bias, scale and soft-cap."""
    readout, products, kept = operands.readout, operands.products, list[Tensor]()
    workspace = Workspace(targets.device, products.dtype)
    exponentials = Workspace(targets.device, products.tile_dtype(summed=False))
    row_tile, column_tile = _tile_shape(readout)
    for columns in slices(readout.vocabulary, column_tile):
        part = operands.over(columns)
        for rows in slices(len(targets), row_tile):
            shape = rows.stop - rows.start, columns.stop - columns.start
            x = part.product(rows, out=None if keep else workspace("x", shape))
            if keep:
                kept.append(x)
            e = None if unit is None else exponentials("e", shape)
            sums = logps.top[rows], logps.total[rows], logps.picked[rows]
            fade = kernels.fold(x, part.bias, readout.scale, readout.softcap, targets[rows], columns.start, sums, e)
            if unit is not None and e is not None and part.weight is not None:
                products.add(unit[rows].mul_(fade[:, None]), products.summands(e), part.weight)
    return kept


def finish_unit_gradient(unit: Tensor, operands: Operands, targets: Tensor, logps: LogProbs) -> None:
    """Turn `unit` into `d log p_y / d hidden` after a pass, which adds `Σ_v exp(f_v - top) d f_v / d hidden` to it."""
    readout, products = operands.readout, operands.products
    assert readout.weight is not None
    slope = 1.0 if readout.softcap is None else _slope(logps.picked[:, None], readout.softcap)
    # Weights are rounded here as in the pass: where p_y is near 1, the two terms nearly cancel.
    unit.div_(-logps.total[:, None])
    for part in products.summands(readout.weight[targets]):
        unit.add_(part * slope)
    unit.mul_(readout.scale)


def backward_tiles(
    operands: Operands,
    targets: Tensor,
    kept: Sequence[Tensor],
    needs_gradient: Sequence[bool],
    logit_gradients: "LogitGradients | KernelLogitGradients",
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return gradients of hidden, weight and bias, given the gradient by the logits, `logit_gradients`, tile by tile.

    Args:
        operands: the policy's.
        targets: (N,) int64.
        kept: the tiles that the forward pass kept; if there are none, they are computed again.
        needs_gradient: whether the gradients of hidden, of weight and of bias are needed.
        logit_gradients: computes the gradient by each tile.
    """
    readout, products = operands.readout, operands.products
    hidden, weight, dtype = readout.hidden, readout.weight, products.dtype
    # Sums over tiles stay in the compute dtype and are rounded once, when they are complete.
    sums = hidden.dtype if weight is None else dtype
    grad_hidden = torch.zeros_like(hidden, dtype=sums) if needs_gradient[0] else None
    grad_weight, grad_bias = (
        torch.zeros_like(t) if t is not None and needed else None
        for t, needed in zip((weight, readout.bias), needs_gradient[1:], strict=True)
    )
    kept_tiles = iter(kept)
    row_tile, column_tile = _tile_shape(readout)
    for columns in slices(readout.vocabulary, column_tile):
        part = operands.over(columns)
        gradient_of = logit_gradients.over(part, columns)
        share_weight, share_bias = (None if t is None else t[columns].to(dtype) for t in (grad_weight, grad_bias))
        for rows in slices(len(targets), row_tile):
            gradient = gradient_of(rows, next(kept_tiles) if kept else None)
            if grad_hidden is not None and part.weight is None:
                grad_hidden[rows, columns] = gradient
            if share_bias is not None:
                share_bias += gradient.sum(0)
            summands = () if part.weight is None else products.summands(gradient)
            if grad_hidden is not None and part.weight is not None:
                products.add(grad_hidden[rows], summands, part.weight)
            if share_weight is not None:
                products.add(share_weight, transposed(summands), sliced(operands.hidden, rows))
        for whole, share in ((grad_weight, share_weight), (grad_bias, share_bias)):
            if whole is not None and share is not None:
                whole[columns] = share
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias


@dataclass
class ReferenceKlGradient:
    """The gradient of `ReferenceKl` by the policy's logits, `upstream · (p - q)` over the ids that both models have."""

    against: Operands
    shared: Tensor  # (N,) `log Σ_v exp(f_v)` over these ids
    lse: Tensor  # (N,) the same of the reference's logits g
    upstream: Tensor  # (N,)

    def __call__(self, f: Tensor, other: Columns, rows: slice, workspace: Workspace, shape: TilePosition) -> Tensor:
        """Return the gradient by the tile f, over its first columns, those that the tile of `other` has."""
        both = shape.narrow(other.vocabulary)
        g = other.tile(rows).to(f.dtype)
        p = torch.sub(f[:, : both.columns], self.shared[rows, None], out=workspace("p", both.shape)).exp_()
        return p.sub_(g.sub_(self.lse[rows, None]).exp_()).mul_(self.upstream[rows, None])


@dataclass
class LogitGradients:
    """The gradient by the logits before soft-cap and scale: `d log p_y / d f_v = 1[v = y] - p_v`, through both.

    Args:
        targets: (N,) int64.
        lse: (N,) `log Σ_v exp(f_v)`.
        upstream: (N,) the gradient by the log-probs, times the scale.
        workspace: memory for tiles.
        kl: the gradient of `ReferenceKl`, which is added.
    """

    targets: Tensor
    lse: Tensor
    upstream: Tensor
    workspace: Workspace
    kl: ReferenceKlGradient | None = None

    def over(self, part: Columns, columns: slice) -> Callable[[slice, Tensor | None], Tensor]:
        """Return a function of rows, and of their tile if it was kept, that returns the gradient by the tile."""
        return partial(self._tile, part, None if self.kl is None else self.kl.against.over(columns), columns)

    def _tile(self, part: Columns, other: Columns | None, columns: slice, rows: slice, kept: Tensor | None) -> Tensor:
        workspace, upstream, cap = self.workspace, self.upstream, part.readout.softcap
        position = TilePosition.of(self.targets, rows, columns)
        f = part.tile(rows, out=workspace("f", position.shape)) if kept is None else kept
        slope = None if cap is None else _slope(f, cap, out=workspace("slope", position.shape))
        kl_gradient = self.kl(f, other, rows, workspace, position) if self.kl and other and other.vocabulary else None
        gradient = (
            torch.sub(f, self.lse[rows, None], out=workspace("f", position.shape)).exp_().mul_(-upstream[rows, None])
        )
        gradient.scatter_add_(1, position.index, torch.where(position.inside, upstream[rows], 0)[:, None])
        if kl_gradient is not None:
            gradient[:, : kl_gradient.shape[1]] += kl_gradient
        return gradient if slope is None else gradient.mul_(slope)


@dataclass
class KernelLogitGradients:
    """The gradient by the logits as in `LogitGradients`, computed by Triton's kernels.

    Tiles are products of hidden states and weights: the kernels add bias, scale and soft-cap.

    Args:
        kernels: the module of kernels.
        targets: (N,) int64.
        lse: (N,) `log Σ_v exp(f_v)`.
        upstream: (N,) the gradient by the log-probs, times the scale.
        dtype: the dtype of the result.
    """

    kernels: Any
    targets: Tensor
    lse: Tensor
    upstream: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self._workspace = Workspace(self.targets.device, torch.float32)
        self._gradients = Workspace(self.targets.device, self.dtype)

    def over(self, part: Columns, columns: slice) -> Callable[[slice, Tensor | None], Tensor]:
        """See `LogitGradients.over`."""
        return partial(self._tile, part, columns)

    def _tile(self, part: Columns, columns: slice, rows: slice, kept: Tensor | None) -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        x = part.product(rows, out=self._workspace("x", shape)) if kept is None else kept
        to_logits = part.bias, part.readout.scale, part.readout.softcap
        per_row = self.lse[rows], self.upstream[rows]
        # A kept tile must outlast this pass, because there may be a second one.
        out = x if kept is None and self.dtype == x.dtype else self._gradients("gradient", shape)
        return self.kernels.logit_gradients(x, *to_logits, self.targets[rows], columns.start, *per_row, out)


def _tile_shape(readout: Readout) -> tuple[int, int]:
    return readout.tile or tile_shape(readout.hidden.device, len(readout.hidden), readout.vocabulary)


def _slope(f: Tensor, cap: float, out: Tensor | None = None) -> Tensor:
    """Return `d cap·tanh(x / cap) / dx = 1 - (f / cap)²`, with f = cap·tanh(x / cap)."""
    return torch.div(f, cap, out=out).square_().neg_().add_(1)
