"""By what training pairs are chosen: the margin of the data, that of the policy, both, chance, entropy, certainty."""

import hashlib
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.selection.selection import Pool, Selection
from lit_pref.errors import UsageError

Array = NDArray[Any]


class AlignmentPotential(Selection):
    """What the data say beyond what the policy says already: explicit minus implicit margin.

        normalise (default)   z(|m|) - weight * z(|h_w - h_l|),   z(x) = (x - mean x) / std x over all training pairs
        raw                   |m| - |beta (h_w - h_l)|

    m is the margin of the data, h_w - h_l the implicit margin of the policy before its first step: without a reference
    (default) mean log-probs, h_y = log pi(y|x) / |y|, the reward of SimPO; with one h_y = log pi(y|x) / pi_ref(y|x),
    the reward of DPO. A pair that the policy ranks wrongly and with confidence scores low, because |.| is taken:
    `signed` lets it score high.

    In z-scores a spread counts as a spread, whatever it is worth, and `beta` and the scale of m vanish: the choice
    does not change if m is multiplied or shifted. Explicit and implicit margin on one scale is the raw form.

    >>> from lit_pref.data.selection.selection import Logps
    >>> pool = Pool(["a", "b"], np.array(["p", "p"]), np.array(["", ""]), {"margin": np.array([4.0, 1.0])},
    ...             Logps(np.array([[-30.0, -45.0], [-40.0, -42.0]]), np.array([[20, 25], [25, 20]])))
    >>> AlignmentPotential(normalise=False, beta=2.5, keep=0.5).choose(pool).scores.round(6).tolist()
    [3.25, -0.25]

    **Source**: Huang et al., Larger or Smaller Reward Margins to Select Preferences for LLM Alignment?, arXiv
    2503.01864, and Hesse73/Alignment-Potential-Metric. The default is what that code computes, checked against it: its
    `rm-logp` is weight 1 and its `rm-xlogp` any weight (2.5 in its scripts of self-play); std divides by N and
    floor(0.4 N) pairs are kept. The raw form is the paper's, from memory and not checked. Differences: the code's
    explicit margin is the largest less the smallest of five scores of one prompt, here it is the pair's own
    (`margin_column` names another); a spread of 0 gives z = 0 where the code divides by it; ties have an order; what
    is kept is shuffled later, where the code writes it in the order of scores.

    Args:
        weight: >= 0, of the implicit margin's z-score.
        normalise: z-scores; else the raw form.
        beta: > 0, units of the margin per nat (without a reference: per nat a token); of the raw form, and only there.
        reference: false, mean log-probs without one; true, the run's first; or a folder or hub name.
        signed: leave out the absolute values: m - (h_w - h_l).
        margin_column: what is read as m.
        common: see `Selection`.
    """

    reads_policy = True

    def __init__(
        self,
        weight: float = 1.0,
        normalise: bool = True,
        beta: float | None = None,
        reference: bool | str = False,
        signed: bool = False,
        margin_column: str = "margin",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if normalise != (beta is None) or (beta is not None and not 0 < beta < math.inf):
            raise UsageError(
                f"data.selection: AlignmentPotential with normalise {str(normalise).lower()} and beta {beta}: z-scores "
                "(normalise true) have no beta, and the raw form (normalise false) needs one above 0"
            )
        if not 0 <= weight < math.inf or (weight != 1 and not normalise):
            why = "beta is the weight of the raw form" if not normalise else "it must be at least 0 and finite"
            raise UsageError(f"data.selection.weight is {weight:g}; {why}")
        self.weight, self.normalise, self.beta = weight, normalise, beta
        self.reference, self.signed, self.margin_column = reference, signed, margin_column
        self.unit = "standard deviations" if normalise else f"units of `{margin_column}`"

    def scores(self, pool: Pool) -> Array:
        explicit, implicit = self._sides(pool)
        if self.normalise:
            return zscores(explicit) - self.weight * zscores(implicit)
        assert self.beta is not None
        return explicit - self.beta * implicit

    def _sides(self, pool: Pool) -> tuple[Array, Array]:
        sides = self.margins(pool), self.implicit_margins(pool)
        return sides if self.signed else (np.abs(sides[0]), np.abs(sides[1]))

    def notes(self, pool: Pool) -> list[str]:
        explicit, implicit = self._sides(pool)
        names = {f"`{self.margin_column}`": explicit, "the policy's implicit margin": implicit}
        notes = [
            f"{name} is {values[0]:.4g} in every pair and does not count in the choice"
            for name, values in names.items()
            if not np.ptp(values)
        ]
        if not self.normalise or notes:
            return notes
        notes.append(
            "explicit and implicit margin must be on one scale, and z-scores only make their spreads equal: "
            f"{np.std(explicit):.3g} of `{self.margin_column}` counts as much as "
            f"{np.std(implicit) / self.weight if self.weight else math.inf:.3g} {self.implicit_unit} of the policy's, "
            "whatever each is worth; normalise: false with beta compares them in units of the margin"
        )
        if self.reference is False:
            notes.append(
                "without a reference the policy's side is a difference of mean log-probs: which text is the more "
                "ordinary one, token for token, also to a policy that has learnt no preference yet"
            )
        return notes


class ExplicitMargin(Selection):
    """The margin of the data, |m|: the clearest preferences at the top.

    **Source**: `rm_margin`, a baseline of arXiv 2503.01864 (there as z-scores, which order pairs in the same way).
    Checked against the authors' code, whose margin is that of the extremes of five scores; see `AlignmentPotential`.

    Args:
        signed: m itself, for a column whose sign says something: the margin of oriented pairs is never negative.
        margin_column: what is read as m.
        common: see `Selection`.
    """

    def __init__(self, signed: bool = False, margin_column: str = "margin", **common: Any) -> None:
        super().__init__(**common)
        self.signed, self.margin_column = signed, margin_column
        self.unit = f"units of `{margin_column}`"

    def scores(self, pool: Pool) -> Array:
        return self.margins(pool) if self.signed else np.abs(self.margins(pool))


class ImplicitMargin(Selection):
    """What the policy prefers already, |h_w - h_l|: at the bottom (default) the pairs on which it is undecided.

    h_y = log pi(y|x) / |y| without a reference, h_y = log pi(y|x) / pi_ref(y|x) with one, in nats. At the bottom and
    `signed` are the pairs that it ranks most wrongly.

    **Source**: `logp_margin_norm_abs`, a baseline of arXiv 2503.01864, which keeps the top of -z(|h_w - h_l|): the
    same pairs. Checked against the authors' code; `signed` and `reference` are ours.

    Args:
        signed: h_w - h_l itself.
        reference: false, mean log-probs without one; true, the run's first; or a folder or hub name.
        which: see `Selection`.
        common: see `Selection`.
    """

    reads_policy = True

    def __init__(
        self,
        signed: bool = False,
        reference: bool | str = False,
        which: Literal["top", "bottom"] = "bottom",
        **common: Any,
    ) -> None:
        super().__init__(which=which, **common)
        self.signed, self.reference = signed, reference
        self.unit = self.implicit_unit

    def scores(self, pool: Pool) -> Array:
        margins = self.implicit_margins(pool)
        return margins if self.signed else np.abs(margins)


class Random(Selection):
    """By chance: the share of its prompts, lengths and margins is that of all pairs. The baseline of every choice.

    A pair's number is a hash of `seed` and its id, so a larger choice contains the smaller one, and further pairs
    change no pair's number.

    Args:
        seed: another one chooses others.
        common: see `Selection`.
    """

    def __init__(self, seed: int = 0, **common: Any) -> None:
        super().__init__(**common)
        self.seed = seed

    def scores(self, pool: Pool) -> Array:
        digests = (hashlib.sha256(f"{self.seed}/{id}".encode()).digest() for id in pool.ids)
        return np.array([int.from_bytes(digest[:6]) / 2**48 for digest in digests])


class PredictiveEntropy(Selection):
    """How surprised the policy is by the responses at hand: H = -(log pi(y_w|x) + log pi(y_l|x)) / 2, in nats.

    **Source**: Muldrew et al., Active Preference Learning for Large Language Models, arXiv 2402.08114, where
    H(x) = -(1/N) Σ_n log pi(y_n|x) over responses that the policy itself has sampled; reconstructed from summaries of
    the paper. Here it is an offline estimate over the two responses of the pair: those of another writer are less
    likely than the policy's own, so that it is their cross-entropy, and it grows with their length.

    Args:
        per_token: of each response the mean over its tokens instead of the sum.
        common: see `Selection`.
    """

    reads_policy = True

    def __init__(self, per_token: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.per_token, self.unit = per_token, "nats a token" if per_token else "nats"

    def scores(self, pool: Pool) -> Array:
        assert pool.policy is not None
        return -(pool.policy.means if self.per_token else pool.policy.sums).mean(axis=1)


class Certainty(Selection):
    """How clearly policy and reference part on a pair: |beta (h_w - h_l)|, h_y = log pi(y|x) / pi_ref(y|x).

    The largest are pairs on which the policy has a decided opinion, most worth a label where that may be wrong.

    **Source**: preference certainty of arXiv 2402.08114; reconstructed from summaries of the paper, which chooses
    among fresh prompts with two sampled responses and labels only the chosen. Here pairs are labelled already.

    Args:
        beta: > 0, reward per nat; it changes no order, only the unit of `threshold`.
        reference: true, the run's first; or a folder or hub name. It must not be the policy itself.
        common: see `Selection`.
    """

    reads_policy = True
    unit = "units of the reward"

    def __init__(self, beta: float = 0.1, reference: bool | str = True, **common: Any) -> None:
        super().__init__(**common)
        if not 0 < beta < math.inf:
            raise UsageError(f"data.selection.beta is {beta:g}; it must be above 0 and finite")
        if reference is False:
            raise UsageError(
                "data.selection: Certainty compares with a reference; set reference to true or a folder, or choose by "
                "ImplicitMargin, which needs none"
            )
        self.beta, self.reference = beta, reference

    def scores(self, pool: Pool) -> Array:
        return self.beta * np.abs(self.implicit_margins(pool))


def zscores(values: Array) -> Array:
    """(x - mean) / std, the std over N; 0 where all values are the same. The same bits in every order of the values.

    >>> zscores(np.array([3.0, 5.0])).tolist(), zscores(np.array([0.1, 0.1, 0.1])).tolist()
    ([-1.0, 1.0], [0.0, 0.0, 0.0])
    """
    if not len(values) or values.max() == values.min():
        return np.zeros(len(values))
    centred = values - math.fsum(values) / len(values)
    return centred / math.sqrt(math.fsum(centred * centred) / len(values))
