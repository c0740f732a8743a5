"""What an objective leaves open until it has seen the training pairs."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.pairs import Strengths
from lit_pref.response_key import response_key

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule


def fit_objective(module: "PreferenceModule") -> list[str]:
    """Fit the objective to the training pairs; lines for the log, none where it leaves nothing open.

    Args:
        module: with its Trainer, whose data are prepared.

    Raises:
        UserError: it cannot be fitted to these pairs.
    """
    asked = module.objective.fit_inputs
    if not asked:
        return []
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    pairs = data.train_pairs

    def numbers(name: str) -> NDArray[Any] | None:
        values = pairs.column(name).astype(np.float64)
        return None if np.isnan(values).all() else values

    own = {"margin", "probability", "responses"}
    columns = {name: pairs.column(name).astype(np.float64) for name in asked - own}
    responses = _responses(pairs) if "responses" in asked else None
    strengths = Strengths(
        numbers("margin"),
        numbers("probability"),
        columns,
        pairs.column("prompt_id"),
        responses,
        pairs.own_margins,
    )
    lines = module.objective.fit(strengths)
    if data.selection is not None and module.trainer.state.fn != "fit":
        lines = [f"{line}: of all training pairs, as data.selection chooses in `fit` alone" for line in lines]
    return lines


def _responses(pairs: Any) -> NDArray[Any]:
    made = (pairs[k] for k in range(len(pairs)))
    named = [(response_key(pair.prompt, pair.chosen), response_key(pair.prompt, pair.rejected)) for pair in made]
    return np.array(named, dtype=object)
