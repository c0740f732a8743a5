"""What a row must hold: texts, strength, columns, checked and oriented so that the margin is not negative."""

import math
from dataclasses import dataclass
from typing import Any

from lit_pref.data.reading import Row
from lit_pref.errors import UserError
from lit_pref.types import Message, Text

STRENGTH = ("margin", "score_chosen", "score_rejected", "probability", "p_chosen")


class BadRow(UserError):
    """One row that cannot be a pair; `kind` is the reason without the row's own numbers, to count by."""

    def __init__(self, row: Row, field: str, reason: str, remedy: str, detail: str = "") -> None:
        self.kind = f"{field} {reason}"
        super().__init__(
            f"{row.place}: {self.kind}{detail}; {remedy}, or leave such rows out with data.bad_rows: lenient."
        )


@dataclass(frozen=True)
class TextPair:
    """A checked row: texts in their final order, margin >= 0.

    `swapped` says that chosen and rejected changed places; `disagrees` that the margin is not the difference of the
    scores beside it, or that the probability prefers the other text.
    """

    prompt: Text
    chosen: str
    rejected: str | None
    margin: float | None
    probability: float | None
    columns: dict[str, float]
    group: str | None
    id: str | None
    swapped: bool
    disagrees: bool

    @property
    def tie(self) -> bool:
        return self.margin == 0 or (self.margin is None and self.probability == 0.5)


class RowReader:
    """Turns rows into checked pairs.

    Strength is `margin`, or else `score_chosen` - `score_rejected`; `probability` (or `p_chosen`) is P(chosen is
    better). A negative margin, or without a margin a probability below 1/2, swaps the texts: the margin changes its
    sign, the probability becomes 1 - p, and a column named for one side (`reward_chosen`) takes the value of the other.

    Args:
        columns: further columns to carry, numbers.
        group_column: a column whose value names the pair's group.
        required: of `margin`, `probability` and column names, what the objective cannot do without.
        one_sided: only the chosen text is wanted; `rejected` may be missing.

    >>> row = Row("pairs.jsonl", 1, {"prompt": "2+2=", "chosen": "5", "rejected": "4", "margin": -1.5})
    >>> pair = RowReader().read(row)
    >>> pair.chosen, pair.rejected, pair.margin, pair.swapped
    ('4', '5', 1.5, True)
    """

    def __init__(
        self,
        columns: tuple[str, ...] = (),
        group_column: str | None = None,
        required: frozenset[str] = frozenset(),
        one_sided: bool = False,
    ) -> None:
        self.columns = tuple(sorted({*columns, *(required - {"margin", "probability"})}))
        self.group_column = group_column
        self.required = required
        self.one_sided = one_sided
        self._first: Row | None = None

    def read(self, row: Row) -> TextPair:
        """The checked pair of a row.

        Raises:
            BadRow: this row cannot be used.
            UserError: the file cannot: a column is missing, or some rows have strength and others not.
        """
        self._check_columns(row)
        prompt = self._prompt(row)
        margin, probability, disagrees = self._strength(row)
        swapped = (margin is not None and margin < 0) or (
            margin is None and probability is not None and probability < 0.5
        )
        first, second = ("rejected", "chosen") if swapped else ("chosen", "rejected")
        chosen = _response(row, first, prompt)
        rejected = None if self.one_sided else _response(row, second, prompt)
        if chosen == rejected:
            raise BadRow(row, "chosen", "and rejected are the same text", "a pair needs two different responses")
        return TextPair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            margin=None if margin is None else abs(margin),
            probability=1 - probability if swapped and probability is not None else probability,
            columns={name: _column(row, name, swapped) for name in self.columns},
            group=self._group(row),
            id=_id(row) if "id" in row.values else None,
            swapped=swapped,
            disagrees=disagrees,
        )

    def _check_columns(self, row: Row) -> None:
        """The columns of the first row bind all the others, so that strength is never silently absent."""
        if self._first is None:
            self._check_first(row)
            self._first = row
        for name in (*STRENGTH, "id"):
            if (name in row.values) != (name in self._first.values):
                has, lacks = (row, self._first) if name in row.values else (self._first, row)
                raise UserError(
                    f"{has.place} has `{name}`, line {lacks.line} has not; give it to every row or to none."
                )

    def _check_first(self, row: Row) -> None:
        has = row.values.keys()
        texts = ("prompt", "chosen") if self.one_sided else ("prompt", "chosen", "rejected")
        carried = (*self.columns, *([self.group_column] if self.group_column else []))
        missing = [name for name in (*texts, *carried) if name not in has]
        found = f"{row.file} has the columns {', '.join(map(str, row.values)) or '(none)'}"
        if missing:
            names = " and ".join(f"`{name}`" for name in missing)
            raise UserError(f"{found}, but not {names}; rename or add what is missing.")
        if ("score_chosen" in has) != ("score_rejected" in has) and "margin" not in has:
            raise UserError(
                f"{found}: one score without the other; give `score_chosen` and `score_rejected`, or `margin`."
            )
        if "margin" in self.required and "margin" not in has and "score_chosen" not in has:
            raise UserError(
                f"{found}, and the objective needs the strength of each preference; add `margin`, or `score_chosen` "
                "and `score_rejected`, or choose an objective that needs none, such as DPO."
            )
        if "probability" in self.required and "probability" not in has and "p_chosen" not in has:
            raise UserError(
                f"{found}, and the objective needs P(chosen is better) of each pair; add `probability`, or choose an "
                "objective that does not need it."
            )

    def _prompt(self, row: Row) -> Text:
        prompt = row.values.get("prompt")
        if not isinstance(prompt, list):
            return _text(row, "prompt", prompt)
        messages = _messages(row, "prompt", prompt)
        if messages[-1]["role"] == "assistant":
            raise BadRow(row, "prompt", "ends with a message of the assistant", "end it with the turn that is answered")
        return messages

    def _strength(self, row: Row) -> tuple[float | None, float | None, bool]:
        if self.one_sided and "rejected" not in row.values:
            return None, None, False
        has = row.values
        margin = probability = None
        disagrees = False
        if "margin" in has:
            margin = _number(row, "margin")
            scores = has.get("score_chosen"), has.get("score_rejected")
            if all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
                disagrees = abs(scores[0] - scores[1] - margin) > 1e-3 * max(1.0, abs(margin))  # type: ignore[operator]
        elif "score_chosen" in has:
            margin = _number(row, "score_chosen") - _number(row, "score_rejected")
        name = "probability" if "probability" in has else "p_chosen"
        if name in has:
            probability = _number(row, name)
            if not 0 <= probability <= 1:
                raise BadRow(row, name, "is not between 0 and 1", "give P(chosen is better)", f" ({probability:g})")
            disagrees |= margin is not None and margin * (probability - 0.5) < 0
        return margin, probability, disagrees

    def _group(self, row: Row) -> str | None:
        if self.group_column is None:
            return None
        value = row.values.get(self.group_column)
        if not isinstance(value, str | int | float) or value == "":
            raise BadRow(row, self.group_column, "names no group", "give it a word or a number", f" ({value!r})")
        return str(value)


