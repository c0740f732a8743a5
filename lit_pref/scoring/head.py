"""The tile pass: from hidden states to log-probs of tokens, without ever making a tokens x vocabulary tensor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_pref.types import Kl, Tilt


@dataclass
class Readout:
    """All that the head needs to score N tokens: `logits = cap(scale · (hidden Wᵀ + bias))`, `cap(x) = c·tanh(x / c)`.

    `weight` is None where `hidden` holds the model's own logits (N, V): the fall-back for heads of another form.
    """

    hidden: Tensor  # (N, H), any floating dtype
    weight: Tensor | None  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.hidden.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of logits and sums: fp64 where the model is fp64, else fp32, never lower."""
        wide = torch.float64 in (self.hidden.dtype, self.hidden.dtype if self.weight is None else self.weight.dtype)
        return torch.float64 if wide else torch.float32

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """The logits of some rows and some columns, upcast before anything is computed."""
        if self.weight is None:
            logits = self.hidden[rows, columns].to(self.dtype)
        else:
            logits = self.hidden[rows].to(self.dtype) @ self.weight[columns].to(self.dtype).T
        if self.bias is not None:
            logits = logits + self.bias[columns]
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: one that stays in a CPU core's cache, or one that fills a GPU (128 MiB in fp32)."""
    return (512, 2048) if device.type == "cpu" else (4096, 8192)


def token_values(
    readout: Readout, targets: Tensor, comparisons: Sequence[Tilt | Kl] = (), against: Readout | None = None
) -> tuple[Tensor, list[Tensor]]:
    """`log softmax(f)[y]` of every target, with gradient, and the comparisons asked for, without.

    Per token, with f the logits of `readout`, g those of `against` and y the target:
    Tilt(ε) gives `log softmax((1 + ε) f - ε g)[y]`; Kl gives `Σ_v softmax(f)_v (f_v - g_v) - (lse f - lse g)`.

    Both logits are upcast before they are interpolated: at ε = 0.01 the step is below the grid of bf16.

    Args:
        readout: N tokens of the policy.
        targets: (N,) int64.
        comparisons: what is computed in the same pass.
        against: the same N tokens of the reference; its hidden size may differ, its vocabulary may not.

    Returns:
        (N,) log-probs in nats, and one (N,) tensor for each comparison.

    Raises:
        ValueError: for shapes that do not belong together, or comparisons with nothing to compare against.

    >>> eye = torch.eye(3)
    >>> logps, (kl,) = token_values(Readout(torch.tensor([[2.0, 0.0, 0.0]]), eye), torch.tensor([0]), [Kl()],
    ...                             against=Readout(torch.zeros(1, 3), eye))
    >>> print(f"{logps.item():.4f} {kl.item():.4f}")
    -0.2395 0.4330
    """
    n = len(targets)
    if readout.hidden.ndim != 2 or len(readout.hidden) != n:
        raise ValueError(f"{n} targets, but hidden states of shape {tuple(readout.hidden.shape)}")
    if comparisons:
        if against is None:
            raise ValueError(f"{comparisons[0]} compares the policy with a reference, and none was given as `against`")
        if len(against.hidden) != n or against.vocabulary != readout.vocabulary:
            raise ValueError(
                f"the policy has {n} tokens over a vocabulary of {readout.vocabulary}, "
                f"the reference {len(against.hidden)} over {against.vocabulary}"
            )
    settings = (targets, readout.scale, readout.softcap, tuple(comparisons), against)
    logps, *values = _TilePass.apply(readout.hidden, readout.weight, readout.bias, *settings)
    return logps, values


