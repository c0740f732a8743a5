"""Hybrid preference optimisation."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import ObjectiveOutput, PairScores, PromptValue


class HPO(Pairwise):
    """Hybrid preference optimisation: a preference loss plus likelihood weighted by auxiliary rewards.

        L   = L_pairs - gamma mean_y[min(e^(A_y / lam), clip) log pi(y | x) / n_y] + L_V
        L_V = mean_y[|tau - 1(A_y < 0)| A_y^2],    A_y = R_y - V(x),    R_y = sum_k c_k R_k,y

    y is each response of the pair. V is a linear head on the policy's last hidden state of the prompt. L_V alone trains
    it, and not the policy, so it is an expectile of the rewards. gamma = 0 trains the policy by L_pairs.

    >>> HPO({"safety": 1.0}).requirements.statistics
    frozenset({PromptValue(rate=0.001)})

    **When**: numbers say what else responses should be (safe, short, readable). Not if one difference of rewards is
    enough (`ColumnsOffset`). Bring rewards to a scale of about 1; a gradient that is clipped includes the head's.

    **Source**: HPO, arXiv 2405.17956. The paper's method was not at hand: the loss is rebuilt from descriptions of it
    (advantage-weighted likelihood, values by expectile regression, as in IQL), and constants are guesses.

    Args:
        rewards: NAME of each reward and its finite weight c_k; columns of the data `NAME_chosen` and `NAME_rejected`.
        beta: > 0, reward units per nat.
        gamma: >= 0, the weight of the likelihood.
        lam: > 0, temperature of the advantage, in units of the rewards.
        tau: the expectile, in [0.5, 1).
        clip: > 0, the largest weight of a response.
        value_rate: > 0, learning rate of the head.
        parts: the other parts of `Pairwise`.

    Raises:
        UsageError: an argument is out of range.
    """

    faithfulness = "reconstruction"
    family = "several rewards"
    log_probs_only = True

    def __init__(
        self,
        rewards: dict[str, float],
        beta: float = 0.1,
        gamma: float = 0.1,
        lam: float = 1.0,
        tau: float = 0.7,
        clip: float = 20.0,
        value_rate: float = 1e-3,
        **parts: Any,
    ) -> None:
        super().__init__(beta=beta, **parts)
        if not rewards or not all(math.isfinite(weight) for weight in rewards.values()):
            raise UsageError(f"HPO: rewards are NAME: weight with finite weights, at least one, got {rewards}.")
        if not (0 <= gamma < math.inf and 0.5 <= tau < 1 and all(0 < v < math.inf for v in (lam, clip, value_rate))):
            given = f"gamma {gamma}, tau {tau}, lam {lam}, clip {clip} and value_rate {value_rate}"
            raise UsageError(f"HPO: gamma must be >= 0, tau in [0.5, 1) and the others > 0, finite, got {given}.")
        self.rewards, self.gamma, self.lam, self.tau, self.clip = rewards, gamma, lam, tau, clip
        self.value = PromptValue(value_rate)

    @cached_property
    def requirements(self) -> Requirements:
        columns = frozenset(f"{name}_{side}" for name in self.rewards for side in ("chosen", "rejected"))
        return super().requirements | Requirements(columns=columns, statistics=frozenset({self.value}))

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        output = super().forward(policy, references, pairs)
        assert policy.rejected is not None
        value = policy.chosen.statistics[self.value]
        columns = [(c, pairs.columns[f"{k}_chosen"], pairs.columns[f"{k}_rejected"]) for k, c in self.rewards.items()]
        advantages = sum(c * torch.stack(sides).to(value) for c, *sides in columns) - value  # (2, B)
        weights = (advantages.detach() / self.lam).clamp(max=math.log(self.clip)).exp()
        logps = torch.stack([own.scores / own.lengths for own in (policy.chosen, policy.rejected)])
        of_value = ((self.tau - (advantages.detach() < 0).to(value)).abs() * advantages.square()).mean(0)
        output.losses = output.losses - self.gamma * (weights * logps).mean(0) + of_value
        output.logged |= {"prompt_value": value.detach(), "value_loss": of_value.detach()}
        output.logged["advantage_weight"] = weights.mean(0)
        return output
