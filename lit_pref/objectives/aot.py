"""Alignment via optimal transport."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.scores import PairScores


class AOT(Pointwise):
    """Alignment via optimal transport: every quantile of one distribution must exceed that of another.

        L_i = -(1 - s) log sigmoid(beta d_i) - s log sigmoid(-beta d_i),    d_i = a_i - b_j(i)

    j(i) is the pair whose b has the same rank as a_i among the real pairs of the micro-batch. Paired: a and b are the
    differences of log-probs of chosen and rejected response, l_w - l_l of the policy and r_w - r_l of the reference.
    Unpaired: a = h_w and b = h_l, and which rejected response came with which chosen one does not matter.

    **The loss depends on the micro-batch**: quantiles are those of its pairs alone, and the optimizer step takes the
    mean over micro-batches and ranks. A larger `data.micro_batch` estimates them better (by default it is all that the
    device has of a step); accumulation and more ranks do not. With one pair it is DPO: the first lines of a run warn.
    `data.max_tokens` puts pairs of similar lengths together, which are then compared only with each other. Validation
    losses depend on `data.val_batch` likewise. Fillers are left out, and equal values of a are ranked in the order of
    the batch. A weight, target, offset or temperature of a pair would lose its pair in the sorting, so there are none.

    >>> AOT(unpaired=True)
    AOT(beta=0.1, unpaired=True, label_smoothing=0.0)

    **When**: the distribution of rewards counts more than each pair, or chosen and rejected responses come from
    different prompts (unpaired), and micro-batches of dozens of pairs fit the memory. Not otherwise.

    **Source**: AOT, arXiv 2406.05882, with hard sorting and the logistic loss, as TRL 1.16 (`aot`, `aot_unpaired`),
    which sorts the batch of one device.

    Args:
        beta: > 0, reward units per nat.
        unpaired: compare chosen with rejected responses instead of the policy with the reference.
        label_smoothing: s, in [0, 1/2].

    Raises:
        UsageError: beta is not positive, or label_smoothing is out of bounds.
    """

    faithfulness = "derived"
    batch_coupled = True

    def __init__(self, beta: float = 0.1, unpaired: bool = False, label_smoothing: float = 0.0) -> None:
        super().__init__(beta)
        if not 0 <= label_smoothing <= 0.5:
            raise UsageError(f"AOT: label_smoothing must be in [0, 0.5], got {label_smoothing}.")
        self.unpaired, self.label_smoothing = unpaired, label_smoothing

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        above, below = ratios
        if not self.unpaired:
            assert policy.rejected is not None and reference.rejected is not None
            above = policy.chosen.scores - policy.rejected.scores
            below = (reference.chosen.scores - reference.rejected.scores).detach()
        logits = self.beta * (above - below[_same_rank(above, below, pairs.real)])
        smoothing = self.label_smoothing
        return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


@torch.no_grad()
def _same_rank(values: Tensor, others: Tensor, real: Tensor) -> Tensor:
    """Return, for each pair, the index of the real pair whose `others` has the rank of its `values`.

    A filler gets its own index. `real` are the indices of real pairs.
    """
    partner = torch.arange(len(values), device=values.device)
    ranked = real[values[real].argsort(stable=True)]
    partner[ranked] = real[others[real].argsort(stable=True)]
    return partner
