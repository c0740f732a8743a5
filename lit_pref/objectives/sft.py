"""Supervised fine-tuning on the chosen responses."""

from collections.abc import Sequence

from lit_pref.batch import PairData
from lit_pref.objectives.base import Objective
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores


class SFT(Objective):
    """Supervised fine-tuning: the negative log-prob of the chosen response, nats per response token.

        L = -l_w / n_w

    Rejected responses are not read and may be absent; there is no reference. The reward is the summed log-prob l_w.

    >>> SFT().requirements.sides
    ('chosen',)

    **When**: before preference training, if the policy does not write such responses yet; as a baseline, it shows
    what the rejected responses add.

    **Source**: cross-entropy on the response, as in DPO's first stage (arXiv 2305.18290, section 4). TRL averages over
    all tokens of the pairs, so that long responses count more; here every pair counts the same, regardless of batches,
    ranks and accumulation.
    """

    faithfulness = "derived"
    family = "basic"
    log_probs_only = True
    requirements = Requirements(max_references=0, sides=("chosen",))

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        logps = policy.chosen.scores
        return ObjectiveOutput(
            losses=-logps / policy.chosen.lengths, chosen_rewards=logps.detach(), rejected_rewards=None
        )
