"""Values of tokens, accumulated over tiles of logits: log-probs, entropies, comparisons with a reference."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lit_pref.scores import (
    COMPARING_NEEDS,
    Entropy,
    Kl,
    LogSumSquares,
    Need,
    ReferenceKl,
    SumSquares,
    Tilt,
    TiltSlope,
    TopOne,
)
from lit_pref.scoring.tiles import TilePosition, Workspace


class LogProbs:
    """`log softmax(x)[y] = x_y - top - log Σ_v exp(x_v - top)` of N rows, one tile of `x` after another."""

    def __init__(self, n: int, like: Tensor) -> None:
        self.top = like.new_full((n,), torch.finfo(like.dtype).min)  # the largest logit so far
        self.total = like.new_zeros(n)
        self.picked = like.new_zeros(n)

    def add(self, x: Tensor, position: TilePosition, out: Tensor) -> Tensor:
        """Add a tile, write `exp(x - top)` to `out` (which may be `x`) and return `fade`.

        Sums of exponentials over earlier tiles, relative to an earlier top, must be multiplied by `fade` (C,).
        """
        rows = position.rows
        self.picked[rows] += torch.where(position.inside, x.gather(1, position.index).squeeze(1), 0)
        before = self.top[rows]
        top = torch.maximum(before, x.amax(1))
        fade = torch.exp(before - top)
        torch.sub(x, top[:, None], out=out).exp_()
        self.total[rows] = self.total[rows] * fade + out.sum(1)
        self.top[rows] = top
        return fade

    def lse(self) -> Tensor:
        """Return `log Σ_v exp(x_v)` (N,)."""
        return self.top + self.total.log()

    def value(self) -> Tensor:
        """Return the log-probs (N,), nats."""
        return self.picked - self.top - self.total.log()


class Differences:
    """`d = f - g` of N rows, relative to its mean under the policy, one tile after another, and what tilting changes.

    With p = softmax(f), d' = d - Σ_v p_v d_v and y the target, `log softmax(f + ε d)[y] - log softmax(f)[y]` is
    `ε d'_y - log1p(Σ_v p_v expm1(ε d'_v))`. Where f is near g, both terms keep the digits that a difference of two
    log-softmaxes loses; where it is far, the sum is never below zero (Jensen), so that nothing cancels either. Tokens
    whose e^(f_v - top) is zero in the dtype (87 nats below the largest logit in fp32) do not count, however much the
    tilt raises them.
    """

    def __init__(self, tilts: Iterable[Tilt], n: int, like: Tensor) -> None:
        self.picked, self.total, self.weighted, self.mean = (like.new_zeros(n) for _ in range(4))
        self.excess = {tilt: like.new_zeros(n) for tilt in tilts}  # Σ_v e_v expm1(ε d'_v), relative to the policy's top
        # Keeps `expm1` finite: infinity times a vanishing e would not be a number.
        self.bound = math.log(torch.finfo(like.dtype).max) - 8

    def add(self, d: Tensor, e: Tensor, fade: Tensor, position: TilePosition, total: Tensor, scratch: Tensor) -> None:
        """Add a tile: d, e and fade of the policy, and the policy's sum of e over this tile and all before it (C,)."""
        rows = position.rows
        self.picked[rows] += torch.where(position.inside, d.gather(1, position.index).squeeze(1), 0)
        self.weighted[rows] = self.weighted[rows] * fade + torch.mul(e, d, out=scratch).sum(1)
        mean = self.weighted[rows] / total
        moved, before = self.mean[rows] - mean, self.total[rows] * fade
        for tilt, excess in self.excess.items():
            shift = (tilt.epsilon * moved).clamp(max=self.bound)
            x = torch.add((-tilt.epsilon * mean)[:, None], d, alpha=tilt.epsilon, out=scratch)
            tile = x.clamp_(max=self.bound).expm1_().mul_(e).sum(1)
            excess[rows] = excess[rows] * fade * shift.exp() + before * shift.expm1() + tile
        self.mean[rows], self.total[rows] = mean, total

    def pass_over(self, fade: Tensor, rows: slice) -> None:
        """Add a tile of ids that the reference lacks, which changes only what the sums are relative to."""
        for sums in (self.total, self.weighted, *self.excess.values()):
            sums[rows] *= fade

    def slope(self) -> Tensor:
        """Return `d'_y` (N,), the derivative of `change` at ε = 0."""
        return self.picked - self.mean

    def change(self, tilt: Tilt) -> Tensor:
        """Return what the tilt adds to the log-probs (N,), nats."""
        return tilt.epsilon * self.slope() - torch.log1p(self.excess[tilt] / self.total)


