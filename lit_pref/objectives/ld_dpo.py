"""Length-desensitised direct preference optimisation."""

from typing import Any

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.tokens import TokenWeights


class TailWeighted(TokenWeights):
    """Gives the tokens beyond the length of the shorter response the weight alpha (LD-DPO).

        h_y = sum_{t <= n} [log pi(y_t) - log pi_ref(y_t)] + alpha sum_{t > n} [...],    n = min(n_w, n_l)

    **Source**: LD-DPO, arXiv 2409.06411.

    Args:
        alpha: in [0, 1]; 1 is `Sum`, 0 ignores these tokens.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise UsageError(f"TailWeighted: alpha weighs the tokens beyond the shorter one; [0, 1], got {alpha}.")
        self.alpha = alpha

    def weights(self, policy: Sides, pairs: PairData) -> Sides:
        assert pairs.rejected_lengths is not None
        shared = torch.minimum(pairs.chosen_lengths, pairs.rejected_lengths)[:, None]

        def of(logps: Tensor) -> Tensor:
            return torch.where(torch.arange(logps.shape[1], device=logps.device) < shared, 1.0, self.alpha).to(logps)

        return of(policy[0]), of(policy[1])


class LDDPO(Pairwise):
    """Length-desensitised DPO: the tokens by which one response is longer than the other count less.

        L = -log sigmoid(beta (h_w - h_l)),    h_y = sum_{t <= n} d_t + alpha sum_{t > n} d_t,    n = min(n_w, n_l)

    d_t = log pi(y_t) - log pi_ref(y_t). alpha = 1 is DPO; alpha = 0 ignores all tokens after the end of the shorter
    response, its end token included in n. Needs log-probs of tokens from the policy and its references.

    >>> LDDPO(alpha=0.3).tokens
    TailWeighted(alpha=0.3)

    **When**: DPO makes the responses longer and the length is not what is preferred. To punish length itself, take
    `offset: LengthOffset`.

    **Source**: LD-DPO, arXiv 2409.06411, whose likelihood is the product of all token probabilities to the power alpha
    and of the first n to the power 1 - alpha; TRL 1.16's `ld_alpha` is the same. The paper's text was not read in full.

    Args:
        beta: > 0, reward units per nat.
        alpha: in [0, 1].
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: alpha is out of bounds.
    """

    faithfulness = "derived"
    family = "tokens and lengths"

    def __init__(self, beta: float = 0.1, alpha: float = 0.5, **parts: Any) -> None:
        super().__init__(beta=beta, tokens=TailWeighted(alpha), **parts)
