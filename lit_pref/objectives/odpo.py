"""Direct preference optimisation with an offset."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.offset import MarginOffset


class ODPO(Pairwise):
    """DPO with an offset: the chosen response must be ahead by alpha log m, m being the quality margin.

        L = -log sigmoid(beta (h_w - h_l) - alpha log m)

    alpha = 0 is DPO; at m = 1 the offset is 0, below it is negative. The loss has no minimum: the offset says how far a
    pair is pushed at least, where `MMPO` says how far. Margins must be positive.

    >>> ODPO(alpha=0.5).offset
    MarginOffset(alpha=0.5)

    **When**: the data say how much better the chosen response is, on a scale with a meaningful zero. Not with ties, or
    if a larger gap is no better: see `MMPO` or `SquaredMargin`.

    **Source**: ODPO, arXiv 2402.10571, and rycolab/odpo (`loss=odpo`): beta 0.7 and alpha 0.5 for sentiment, beta 0.05
    for toxicity and 0.5 for summaries, both with alpha 1. There a tie has the offset -inf and drops out without a word;
    here it is refused. Its option `ratio` is a margin column with the ratio of the two scores.

    Args:
        beta: > 0, reward units per nat.
        alpha: finite, units of the logit per e-fold of the margin; the paper's are >= 0.
        parts: the other parts of `Pairwise`.

    Raises:
        UserError: on `forward`, if a margin is not positive.
    """

    faithfulness = "code"
    family = "margins"

    def __init__(self, beta: float = 0.1, alpha: float = 1.0, **parts: Any) -> None:
        super().__init__(beta=beta, offset=MarginOffset(alpha), **parts)
