"""What a row must hold: texts, strength, columns, checked and oriented so that the margin is not negative."""

from collections.abc import Mapping

from lit_pref.data.checking.fields import (
    LARGEST,
    BadRow,
    id_of,
    messages_of,
    name_of,
    number,
    number_of,
    plain_text_of,
    response_of,
    spans_of,
)
from lit_pref.data.checking.fields import Spans as Spans
from lit_pref.data.checking.swapping import OnSwap as OnSwap
from lit_pref.data.checking.swapping import group_of, turned
from lit_pref.data.checking.text_pair import TextPair as TextPair
from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError, UserError
from lit_pref.pairs import Text

STRENGTH = ("margin", "score_chosen", "score_rejected", "probability", "p_chosen")
SOURCES = (("chosen_source", "rejected_source"), ("chosen_model", "rejected_model"))


class RowReader:
    """Turns rows into checked pairs.

    Strength is `margin`, or else `score_chosen` - `score_rejected`; `probability` (or `p_chosen`) is P(chosen is
    better). A negative margin, or without a margin a probability below 1/2, swaps the texts: the margin changes its
    sign and the probability becomes 1 - p.

    The other columns turn with the texts, as `on_swap` says, else by their names: one that names one side takes the
    value of the other (`reward_chosen` that of `reward_rejected`), one that begins with `p_` is a probability that
    chosen is better and becomes 1 - p. Any other column is refused at the first swapped row: a difference of rewards
    would be wrong if it stayed, and a difficulty if it turned.

    Args:
        columns: further columns to carry, numbers.
        group_column: a column whose value names the pair's group; that of one side turns with the texts.
        required: of `margin`, `probability`, `extra_response` (else not read) and column names, what the objective
            cannot do without.
        one_sided: only the chosen text is wanted; `rejected` may be missing.
        on_swap: what columns do where the texts swap: `keep` their value, `negate` (a difference, chosen minus
            rejected) or `complement` (a probability p that chosen is better: 1 - p).
        token_columns: names of per-token columns: NAME_chosen and NAME_rejected hold lists of [start, end, value] in
            characters of that response.

    Raises:
        UsageError: `on_swap` names a column that is not carried.

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
        on_swap: Mapping[str, OnSwap] | None = None,
        token_columns: tuple[str, ...] = (),
    ) -> None:
        self.columns = tuple(sorted({*columns, *(required - {"margin", "probability", "extra_response"})}))
        self.group_column = group_column
        self.required = required
        self.one_sided = one_sided
        self.token_columns = token_columns
        self.on_swap = dict(on_swap or {})
        if unknown := sorted(self.on_swap.keys() - set(self.columns)):
            raise UsageError(
                f"data.on_swap names `{unknown[0]}`, which is not among the columns that are carried "
                f"({', '.join(self.columns) or 'none'}); add it to data.columns, or take it out of data.on_swap."
            )
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
        swapped = self._turns(row, margin, probability)
        first, second = ("rejected", "chosen") if swapped else ("chosen", "rejected")
        chosen = response_of(row, first, prompt)
        rejected = None if self.one_sided else response_of(row, second, prompt)
        if chosen == rejected:
            raise BadRow(row, "chosen", "and rejected are the same text", "a pair needs two different responses")
        spans = {
            name: (
                spans_of(row, f"{name}_{first}", chosen),
                [] if self.one_sided else spans_of(row, f"{name}_{second}", rejected),
            )
            for name in self.token_columns
        }
        return TextPair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            margin=None if margin is None else abs(margin),
            probability=1 - probability if swapped and probability is not None else probability,
            columns={name: self._column(row, name, swapped) for name in self.columns},
            group=None if self.group_column is None else group_of(row, self.group_column, swapped),
            id=id_of(row) if "id" in row.values else None,
            swapped=swapped and row.chosen_first is None,
            disagrees=disagrees,
            extra_response=response_of(row, "extra_response", prompt) if "extra_response" in self.required else None,
            spans=spans,
            sources=self._sources(row, swapped),
            chosen_first=None if row.chosen_first is None else row.chosen_first != swapped,
            clipped=row.clipped,
        )

    @staticmethod
    def _turns(row: Row, margin: float | None, probability: float | None) -> bool:
        """Whether the text that the row calls chosen is the worse one."""
        if margin is not None:
            return margin < 0
        if probability is not None:
            return probability < 0.5
        return row.prefers == "rejected"

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
        texts: tuple[str, ...] = ("prompt", "chosen") if self.one_sided else ("prompt", "chosen", "rejected")
        texts += ("extra_response",) if "extra_response" in self.required else ()
        sides = ("chosen",) if self.one_sided else ("chosen", "rejected")
        texts += tuple(f"{name}_{side}" for name in self.token_columns for side in sides)
        carried = (*self.columns, *([self.group_column] if self.group_column else []))
        missing = [name for name in (*texts, *carried) if name not in has]
        read = ", as its mapping reads it," if row.names else ""
        found = f"{row.file}{read} has the columns {', '.join(map(str, row.values)) or '(none)'}"
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
            return plain_text_of(row, "prompt", prompt)
        messages = messages_of(row, "prompt", prompt)
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
            margin = number_of(row, "margin")
            if "margin" not in row.names:  # a mapping has made it of the scores, in its own way
                disagrees = _contradicts(row, margin)
        elif "score_chosen" in has:
            margin = number_of(row, "score_chosen") - number_of(row, "score_rejected")
            if abs(margin) > LARGEST:
                raise BadRow(
                    row, "score_chosen", "and score_rejected are too far apart", "give scores of another scale"
                )
        name = "probability" if "probability" in has else "p_chosen"
        if name in has:
            probability = number_of(row, name)
            if not 0 <= probability <= 1:
                raise BadRow(row, name, "is not between 0 and 1", "give P(chosen is better)", f" ({probability:g})")
            disagrees |= margin is not None and _sign(margin) != _sign(probability - 0.5)
            disagrees |= name == "probability" and "p_chosen" in has and _is_another(row, "p_chosen", probability)
        if row.prefers is not None and row.prefers != "tie":
            strength = margin if margin is not None else (0 if probability is None else probability - 0.5)
            disagrees |= _sign(strength) == (-1 if row.prefers == "chosen" else 1)
        return margin, probability, disagrees

    def _column(self, row: Row, name: str, swapped: bool) -> float:
        return turned(row, name, self.on_swap.get(name)) if swapped else number_of(row, name, truth=True)

    @staticmethod
    def _sources(row: Row, swapped: bool) -> tuple[str | None, str | None]:
        for names in SOURCES:
            if names[0] in row.values or names[1] in row.values:
                own = names == SOURCES[0]
                chosen, rejected = (name_of(row, name, strict=own) for name in names)
                return (rejected, chosen) if swapped else (chosen, rejected)
        return None, None


def _contradicts(row: Row, margin: float) -> bool:
    """Whether the scores beside a margin have another difference.

    Raises:
        BadRow: one that prefers the other text.
    """
    try:
        first, second = (number(row, name, row.values.get(name)) for name in ("score_chosen", "score_rejected"))
    except BadRow:
        return False
    if (first - second) * margin < 0:
        raise BadRow(
            row,
            "margin",
            "and the difference of the scores prefer different texts",
            "take out the one that is wrong, or say which is meant by a mapping",
            f" ({margin:g} against {first:g} - {second:g})",
        )
    return abs(first - second - margin) > 1e-3 * max(1.0, abs(margin))


def _is_another(row: Row, name: str, value: float) -> bool:
    """Whether a column says another number."""
    try:
        return abs(number_of(row, name) - value) > 1e-6
    except BadRow:
        return False


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
