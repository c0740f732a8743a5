"""Simple preference optimisation."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.offset import ConstantOffset
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.tokens import Mean


class SimPO(Pairwise):
    """Simple preference optimisation: the reward is beta times the mean log-prob, and must be ahead by gamma.

        L = -log sigmoid(beta (l_w / n_w - l_l / n_l) - gamma)

    There is no reference. beta is larger than DPO's by about the length of a response. Rewards are beta l / n.

    >>> SimPO(gamma=1.0).offset
    ConstantOffset(gamma=1.0)

    **When**: memory or time for a reference is missing, and responses are judged as they are generated, token by token.
    Not for long trainings without watching what the policy writes: nothing holds it near its start.

    **Source**: SimPO, arXiv 2405.14734, and princeton-nlp/SimPO. Units of gamma: here, in the paper and in TRL's
    `simpo_gamma` it is subtracted from the logit; the authors' code and HALOs take gamma / beta (`gamma_beta_ratio`
    0.25 by default), nats per token. TRL adds `cpo_alpha` 1 times the NLL unless it is set to 0: that is `SimPO` with
    `terms: [ChosenNLL]`.

    Args:
        beta: > 0, reward units per nat per token.
        gamma: finite, units of the logit; the paper's are >= 0.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "code"
    family = "reference-free"

    def __init__(self, beta: float = 2.0, gamma: float = 0.5, **parts: Any) -> None:
        super().__init__(beta=beta, reference=NoReference(), tokens=Mean(), offset=ConstantOffset(gamma), **parts)
