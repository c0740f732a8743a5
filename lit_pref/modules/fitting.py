"""Fits an objective to the training pairs, before the first step."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.prepared.pair_view import PairView
from lit_pref.objectives.base import Objective
from lit_pref.pairs import Strengths
from lit_pref.response_key import response_key


def fit_objective(objective: Objective, pairs: PairView, before_selection: bool = False) -> list[str]:
    """Fit the objective to the training pairs; return lines for the log, or none if there is nothing to fit.

    Args:
        objective: the objective, which is fitted in place.
        pairs: the pairs of the training split.
        before_selection: whether these are all training pairs, although the run trains on a selection of them; the
            lines then say so.

    Raises:
        UserError: the objective cannot be fitted to these pairs.
    """
    inputs = objective.requirements.fit_inputs
    if not inputs:
        return []

    def numbers(name: str) -> NDArray[Any] | None:
        values = pairs.column(name).astype(np.float64)
        return None if np.isnan(values).all() else values

    own = {"margin", "probability", "responses"}
    columns = {name: pairs.column(name).astype(np.float64) for name in inputs - own}
    responses = _responses(pairs) if "responses" in inputs else None
    strengths = Strengths(
        numbers("margin"),
        numbers("probability"),
        columns,
        pairs.column("prompt_id"),
        responses,
        pairs.own_margins,
    )
    lines = objective.fit(strengths)
    if before_selection:
        lines = [f"{line}: of all training pairs, because data.selection is applied in `fit` only" for line in lines]
    return lines


def _responses(pairs: PairView) -> NDArray[Any]:
    """Keys of the chosen and the rejected responses, (pairs, 2)."""
    each: Any = (pairs[k] for k in range(len(pairs)))
    keys = [(response_key(pair.prompt, pair.chosen), response_key(pair.prompt, pair.rejected)) for pair in each]
    return np.array(keys, dtype=object)
