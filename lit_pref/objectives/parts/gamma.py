"""Ways to determine gamma in p = sigmoid(gamma m) other than by a number."""

import math
from abc import abstractmethod
from itertools import compress

import torch
from torch import Tensor

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.parts.estimation import (
    by_likelihood,
    by_mean_probability,
    labels_of_repeats,
    log_odds_factor,
)
from lit_pref.objectives.parts.part import Part
from lit_pref.objectives.requirements import Requirements
from lit_pref.pairs import Strengths

MEAN_PROBABILITY = 0.75
"""The default of `Fitted.mean_probability`."""


class Gamma(Part):
    """The factor gamma of p = sigmoid(gamma m)."""

    @abstractmethod
    def forward(self) -> float:
        """Return gamma, >= 0, per unit of the data's margin."""


class UnitMargin(Gamma):
    """Computes gamma from the probability that the chosen response is better at a margin of one: log(p / (1 - p)).

    >>> round(UnitMargin(0.75)(), 4)  # ln 3
    1.0986

    Args:
        p: in [1/2, 1).
    """

    def __init__(self, p: float = 0.75) -> None:
        super().__init__()
        if not 0.5 <= p < 1:
            raise UsageError(
                f"UnitMargin: p is the probability at a margin of one and must be in [0.5, 1), got {p}; "
                "hard labels are `gamma: .inf`."
            )
        self.p = p

    def forward(self) -> float:
        return math.log(self.p / (1 - self.p))