def _text(row: Row, field: str, value: Any) -> str:
    if value is None:
        raise BadRow(row, field, "is missing or null", "give it a text")
    if not isinstance(value, str):
        raise BadRow(row, field, "is not a text", "give it a string or a message list", f" but {type(value).__name__}")
    if not value.strip():
        raise BadRow(row, field, "is empty", "give it a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(row, field, "holds half a surrogate pair", "mend the text's encoding") from None
    return value


def _messages(row: Row, field: str, value: list[Any]) -> list[Message]:
    remedy = 'give it messages like {"role": "user", "content": "..."}'
    if not value:
        raise BadRow(row, field, "is an empty message list", remedy)
    for message in value:
        if not isinstance(message, dict) or not message.get("role") or not isinstance(message["role"], str):
            raise BadRow(row, field, "holds a message without a role", remedy)
        if message["role"] != "system" or message.get("content") != "":  # an empty system turn is common and harmless
            _text(row, f"{field} content", message.get("content"))
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _response(row: Row, field: str, prompt: Text) -> str:
    value = row.values.get(field)
    if not isinstance(value, list):
        return _text(row, field, value)
    messages = _messages(row, field, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow(
            row,
            field,
            "is not one message of the assistant",
            "put the conversation before it into `prompt` as messages",
        )
    if isinstance(prompt, str):
        raise BadRow(row, field, "is a message but prompt is a string", "make both messages, or both strings")
    return messages[0]["content"]


def _number(row: Row, field: str) -> float:
    value = row.values.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        shown = "null" if value is None else f"{value!r:.40}"
        raise BadRow(row, field, "is not a finite number", "give it a number", f" ({shown})")
    return float(value)


def _column(row: Row, name: str, swapped: bool) -> float:
    if swapped and ("chosen" in name) != ("rejected" in name):
        old, new = ("chosen", "rejected") if "chosen" in name else ("rejected", "chosen")
        name = name.replace(old, new)
    return float(row.values[name]) if isinstance(row.values.get(name), bool) else _number(row, name)


def _id(row: Row) -> str:
    value = row.values["id"]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRow(
            row, "id", "is neither a word nor an integer", "give it one, or remove the column", f" ({value!r})"
        )
    return str(value)
