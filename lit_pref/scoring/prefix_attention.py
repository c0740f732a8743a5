"""Attention over prefix-shared rows, `[prompt | chosen | rejected]` pair after pair."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lit_pref.device_data import without_waiting
from lit_pref.scoring.gather import GatheredRows
from lit_pref.scoring.split_attention import SplitAttention, takes_split
from lit_pref.scoring.varlen import KERNEL, Ends, VarlenKernel

_MASKED_TOKENS = 4096
"""The longest row for which a mask is built: 64 MiB in fp32."""

Segments = tuple[tuple[int, int, int], ...]


class PrefixSharedAttention:
    """`softmax(scale · q kᵀ) v` where a query attends only to its own response and its prompt, causally.

    A token of the prompt or the chosen response attends to the earlier tokens of `[prompt | chosen]`; a token of the
    rejected response attends to the prompt and to the earlier tokens of the rejected response. So every pair is two
    sequences of queries, `[prompt | chosen]` over itself and `rejected` over `[prompt | rejected]`, and nothing is
    computed for masked pairs of tokens.

    On a CPU each pair takes a causal call for the first, and `SplitAttention` for the second, so no mask is built and
    memory grows linearly with T; where its kernel does not support the sizes, the second is a call with a mask. On CUDA
    it is one call of a kernel for sequences of different lengths (`VarlenKernel`); in fp32, which that kernel does not
    support, and where it fails its test, one call with an additive T x T mask, or two calls per pair if the mask would
    be large. The CUDA paths have been tested on a CPU only, with functions of the kernel's signatures in plain torch.

    Args:
        segments: tokens of (prompt, chosen, rejected) of each pair, in the order of the row.

    >>> q = k = v = torch.ones(1, 1, 4, 2)
    >>> PrefixSharedAttention(((2, 1, 1),))(q, k, v, scale=1.0).shape
    torch.Size([1, 1, 4, 2])
    """

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.calls = 0
        self._built: dict[Any, Any] = {}

    @property
    def tokens(self) -> int:
        """T, the number of tokens of the row."""
        return sum(map(sum, self.segments))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Compute the attention of one row.

        Args:
            query: (1, heads, T, head size).
            key: (1, key heads, T, head size); every key head is shared by heads / key heads heads.
            value: (1, key heads, T, value size).
            scale: None is 1 / √head size.

        Returns:
            (1, heads, T, value size).

        Raises:
            ValueError: T is not the sum of the segments.
        """
        if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == value.shape[2] == self.tokens:
            raise ValueError(f"one row of {self.tokens} tokens, but queries {tuple(query.shape)}, keys {key.shape}")
        self.calls += 1
        kind = query.device.type
        if torch.is_autocast_enabled(kind) and query.dtype != torch.float64:
            # Rotary embeddings leave queries and keys in fp32, and the kernels need one dtype.
            query, key, value = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key, value))
        if kind == "cuda" and KERNEL is not None and KERNEL.takes(query, key, value, scale):
            return self._one_call(KERNEL, query, key, value, scale)
        if kind == "cuda" and self.tokens <= _MASKED_TOKENS:
            mask = self._once("mask", query, lambda: self.mask(query.dtype, query.device))
            return _attend(query, key, value, scale, mask)
        return self._two_calls_a_pair(query, key, value, scale)

    def _two_calls_a_pair(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        sizes = [size for p, c, r in self.segments for size in (p + c, r)]
        # `split` is used instead of slices, because each slice's gradient would be a zero tensor as large as the whole
        # row.
        queries, keys, values = (iter(t.split(sizes, dim=2)) for t in (query, key, value))
        split, outputs = takes_split(query, key, value), []
        for n, (p, c, r) in enumerate(self.segments):
            q, k, v = next(queries), next(keys), next(values)
            outputs.append(_attend(q, k, v, scale, causal=True))
            q, own_k, own_v = next(queries), next(keys), next(values)
            if not r:
                continue
            k, v = (t.split([p, c], dim=2)[0] for t in (k, v))
            if split:
                outputs.append(SplitAttention.apply(q, k, v, own_k, own_v, scale))
            else:
                bias = self._once(f"bias {n}", query, partial(_bottom_right, r, p + r, query))
                k, v = torch.cat([k, own_k], dim=2), torch.cat([v, own_v], dim=2)
                outputs.append(_attend(q, k, v, scale, bias))
        return torch.cat(outputs, dim=2)

    def _one_call(self, kernel: VarlenKernel, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        keys, ends = self._once("sequences", query, partial(self._sequences, query.device))
        q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))  # (T, heads, size)
        return kernel(q, keys(k), keys(v), ends, scale).transpose(0, 1).unsqueeze(0)

    def _once(self, name: str, like: Tensor, build: Callable[[], Any]) -> Any:
        """Call `build` at the first layer and return its cached result at all others."""
        key = name, like.dtype, like.device
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]

    def _sequences(self, device: torch.device) -> tuple[GatheredRows, Ends]:
        """Return the keys of all sequences as rows of the row's keys, and the ends of the sequences, on the device."""
        queries, keys, read, start = list[int](), list[int](), list[int](), 0
        for p, c, r in self.segments:
            prompt, rejected = range(start, start + p), range(start + p + c, start + p + c + r)
            queries += [p + c] + [r] * (r > 0)
            keys += [p + c] + [p + r] * (r > 0)
            read += [*range(start, start + p + c), *([*prompt, *rejected] if r else [])]
            start += p + c + r
        rows = GatheredRows.of(read)
        parts = [rows.index, rows.first, rows.last, *map(_ends, (queries, keys))]
        packed = without_waiting(torch.cat(parts), device)
        index, first, last, ends_q, ends_k = packed.split([len(part) for part in parts])
        return GatheredRows(index, first, last), Ends(ends_q, ends_k, max(queries), max(keys))

    def mask(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Return the equivalent additive mask (1, 1, T, T): 0 where a token attends to another, -inf elsewhere."""
        visible = torch.zeros(self.tokens, self.tokens, dtype=torch.bool, device=device)
        start = 0
        for p, c, r in self.segments:
            end = start + p + c
            visible[start:end, start:end] = True
            visible[end : end + r, start : start + p] = True
            visible[end : end + r, end : end + r] = True
            start = end + r
        return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible.tril_(), -torch.inf)[None, None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, bias: Tensor | None = None, causal: bool = False
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and bias is not None and query.device.type == "cuda":
        # For grouped heads with a bias, torch would choose a kernel that materialises heads x T x T.
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        grouped = False
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _bottom_right(queries: int, keys: int, like: Tensor) -> Tensor:
    """Return an additive bias with which query i attends to the keys up to i + (keys - queries)."""
    bias = torch.full((queries, keys), -torch.inf, dtype=like.dtype, device=like.device)
    return bias.triu_(keys - queries + 1)


def _ends(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