class Fitted(Gamma):
    """Fits gamma to the training pairs before the first step; afterwards it is a constant that checkpoints contain.

    Where pairs have labels y_i in [0, 1], made without looking at the margin m_i (another annotator's choice, the share
    of annotators), it is their maximum-likelihood estimate; else the mean probability is given, and gamma follows from
    it:

        sum_i m_i (y_i - s_i) = 0            with labels, s_i = sigmoid(gamma m_i):
                                             the maximum of sum_i y_i log s_i + (1 - y_i) log(1 - s_i)
        sum_i (s_i - mean_probability) = 0   without

    Labels are the column `labels`, or else the pairs' `probability`, if they have one. A probability that was computed
    from the margin, or from which the margin was computed, is not a label: the fit would only recover that computation.
    If the margin is the probability's log-odds up to one factor and a bound, the second rule is used, unless `labels`
    names the column (`probability` too). With `repeats` they come from the records themselves, if the same two texts
    were compared more than once: the label of a record is the share of the *other* records of its two texts that prefer
    its chosen one (a tie counts one half), so that it is independent of the record's own margin. Records whose texts
    were compared once have no label.

    Both are roots of a sum of terms psi_i(gamma), and pairs of one prompt are not independent. By Taylor's theorem
    gamma^ - gamma is sum_i psi_i / |sum_i psi_i'| to first order, and the C prompts' sums of psi_i are independent with
    mean zero, so

        se(gamma^)^2 = C / (C - 1) sum_c (sum_{i in c} psi_i)^2 / (sum_i psi_i')^2

    (the sandwich; for the second rule the delta method). The 95 % interval is gamma^ exp(+-t se / gamma^), with t
    the 97.5 % quantile of Student's distribution of C - 1 degrees of freedom, because C prompts estimate se: the
    logarithm keeps it positive, and if the margins' unit changes, it scales as gamma does. It covers other prompts
    of the same kind; with few of them it is rough.

    **Source**: own formulation; MMPO (arXiv 2410.03145) tunes gamma by hand.

    Args:
        labels: a column of the data with the probability that the chosen response is better: 1, 0, or between. If the
            texts are swapped, its value becomes 1 - value, provided `data.on_swap` says `complement`.
        mean_probability: in (1/2, 1); the mean of p over the training pairs, used if there are no labels.
        repeats: several records with the same two texts are independent comparisons, which serve as labels for each
            other. Not for data with copies of records.
    """

    def __init__(
        self, labels: str | None = None, mean_probability: float = MEAN_PROBABILITY, repeats: bool = False
    ) -> None:
        super().__init__()
        if repeats and labels is not None:
            raise UsageError(f"Fitted: repeats takes the rows' own labels, and labels the column `{labels}`; give one.")
        if not 0.5 < mean_probability < 1:
            raise UsageError(
                f"Fitted: mean_probability must be in (0.5, 1), got {mean_probability}; one half is `gamma: 0`, and "
                "one is `gamma: .inf`."
            )
        self.labels, self.mean_probability, self.repeats = labels, mean_probability, repeats
        self.value: Tensor
        self.register_buffer("value", torch.full((), math.nan, dtype=torch.float64))
        self._known: tuple[Tensor, int, float] | None = None  # the buffer, its version, and its value

    @property
    def requirements(self) -> Requirements:
        inputs = frozenset({"margin", "responses" if self.repeats else self.labels or "probability"})
        return Requirements(columns=frozenset({self.labels} if self.labels else ()), fit_inputs=inputs)

    def forward(self) -> float:
        # Read once, because a read in every step would wait for the device.
        if self._known is None or self._known[0] is not self.value or self._known[1] != self.value._version:
            self._known = self.value, self.value._version, float(self.value)
        gamma = self._known[2]
        if math.isnan(gamma):
            raise UserError(
                "gamma is fitted to the training pairs when a run starts, but has not been fitted yet: give a number"
            )
        return gamma

    def fit(self, strengths: Strengths) -> list[str]:
        """Estimate gamma.

        Returns:
            The line for the log: gamma, its interval and the rule.

        Raises:
            UserError: no gamma above zero and below infinity fits, or a label is not in [0, 1].
        """
        if strengths.margin is None:
            raise UserError("gamma cannot be fitted to pairs without margins: name their column in the data mapping")
        margin, prompts = torch.as_tensor(strengths.margin, dtype=torch.float64), list(strengths.prompts)
        name, labels = self._labels(strengths, margin)
        note = end = ""
        if labels is not None and self._is_computed_from(strengths, margin, labels):
            note = f"the margin is computed from {name}, which is not an independent label: "
            if self.labels is None:
                factor = log_odds_factor(margin, labels)  # none after a normalisation that changes ratios
                end = "" if factor is None else f"; gamma {factor:.3g} reproduces {name}"
                labels = None
        if labels is None or bool(labels.isnan().all()):
            found = by_mean_probability(margin, self.mean_probability, prompts)
            rule = f"for a mean probability of {self.mean_probability:g}"
            rule += " (the default of mean_probability)" if self.mean_probability == MEAN_PROBABILITY else ""
        else:
            labelled = ~labels.isnan()
            margin, prompts = margin[labelled], list(compress(prompts, labelled.tolist()))
            found, rule = by_likelihood(margin, labels[labelled], prompts, name), f"maximum likelihood of {name}"
        self.value.fill_(found.gamma)
        pairs = f"{len(margin):,} pairs of {len(set(prompts)):,} prompts"
        interval = f"{found.low:.4g} to {found.high:.4g}, 95 % by Student's t over prompts"
        return [f"{note}gamma {found.gamma:.4g} ({interval}), {rule} over {pairs}{end}"]

    def _is_computed_from(self, strengths: Strengths, margin: Tensor, labels: Tensor) -> bool:
        own = margin if strengths.own_margin is None else torch.as_tensor(strengths.own_margin, dtype=torch.float64)
        return not self.repeats and not bool(labels.isnan().all()) and log_odds_factor(own, labels) is not None

    def _labels(self, strengths: Strengths, margin: Tensor) -> tuple[str, Tensor | None]:
        """Return the name of the labels, and the labels with NaN for pairs without one."""
        if self.repeats:
            assert strengths.responses is not None
            labels = labels_of_repeats(strengths.responses.tolist(), margin)
            if bool(labels.isnan().all()):
                raise UserError(
                    "gamma cannot be fitted to repeated comparisons: no two texts were compared more than once in the "
                    "training pairs; leave Fitted's `repeats` out"
                )
            return "repeated comparisons", labels
        name = self.labels or "probability"
        values = strengths.probability if name == "probability" else strengths.columns[name]
        return f"`{name}`", None if values is None else torch.as_tensor(values, dtype=torch.float64)
