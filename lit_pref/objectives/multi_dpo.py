"""The mean of the DPO losses against several references."""

from collections.abc import Sequence
from typing import Any

import torch

from lit_pref.batch import PairData
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.part import Sides
from lit_pref.objectives.parts.reference import ClippedGeometric, MixOutput
from lit_pref.objectives.parts.temperature import TemperatureOutput
from lit_pref.scores import ObjectiveOutput, PairScores


class MultiDPO(Pairwise):
    """Multi-DPO: the weighted mean of the DPO losses against K references; the baseline of MRPO.

        L = sum_k a_k (-log sigmoid(beta [(l_w - l_l) - (r^_k,w - r^_k,l)])),    r^_k and a_k as in `Harmonic`

    The mean is outside of the loss: with the mean inside it is DPO against `ClippedGeometric`, whose loss is never
    larger. References that disagree pull against each other here instead of being mixed first. Rewards, logged values
    and the `temperature` are those against that mixture: the weighted means of those against each reference. One
    reference gives DPO.

    >>> MultiDPO(weights=[1, 1]).reference
    ClippedGeometric(eta=0.1, adaptive=True, weights=[1, 1])

    **When**: as the baseline of `MRPO` and of `ClippedGeometric`, at their cost. Compare with `DPO` on each reference
    alone first.

    **Source**: the baseline `mref_naive` of thaihungle/MRPO (MRPO, arXiv 2405.16388), which clips as MRPO does and has
    a_k on the same side as here, written for K = 2. It adds 1e-6 to the denominator of a_k only, and logs rewards
    against the anchor.

    Args:
        beta: > 0, reward units per nat.
        eta: relative width of the interval around the anchor's log-prob, >= 0.
        adaptive: divide eta between the responses by their log-probs.
        weights: K relative weights >= 0, or None for adaptive ones.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "code"
    family = "references and temperature"
    reference: ClippedGeometric

    def __init__(
        self,
        beta: float = 0.1,
        eta: float = 0.1,
        adaptive: bool = True,
        weights: list[float] | None = None,
        **parts: Any,
    ) -> None:
        reference = ClippedGeometric(eta=eta, adaptive=adaptive, weights=weights)
        super().__init__(beta=beta, reference=reference, **parts)

    def compare(
        self,
        scores: Sides,
        mix: MixOutput,
        temperature: TemperatureOutput,
        policy: PairScores,
        references: Sequence[PairScores],
        pairs: PairData,
    ) -> ObjectiveOutput:
        compare = super().compare
        output = compare(scores, mix, temperature, policy, references, pairs)
        with torch.no_grad():
            own = torch.stack([torch.stack(self.tokens(one, policy, pairs)) for one in references])  # (K, 2, B)
        each = [
            compare(scores, ((chosen, rejected), {}), temperature, policy, references, pairs).losses
            for chosen, rejected in self.reference.clip(own)
        ]
        output.losses = (self.reference.weigh(own) * torch.stack(each)).sum(0)
        return output
