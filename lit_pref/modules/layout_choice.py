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

    `auto` takes the padded layout if the model does not support prefix sharing, or if pairs are so short that two
    attention calls per pair take longer than the tokens they save. Measured on a CPU, a pair costs 300 µs per layer,
    and a token in a layer of width H about 11 + 0.0016 H² µs; the rule is the same on every device, so that a run can
    move.

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
    width = model.configuration().get_text_config().hidden_size
    if saved * (width**2 + 7_000) < 200_000:
        return "padded", f"such short pairs ({saved:.0f} tokens saved per pair) are read faster with padding"
    return "prefix_shared", f"saves about {saved:.0f} of {saved + lengths.sum(1).mean():.0f} tokens per pair"


def tokens_saved(lengths: NDArray[Any]) -> float:
    """Tokens per pair that the prefix-shared layout saves over the padded one; negative if rows are uneven.

    The 0.9 quantile of row lengths is used as the longest row of a batch, whatever its size.

    >>> tokens_saved(numpy.array([[10, 4, 6], [10, 6, 4]]))
    12.0
    """
    sides = 2 if lengths[:, 2].any() else 1
    rows = lengths[:, :1] + lengths[:, 1 : 1 + sides]
    return float(sides * numpy.quantile(rows, 0.9) - lengths.sum(1).mean())
