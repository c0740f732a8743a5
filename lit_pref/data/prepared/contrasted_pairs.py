"""The pairs of a run whose extra response is the chosen one under another prompt."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.pair_view import PairView, SourcePairs
from lit_pref.pairs import PromptFunction


class ContrastedPairs(PairView):
    """The pairs of one or more parts, each with its chosen response as the extra response to another prompt.

    The other prompt is computed on each access, so that prepared data do not depend on it.

    Args:
        parts: at least one part.
        extra_prompt: the function that gives the other prompt.
        special: the ids of the tokenizer's special tokens.
    """

    def __init__(self, parts: Sequence[SourcePairs], extra_prompt: PromptFunction, special: frozenset[int]) -> None:
        super().__init__(parts)
        self._extra_prompt, self._special = extra_prompt, special

    def __getitem__(self, index: Any) -> Any:
        pair = super().__getitem__(index)
        return pair if isinstance(index, slice) else pair.with_chosen_under(self._extra_prompt(pair, self._special))

    def subset(self, indices: NDArray[Any]) -> PairView:
        return self._with(super().subset(indices))

    def with_normalisers(self, normalisers: dict[str, Normaliser]) -> PairView:
        return self._with(super().with_normalisers(normalisers))

    def _with(self, pairs: PairView) -> PairView:
        return ContrastedPairs(pairs.parts, self._extra_prompt, self._special)

    @cached_property
    def extra_response_lengths(self) -> NDArray[np.int32]:
        """Tokens of the extra response, (pairs,); its prompt is at most as long as the pair's own."""
        return self.lengths[:, 1]
