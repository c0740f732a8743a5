"""Which layout a run takes: never by timings or free memory, or a resumed run could take another."""

from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from lit_pref.errors import UsageError
from lit_pref.models.prefix_sharing import prefix_sharing_obstacle
from lit_pref.models.spec import ModelSpec
from lit_pref.scoring.layout import Layout


def decide_layout(
    asked: Literal["auto", "prefix_shared", "padded"], policy: ModelSpec, lengths: NDArray[Any]
) -> tuple[Layout, str]:
    """The layout, and why in words.

    Left to itself: padded where the model cannot share, and where pairs are so short that two attention calls a pair
    take longer than the tokens that they save. Measured on a CPU, a pair costs 300 µs a layer, and a token of a layer
    of width H about 11 + 0.0016 H² µs; the rule is the same on every device, so that a run can move.

    Args:
        asked: for.
        policy: the model.
        lengths: (pairs, 3), tokens of prompt, chosen and rejected response; rejected 0 for one-sided data.

    Raises:
        UsageError: Shared rows were asked for, and the model cannot read them.
    """
    if asked == "padded":
        return "padded", "as asked"
    reason = prefix_sharing_obstacle(policy)
    if reason is None and asked == "prefix_shared":
        return "prefix_shared", "as asked"
    if asked == "prefix_shared":
        raise UsageError(f"model.layout is shared, and {policy.describe()} cannot: {reason}; set it to padded or auto")
    if reason is not None:
        return "padded", reason
    saved = tokens_saved(lengths)
    width = policy.configuration().get_text_config().hidden_size
    if saved * (width**2 + 7_000) < 200_000:
        return "padded", f"pairs this short ({saved:.0f} tokens saved a pair) are read faster with padding"
    return "prefix_shared", f"saves about {saved:.0f} of {saved + lengths.sum(1).mean():.0f} tokens a pair"


def tokens_saved(lengths: NDArray[Any]) -> float:
    """Tokens a pair that the shared layout does not read, and the padded one does; negative where rows are uneven.

    The nine-tenths quantile stands for the longest row of a batch, whatever its size.

    >>> tokens_saved(numpy.array([[10, 4, 6], [10, 6, 4]]))
    12.0
    """
    sides = 2 if lengths[:, 2].any() else 1
    rows = lengths[:, :1] + lengths[:, 1 : 1 + sides]
    return float(sides * numpy.quantile(rows, 0.9) - lengths.sum(1).mean())
