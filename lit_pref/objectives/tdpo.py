"""Token-level direct preference optimisation."""

from typing import Any

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.numbers import finite, positive
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.offset import Offset
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores, ReferenceKl


class KlOffset(Offset):
    """o = scale (K_l - K_w): the policy may not move further from its reference on one response than on the other.

        K_y = sum_t KL(pi_ref(. | y_<t) || pi(. | y_<t)),    against the first reference, with gradient

    **Source**: TDPO, arXiv 2404.11999; see `TDPO`.

    Args:
        scale: finite, units of the logit per nat.
        detach_chosen: take K_w as a constant, so that the loss does not raise it.
    """

    log_probs_only = True
    sums_only = "KlOffset is a sum over tokens, as the log-ratio must be: choose `tokens: Sum`, or `offset: NoOffset`."
    requirements = Requirements(min_references=1, statistics=frozenset({ReferenceKl()}))

    def __init__(self, scale: float = 0.05, detach_chosen: bool = True) -> None:
        super().__init__()
        self.scale, self.detach_chosen = finite(scale, "KlOffset: scale"), detach_chosen

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        assert policy.rejected is not None
        chosen, rejected = (side.statistics[ReferenceKl()] for side in (policy.chosen, policy.rejected))
        return self.scale * (rejected - (chosen.detach() if self.detach_chosen else chosen))


class TDPO(Pairwise):
    """Token-level DPO: DPO that also balances the KL divergence from the reference over both responses.

        TDPO2:  L = -log sigmoid(beta [h_w - h_l - alpha (K_l - sg K_w)])
        TDPO1:  L = -log sigmoid(beta [h_w - h_l - (K_l - K_w)])       alpha 1, detach_chosen false

    K_y = sum_t KL(pi_ref(. | y_<t) || pi(. | y_<t)), and sg takes it as a constant. The loss lowers K_l; TDPO1 also
    raises K_w, without a bound, which TDPO2 does not. alpha = 0 is DPO. Compares next-token distributions and so needs
    a live first reference with the policy's vocabulary; its backward pass computes that reference's logits again.

    >>> TDPO(alpha=0.5).offset
    KlOffset(scale=0.05, detach_chosen=True)

    **When**: DPO drifts far from its reference, above all on rejected responses. Not with stored reference scores,
    which have no next-token distributions, or if the memory for a second model is short.

    **Source**: TDPO, arXiv 2404.11999, eq. 14 to 18, and Vance0124/Token-level-Direct-Preference-Optimization (alpha
    0.5, beta 0.1, RMSprop with learning rate 5e-6; TDPO1 is advised for low learning rates, TDPO2 for high ones).
    There K_y is a part of the logged rewards; here rewards are beta h_y. Under a `temperature` that varies, the offset
    keeps the `beta` given here.

    Args:
        beta: > 0, reward units per nat.
        alpha: >= 0, weight of the divergences; 1 for TDPO1.
        detach_chosen: take K_w as a constant, as TDPO2 does; false for TDPO1.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: alpha is negative or not finite.
    """

    faithfulness = "derived"
    family = "tokens and lengths"

    def __init__(self, beta: float = 0.1, alpha: float = 0.5, detach_chosen: bool = True, **parts: Any) -> None:
        if not 0 <= alpha < float("inf"):
            raise UsageError(f"TDPO: alpha weighs the divergences and must be finite and >= 0, got {alpha}.")
        scale = positive(beta, "TDPO: beta") * alpha
        super().__init__(beta=beta, offset=KlOffset(scale, detach_chosen=detach_chosen), **parts)
