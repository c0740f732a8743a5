"""Log-probs from hidden states in one pass over tiles of logits, so that no tokens x vocabulary tensor is needed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_pref.scores import COMPARING_NEEDS, Need, ReferenceKl
from lit_pref.scoring.readout import Readout
from lit_pref.scoring.statistics import LogProbs, Statistics
from lit_pref.scoring.tile_passes import (
    KernelLogitGradients,
    LogitGradients,
    ReferenceKlGradient,
    backward_tiles,
    finish_unit_gradient,
    forward_tiles,
    forward_tiles_by_kernels,
)
from lit_pref.scoring.tiles import Workspace, few_tiles

__all__ = ["Readout", "token_values"]


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
    Both logits are computed in the precision of `readout` (`HeadPrecision`) and are fp32 or wider when they are
    subtracted: at ε = 0.01 the step is below the resolution of bf16.

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
    # Rounding is chosen here, outside the autograd function, whose backward pass is not under autocast.
    readout = replace(readout, precision=readout.precision.chosen_for(readout.hidden))
    if against is not None:
        against = replace(against, precision=readout.precision)
    options = (readout.scale, readout.softcap, readout.precision, readout.kernels, readout.tile)
    settings = (options, tuple(needs), against if comparisons else None, torch.is_grad_enabled())
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
        options: tuple[Any, ...],
        needs: tuple[Need, ...],
        against: Readout | None,
        recorded: bool,
    ) -> tuple[Tensor, ...]:
        readout = Readout(hidden, weight, bias, *options)
        like = hidden.new_empty(0, dtype=readout.dtype)
        logps = LogProbs(len(hidden), like)
        statistics = Statistics(logps, needs, like)
        needs_gradient = [recorded and needed for needed in ctx.needs_input_grad[:3]]
        graded = ReferenceKl() in needs and any(needs_gradient)
        frozen = weight is not None and needs_gradient == [True, False, False] and not graded
        unit = torch.zeros_like(hidden, dtype=readout.dtype) if frozen else None
        few = readout.tile is None and few_tiles(hidden.device, len(hidden), readout.vocabulary)
        keep = few and any(needs_gradient) and weight is not None and not frozen
        operands = readout.operands()
        ctx.kernels = None if needs else operands.kernels
        with operands.products.exact():
            if ctx.kernels is None:
                kept = forward_tiles(operands, targets, logps, statistics, against, unit, keep)
            else:
                kept = forward_tiles_by_kernels(ctx.kernels, operands, targets, logps, unit, keep)
            if unit is not None:
                finish_unit_gradient(unit, operands, targets, logps)
        own = (statistics.shared_lse(), statistics.reference.lse()) if graded else (None, None)
        saved = (hidden, weight, bias, targets, logps.lse(), *own, *kept) if unit is None else (unit,)
        ctx.save_for_backward(*saved)
        ctx.options, ctx.frozen, ctx.dtype = options, frozen, hidden.dtype
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
            return (unit * grads[0][:, None]).to(ctx.dtype), *(None,) * 7
        hidden, weight, bias, targets, lse, shared, other, *kept = ctx.saved_tensors
        readout = Readout(hidden, weight, bias, *ctx.options)
        operands = readout.operands()
        upstream = grads[0].to(readout.dtype) * readout.scale
        kl = None
        if ctx.against is not None:
            kl_gradient = grads[ctx.place].to(readout.dtype) * readout.scale
            kl = ReferenceKlGradient(ctx.against.operands(), shared, other, kl_gradient)
        needs_gradient = ctx.needs_input_grad[:3]
        logit_gradients: LogitGradients | KernelLogitGradients
        if ctx.kernels is None:
            workspace = Workspace(targets.device, readout.dtype)
            logit_gradients = LogitGradients(targets, lse, upstream, workspace, kl)
        else:
            dtype = operands.products.tile_dtype(needs_gradient[2])
            logit_gradients = KernelLogitGradients(ctx.kernels, targets, lse, upstream, dtype)
        with operands.products.exact():
            return *backward_tiles(operands, targets, kept, needs_gradient, logit_gradients), *(None,) * 5
