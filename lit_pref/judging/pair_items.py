"""Pairs to evaluate a judge on, read from any file that training reads, with labels from the data."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError
from lit_pref.judging.benchmark_items import BenchmarkItem, Scores
from lit_pref.judging.pair_evaluation import JudgedPair
from lit_pref.pairs import Text


@dataclass(frozen=True)
class PairItem:
    """A prompt and its two responses, chosen first; `pair` has their texts for people and no scores yet."""

    prompt: Text
    responses: tuple[Text, Text]
    pair: JudgedPair

    @property
    def row(self) -> Row:
        """File and line of the pair, for messages."""
        return Row(self.pair.file, self.pair.line, {})


@dataclass
class PairFile:
    """Reads the pairs of a source.

    The label of a pair is its probability, if the data have one (a share of votes, for example), 1/2 for a tie, else 1.

    Args:
        path: a source as training reads it: a file, a folder, a glob or `owner/name:split` on the hub.
        mapping: name, file or content of a mapping; None recognises the format.
        group: a column by whose value accuracies are shown; None takes the name of the file.
        bad_rows: "strict" stops at the first faulty row, "lenient" counts faulty rows and leaves them out.
        ignore_columns: columns and message keys that may be left unread.
        limit: the most pairs that are read.
    """

    path: str
    mapping: str | dict[str, Any] | None = None
    group: str | None = None
    bad_rows: Literal["strict", "lenient"] = "strict"
    ignore_columns: tuple[str, ...] = ()
    limit: int | None = None
    left_out: Counter[str] = field(init=False, default_factory=Counter)

    def read(self) -> list[PairItem]:
        """Return the pairs, in the order of the source.

        Raises:
            UserError: the source or, if strict, a row of it cannot be read, or there is no pair.
        """
        try:
            found = self._read()
        except UserError as error:
            said = str(error)
            for name in ("mapping", "bad_rows", "ignore_columns"):
                said = re.sub(
                    rf"\bdata\.{name}:?(?!\w)", f"--{name}", said
                )  # a value follows an option without a colon
            raise UserError(said) from error
        if not found:
            reasons = ", ".join(f"{kind}: {count}" for kind, count in self.left_out.most_common())
            raise UserError(f"{self.path} has no pairs{f' ({reasons})' if reasons else ''}; give a file with some.")
        return found

    def _read(self) -> list[PairItem]:
        preparation = Preparation(
            mapping=self.mapping, group_column=self.group, bad_rows=self.bad_rows, ignore_columns=self.ignore_columns
        )
        checked = preparation.checked_pairs(Source(self.path), refuse=self._refuse)
        return [self._item(pair) for pair in itertools.islice(checked, self.limit)]

    def _refuse(self, bad: BadRow, _: str) -> None:
        if self.bad_rows == "strict":
            raise bad
        self.left_out[bad.kind] += 1

    def _item(self, checked: CheckedPair) -> PairItem:
        text, row = checked.text, checked.row
        if text.rejected is None:
            raise UserError(f"{row.place} has one response, and an evaluation compares two; give pairs.")
        responses = [
            [{"role": "assistant", "content": said, **text.further[side]}] if side in text.further else said
            for side, said in (("chosen", text.chosen), ("rejected", text.rejected))
        ]
        label = text.probability if text.probability is not None else 0.5 if text.tie else 1.0
        pair = JudgedPair(
            checked.id, shown(text.prompt), text.chosen, text.rejected, 0.0, 0.0, label, text.margin,
            row.file if self.group is None else text.group, row.file, row.line,
        )  # fmt: skip
        return PairItem(text.prompt, (responses[0], responses[1]), pair)


def judged(items: Sequence[PairItem], scores: Scores) -> list[JudgedPair]:
    """Return the pairs with the scores of chosen and rejected."""
    return [
        replace(item.pair, chosen_score=chosen, rejected_score=rejected)
        for item, (chosen, rejected) in zip(items, scores, strict=True)
    ]


def judged_responses(items: Sequence[BenchmarkItem], scores: Scores) -> list[JudgedPair]:
    """Return a pair for each correct and each incorrect response of each item, with the subset as its source."""
    return [
        JudgedPair(
            f"{item.id} {i}-{j}", shown(item.prompt), shown(item.responses[i]), shown(item.responses[j]),
            own[i], own[j], source=item.subset, file=item.file, line=item.line,
        )
        for item, own in zip(items, scores, strict=True)
        for i in range(item.correct)
        for j in range(item.correct, len(item.responses))
    ]  # fmt: skip


def shown(text: Text) -> str:
    r"""Return a text for people: that of a single message, or the turns of a conversation below each other.

    >>> shown([{"role": "user", "content": "hi"}]), shown([{"role": "user", "content": "a"}, {"role": "x"}])
    ('hi', 'user: a\nx: ')
    """
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0].get("content", ""))
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in text)
