"""The attention of shared rows, against its own meaning spelled out as a mask, and against separate sequences."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from varlen_signatures import torch_2_12

from lit_pref.scoring import prefix_attention as sharing
from lit_pref.scoring.prefix_attention import PrefixSharedAttention
from lit_pref.scoring.split_attention import SAFE
from lit_pref.scoring.varlen import VarlenKernel

SEGMENTS = ((3, 2, 4), (1, 5, 1), (4, 1, 0))  # the last pair is one-sided
TOKENS = 9 + 7 + 5


def inputs(dtype=torch.float64, key_heads=2, value_size=8, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, tokens, 8), (1, key_heads, tokens, 8), (1, key_heads, tokens, value_size)]
    return [torch.randn(s, generator=generator, dtype=dtype, requires_grad=True) for s in shapes]


def separately(query, key, value, scale):
    """Every response on its own: what is repeated is the prompt."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    outputs, start = [], 0
    for p, c, r in SEGMENTS:
        prompt, chosen = range(start, start + p), range(start + p, start + p + c)
        rejected = range(start + p + c, start + p + c + r)
        rows = {}
        for own in (chosen, rejected):
            at = [*prompt, *own]
            rows[own] = scaled_dot_product_attention(
                query[:, :, at], key[:, :, at], value[:, :, at], is_causal=True, scale=scale
            )
        outputs += [rows[chosen], rows[rejected][:, :, p:]]
        start += p + c + r
    return torch.cat(outputs, dim=2)


def with_mask(query, key, value, scale):
    mask = PrefixSharedAttention(SEGMENTS).mask(query.dtype)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)


def one_call(query, key, value, scale):
    attention = PrefixSharedAttention(SEGMENTS)
    return attention._one_call(VarlenKernel.of(torch_2_12), query, key, value, scale)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("value_size", [8, 6])  # the kernel of `SplitAttention` does not support 6 beside keys of 8
@pytest.mark.parametrize("way", ["two calls a pair", "mask", "one call"])
def test_every_way_is_attention_over_separate_responses_with_its_gradients(way, value_size, key_heads):
    ways = {
        "two calls a pair": lambda *t: PrefixSharedAttention(SEGMENTS)(*t, 0.3),
        "mask": lambda *t: with_mask(*t, 0.3),
        "one call": lambda *t: one_call(*t, 0.3),
    }
    tensors = inputs(key_heads=key_heads, value_size=value_size)
    found, expected = ways[way](*tensors), separately(*tensors, 0.3)
    assert found.shape == (1, 4, TOKENS, value_size)
    assert (found - expected).abs().max() < 1e-14
    weights = torch.randn(expected.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), tensors),
        torch.autograd.grad((expected * weights).sum(), tensors),
        strict=True,
    ):
        assert (ours - theirs).abs().max() < 1e-13


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(output) if isinstance(t, torch.Tensor))])
        return output


@pytest.mark.skipif(not SAFE, reason="older kernels are not used, and the mask is as large as that")
def test_no_tensor_of_tokens_times_tokens_is_made_on_a_cpu():
    segments = ((100, 50, 400), (60, 200, 300))
    tensors = inputs(torch.float32, tokens=1110)
    with Largest() as largest:
        PrefixSharedAttention(segments)(*tensors, None).square().sum().backward()
    assert largest.elements == 4 * 1110 * 8, "queries of the whole row; a mask has 400 x 500 elements or more"


@pytest.mark.skipif(not SAFE, reason="the backward kernel of older torch ends the process with grouped heads")
def test_the_split_and_a_mask_agree_in_long_rows_of_many_blocks(monkeypatch):
    segments, found = ((700, 30, 900), (1, 3, 600), (513, 2, 1)), []
    tensors = inputs(tokens=sum(map(sum, segments)))
    weights = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for split in (True, False):
        monkeypatch.setattr(sharing, "takes_split", lambda *of, split=split: split)
        output = PrefixSharedAttention(segments)(*tensors, 0.7)
        found.append([output, *torch.autograd.grad((output * weights).sum(), tensors)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-12


def test_a_missing_scale_is_that_of_the_head_size():
    tensors = inputs()
    found = PrefixSharedAttention(SEGMENTS)(*tensors, None)
    assert (found - PrefixSharedAttention(SEGMENTS)(*tensors, 8**-0.5)).abs().max() < 1e-14


def test_nothing_of_one_response_reaches_the_other_nor_another_pair():
    query, key, value = inputs()
    output = PrefixSharedAttention(SEGMENTS)(query, key, value, 0.3)
    (gradient,) = torch.autograd.grad(output[:, :, 5:9].sum(), value)  # the rejected response of the first pair
    reached = gradient.abs().sum((0, 1, 3)) > 0
    assert reached.tolist() == [True] * 3 + [False] * 2 + [True] * 4 + [False] * 12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_lower_precisions_differ_by_their_rounding_only(dtype, tolerance):
    tensors = [t.detach().to(dtype) for t in inputs()]
    found = PrefixSharedAttention(SEGMENTS)(*tensors, 0.3)
    assert found.dtype == dtype
    assert (found.double() - separately(*(t.double() for t in tensors), 0.3)).abs().max() < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_gradients_in_lower_precisions_differ_by_their_rounding_only(dtype, tolerance):
    tensors = [t.detach().to(dtype).requires_grad_() for t in inputs()]
    whole = [t.detach().double().requires_grad_() for t in tensors]
    found, expected = PrefixSharedAttention(SEGMENTS)(*tensors, 0.3), separately(*whole, 0.3)
    for ours, theirs in zip(
        torch.autograd.grad(found.float().square().sum(), tensors),
        torch.autograd.grad(expected.square().sum(), whole),
        strict=True,
    ):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


def test_a_row_of_another_length_is_refused():
    query, key, value = inputs()
    with pytest.raises(ValueError, match="one row of 9 tokens"):
        PrefixSharedAttention(((3, 2, 4),))(query, key, value, None)
    with pytest.raises(ValueError, match="one row of 21 tokens"):
        PrefixSharedAttention(SEGMENTS)(torch.cat([query, query]), key, value, None)
