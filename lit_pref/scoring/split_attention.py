"""Attention of a response to its prompt and to itself, in two parts without a mask. Depends on torch only."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
SAFE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)
"""Whether the kernels are known to take grouped heads: the backward kernel of torch 2.6 ends the process there."""


class SplitAttention(torch.autograd.Function):
    """Attention of queries to all keys of a prompt and, causally, to the keys of their own response.

    The kernel computes the two parts apart, neither of which needs a mask: o₁ over the prompt and o₂ over the response,
    with the logarithms ℓ₁ and ℓ₂ of their sums of exponentials. The whole is `o = o₁ exp(ℓ₁ - ℓ) + o₂ exp(ℓ₂ - ℓ)` with
    `ℓ = log(exp ℓ₁ + exp ℓ₂)`. The gradient of an attention reads its output and ℓ only, so each part's backward kernel
    is given o and ℓ, and its weights are then those of the whole.

    The mask that one call would need is as large as queries times keys, and half of the response's part of it is
    computed for nothing.

    >>> q = k = v = torch.ones(1, 1, 4, 2)
    >>> SplitAttention.apply(q, k, v, k, v, None).shape
    torch.Size([1, 1, 4, 2])
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, p_key: Tensor, p_value: Tensor, key: Tensor, value: Tensor, scale: Any) -> Any:
        to_prompt, log_prompt = _flash(query, p_key, p_value, 0.0, False, scale=scale)
        to_own, log_own = _flash(query, key, value, 0.0, True, scale=scale)
        log_both = torch.logaddexp(log_prompt, log_own)
        # The logarithms are at least fp32, and so is the sum, which is rounded once to the dtype of the values.
        output = to_prompt * (log_prompt - log_both).exp().unsqueeze(-1)
        output = output.addcmul_(to_own, (log_own - log_both).exp().unsqueeze(-1)).to(query.dtype)
        ctx.save_for_backward(query, p_key, p_value, key, value, output, log_both)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, p_key, p_value, key, value, output, log_both = ctx.saved_tensors
        parts = [
            _flash_backward(gradient, query, k, v, output, log_both, 0.0, causal, scale=ctx.scale)
            for k, v, causal in ((p_key, p_value, False), (key, value, True))
        ]
        return parts[0][0] + parts[1][0], *parts[0][1:], *parts[1][1:], None


def takes_split(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether the kernel takes these dtypes, sizes and grouped heads: whether torch itself would choose it."""
    if query.device.type != "cpu" or not SAFE:
        return False
    choice = torch._fused_sdp_choice(query, key, value, enable_gqa=query.shape[1] != key.shape[1])
    return choice == SDPBackend.FLASH_ATTENTION.value
