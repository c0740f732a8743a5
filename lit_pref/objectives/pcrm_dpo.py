"""Prior constraints on the rewards of a policy."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.target import Smoothed
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.reward.pcrm import Cap, Similarity


class PCRMDPO(Pairwise):
    """PCRM's form of DPO: the reward difference is bounded softly, and the more so the more similar the responses are.

        L = l(x) + l(delta - x),    l(x) = -(1 - epsilon) log sigmoid(x) - epsilon log sigmoid(-x)
        x = beta (h_w - h_l),       delta = b1 / (s + b2) + b3

    With epsilon = 0 a pair has its minimum at x = delta / 2, and a large delta gives DPO. With epsilon > 0 it does not
    give `CDPO`: the second term is linear far below delta, with the slope -epsilon.

    >>> PCRMDPO(epsilon=0.1).target
    Smoothed(epsilon=0.1)

    **When**: reward differences grow without end on pairs that hardly differ. Not if the margin itself is known: see
    `MMPO` and `SquaredMargin`, which set the difference for each pair.

    **Source**: PCRM, arXiv 2404.00978, and wangclnlp/DeepSpeed-Chat-Extension, branch PCRM (DPO fine-tuning), with b of
    30, 0.001, -25 for s the raw cosine of text embeddings, and 20, 0.001, -15 for the ratio of lengths. That code sums
    log-probs from the first differing token on; the tokens before it have the same log-probs in both responses, so
    that the difference is the same here. `PCRM` is the form for reward models.

    Args:
        beta: > 0, reward units per nat.
        epsilon: probability of a wrong label, in [0, 1/2].
        b1: numerator of delta, > 0.
        b2: addition to the similarity, > 0.
        b3: addition to delta.
        similarity: s in [0, 1]; default `LengthRatio`; the code's cosine is `CosineColumn` with `angular: false`.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: b1 or b2 is not positive, epsilon is out of range, or a number is not finite.
    """

    faithfulness = "code"
    family = "margins"

    def __init__(
        self,
        beta: float = 0.1,
        epsilon: float = 0.0,
        b1: float = 20.0,
        b2: float = 0.001,
        b3: float = -15.0,
        similarity: Similarity | None = None,
        terms: list[Term] | None = None,
        **parts: Any,
    ) -> None:
        cap = Cap(b1, b2, b3, similarity, epsilon)
        super().__init__(beta=beta, target=Smoothed(epsilon), terms=[cap, *(terms or [])], **parts)
