"""DPO with weights for the quality of a pair and for what the policy has learned of it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.terms import CalibratedNLL, Term
from lit_pref.objectives.parts.tokens import Mean
from lit_pref.objectives.parts.weight import Weight
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class QualityAndFit(Weight):
    """sigmoid(eta m) (1 - sigmoid(beta (a_w - a_l) - tau_ref))^gamma, a = l / n: high for clear pairs not yet learned.

    The gradient passes through the second factor, as in the focal loss. Arguments: those of `OmniDPO`.
    """

    requirements = Requirements(columns=frozenset({"margin"}))
    log_probs_only = True
    differentiable = True

    def __init__(self, beta: float = 2.0, eta: float = 0.7, tau_ref: float = 0.8, gamma: float = 3.0) -> None:
        super().__init__()
        if not (0 <= eta < math.inf and 0 <= gamma < math.inf):
            raise UsageError(f"QualityAndFit: eta and gamma must be finite and >= 0, got {eta} and {gamma}.")
        self.beta, self.eta, self.tau_ref, self.gamma = beta, eta, tau_ref, gamma

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        assert policy.rejected is not None
        chosen, rejected = (side.scores / side.lengths for side in (policy.chosen, policy.rejected))
        learned = self.beta * (chosen - rejected) - self.tau_ref
        quality = torch.sigmoid(self.eta * self.read("margin", policy, pairs))
        return quality * torch.exp(self.gamma * F.logsigmoid(-learned))


class OmniDPO(Pairwise):
    """Omni-DPO: weighs DPO's loss per token by a pair's quality and by how little the policy has learned of it.

        L = -w_q w_p log sigmoid(beta (h_w / n_w - h_l / n_l)) - lambda 1[h_w < 0, s_w >= tau_good] l_w / n_w
        w_q = sigmoid(eta m),    w_p = (1 - sigmoid(beta (l_w / n_w - l_l / n_l) - tau_ref))^gamma

    gamma = 0, eta = 0 and lambda = 0 give half of DPO's loss per token.

    >>> OmniDPO().terms[0]
    CalibratedNLL(coefficient=0.001, tau_good=3.2)

    **When**: the responses have scores, and pairs differ much in quality. Not with margins that are all alike, or if
    the loss is to be read: its size depends on the weights.

    **Source**: Omni-DPO, arXiv 2506.10054 (called Uni-DPO in later versions), and pspdada/Uni-DPO, with its settings
    for Llama-3-8B. w_p has no reference and is differentiated, as there.

    Args:
        beta: > 0, reward units per nat per token.
        eta: >= 0, weight's log-odds per unit of the margin.
        tau_ref: the policy's own margin beta (a_w - a_l) at which a pair counts as learned.
        gamma: >= 0, focal exponent.
        lambd: >= 0, lambda; with 0 no `score_chosen` is read.
        tau_good: score from which on a chosen response is good.
        terms: further losses, each with its coefficient.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "code"
    family = "margins"

    def __init__(
        self,
        beta: float = 2.0,
        eta: float = 0.7,
        tau_ref: float = 0.8,
        gamma: float = 3.0,
        lambd: float = 0.001,
        tau_good: float = 3.2,
        terms: list[Term] | None = None,
        **parts: Any,
    ) -> None:
        own = [CalibratedNLL(lambd, tau_good)] if lambd else []
        weight = QualityAndFit(beta, eta, tau_ref, gamma)
        super().__init__(beta=beta, tokens=Mean(), weight=weight, terms=[*own, *(terms or [])], **parts)
