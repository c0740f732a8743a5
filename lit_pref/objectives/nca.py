"""Noise contrastive alignment."""

import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.scores import PairScores


class NCA(Pointwise):
    """Noise contrastive alignment: fits rewards themselves, so that the chosen response's probability does not fall.

        L = -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l),    r_y = beta h_y

    h_y = log pi(y | x) - log pi_ref(y | x). The chosen side has its minimum at r_w = ln 2, that is h_w = ln 2 / beta
    nats; r_l falls without a bound, with a gradient that vanishes.

    >>> NCA(beta=0.01)
    NCA(beta=0.01)

    **When**: DPO lowers the probability of the chosen responses too, and they are texts that the policy should write.
    Not if a large gap is all that counts.

    **Source**: NCA, arXiv 2402.05369, for two responses with the labels 1 and 0, as in TRL 1.16 (`nca_pair`). The
    paper's form for K responses with graded rewards, and its InfoNCA, which is DPO for such a pair, are not here.

    Args:
        beta: > 0, reward units per nat.
    """

    faithfulness = "derived"

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        chosen, rejected = self.beta * ratios[0], self.beta * ratios[1]
        return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2
