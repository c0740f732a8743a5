"""The probability that the chosen response is better, which the loss fits."""

from abc import abstractmethod

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.gamma import Gamma
from lit_pref.objectives.parts.part import Part
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class Target(Part):
    """p_i of every pair, (B,), a constant. p < 1/2 is legal: the rejected response is better."""

    @property
    def hard(self) -> bool:
        """p is 1 for every pair."""
        return False

    @property
    def proper(self) -> bool:
        """p is a probability, in [0, 1]."""
        return True

    @property
    def strength(self) -> float | None:
        """gamma, where p = sigmoid(gamma m) with the margin m; None for any other target."""
        return None

    @abstractmethod
    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        """Return p_i, (B,), in the dtype of the scores."""


class Hard(Target):
    """p = 1: the chosen response is certainly better."""

    @property
    def hard(self) -> bool:
        return True

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.ones_like(policy.chosen.scores)


class MarginTarget(Target):
    """p = sigmoid(gamma m): the probability grows with the margin m (MMPO).

    m = 0 gives 1/2 for every gamma; gamma = inf gives 1 (0 for m < 0). Computed in fp32 or better, where it is
    exactly 1 from gamma m = 17 on.

    **Source**: MMPO, arXiv 2410.03145; gamma is `bt_beta` of the authors' code, which takes gamma = 0 for hard labels
    (a truth test on the number); here gamma = 0 is p = 1/2.

    Args:
        gamma: >= 0 or inf (`.inf` in YAML), per unit of the data's margin: gamma = ln 3 makes p = 3/4 at margin 1; or
            `UnitMargin`, given that probability; or `Fitted`, to fit it to the training pairs.
    """

    def __init__(self, gamma: float | Gamma = 1.0) -> None:
        super().__init__()
        if not isinstance(gamma, Gamma) and not gamma >= 0:
            raise UsageError(
                f"MarginTarget: gamma must be >= 0, got {gamma}; "
                "if lower scores are better, say so in the data mapping."
            )
        self.gamma = gamma

    @property
    def strength(self) -> float:
        """gamma as a number.

        Raises:
            UserError: gamma has to be fitted and has not been fitted yet.
        """
        return self.gamma() if isinstance(self.gamma, Gamma) else self.gamma

    requirements = Requirements(columns=frozenset({"margin"}))

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        margin = self.read("margin", policy, pairs)
        # inf * 0 is NaN, and a tie is 1/2 whatever gamma is.
        return torch.where(margin == 0, 0.5, torch.sigmoid(self.strength * margin))


class Smoothed(Target):
    """p = 1 - epsilon for every pair: a label is wrong with probability epsilon (conservative DPO).

    Args:
        epsilon: in [0, 1/2].
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if not 0 <= epsilon <= 0.5:
            raise UsageError(f"Smoothed: epsilon is the share of wrong labels and must be in [0, 0.5], got {epsilon}.")
        self.epsilon = epsilon

    @property
    def hard(self) -> bool:
        return self.epsilon == 0

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.full_like(policy.chosen.scores, 1 - self.epsilon)


class ProbabilityColumn(Target):
    """p from the data: the share of annotators, or a judge's probability, that prefers the chosen response."""

    requirements = Requirements(columns=frozenset({"probability"}))

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return self.read("probability", policy, pairs)


class Unbiased(Target):
    """p = (1 - epsilon) / (1 - 2 epsilon) > 1: unbiased under labels flipped with probability epsilon (robust DPO).

    With the logistic link the loss is [(1 - epsilon) l(x) - epsilon l(-x)] / (1 - 2 epsilon), whose mean over the flips
    is the loss of the clean label. It is unbounded below as x grows: watch `logits`.

    **Source**: Provably Robust DPO, arXiv 2403.00409.

    Args:
        epsilon: in [0, 1/2).
    """

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__()
        if not 0 <= epsilon < 0.5:
            raise UsageError(
                f"Unbiased: epsilon is the share of flipped labels and must be in [0, 0.5), got {epsilon}; "
                "at one half the labels say nothing."
            )
        self.epsilon = epsilon

    @property
    def hard(self) -> bool:
        return self.epsilon == 0

    @property
    def proper(self) -> bool:
        return self.epsilon == 0

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.full_like(policy.chosen.scores, (1 - self.epsilon) / (1 - 2 * self.epsilon))


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy of a coin with this probability, nats.

    >>> entropy(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.6931, 0.0000])
    """
    return torch.special.entr(probability) + torch.special.entr(1 - probability)
