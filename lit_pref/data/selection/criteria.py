"""Selection criteria: margins of the data, of the policy, or of both; random choice, entropy, and certainty."""

import hashlib
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.selection.selection import Pool, Selection
from lit_pref.errors import UsageError

Array = NDArray[Any]


class AlignmentPotential(Selection):
    """Scores a pair by explicit minus implicit margin: the preference that the policy has not learnt yet.

        normalise (default)   z(|m|) - weight * z(|h_w - h_l|),   z(x) = (x - mean x) / std x over all training pairs
        raw                   |m| - |beta (h_w - h_l)|

    m is the margin of the data, h_w - h_l the implicit margin of the policy before its first step: without a reference
    (default) mean log-probs, h_y = log pi(y|x) / |y|, the reward of SimPO; with one h_y = log pi(y|x) / pi_ref(y|x),
    the reward of DPO. A pair that the policy ranks wrongly with confidence scores low because of the absolute
    value; with `signed` it scores high.

    z-scores give both margins the same spread whatever their units, so `beta` and the scale of m have no effect: the
    selection does not change if m is multiplied or shifted. The raw form compares explicit and implicit margin on one
    scale.

    >>> from lit_pref.data.selection.selection import Logps
    >>> lengths = np.array([[20, 25], [25, 20]])
    >>> pool = Pool(["a", "b"], np.array(["p", "p"]), np.array(["", ""]), {"margin": np.array([4.0, 1.0])}, lengths,
    ...             Logps(np.array([[-30.0, -45.0], [-40.0, -42.0]]), lengths))
    >>> AlignmentPotential(normalise=False, beta=2.5, keep=0.5).choose(pool).scores.round(6).tolist()
    [3.25, -0.25]

    **Source**: Huang et al., Larger or Smaller Reward Margins to Select Preferences for LLM Alignment?, arXiv
    2503.01864, and Hesse73/Alignment-Potential-Metric. The default was checked against that code: its
    `rm-logp` is weight 1 and its `rm-xlogp` any weight (2.5 in its scripts of self-play); std divides by N and
    floor(0.4 N) pairs are kept. The raw form is the paper's, from memory and not checked. Differences: the code's
    explicit margin is the largest minus the smallest of five scores of one prompt, here it is the pair's own
    (`margin_column` names another); a spread of 0 gives z = 0, whereas the code divides by it; ties have an order;
    kept pairs are shuffled later, whereas the code writes them in the order of scores.

    Args:
        weight: >= 0, weight of the implicit margin's z-score.
        normalise: use z-scores, else the raw form.
        beta: > 0, units of the margin per nat (without a reference: per nat per token); for the raw form only.
        reference: false takes mean log-probs without a reference; true takes the run's first one; or a folder or hub
            name.
        signed: leave out the absolute values: m - (h_w - h_l).
        margin_column: the column that is read as m.
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
            f"{name} is {values[0]:.4g} in every pair and does not affect the selection"
            for name, values in names.items()
            if not np.ptp(values)
        ]
        if not self.normalise or notes:
            return notes
        notes.append(
            "explicit and implicit margin must be on one scale, but z-scores only make their spreads equal: "
            f"{np.std(explicit):.3g} of `{self.margin_column}` counts as much as "
            f"{np.std(implicit) / self.weight if self.weight else math.inf:.3g} {self.implicit_unit} of the policy's, "
            "whatever their meaning; normalise: false with beta compares them in units of the margin"
        )
        if self.reference is False:
            notes.append(
                "without a reference the implicit margin is a difference of mean log-probs: it says which text is more "
                "common, token by token, even for a policy that has learnt no preference yet"
            )
        return notes


class ExplicitMargin(Selection):
    """Scores a pair by the margin of the data, |m|: the clearest preferences are at the top.

    **Source**: `rm_margin`, a baseline of arXiv 2503.01864 (there as z-scores, which give the same order).
    Checked against the authors' code, whose margin is the range of five scores; see `AlignmentPotential`.

    Args:
        signed: take m itself, for a column whose sign has a meaning; the margin of swapped pairs is never negative.
        margin_column: the column that is read as m.
        common: see `Selection`.
    """

    def __init__(self, signed: bool = False, margin_column: str = "margin", **common: Any) -> None:
        super().__init__(**common)
        self.signed, self.margin_column = signed, margin_column
        self.unit = f"units of `{margin_column}`"

    def scores(self, pool: Pool) -> Array:
        return self.margins(pool) if self.signed else np.abs(self.margins(pool))


class ImplicitMargin(Selection):
    """Scores a pair by the policy's own preference, |h_w - h_l|; the bottom (default) has the undecided pairs.

    h_y = log pi(y|x) / |y| without a reference, h_y = log pi(y|x) / pi_ref(y|x) with one, in nats. With `signed`, the
    bottom has the pairs that the policy ranks most wrongly.

    **Source**: `logp_margin_norm_abs`, a baseline of arXiv 2503.01864, which keeps the top of -z(|h_w - h_l|): the
    same pairs. Checked against the authors' code; `signed` and `reference` are ours.

    Args:
        signed: take h_w - h_l itself.
        reference: false takes mean log-probs without a reference; true takes the run's first one; or a folder or hub
            name.
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
    """Scores a pair at random, so that prompts, lengths and margins keep their distribution; the baseline.

    The score is a hash of `seed` and the pair's id, so a larger selection contains the smaller one, and additional
    pairs change no score.

    Args:
        seed: seed of the hash; null is `seed_everything` in a run, else 0.
        common: see `Selection`.
    """

    def __init__(self, seed: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.seed = seed or 0

    def scores(self, pool: Pool) -> Array:
        digests = (hashlib.sha256(f"{self.seed}/{id}".encode()).digest() for id in pool.ids)
        return np.array([int.from_bytes(digest[:6]) / 2**48 for digest in digests])


class PredictiveEntropy(Selection):
    """Scores a pair by the policy's surprise at its responses: H = -(log pi(y_w|x) + log pi(y_l|x)) / 2, in nats.

    **Source**: Muldrew et al., Active Preference Learning for Large Language Models, arXiv 2402.08114, where
    H(x) = -(1/N) Σ_n log pi(y_n|x) over responses sampled by the policy itself; reconstructed from summaries of the
    paper. Here it is an offline estimate over the two responses of the pair. Responses of another author are less
    likely than the policy's own, so it is a cross-entropy, and it grows with their length.

    Args:
        per_token: take the mean over the tokens of each response instead of the sum.
        common: see `Selection`.
    """

    reads_policy = True

    def __init__(self, per_token: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.per_token, self.unit = per_token, "nats per token" if per_token else "nats"

    def scores(self, pool: Pool) -> Array:
        assert pool.policy is not None
        return -(pool.policy.means if self.per_token else pool.policy.sums).mean(axis=1)


class Certainty(Selection):
    """Scores a pair by its implicit reward margin: |beta (h_w - h_l)|, h_y = log pi(y|x) / pi_ref(y|x).

    The top has the pairs on which the policy is most decided; labels are most useful where it may be wrong.

    **Source**: preference certainty of arXiv 2402.08114; reconstructed from summaries of the paper, which selects
    among new prompts with two sampled responses and labels only the selected ones. Here pairs are labelled already.

    Args:
        beta: > 0, reward per nat; it changes only the unit of `threshold`, not the order.
        reference: true takes the run's first one; or a folder or hub name. It must not be the policy itself.
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
                "data.selection: Certainty compares with a reference; set reference to true or a folder, or use "
                "ImplicitMargin, which needs none"
            )
        self.beta, self.reference = beta, reference

    def scores(self, pool: Pool) -> Array:
        return self.beta * np.abs(self.implicit_margins(pool))


def zscores(values: Array) -> Array:
    """Return (x - mean) / std, with std over N, or 0 if all values are equal; the order of values changes no bit.

    >>> zscores(np.array([3.0, 5.0])).tolist(), zscores(np.array([0.1, 0.1, 0.1])).tolist()
    ([-1.0, 1.0], [0.0, 0.0, 0.0])
    """
    if not len(values) or values.max() == values.min():
        return np.zeros(len(values))
    centred = values - math.fsum(values) / len(values)
    return centred / math.sqrt(math.fsum(centred * centred) / len(values))
