"""Binary classifier optimisation."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.pointwise import Pointwise
from lit_pref.scores import PairScores


class BCO(Pointwise):
    """Binary classifier optimisation: a classifier of single responses, chosen or rejected, by their rewards.

        L = -log sigmoid(beta h_w - delta) - log sigmoid(delta - beta h_l)

    h_y = log pi(y | x) - log pi_ref(y | x). delta is the mean reward of all responses, chosen and rejected, of the
    optimizer steps so far; it is 0 in the first one and constant within a step. It lets the two classes part where the
    rewards are, and not at 0.

    >>> BCO(beta=0.1).progress
    {'delta': 0.0}

    **When**: labels of single responses (thumbs up or down), which were paired only for this loss. With true pairs DPO
    uses more of what is known.

    **Source**: BCO, arXiv 2404.04656. delta as in earlier versions of TRL (`bco_pair`), which also counted the present
    micro-batch and took the mean of micro-batches; here it is the mean over responses of all ranks, changes only
    after an optimizer step, and is checkpointed. TRL 1.16 dropped delta: its loss is this one's in the first step. The
    paper's weights for responses to different prompts (underlying distribution matching) are not here.

    Args:
        beta: > 0, reward units per nat.
    """

    faithfulness = "derived"

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)
        self.total: Tensor
        self.count: Tensor
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))  # sum of the rewards so far
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))  # number of these responses
        self._window: Tensor | None = None  # the same two sums within the current optimizer step

    def losses(self, ratios: Sides, policy: PairScores, reference: PairScores, pairs: PairData) -> Tensor:
        chosen, rejected = self.beta * ratios[0], self.beta * ratios[1]
        if self.training:
            rewards = torch.stack([chosen.detach(), rejected.detach()])[:, pairs.real].double()
            seen = torch.stack([rewards.sum(), torch.full_like(self.total, rewards.numel())])
            self._window = seen if self._window is None else self._window + seen
        delta = (self.total / self.count.clamp(min=1)).to(chosen.dtype)
        return -F.logsigmoid(chosen - delta) - F.logsigmoid(delta - rejected)

    def update(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        window = self.total.new_zeros(2) if self._window is None else self._window
        rewards, responses = all_reduce(window).unbind()
        self._window = None
        self.total += rewards
        self.count += responses

    @property
    def progress(self) -> dict[str, float]:
        return {"delta": float(self.total) / max(float(self.count), 1.0)}
