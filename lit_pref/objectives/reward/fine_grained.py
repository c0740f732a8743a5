"""Token rewards from edits."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.base import Objective
from lit_pref.objectives.parts.tokens import edits
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores, SequenceScores, TokenRewards


class FineGrained(Objective):
    """Fine-grained supervision: a reward model learns the reward of every token from a minimal edit.

        L = -1/(|E_w| + |E_l|) [sum_{t in E_w} log sigmoid(r_w,t) + sum_{t in E_l} log sigmoid(-r_l,t)]

    r are the scalar head's outputs. The chosen response is an edit of the rejected one; E_w are its tokens that the
    edit inserted, E_l the tokens of the rejected one that the edit removed (see `edits`). Tokens that both share
    are not trained. The reward of a response is the mean over its tokens. Two equal responses have the loss 0.

    >>> FineGrained().requirements.max_references
    0

    **When**: the better response was made by editing the worse one, and rewards are wanted where the fault is. Not for
    responses written independently, all of whose tokens are in E. To train a policy on such pairs, see `BMC`, or weigh
    tokens by your own spans with `tokens: ColumnTokens`.

    **Source**: reconstruction of the token-level reward model of "Aligning Large Language Models via Fine-grained
    Supervision", arXiv 2406.02756, of which only the abstract was read: the edits and a reward of every token are the
    paper's, this loss is ours. The paper then trains the policy by PPO on these rewards, which is not here.
    """

    faithfulness = "reconstruction"
    family = "reward models"
    requirements = Requirements(
        max_references=0, statistics=frozenset({TokenRewards()}), token_functions={"edits": edits}
    )

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        marks = pairs.token_column("edits")
        assert policy.rejected is not None and marks[1] is not None
        chosen, rejected = policy.chosen.statistics[TokenRewards()], policy.rejected.statistics[TokenRewards()]
        inserted, removed = marks[0].to(chosen), marks[1].to(rejected)
        total = -(inserted * F.logsigmoid(chosen)).sum(1) - (removed * F.logsigmoid(-rejected)).sum(1)
        return ObjectiveOutput(
            losses=total / (inserted.sum(1) + removed.sum(1)).clamp(min=1),
            chosen_rewards=_mean(policy.chosen),
            rejected_rewards=_mean(policy.rejected),
        )


def _mean(response: SequenceScores) -> Tensor:
    return response.statistics[TokenRewards()].detach().sum(1) / response.lengths
