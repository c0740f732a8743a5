"""DPO with one temperature for each batch, and without its outliers."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.batch_adaptive import BatchAdaptive


class BetaDPO(Pairwise):
    """beta-DPO: one beta for each micro-batch, larger if its pairs are far apart, and a filter of outliers.

        L = -log sigmoid(beta_b (h_w - h_l)) for the kept pairs,    beta_b = max(floor, beta (1 + alpha (A - M)))

    A is the mean of h_w - h_l over the kept pairs of the micro-batch and M its moving mean; pairs far from M are likely
    to be left out: see `BatchAdaptive`. The loss is the mean over the kept pairs. **It depends on the micro-batch**:
    `data.micro_batch` should have dozens of pairs. alpha = 0 with filtered = 0 is DPO. Validation uses beta and all
    pairs. beta_b grows without bound with the gap: watch `beta`.

    >>> BetaDPO(alpha=0.8).temperature
    BatchAdaptive(alpha=0.8, momentum=0.9, filtered=0.2, floor=0.001)

    **When**: the data mix clear and nearly equal pairs, some of them outliers, and micro-batches are large. Not with
    micro-batches of a few pairs, where A is noise; see `EpsilonDPO` for a beta of each pair.

    **Source**: beta-DPO, arXiv 2407.08639, and junkangwu/beta-DPO (alpha is its `a`, 0.6, with beta 0.1; filtered is
    its `mode_weight`, 0.2). Differences: `BatchAdaptive` lists those of the state; that code draws the filter on each
    rank from its own random state, rounds the number of kept pairs down, and divides by each rank's own number of them;
    here rewards use beta_b, there beta.

    Args:
        beta: > 0, reward units per nat.
        alpha: finite, >= 0, per nat.
        filtered: share of the pairs of a micro-batch that is left out, in [0, 1).
        momentum: share of the past in the moving mean and deviation, in [0, 1).
        floor: beta_b never goes below this, > 0; at most beta.
        parts: the other parts of `Pairwise`.
    """

    faithfulness = "code"
    family = "references and temperature"

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 0.6,
        filtered: float = 0.2,
        momentum: float = 0.9,
        floor: float = 1e-3,
        **parts: Any,
    ) -> None:
        temperature = BatchAdaptive(alpha=alpha, momentum=momentum, filtered=filtered, floor=floor)
        super().__init__(beta=beta, temperature=temperature, **parts)
