"""Regression of a reward model on given scores."""

from collections.abc import Sequence

import torch

from lit_pref.batch import PairData
from lit_pref.errors import UserError
from lit_pref.objectives.base import Objective
from lit_pref.objectives.numbers import finite
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores


class ScoreRegression(Objective):
    """Least squares on the scores that the data give each response.

        L = ((r_w - a s_w)^2 + (r_l - a s_l)^2) / 2

    s_w and s_l are the columns `score_chosen` and `score_rejected`, a is `scale`.

    >>> sorted(ScoreRegression().requirements.columns)
    ['score_chosen', 'score_rejected']

    **When**: each response has a score on one scale, and the reward should be on that scale. Not if only the order of
    two responses can be trusted, as with ratings of different annotators.

    **Source**: own formulation of the regression heads of HelpSteer2 (arXiv 2406.08673) for pairs.

    Args:
        scale: a, finite and not 0, reward per unit of the data's scores.
        column: the beginning of the two columns' names.
    """

    faithfulness = "derived"
    family = "reward models"
    rewards_only = True

    def __init__(self, scale: float = 1.0, column: str = "score") -> None:
        super().__init__()
        self.scale, self.column = finite(scale, "ScoreRegression: scale"), column

    @property
    def requirements(self) -> Requirements:
        return Requirements(max_references=0, columns=frozenset({f"{self.column}_chosen", f"{self.column}_rejected"}))

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        assert policy.rejected is not None
        losses = torch.zeros_like(policy.chosen.scores)
        for side, name in ((policy.chosen, "chosen"), (policy.rejected, "rejected")):
            given = pairs.columns.get(f"{self.column}_{name}")
            if given is None:
                raise UserError(
                    f"ScoreRegression reads the column `{self.column}_{name}`, which these data do not have: name the "
                    "scores in the data mapping, or choose BradleyTerry"
                )
            losses = losses + (side.scores - self.scale * given.to(side.scores.dtype)).square() / 2
        return ObjectiveOutput(losses, policy.chosen.scores.detach(), policy.rejected.scores.detach())
