"""The data of a run without Lightning: sources opened for one objective and one tokenizer, and views of their pairs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.formats.whole_lists import LABEL
from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.pair_view import PairView, SourcePairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.prepared.splits import digest_of_split, open_splits, sources_of, training_pairs, training_texts
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import SpecialText, Tokenization
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Corpus
from lit_pref.pairs import ExtraFunction


class RunData:
    """The training and validation pairs of a run, prepared once or found in the cache.

    Args:
        train: the training sources; None is refused when the data are opened.
        val: the validation sources; None takes them from `train`, by prompt.
        preparation: the options of preparation that do not depend on an objective.
        max_length: the most tokens of prompt and response together.
        max_prompt_length: the most tokens of a prompt; None refuses prompts that leave no room.
        special_text: see `Tokenization`.

    Raises:
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        train: str | Source | list[str | Source] | None,
        val: str | Source | list[str | Source] | None,
        preparation: Preparation,
        max_length: int,
        max_prompt_length: int | None,
        special_text: SpecialText,
    ) -> None:
        super().__init__()
        if special_text not in ("plain", "token"):
            raise UsageError(f"data.special_text is {special_text!r}; it must be plain or token.")
        Tokenization.check_lengths(max_length, max_prompt_length)
        self.train, self.val = train, val
        self.options = self.preparation = preparation
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.special_text: SpecialText = special_text
        self.columns = list(preparation.columns)
        self._tokenization: Tokenization | None = None
        self._train: PairView | None = None
        self._val: PairView | None = None

    @property
    def is_open(self) -> bool:
        """Whether the pairs are prepared."""
        return self._train is not None

    def open(self, objective: Any, policy: Any, required: frozenset[str] | None = None) -> None:
        """Prepare both splits, or find them in the cache, where another rank or run has put them.

        Args:
            objective: decides which columns and responses are read.
            policy: the model spec whose tokenizer is used.
            required: the columns that every row must have; None takes those that the objective requires.

        Raises:
            UsageError: there is no training source.
            UserError: a source cannot be used.
        """
        if self.train is None:
            raise UsageError("data.train is not set; name a file, a folder or a hub dataset with preference pairs.")
        train = sources_of(self.train, "data.train")
        val = None if self.val is None else sources_of(self.val, "data.val")
        asked = objective.requirements
        extra = {"extra_response"} if "extra_response" in asked.sides and asked.extra_function is None else set()
        needed = asked.columns | extra if required is None else required
        self.preparation = preparation = replace(
            self.options,
            columns=tuple(self.columns),
            token_columns=tuple(sorted({*self.options.token_columns, *asked.token_columns})),
            required=frozenset(needed) | ({LABEL} if asked.lists else set()),
            one_sided="rejected" not in asked.sides,
            lists=asked.lists,
        )
        texts = partial(training_texts, train, preparation)
        tokenizer = policy.load_tokenizer(Corpus(digest_of_split(train, preparation), texts))
        self._tokenization = Tokenization(tokenizer, self.max_length, self.max_prompt_length, self.special_text)
        self.unselected, self._val = open_splits(train, val, preparation, self._tokenization)
        if asked.extra_function is not None:
            further = asked.extra_function, frozenset(tokenizer.all_special_ids)
            self.unselected, self._val = (PairsWithExtra(s.parts, *further) for s in (self.unselected, self._val))
        self._train = self.unselected
        self.columns = list(preparation.all_columns)

    @property
    def tokenization(self) -> Tokenization:
        """The tokenization by the policy's tokenizer."""
        assert self._tokenization is not None, "setup() comes first"
        return self._tokenization

    @property
    def train_pairs(self) -> PairView:
        """The training pairs, after selection."""
        assert self._train is not None, "setup() comes first"
        return self._train

    @property
    def val_pairs(self) -> PairView:
        """The validation pairs."""
        assert self._val is not None, "setup() comes first"
        return self._val

    def refuse_longer(self, splits: Sequence[PairView], limits: Mapping[str, int | None]) -> None:
        """Refuse pairs that are too long for a model: most models exceed their limit without an error, but work badly.

        Args:
            splits: the pairs that are read.
            limits: the most tokens that each model reads; None is no limit.

        Raises:
            UserError: the longest pair is longer than a limit.
        """
        longest = max(pairs.longest for pairs in splits)
        for model, limit in limits.items():
            if limit is not None and longest > limit:
                raise UserError(
                    f"The longest pair has {longest} tokens, and {model} reads at most {limit}; lower data.max_length "
                    f"from {self.max_length} to {limit} or less."
                )

    def read_train(self) -> Iterator[tuple[str, CheckedPair]]:
        """Yield the training pairs with their whole texts, before tokenization, each with its source's name."""
        assert self.train is not None
        return training_pairs(sources_of(self.train, "data.train"), self.preparation)

    @property
    def train_mappings(self) -> list[RowMapping]:
        """The mapping of each training source."""
        assert self.train is not None
        return [self.preparation.mapping_of(source) for source in sources_of(self.train, "data.train")]

    @property
    def has_chat_template(self) -> bool:
        """Whether the policy's tokenizer has a chat template."""
        return self.tokenization.tokenizer.chat_template is not None

    def describe(self) -> dict[str, tuple[str, dict[str, PreparationReport]]]:
        """Return the fingerprint of both splits, and the reports of their sources."""
        splits = {"train": self.train_pairs, "val": self.val_pairs}
        return {name: (pairs.fingerprint, pairs.reports) for name, pairs in splits.items()}

    def sample(self, pairs: int) -> list[tuple[list[int], list[int], list[int] | None]]:
        """Return (prompt, chosen, rejected) ids of the first training pairs."""
        return [(pair.prompt, pair.chosen, pair.rejected) for pair in self.train_pairs[:pairs]]


class PairsWithExtra(PairView):
    """The pairs of one or more parts, each with an extra response that a function computes.

    It is computed on each access, so that prepared data do not depend on it.

    Args:
        parts: at least one part.
        function: the function.
        special: the ids of the tokenizer's special tokens.
    """

    def __init__(self, parts: Sequence[SourcePairs], function: ExtraFunction, special: frozenset[int]) -> None:
        super().__init__(parts)
        self._function, self._special = function, special

    def __getitem__(self, index: Any) -> Any:
        pair = super().__getitem__(index)
        return pair if isinstance(index, slice) else pair.with_extra_response(*self._function(pair, self._special))

    def subset(self, indices: NDArray[Any]) -> PairView:
        return self._with(super().subset(indices))

    def with_normalisers(self, normalisers: dict[str, Normaliser]) -> PairView:
        return self._with(super().with_normalisers(normalisers))

    def _with(self, pairs: PairView) -> PairView:
        return PairsWithExtra(pairs.parts, self._function, self._special)

    @cached_property
    def extra_response_lengths(self) -> NDArray[np.int32]:
        """Tokens of the extra response and its prompt, (pairs,), at most, beyond those of the pair's own prompt."""
        return self.lengths[:, 1]
