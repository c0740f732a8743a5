"""Base class of losses over lists of responses to one prompt, and sums over the records of each list."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UserError
from lit_pref.objectives.base import Objective
from lit_pref.objectives.numbers import positive
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores

LABEL = "score"
"""The column with the labels of the responses; the larger one is the better response."""


class Listwise(Objective):
    """A loss of K responses to one prompt, given their labels.

    The score s of a response is the output of a reward model's head, or for a policy beta times its summed log-prob,
    less that of a reference if there is one. Subclasses implement `losses_of_lists`. Every record gets the loss of its
    list, and `PairData.weights` (1/K) lets an optimizer step take the mean over lists: a long list counts no more than
    a short one.

    A list is given by `same` (B, B), which is True where two records are of one list. There are no padded slots.

    Args:
        beta: > 0; 1 for a reward model.

    Raises:
        UsageError: beta is not positive.
    """

    family = "lists"
    requirements = Requirements(max_references=1, columns=frozenset({LABEL}), sides=("chosen",), lists=True)

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = positive(beta, f"{type(self).__name__}: beta")

    @abstractmethod
    def losses_of_lists(self, s: Tensor, y: Tensor, same: Tensor) -> Tensor:
        """Return the loss of each record's list, (B,), from scores (B,), labels (B,) and `same` (B, B)."""

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        if pairs.lists is None or LABEL not in pairs.columns:
            raise UserError(
                f"{type(self).__name__} reads lists of responses with labels, and these data are pairs: name a mapping "
                "of kind list (data.mapping), or choose an objective of pairs, such as BradleyTerry or MMPO"
            )
        s = policy.chosen.scores - references[0].chosen.scores if references else policy.chosen.scores
        s = self.beta * s
        same = pairs.lists[:, None] == pairs.lists
        return ObjectiveOutput(self.losses_of_lists(s, pairs.columns[LABEL].to(s), same), s.detach(), None)


def total(values: Tensor, where: Tensor) -> Tensor:
    """Return, for each record, the sum of `values` (B,) or (B, B) over the records where its row of `where` is True.

    >>> total(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool))
    tensor([3., 3., 5.])
    """
    return torch.where(where, values, 0.0).sum(1)


def log_total_exp(values: Tensor, where: Tensor) -> Tensor:
    """Return, for each record, the logarithm of the sum of exp(values), like `total`; each row includes a record."""
    return torch.where(where, values, -torch.inf).logsumexp(1)