class _TilePass(torch.autograd.Function):
    """Keeps the log-sum-exp of each row and makes the logits of each tile again in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        comparisons: tuple[Tilt | Kl, ...],
        against: Readout | None,
    ) -> tuple[Tensor, ...]:
        readout = Readout(hidden, weight, bias, scale, softcap)
        values = torch.empty((2 + len(comparisons), len(hidden)), dtype=readout.dtype, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _slices(len(hidden), tile_shape(hidden.device)[0]):
                values[:, rows] = _row_values(readout, targets[rows], rows, comparisons, against)
        picked, lse, *compared = (v.clone() for v in values)
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.scale, ctx.softcap = scale, softcap
        ctx.mark_non_differentiable(*compared)
        return picked - lse, *compared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        readout = Readout(hidden, weight, bias, ctx.scale, ctx.softcap)
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[:3]) if needed]
        # Sums over tiles are kept in the compute dtype and rounded once, at the end.
        sums = [
            torch.zeros_like(t, dtype=readout.dtype) if i in wanted else None
            for i, t in enumerate((hidden, weight, bias))
        ]
        row_tile, column_tile = tile_shape(hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _slices(len(hidden), row_tile):
                for columns in _slices(readout.vocabulary, column_tile):
                    _add_gradients(readout, rows, columns, targets[rows], lse[rows], grad[rows], sums)
        given = zip((hidden, weight, bias), sums, strict=True)
        return *(None if s is None else s.to(t.dtype) for t, s in given), *(None,) * 5


def _row_values(
    readout: Readout, targets: Tensor, rows: slice, comparisons: Sequence[Tilt | Kl], against: Readout | None
) -> Tensor:
    """For one tile of rows: target logit, log-sum-exp and the comparisons, gathered over tiles of columns."""
    empty = torch.full((len(targets),), -torch.inf, dtype=readout.dtype, device=targets.device)
    picked, lse = torch.zeros_like(empty), empty
    lse_g, mean_difference = empty, torch.zeros_like(empty)
    tilted = {c: [torch.zeros_like(empty), empty] for c in comparisons if isinstance(c, Tilt)}
    for columns in _slices(readout.vocabulary, tile_shape(targets.device)[1]):
        f = readout.tile(rows, columns)  # (C, K)
        before, lse = lse, torch.logaddexp(lse, f.logsumexp(1))
        picked += _pick(f, targets, columns)
        if against is None or not comparisons:
            continue
        g = against.tile(rows, columns).to(readout.dtype)
        difference = f - g
        if Kl() in comparisons:
            p = torch.exp(f - lse[:, None])
            mean_difference = mean_difference * torch.exp(before - lse) + (p * difference).sum(1)
            lse_g = torch.logaddexp(lse_g, g.logsumexp(1))
        for tilt, sums in tilted.items():
            x = f + tilt.epsilon * difference
            sums[0] = sums[0] + _pick(x, targets, columns)
            sums[1] = torch.logaddexp(sums[1], x.logsumexp(1))
    values = [
        tilted[c][0] - tilted[c][1] if isinstance(c, Tilt) else mean_difference - (lse - lse_g) for c in comparisons
    ]
    return torch.stack([picked, lse, *values])


def _add_gradients(
    readout: Readout,
    rows: slice,
    columns: slice,
    targets: Tensor,
    lse: Tensor,
    grad: Tensor,
    sums: Sequence[Tensor | None],
) -> None:
    """Add one tile's share: `d log p_y / d f_v = 1[v = y] - p_v`, through soft-cap and scale."""
    f = readout.tile(rows, columns)  # (C, K)
    upstream = grad.to(f.dtype) * readout.scale
    change = torch.exp(f - lse[:, None]).mul_(-upstream[:, None])
    inside, index = _inside(targets, columns)
    change.scatter_add_(1, index[:, None], torch.where(inside, upstream, 0)[:, None])
    if readout.softcap is not None:
        change *= 1 - (f / readout.softcap) ** 2
    grad_hidden, grad_weight, grad_bias = sums
    if grad_hidden is not None:
        if readout.weight is None:
            grad_hidden[rows, columns] = change
        else:
            grad_hidden[rows].addmm_(change, readout.weight[columns].to(f.dtype))
    if grad_weight is not None:
        grad_weight[columns].addmm_(change.T, readout.hidden[rows].to(f.dtype))
    if grad_bias is not None:
        grad_bias[columns] += change.sum(0)


def _pick(tile: Tensor, targets: Tensor, columns: slice) -> Tensor:
    """The entry of each row's target where it lies in these columns, else 0."""
    inside, index = _inside(targets, columns)
    return torch.where(inside, tile.gather(1, index[:, None]).squeeze(1), 0)


def _inside(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    # Clamped and masked rather than selected: a selection would wait for the GPU in every tile.
    inside = (targets >= columns.start) & (targets < columns.stop)
    return inside, (targets - columns.start).clamp(0, columns.stop - columns.start - 1)


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
