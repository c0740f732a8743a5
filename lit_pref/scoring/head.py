"""Log-probs from hidden states in one pass over tiles of logits, so that no tokens x vocabulary tensor is needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_pref.scores import COMPARING_NEEDS, Need, ReferenceKl
from lit_pref.scoring.statistics import LogProbs, Statistics
from lit_pref.scoring.tiles import TilePosition, Workspace, few_tiles, slices, tile_shape


@dataclass
class Readout:
    """Hidden states of N tokens and the head: `logits = cap(scale · (hidden Wᵀ + bias))`, `cap(x) = c·tanh(x / c)`.

    If `weight` is None, `hidden` contains the model's own logits (N, V), the fallback for other kinds of heads.
    """

    hidden: Tensor  # (N, H), any floating dtype
    weight: Tensor | None  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """V, the size of the vocabulary."""
        return self.hidden.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of logits and sums: fp64 for an fp64 model, else fp32, never lower."""
        wide = torch.float64 in (self.hidden.dtype, self.hidden.dtype if self.weight is None else self.weight.dtype)
        return torch.float64 if wide else torch.float32

    def first(self, ids: int) -> "Readout":
        """Return the readout of the first ids alone, as views."""
        if self.weight is None:
            return replace(self, hidden=self.hidden[:, :ids])
        return replace(self, weight=self.weight[:ids], bias=None if self.bias is None else self.bias[:ids])

    def over(self, columns: slice) -> "Readout":
        """Return the readout of some columns of the logits, with weight and bias upcast, once for all rows."""
        bias = None if self.bias is None else self.bias[columns].to(self.dtype)
        if self.weight is None:
            return replace(self, hidden=self.hidden[:, columns], bias=bias)
        return replace(self, weight=self.weight[columns].to(self.dtype), bias=bias)

    def tile(self, rows: slice, columns: slice = slice(None), out: Tensor | None = None) -> Tensor:
        """Return the logits of some rows and columns, upcast before anything is computed; written to `out` if given."""
        part, hidden = self.over(columns), self.hidden[rows]
        if part.weight is not None:
            logits = torch.mm(hidden.to(self.dtype), part.weight.T, out=out)
        else:
            logits = torch.empty_like(hidden[:, columns], dtype=self.dtype) if out is None else out
            logits.copy_(hidden[:, columns])
        if part.bias is not None:
            logits += part.bias
        if self.scale != 1.0:
            logits *= self.scale
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)


