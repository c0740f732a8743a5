"""The masks that transformers builds for the rows of a batch, where it builds any."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface, masking_utils
from transformers.masking_utils import eager_mask, sdpa_mask

from lit_pref.scoring.layout import layout_being_read


def sdpa_mask_of_rows(*args: Any, **kwargs: Any) -> Tensor | None:
    """Return the mask for torch's attention, as `transformers.masking_utils.sdpa_mask`, or None where none is needed.

    Prefix-shared rows need none. Padded rows have their padding on the right, where no token sees it if attention is
    causal: their mask is that of positions alone, which is None for full attention and the window for sliding-window
    attention. On a GPU this holds in half precision, because without a mask transformers leaves grouped heads to
    torch, whose fused kernels do not support them in fp32. Anything else, such as left-padded generation, is read as
    in transformers.
    """
    layout = layout_being_read()
    if layout == "prefix_shared":
        return None
    if layout == "padded" and kwargs.get("allow_is_causal_skip"):
        if _has_fused_grouped_heads(kwargs["device"], kwargs["dtype"]):
            kwargs["attention_mask"] = None
        else:
            # The mask is always built: to look whether rows have padding would be a wait in every forward pass.
            kwargs["allow_is_causal_skip"] = False
    return sdpa_mask(*args, **kwargs)


def eager_mask_of_rows(*args: Any, **kwargs: Any) -> Tensor:
    """Return the mask for attention that a model computes itself, as `transformers.masking_utils.eager_mask`.

    That of padded rows is the mask of positions alone, as in `sdpa_mask_of_rows`. With one for padding too, a padding
    token whose whole window is padding sees no token; in float64 its values are NaN, which reach the others in the next
    layer.
    """
    if layout_being_read() == "padded" and kwargs.get("allow_is_causal_skip"):
        kwargs["attention_mask"] = None
    return eager_mask(*args, **kwargs)


def _has_fused_grouped_heads(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type == "cpu":
        return True
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return autocast or dtype in (torch.bfloat16, torch.float16)


_packed_sequences = masking_utils.find_packed_sequence_indices


def _packed_sequences_of_others(position_ids: Tensor) -> Tensor | None:
    # transformers looks in the positions for packed sequences, a truth value for which the host would wait in every
    # forward pass; a prefix-shared row has no mask that it could matter to.
    return None if layout_being_read() == "prefix_shared" else _packed_sequences(position_ids)


AttentionMaskInterface.register("sdpa", sdpa_mask_of_rows)
AttentionMaskInterface.register("eager", eager_mask_of_rows)
masking_utils.find_packed_sequence_indices = _packed_sequences_of_others
