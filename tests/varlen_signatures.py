"""`torch.nn.attention.varlen.varlen_attn` with the signatures of its versions, in plain torch; it runs on CUDA only."""

from typing import Any

import torch
from torch import Tensor


def _attention(
    query: Tensor, key: Tensor, value: Tensor, ends: tuple[Tensor, Tensor], longest: tuple[int, int], **how: Any
) -> Tensor:
    """Sequence n of the queries over sequence n of the keys, whose causal mask is aligned at their last tokens."""
    assert [t.dtype for t in ends] == [torch.int32] * 2
    lengths = [own.diff().tolist() for own in ends]
    assert longest == tuple(max(own) for own in lengths)
    outputs = []
    for q, k, v in zip(query.split(lengths[0]), key.split(lengths[1]), value.split(lengths[1]), strict=True):
        sees = torch.ones(len(q), len(k), dtype=torch.bool).tril(0 if how.get("top_left") else len(k) - len(q))
        if how.get("grouped"):
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        assert q.shape[1] == k.shape[1], "the kernels of these versions take as many heads of keys as of queries"
        scale = how.get("scale") or q.shape[-1] ** -0.5
        logits = torch.einsum("qhd,khd->hqk", q, k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(~sees, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and return_aux is None
    return _attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k))


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert window_size == (-1, 0) and return_aux is None
    return _attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), scale=scale)


def torch_2_12(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    assert window_size == (-1, 0) and return_aux is seqused_k is block_table is num_splits is None
    return _attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), scale=scale, grouped=enable_gqa)


def top_left(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """A kernel whose causal mask is aligned at the first tokens, which raises nothing."""
    how = {"grouped": enable_gqa, "top_left": True}
    return _attention(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), **how)


VERSIONS = {"2.10": torch_2_10, "2.11": torch_2_11, "2.12": torch_2_12}