class Statistics:
    """The requested statistics of N tokens, from tiles of the policy's logits f and the reference's logits g."""

    def __init__(self, policy: LogProbs, needs: Iterable[Need], like: Tensor) -> None:
        n = len(policy.top)
        self.policy, self.reference = policy, LogProbs(n, like)
        self.needs = tuple(dict.fromkeys(needs))
        self.compares = any(isinstance(need, COMPARING_NEEDS) for need in self.needs)
        self.differences = Differences([need for need in self.needs if isinstance(need, Tilt)], n, like)
        squared = (SumSquares() if need == LogSumSquares() else need for need in self.needs)
        summed = (need for need in squared if isinstance(need, Entropy | SumSquares))
        self.sums: dict[Need, Tensor] = {need: like.new_zeros(n) for need in summed}  # relative to the policy's top
        self.drawn = like.new_zeros(n)  # Σ_v exp(g_v) (f_v - g_v), relative to the reference's top

    def add(
        self, f: Tensor, e: Tensor, fade: Tensor, g: Tensor | None, position: TilePosition, workspace: Workspace
    ) -> None:
        """Add a tile: f, `e = exp(f - top)` as written by `policy.add`, and g, which is overwritten.

        g may have fewer columns than f, or be None, where the reference lacks ids; no later tile has any then.
        """
        scratch = workspace("scratch", position.shape)
        if Entropy() in self.sums:
            self._add(Entropy(), torch.mul(e, f, out=scratch), fade, position)
        if SumSquares() in self.sums:
            self._add(SumSquares(), torch.mul(e, e, out=scratch), fade.square(), position)
        if not self.compares:
            return
        if g is None:
            self.differences.pass_over(fade, position.rows)
            return
        total = self.policy.total[position.rows]
        if g.shape[1] < position.columns:
            position = position.narrow(g.shape[1])
            f, e, scratch = (tile[:, : g.shape[1]] for tile in (f, e, scratch))
            total = self.differences.total[position.rows] * fade + e.sum(1)
        d = torch.sub(f, g, out=workspace("d", position.shape))
        self.differences.add(d, e, fade, position, total, scratch)
        if Kl() in self.needs or ReferenceKl() in self.needs:
            faded = self.reference.add(g, position, out=g)
            if ReferenceKl() in self.needs:
                self.drawn[position.rows] = self.drawn[position.rows] * faded + torch.mul(g, d, out=scratch).sum(1)

    def _add(self, need: Need, tile: Tensor, fade: Tensor, position: TilePosition) -> None:
        sums = self.sums[need]
        sums[position.rows] = sums[position.rows] * fade + tile.sum(1)

    def shared_lse(self) -> Tensor:
        """Return `log Σ_v exp(f_v)` over the ids that policy and reference share (N,)."""
        return self.policy.top + self.differences.total.log()

    def value(self, need: Need) -> Tensor:
        """Return the statistic (N,); its equation is in the docstring of its class."""
        match need:
            case Tilt():
                return self.differences.change(need)
            case TiltSlope():
                return self.differences.slope()
            case Entropy():
                return self.policy.lse() - self.sums[need] / self.policy.total
            case SumSquares():
                return self.sums[need] / self.policy.total.square()
            case LogSumSquares():
                return self.sums[SumSquares()].log() - 2 * self.policy.total.log()
            case Kl():
                return self.differences.mean - (self.shared_lse() - self.reference.lse())
            case ReferenceKl():
                return self.shared_lse() - self.reference.lse() - self.drawn / self.reference.total
            case TopOne():
                return (self.policy.picked == self.policy.top).to(self.policy.total.dtype)
        raise TypeError(f"{need} is not a statistic of single tokens")
