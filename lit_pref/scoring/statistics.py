"""Values of tokens, accumulated over tiles of logits: log-probs, entropies, comparisons with a reference."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lit_pref.scores import Entropy, Kl, Need, SumSquares, Tilt, TopOne
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


class Statistics:
    """The requested statistics of N tokens, from tiles of the policy's logits f and the reference's logits g."""

    def __init__(self, policy: LogProbs, needs: Iterable[Need], like: Tensor) -> None:
        n = len(policy.top)
        self.policy, self.reference = policy, LogProbs(n, like)
        self.needs = tuple(dict.fromkeys(needs))
        self.tilted = {need: LogProbs(n, like) for need in self.needs if isinstance(need, Tilt)}
        summed = (need for need in self.needs if isinstance(need, Entropy | Kl | SumSquares))
        self.sums: dict[Need, Tensor] = {need: like.new_zeros(n) for need in summed}  # relative to the policy's top

    def add(
        self, f: Tensor, e: Tensor, fade: Tensor, g: Tensor | None, position: TilePosition, workspace: Workspace
    ) -> None:
        """Add a tile: f, `e = exp(f - top)` as written by `policy.add`, and g, which is overwritten."""
        scratch = workspace("scratch", position)
        for need in self.needs:
            match need:
                case Tilt() if g is not None:
                    x = torch.lerp(f, g, -need.epsilon, out=scratch)
                    self.tilted[need].add(x, position, out=x)
                case Entropy():
                    self._add(need, torch.mul(e, f, out=scratch), fade, position)
                case SumSquares():
                    self._add(need, torch.mul(e, e, out=scratch), fade.square(), position)
                case Kl() if g is not None:
                    self._add(need, torch.sub(f, g, out=scratch).mul_(e), fade, position)
        if g is not None and Kl() in self.sums:
            self.reference.add(g, position, out=g)

    def _add(self, need: Need, tile: Tensor, fade: Tensor, position: TilePosition) -> None:
        sums = self.sums[need]
        sums[position.rows] = sums[position.rows] * fade + tile.sum(1)

    def value(self, need: Need) -> Tensor:
        """Return the statistic (N,); its equation is in the docstring of its class."""
        match need:
            case Tilt():
                return self.tilted[need].value()
            case Entropy():
                return self.policy.lse() - self.sums[need] / self.policy.total
            case SumSquares():
                return self.sums[need] / self.policy.total.square()
            case Kl():
                return self.sums[need] / self.policy.total - (self.policy.lse() - self.reference.lse())
            case TopOne():
                return (self.policy.picked == self.policy.top).to(self.policy.total.dtype)
        raise TypeError(f"{need} is not a statistic of single tokens")
