"""The choice of the next token, by random numbers that depend on the sample and not on its batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lit_pref.errors import UsageError

CHUNK = 2**18  # random numbers drawn together on a CPU, so that they stay in its cache
LIKELY = 1024  # tokens among which the nucleus of top-p is looked for before all tokens are sorted
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # constants of splitmix64
MIX_FIRST, MIX_SECOND, TOKEN = 0x7FEB352D, 0x846CA68B - 2**32, 0x9E3779B1 - 2**32  # of the 32-bit hash `lowbias32`


@dataclass(frozen=True)
class Sampling:
    """The distribution from which tokens are drawn.

        y ~ softmax(f / temperature), restricted to the top_k most likely tokens, then to the smallest set of the most
        likely tokens whose probability is at least top_p

    Args:
        temperature: > 0, or 0 for greedy decoding.
        top_p: in (0, 1]; 1 restricts nothing.
        top_k: >= 0; 0 restricts nothing.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature is {self.temperature:g}; it must be 0 (greedy decoding) or above")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p:g}; it must be above 0 and at most 1, which restricts nothing")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}; it must be 0, which restricts nothing, or above")


class TokenChoice(LogitsProcessor):
    """Chooses the next token of each row: returned scores have their maximum at it, so that greedy decoding takes it.

    The token is argmax_v log p_v + G_v, which is a draw from p for independent standard Gumbel variables G_v. These are
    a hash of (key of the row, step, v), so that neither the other rows of a batch nor an earlier batch changes them.
    Rounding of the logits by 1e-6 changes about one token in a million; by inverse transform sampling it would be
    far more, because a sum over the whole vocabulary shifts every boundary.

    `logprobs` has one entry per step: (B,), the log-probs of the chosen tokens under softmax(f).

    Args:
        sampling: the distribution.
        keys: 64 bits for each row, which determine its random numbers.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[int]) -> None:
        self.sampling, self.keys = sampling, keys
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        total = torch.logsumexp(logits, -1)
        if self.sampling.temperature == 0:
            preferred = logits
        else:
            # Below 0 first, so that no temperature makes two of the largest ones infinite.
            below = logits - logits.amax(-1, keepdim=True)
            preferred = restricted(below.div_(self.sampling.temperature), self.sampling)
            add_gumbel(preferred, step_keys(self.keys, len(self.logprobs)))
        chosen = preferred.argmax(-1, keepdim=True)
        self.logprobs.append(logits.gather(-1, chosen).squeeze(-1) - total)
        return preferred


def restricted(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return logits, -inf for tokens outside top-k or top-p; tokens as likely as the last one inside are kept."""
    size = logits.shape[-1]
    if 0 < sampling.top_k < size:
        smallest = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if sampling.top_p < 1:
        total = torch.logsumexp(logits, -1, keepdim=True)
        likely = logits.topk(min(LIKELY, size)).values
        if ((likely - total).exp().sum(-1) < sampling.top_p).any():
            likely = logits.sort(descending=True).values
        before = (likely - total).exp().cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        last = (before < sampling.top_p).sum(-1, keepdim=True) - 1
        logits = logits.masked_fill(logits < likely.gather(-1, last), -math.inf)
    return logits


def step_keys(keys: Sequence[int], step: int) -> list[int]:
    """Return the 64 random bits of each row at one step: splitmix64 of its key and the step."""
    return [_splitmix(key + (step + 1) * STEP) for key in keys]


def _splitmix(state: int) -> int:
    state &= 2**64 - 1
    state = (state ^ state >> 30) * FIRST & 2**64 - 1
    state = (state ^ state >> 27) * SECOND & 2**64 - 1
    return state ^ state >> 31


def add_gumbel(logits: Tensor, keys: Sequence[int]) -> None:
    """Add standard Gumbel noise in place, a hash of the key of each row and the number of the token.

    The hash gives u in steps of 2**-31 above 0, and the noise is -log(-log(1 - u)): its largest values, which decide
    the draw, have the finest steps, so that only tokens less likely than about 1e-9 are drawn too rarely.

    Args:
        logits: (B, V) float32.
        keys: the 64 bits of each row.
    """
    halves = torch.tensor([[_signed(key & 2**32 - 1), _signed(key >> 32)] for key in keys], dtype=torch.int32)
    halves = halves.to(logits.device)
    tokens = torch.arange(logits.shape[-1], dtype=torch.int32, device=logits.device) * TOKEN
    rows = len(logits) if logits.device.type != "cpu" else max(1, CHUNK // logits.shape[-1])
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        bits = tokens ^ halves[part, :1]
        bits ^= (bits >> 16) & 0xFFFF
        bits *= MIX_FIRST
        bits ^= (bits >> 15) & 0x1FFFF
        bits ^= halves[part, 1:]
        bits *= MIX_SECOND
        bits ^= (bits >> 16) & 0xFFFF
        u = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
        logits[part] -= u.neg_().log1p_().neg_().log_()


def _signed(bits: int) -> int:
    return bits - 2**32 if bits >= 2**31 else bits