def token_values(
    readout: Readout, targets: Tensor, needs: Sequence[Need] = (), against: Readout | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return `log softmax(f)[y]` of every target, with gradient, and the requested statistics.

    Of the statistics only ReferenceKl has a gradient.

    Per token, with f the logits of `readout`, g those of `against`, p = softmax(f) and y the target:
    Tilt(ε) gives `log softmax((1 + ε) f - ε g)[y] - log p_y`; TiltSlope gives its derivative at ε = 0,
    `(f_y - g_y) - Σ_v p_v (f_v - g_v)`; Kl gives `Σ_v p_v (f_v - g_v) - (lse f - lse g)`; ReferenceKl gives
    `Σ_v q_v (g_v - f_v) - (lse g - lse f)`, q = softmax(g);
    Entropy gives `lse f - Σ_v p_v f_v`; SumSquares gives `Σ_v p_v²`, LogSumSquares its logarithm; TopOne gives 1 if
    `f_y = max_v f_v`, else 0.

    All are computed in one pass over tiles of logits (Milakov and Gimelshein, arXiv 1805.02867). The backward pass
    recomputes each tile, or uses the tiles of the forward pass if they are few. If only `hidden` requires a gradient
    (a frozen head, as with LoRA), the forward pass also computes its gradient,
    `d log p_y / d hidden = Σ_v (1[v = y] - p_v) (d f_v / d hidden)`, and the backward pass is one multiplication;
    not with ReferenceKl, whose gradient `Σ_v (p_v - q_v) (d f_v / d hidden)` has an upstream gradient of its own.
    Both logits are upcast before they are subtracted: at ε = 0.01 the step is below the resolution of bf16.

    `against` may have fewer ids than `readout`, whose last ones are then padding that no tokenizer gives. Tilt,
    TiltSlope, Kl and ReferenceKl compare the two distributions given that the token is one of the shared ids: their
    sums over v and their p are those of the shared ids. `log p_y` and the other statistics are over all ids of
    `readout`.

    Args:
        readout: N tokens of the policy.
        targets: (N,) int64.
        needs: statistics to compute in the same pass.
        against: the same N tokens of the reference; its hidden size may differ, its vocabulary may be smaller.

    Returns:
        (N,) log-probs in nats, and one (N,) tensor for each need.

    Raises:
        ValueError: shapes that do not match, or a comparison without `against`.

    >>> from lit_pref.scores import Kl
    >>> eye = torch.eye(3)
    >>> logps, (kl,) = token_values(Readout(torch.tensor([[2.0, 0.0, 0.0]]), eye), torch.tensor([0]), [Kl()],
    ...                             against=Readout(torch.zeros(1, 3), eye))
    >>> print(f"{logps.item():.4f} {kl.item():.4f}")
    -0.2395 0.4330
    """
    n = len(targets)
    if readout.hidden.ndim != 2 or len(readout.hidden) != n:
        raise ValueError(f"{n} targets, but hidden states of shape {tuple(readout.hidden.shape)}")
    comparisons = [need for need in needs if isinstance(need, COMPARING_NEEDS)]
    if comparisons:
        if against is None:
            raise ValueError(f"{comparisons[0]} compares the policy with a reference, and none was given as `against`")
        if len(against.hidden) != n or against.vocabulary > readout.vocabulary:
            raise ValueError(
                f"the policy has {n} tokens over a vocabulary of {readout.vocabulary}, "
                f"the reference {len(against.hidden)} over {against.vocabulary}"
            )
    settings = (readout.scale, readout.softcap, tuple(needs), against if comparisons else None, torch.is_grad_enabled())
    logps, *values = _TilePass.apply(readout.hidden, readout.weight, readout.bias, targets, *settings)
    return logps, values


class _TilePass(torch.autograd.Function):
    """`token_values` as an autograd function.

    It saves the gradient of each token for a frozen head, and otherwise the log-sum-exp of each token, from which the
    backward pass recomputes the logits; few logits are saved instead.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        needs: tuple[Need, ...],
        against: Readout | None,
        recorded: bool,
    ) -> tuple[Tensor, ...]:
        readout = Readout(hidden, weight, bias, scale, softcap)
        like = hidden.new_empty(0, dtype=readout.dtype)
        logps = LogProbs(len(hidden), like)
        statistics = Statistics(logps, needs, like)
        wanted = [recorded and needed for needed in ctx.needs_input_grad[:3]]
        graded = ReferenceKl() in needs and any(wanted)
        frozen = weight is not None and wanted == [True, False, False] and not graded
        unit = torch.zeros_like(hidden, dtype=readout.dtype) if frozen else None
        few = few_tiles(hidden.device, len(hidden), readout.vocabulary)
        keep = few and any(wanted) and weight is not None and not frozen
        with torch.autocast(hidden.device.type, enabled=False):
            kept = _gather(readout, targets, logps, statistics, against, unit, keep)
        own = (statistics.shared_lse(), statistics.reference.lse()) if graded else (None, None)
        saved = (hidden, weight, bias, targets, logps.lse(), *own, *kept) if unit is None else (unit,)
        ctx.save_for_backward(*saved)
        ctx.scale, ctx.softcap, ctx.frozen, ctx.dtype = scale, softcap, frozen, hidden.dtype
        ctx.against, ctx.place = (against, 1 + needs.index(ReferenceKl())) if graded else (None, 0)
        values = [statistics.value(need) for need in needs]
        constant = [value for need, value in zip(needs, values, strict=True) if need != ReferenceKl()]
        ctx.mark_non_differentiable(*constant)
        return logps.value(), *values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.frozen:
            (unit,) = ctx.saved_tensors
            return (unit * grads[0][:, None]).to(ctx.dtype), *(None,) * 8
        hidden, weight, bias, targets, lse, shared, other, *kept = ctx.saved_tensors
        readout = Readout(hidden, weight, bias, ctx.scale, ctx.softcap)
        upstream = grads[0].to(readout.dtype) * ctx.scale
        pull = None
        if ctx.against is not None:
            pull = _Pull(ctx.against, shared, other, grads[ctx.place].to(readout.dtype) * ctx.scale)
        with torch.autocast(hidden.device.type, enabled=False):
            return *_gradients(readout, targets, lse, upstream, kept, ctx.needs_input_grad[:3], pull), *(None,) * 6


@dataclass
class _Pull:
    """The gradient of `ReferenceKl` by the policy's logits, `upstream · (p - q)` over the ids that both models have."""

    against: Readout
    shared: Tensor  # (N,) `log Σ_v exp(f_v)` over these ids
    lse: Tensor  # (N,) the same of the reference's logits g
    upstream: Tensor  # (N,)

    def __call__(self, f: Tensor, other: Readout, rows: slice, workspace: Workspace, shape: TilePosition) -> Tensor:
        """Return the gradient by the tile f, over its first columns, those that the tile of `other` has."""
        both = shape.narrow(other.vocabulary)
        g = other.tile(rows).to(f.dtype)
        p = torch.sub(f[:, : both.columns], self.shared[rows, None], out=workspace("p", both)).exp_()
        return p.sub_(g.sub_(self.lse[rows, None]).exp_()).mul_(self.upstream[rows, None])


