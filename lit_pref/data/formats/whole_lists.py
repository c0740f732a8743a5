"""Lists of responses that are kept whole: one record per response, with its label."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_pref.data.formats.conversations import Dialogues
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.ranked_lists import Answers
from lit_pref.data.formats.spec import Filters, RowMapping
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UserError

LABEL = "score"
"""The canonical column with the label of a response; the larger one is the better response."""


def refuse_unless_list(mapping: RowMapping, path: str) -> None:
    """Refuse a mapping that does not read lists, or that asks for what only pairs have.

    Raises:
        UserError: the mapping cannot be used for lists that are kept whole.
    """
    if mapping.kind != "list":
        raise UserError(
            f"{path} is read as {mapping.name}, whose records are pairs (kind {mapping.kind}), and the objective reads "
            "lists of responses: name a mapping of kind list, such as data.mapping: {kind: list, prompt: prompt, "
            "responses: 'responses[]', score: {path: 'scores[]'}}, or choose an objective of pairs, such as "
            "BradleyTerry or MMPO."
        )
    of_pairs = {
        "filters": mapping.filters != Filters(),
        "margin.clip": mapping.margin.clip is not None,
        "margin.normalise": mapping.margin.normalise != "none",
        "margin.transform: const": mapping.margin.transform == "const",
    }
    if asked := [name for name, is_set in of_pairs.items() if is_set]:
        raise UserError(
            f"{path}: `{asked[0]}` of the mapping {mapping.name} is for pairs, and the objective reads whole lists of "
            "responses; remove it, or choose an objective of pairs, such as BradleyTerry or MMPO."
        )


@dataclass(frozen=True)
class WholeLists:
    """Converts the responses of a list to one-sided canonical rows of one list number.

    The label of a response is its score as the mapping's margin reads it: labels differ by the margin of a pair before
    its bound. A rank becomes a negative label.

    Args:
        mapping: the mapping.
        dialogues: the reader of texts.
        id: path to an id of the list or the response.
        dropped: columns that the rows do not keep.
        plain: further columns of the list, by name.
        sided: further columns of each response, by name; the second path is for pairs.
    """

    mapping: RowMapping
    dialogues: Dialogues
    id: ValuePath | None
    dropped: Collection[str]
    plain: Sequence[tuple[str, ValuePath]]
    sided: Sequence[tuple[str, ValuePath, ValuePath]]

    def rows(self, answers: Answers, scored: Sequence[tuple[int, float]], number: int) -> Iterator[Row | BadRow]:
        """Yield the row of each answer with a score, or the reason why it cannot be used."""
        for k, score in scored:
            try:
                yield self._row(answers, k, score, number)
            except BadRow as bad:
                yield bad

    def _row(self, answers: Answers, k: int, score: float, number: int) -> Row:
        row = answers.rows[k] if answers.rows else answers.row
        name, margin = answers.scores[k][0], self.mapping.margin
        zero = 1.0 if margin.transform == "log_ratio" else 0.0
        raw = margin.of_scores(row, (name, name), score, zero, self.mapping.ascending)
        label, _ = margin.finished(row, name, raw)
        prompt, responses = self.dialogues.read(row, answers.prompt, [answers.texts[k]], answers.system)
        canonical = {name: value for name, value in row.values.items() if name not in self.dropped}
        canonical |= {name: path.of(row.values) for name, path in self.plain}
        for column, path, _ in self.sided:
            value: Any = path.of(row.values)
            if path.many:
                value = value[k] if isinstance(value, list) and k < len(value) else None
            canonical["chosen_source" if column == "source" else column] = value
        canonical |= {"prompt": prompt, "chosen": responses[0], LABEL: label}
        if self.id and (id := self.id.of(row.values)) is not None:
            canonical["id"] = f"{id}/{k}" if isinstance(id, str | int) and not isinstance(id, bool) else id
        names = {"prompt": answers.prompt[0], "chosen": answers.texts[k][0], LABEL: name}
        return Row(row.file, row.line, canonical, names, list_number=number)
