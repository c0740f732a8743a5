"""Models with sliding-window attention that cannot compute in float64."""

from typing import Any

import torch


def window_remedy(model: Any) -> str | None:
    """Return what to do about scores that are not finite, if the model's dtype and window explain them; else None.

    In float64, transformers' eager attention masks by the lowest float64 and takes the softmax in float32, in which
    that is -inf: a position whose whole window is padding has no probabilities. Gemma-2 has no other attention.

    Args:
        model: a Hugging Face causal LM, or a PeftModel of one.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    eager = getattr(config, "_attn_implementation", None) == "eager"
    if not window or not eager or not getattr(config, "use_sliding_window", True) or model.dtype != torch.float64:
        return None
    return (
        f"set its dtype to float32 or keep pairs within its window of {window} tokens (data.max_length): in float64, "
        "the eager attention of transformers gives no numbers where padding fills the whole window"
    )
