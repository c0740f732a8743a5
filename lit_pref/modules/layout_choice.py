"""Chooses the layout of a run's batches by the data's lengths and the model's configuration.

Timings and free memory are not used: with them, a resumed run could choose another layout.
"""

from typing import Any

import numpy
from numpy.typing import NDArray

from lit_pref.errors import UsageError
from lit_pref.hints import did_you_mean
from lit_pref.models.prefix_sharing import prefix_sharing_obstacle
from lit_pref.models.spec import ModelSpec
from lit_pref.scoring.layout import Layout

LAYOUTS = ("auto", "prefix_shared", "padded")


def check_layout(asked: str) -> None:
    """Refuse a name that is not a layout.

    Raises:
        UsageError: The name is not in `LAYOUTS`.
    """
    if asked == "shared":
        raise UsageError("the layout `shared` is now called `prefix_shared`: set model.layout to prefix_shared")
    if asked not in LAYOUTS:
        hint = did_you_mean(str(asked), LAYOUTS)
        raise UsageError(f"model.layout is {asked!r}; it must be auto, prefix_shared or padded{hint}")


def decide_layout(asked: str, model: ModelSpec, lengths: NDArray[Any]) -> tuple[Layout, str]:
    """Return the layout, and the reason for it as text.

    `auto` takes the padded layout if the model does not support prefix sharing, or if pairs are so short that the
    attention calls per pair take longer than what they save; see `microseconds_saved`. The rule is the same on every
    device, so that a run can move.

    Args:
        asked: one of `LAYOUTS`.
        model: the model that reads the batches.
        lengths: (pairs, 3), tokens of prompt, chosen and rejected response; rejected is 0 for one-sided data.

    Raises:
        UsageError: `prefix_shared` is set, and the model does not support it.
    """
    if asked == "padded":
        return "padded", "as asked"
    reason = prefix_sharing_obstacle(model)
    if reason is None and asked == "prefix_shared":
        return "prefix_shared", "as asked"
    if asked == "prefix_shared":
        raise UsageError(
            f"model.layout is prefix_shared, and {model.describe()} cannot read it: {reason}; set it to padded or auto"
        )
    if reason is not None:
        return "padded", reason
    saved = tokens_saved(lengths)
    if microseconds_saved(lengths, model.configuration().get_text_config()) < 0:
        return "padded", f"such short pairs ({saved:.0f} tokens saved per pair) are read faster with padding"
    return "prefix_shared", f"saves about {saved:.0f} of {saved + lengths.sum(1).mean():.0f} tokens per pair"


def microseconds_saved(lengths: NDArray[Any], config: Any) -> float:
    """Time per pair and layer that the prefix-shared layout saves over the padded one; negative if it takes longer.

    A model of what was measured on a CPU, forward and backward: a pair costs 320 µs, a token in a layer of width H
    11.2 + 0.0016 H² µs, and attention of a query to a key 2.5 + 0.165 D ns in each head of size D.

    Args:
        lengths: (pairs, 3), as for `decide_layout`.
        config: the configuration of a text model.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or width // heads
    product = heads * (2.5 + 0.165 * head_size) / 1_000
    return tokens_saved(lengths) * (11.2 + 0.0016 * width**2) + attention_saved(lengths) * product - 320.0


def attention_saved(lengths: NDArray[Any]) -> float:
    """Products of a query and a key per pair that the prefix-shared layout saves over the padded one.

    A causal row of n tokens takes n² / 2 of them. Rows of different lengths are padded, and with a mask nothing of a
    row is skipped, so each takes as many as the square of the longest. See `tokens_saved` for what that is.

    >>> attention_saved(numpy.array([[10, 6, 6]]))  # 2 rows of 16² / 2; 16² / 2 + 6 · 10 + 6² / 2
    50.0
    """
    prompt, chosen, rejected = lengths.astype(float).T
    rows = _rows(lengths)
    padded = rows.shape[1] * numpy.quantile(rows, 0.9) ** 2
    if rows.min() == rows.max():
        padded /= 2
    return float(padded - ((prompt + chosen) ** 2 / 2 + rejected * prompt + rejected**2 / 2).mean())


def tokens_saved(lengths: NDArray[Any]) -> float:
    """Tokens per pair that the prefix-shared layout saves over the padded one; negative if rows are uneven.

    The 0.9 quantile of row lengths is used as the longest row of a batch, whatever its size.

    >>> tokens_saved(numpy.array([[10, 4, 6], [10, 6, 4]]))
    12.0
    """
    rows = _rows(lengths)
    return float(rows.shape[1] * numpy.quantile(rows, 0.9) - lengths.sum(1).mean())


def _rows(lengths: NDArray[Any]) -> NDArray[Any]:
    """Tokens of the padded rows of each pair: two, or one for one-sided data."""
    sides = 2 if lengths[:, 2].any() else 1
    return lengths[:, :1] + lengths[:, 1 : 1 + sides]