def _gather(
    readout: Readout,
    targets: Tensor,
    logps: LogProbs,
    statistics: Statistics,
    against: Readout | None,
    unit: Tensor | None,
    keep: bool,
) -> list[Tensor]:
    """Fill `logps`, `statistics` and, for a frozen head, `unit` = d log p_y / d hidden; return the logits if `keep`."""
    cap, kept = readout.softcap, list[Tensor]()
    workspace = Workspace(targets.device, readout.dtype)
    reference_workspace = workspace if against is None else Workspace(targets.device, against.dtype)
    aside = keep or bool(statistics.needs) or (cap is not None and unit is not None)  # f itself is still needed
    row_tile, column_tile = tile_shape(targets.device, len(targets), readout.vocabulary)
    for columns in slices(readout.vocabulary, column_tile):
        part, other = readout.over(columns), None if against is None else against.over(columns)
        for rows in slices(len(targets), row_tile):
            position = TilePosition.of(targets, rows, columns)
            f = part.tile(rows, out=None if keep else workspace("f", position))
            if keep:
                kept.append(f)
            e = workspace("e", position) if aside else f
            fade = logps.add(f, position, out=e)
            if statistics.needs:
                g = None
                if other is not None and other.vocabulary:
                    both = position.narrow(other.vocabulary)
                    g = other.tile(rows, out=reference_workspace("g", both)).to(f.dtype)
                statistics.add(f, e, fade, g, position, workspace)
            if unit is not None and part.weight is not None:
                if cap is not None:
                    e *= _slope(f, cap, out=f)
                unit[rows].mul_(fade[:, None]).addmm_(e, part.weight)
    if unit is not None and readout.weight is not None:
        slope = 1.0 if cap is None else _slope(logps.picked[:, None], cap)
        unit.div_(-logps.total[:, None]).add_(readout.weight[targets] * slope).mul_(readout.scale)
    return kept


def _gradients(
    readout: Readout,
    targets: Tensor,
    lse: Tensor,
    upstream: Tensor,
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
    pull: _Pull | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return gradients of hidden, weight and bias: `d log p_y / d f_v = 1[v = y] - p_v`, through soft-cap and scale."""
    hidden, weight, dtype, cap = readout.hidden, readout.weight, readout.dtype, readout.softcap
    # Sums over tiles stay in the compute dtype and are rounded once, when they are complete.
    grad_hidden = torch.zeros_like(hidden, dtype=hidden.dtype if weight is None else dtype) if wanted[0] else None
    grad_weight, grad_bias = (
        torch.zeros_like(t) if t is not None and want else None
        for t, want in zip((weight, readout.bias), wanted[1:], strict=True)
    )
    workspace, kept_tiles = Workspace(targets.device, dtype), iter(kept)
    row_tile, column_tile = tile_shape(targets.device, len(targets), readout.vocabulary)
    for columns in slices(readout.vocabulary, column_tile):
        part, other = readout.over(columns), None if pull is None else pull.against.over(columns)
        share_weight, share_bias = (None if t is None else t[columns].to(dtype) for t in (grad_weight, grad_bias))
        for rows in slices(len(targets), row_tile):
            position = TilePosition.of(targets, rows, columns)
            f = next(kept_tiles) if kept else part.tile(rows, out=workspace("f", position))
            slope = None if cap is None else _slope(f, cap, out=workspace("slope", position))
            pulled = pull(f, other, rows, workspace, position) if pull and other and other.vocabulary else None
            change = torch.sub(f, lse[rows, None], out=workspace("f", position)).exp_().mul_(-upstream[rows, None])
            change.scatter_add_(1, position.index, torch.where(position.inside, upstream[rows], 0)[:, None])
            if pulled is not None:
                change[:, : pulled.shape[1]] += pulled
            if slope is not None:
                change *= slope
            if grad_hidden is not None and part.weight is not None:
                grad_hidden[rows].addmm_(change, part.weight)
            elif grad_hidden is not None:
                grad_hidden[rows, columns] = change
            if share_weight is not None:
                share_weight.addmm_(change.T, hidden[rows].to(dtype))
            if share_bias is not None:
                share_bias += change.sum(0)
        for whole, share in ((grad_weight, share_weight), (grad_bias, share_bias)):
            if whole is not None and share is not None:
                whole[columns] = share
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _slope(f: Tensor, cap: float, out: Tensor | None = None) -> Tensor:
    """Return `d cap·tanh(x / cap) / dx = 1 - (f / cap)²`, with f = cap·tanh(x / cap)."""
    return torch.div(f, cap, out=out).square_().neg_().add_(1)
