"""Several rewards at once, by a margin from the other rewards."""

import math
from typing import Any

from lit_pref.errors import UsageError
from lit_pref.objectives.numbers import positive
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.offset import ColumnsOffset, NoOffset


class MODPO(Pairwise):
    """Multi-objective DPO: trains the preference of the pairs, of weight w_0, beside other rewards that are known.

        L = -log sigmoid((1 / w_0) [beta (h_w - h_l) - sum_k w_k (R_k,w - R_k,l) - length (n_w - n_l)])

    R_k are rewards of both responses, two columns of the data each (`NAME_chosen`, `NAME_rejected`); n_y is the length
    in tokens. The optimum maximises w_0 times the preference's reward plus sum_k w_k R_k plus length n. w_0 = 1 without
    other rewards is DPO, and with `length` alone it is R-DPO. Gradients grow as 1 / w_0. Rewards are beta / w_0 times
    the log-ratios, without R_k.

    Rewards of other *policies* need no columns: name the policies as further references and add
    `reference: ImplicitRewards` with their weights w_k.

    >>> MODPO({"help": 0.4, "harm": -0.1}).offset
    ColumnsOffset(columns={'help': 0.4, 'harm': -0.1}, scale=1.4285714285714286, length=0.0)

    **When**: the pairs prefer by one criterion and the data score both responses by others; one run for each trade-off.
    Not if a single preference already weighs the criteria.

    **Source**: MODPO, arXiv 2310.03708, and ZHZisZZ/modpo (beta 0.1; w_0 of 0.1, 0.5, 0.9 with w_1 = 1 - w_0). R_k must
    be in units of beta times nats, as the rewards of a DPO model are; standardise others. That code logs rewards with
    the R_k, and rounds lengths above 256 tokens to bf16 in its example; here they are exact.

    Args:
        rewards: NAME of each other reward and its finite weight w_k; {} for none.
        beta: > 0, reward units per nat.
        w0: > 0, the weight of the pairs' own preference; default 1 - sum_k w_k.
        length: weight of the length, per token; negative makes responses shorter.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: w_0 is not positive, or a weight is not finite.
    """

    faithfulness = "code"
    family = "several rewards"

    def __init__(
        self,
        rewards: dict[str, float],
        beta: float = 0.1,
        w0: float | None = None,
        length: float = 0.0,
        **parts: Any,
    ) -> None:
        own = 1 - math.fsum(rewards.values()) if w0 is None else w0
        if not 0 < own < math.inf:
            how = "1 minus the sum of rewards" if w0 is None else "as given"
            raise UsageError(
                f"MODPO: w0, the weight of the pairs' own preference, must be positive and finite; {how} it is {own}."
            )
        offset = ColumnsOffset(rewards, scale=1 / own, length=length) if rewards or length else NoOffset()
        super().__init__(beta=positive(beta, "MODPO: beta") / own, offset=offset, **parts)
