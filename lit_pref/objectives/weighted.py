"""A sum of objectives."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from lit_pref.batch import PairData
from lit_pref.errors import UsageError
from lit_pref.objectives.base import Objective
from lit_pref.objectives.component import call_text
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.requirements import Requirements
from lit_pref.objectives.sft import SFT
from lit_pref.pairs import Strengths
from lit_pref.scores import ObjectiveOutput, PairScores


class Weighted(Objective):
    """A weighted sum of objectives on the same pairs.

        L = sum_j c_j L_j

    Each objective gets the first of the run's references, as many as it takes. The **first** objective is the main one:
    rewards, and with them accuracy and calibration, are its own, as are values logged under their usual names; a mean
    of rewards in different units would be no reward. Logged for every objective: `NAME/loss` and, but for the first,
    its values as `NAME/...`; NAME is its class, numbered if it occurs twice. A sum is as unbounded as its terms: watch
    `NAME/loss`. State is updated, fitted and checkpointed for each of them.

    >>> Weighted([DPO(), SFT()], [1.0, 0.2]).requirements.min_references
    1

    **When**: two losses have to hold at once, and no term of `Pairwise` (`terms`) says it. Not to average methods that
    ask for the same thing in different units.

    **Source**: own formulation; TRL has it as a list of `loss_type` with `loss_weights`.

    Args:
        objectives: one or more; default `DPO` and `SFT`.
        weights: c_j, finite and >= 0, not all zero; default 1 for each.

    Raises:
        UsageError: there is no objective, the weights do not fit, or one reads lists of responses and another pairs.
    """

    faithfulness = "derived"
    family = "several rewards"

    def __init__(self, objectives: list[Objective] | None = None, weights: list[float] | None = None) -> None:
        super().__init__()
        each = [DPO(), SFT()] if objectives is None else objectives
        self.weights = [1.0] * len(each) if weights is None else weights
        if len(each) != len(self.weights) or not 0 < math.fsum(self.weights) < math.inf or min(self.weights) < 0:
            raise UsageError(
                f"Weighted: weights must be finite, not negative and not all zero, one for each of the {len(each)} "
                f"objectives, got {self.weights}."
            )
        if len({objective.requirements.lists for objective in each}) > 1:
            raise UsageError(
                "Weighted: one of the objectives reads lists of responses and another reads pairs, and a run has one "
                "kind of data: choose objectives of one kind."
            )
        self.objectives = nn.ModuleList(each)
        self.batch_coupled = any(objective.batch_coupled for objective in each)

    @cached_property
    def requirements(self) -> Requirements:
        every = [objective.requirements for objective in self._each()]
        limits = [asked.max_references for asked in every if asked.max_references is not None]
        union = functools.reduce(operator.or_, (replace(asked, max_references=None) for asked in every))
        return replace(union, max_references=max(limits) if len(limits) == len(every) else None)

    def log_prob_parts(self) -> list[str]:
        return [name for objective in self._each() for name in objective.log_prob_parts()]

    def fit(self, strengths: Strengths) -> list[str]:
        return [line for objective in self._each() for line in objective.fit(strengths)]

    def forward(self, policy: PairScores, references: Sequence[PairScores], pairs: PairData) -> ObjectiveOutput:
        self.check_inputs(policy, references, pairs)
        main: ObjectiveOutput | None = None
        for name, weight, objective in zip(self._names(), self.weights, self._each(), strict=True):
            own = objective(policy, references[: objective.requirements.max_references], pairs)
            logged = {f"{name}/loss": own.losses.detach()}
            if main is None:
                main = replace(own, losses=weight * own.losses, logged=own.logged | logged)
            else:
                logged |= {f"{name}/{key}": value for key, value in own.logged.items()}
                main = replace(main, losses=main.losses + weight * own.losses, logged=main.logged | logged)
        assert main is not None
        return main

    def update(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        for objective in self._each():
            objective.update(all_reduce)

    @property
    def progress(self) -> dict[str, float]:
        prefixes = ["", *(f"{name}/" for name in self._names()[1:])]
        each = zip(prefixes, self._each(), strict=True)
        return {prefix + key: value for prefix, objective in each for key, value in objective.progress.items()}

    def __repr__(self) -> str:
        return call_text(self, {"objectives": self._each(), "weights": self.weights})

    def _each(self) -> list[Objective]:
        return cast(list[Objective], list(self.objectives))

    def _names(self) -> list[str]:
        names = [type(objective).__name__ for objective in self._each()]
        repeated = {name for name in names if names.count(name) > 1}
        return [f"{name}{names[: k + 1].count(name)}" if name in repeated else name for k, name in enumerate(names)]
