"""DPO with a temperature for each pair."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.temperature import EpsilonStep


class EpsilonDPO(Pairwise):
    """epsilon-DPO: each pair raises or lowers its own beta by a step, and beta follows their mean.

        L = -log sigmoid(beta_i (h_w - h_l)),    beta_i = beta / (1 + epsilon s_i),    s_i as in `EpsilonStep`

    It compares next-token distributions and so needs a live first reference with the policy's vocabulary. epsilon = 0
    is DPO. For bounds on beta take `DPO` with `temperature: EpsilonStep`.

    >>> EpsilonDPO(epsilon=0.02).temperature
    EpsilonStep(epsilon=0.02, first_order=False, minimum=None, maximum=None, harmonic=False)

    **When**: the right beta is unknown and may differ between pairs, and the reference fits into memory beside the
    policy. Not with stored reference scores, which have no next-token distributions.

    **Source**: epsilon-DPO, arXiv 2502.13177, and oddqueue/e-dpo (beta 0.01, epsilon 0.01). Beta moves to the paper's
    arithmetic mean, or with `harmonic` to the code's, which drifts less; see `EpsilonStep`. In that code label
    smoothing has no effect (both terms have the same sign); here it is `target: Smoothed` and works.

    Args:
        beta: > 0, reward units per nat; the start of the moving beta.
        epsilon: relative size of the step, in [0, 1).
        first_order: decide the step by the slope at epsilon = 0 (cheaper) instead of by two tilted policies.
        harmonic: move beta to the harmonic mean of beta_i, as the official code, instead of the arithmetic one.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "derived"
    family = "references and temperature"

    def __init__(
        self,
        beta: float = 0.01,
        epsilon: float = 0.01,
        first_order: bool = False,
        harmonic: bool = False,
        **parts: Any,
    ) -> None:
        step = EpsilonStep(epsilon=epsilon, first_order=first_order, harmonic=harmonic)
        super().__init__(beta=beta, temperature=step, **parts)
