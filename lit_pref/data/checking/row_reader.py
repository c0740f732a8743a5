"""Checks of canonical rows: texts, strength and columns, swapped where necessary so that the margin is >= 0."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from lit_pref.data.checking.disagreement import Disagreement, margin_against_scores, probability_against, sign
from lit_pref.data.checking.fields import (
    TEMPLATE_COLUMNS,
    id_of,
    name_of,
    prompt_of,
    response_of,
    spans_of,
)
from lit_pref.data.checking.swapping import OnSwap, group_of, partner_of, swapped_value
from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.formats.spec import SOURCES, STRENGTH
from lit_pref.data.sources.first_rows import first_rows
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import LARGEST, number_of
from lit_pref.errors import UsageError, UserError


class RowReader:
    """Checks canonical rows and returns pairs of texts.

    Strength is `margin` (which a mapping has computed, see `PairStrength`), or else `score_chosen` - `score_rejected`;
    `probability` (or `p_chosen`) is P(chosen is better). A negative margin, or without a margin a probability below
    1/2, swaps the texts: the margin changes its sign and the probability becomes 1 - p.

    The other columns are swapped together with the texts, by the rules in `on_swap`, or else by their names: a column
    of one side takes the value of the other (`reward_chosen` that of `reward_rejected`), and a column that begins with
    `p_` is a probability that chosen is better and becomes 1 - p. Any other column is refused at the first swapped
    row: a difference of rewards would be wrong if it were kept, and a difficulty if it were negated.

    Args:
        columns: further columns of numbers to keep with the pairs.
        group_column: a column whose value names the pair's group; a column of one side is swapped with the texts.
        required: columns that the objective needs, among them `margin`, `probability` and `extra_response`, which is
            not read otherwise.
        one_sided: read only the chosen text; `rejected` may be missing.
        on_swap: rule for a column if the texts are swapped: `keep` its value, `negate` (a difference, chosen minus
            rejected) or `complement` (a probability p that chosen is better: 1 - p).
        token_columns: names of per-token columns: NAME_chosen and NAME_rejected are lists of [start, end, value] in
            characters of that response.
        ignored: keys of messages, and columns of template arguments, that are not read.

    Raises:
        UsageError: `on_swap` names a column that is not in `columns`.

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
        ignored: tuple[str, ...] = (),
    ) -> None:
        self.columns = tuple(sorted({*columns, *(required - {"margin", "probability", "extra_response"})}))
        self.group_column = group_column
        self.required = required
        self.one_sided = one_sided
        self.token_columns = token_columns
        self.ignored = ignored
        self.on_swap = dict(on_swap or {})
        if unknown := sorted(self.on_swap.keys() - set(self.columns)):
            raise UsageError(
                f"data.on_swap names `{unknown[0]}`, which is not one of the further columns "
                f"({', '.join(self.columns) or 'none'}); add it to data.columns, or remove it from data.on_swap."
            )
        self._first: Row | None = None

    @property
    def read_columns(self) -> frozenset[str]:
        """The names of all columns that are read from a row if it has them."""
        sided = (*self.columns, *([self.group_column] if self.group_column else []))
        names = {"prompt", "chosen", "rejected", "extra_response", "id", *STRENGTH, *TEMPLATE_COLUMNS, *sided}
        names |= {partner for name in sided if (partner := partner_of(name))} | {n for pair in SOURCES for n in pair}
        return frozenset(names | {f"{name}_{side}" for name in self.token_columns for side in ("chosen", "rejected")})

    def read_all(self, rows: Iterable[Row | BadRow]) -> Iterator[tuple[Row | None, TextPair | BadRow]]:
        """Yield each canonical row with its checked pair, or with the reason why it cannot be used.

        A `BadRow` among `rows` has no canonical row: None is yielded in its place.

        Raises:
            UserError: see `read`.
        """
        rows = iter(rows)
        start = first_rows(rows)
        if good := [row for row in start if isinstance(row, Row)]:
            # The columns of most rows are those of the file, so that one odd row, even the first, is the faulty one.
            names = [frozenset(row.values.keys() & {*STRENGTH, "id"}) for row in good]
            most = Counter(names).most_common(1)[0][0]
            self._check_first(first := good[names.index(most)])
            self._first = first
        for row in itertools.chain(start, rows):
            if isinstance(row, BadRow):
                yield None, row
                continue
            checked: TextPair | BadRow
            try:
                checked = self.read(row)
            except BadRow as bad:
                checked = bad
            yield row, checked

    def read(self, row: Row) -> TextPair:
        """Return the checked pair of a canonical row.

        Raises:
            BadRow: this row cannot be used.
            UserError: the file cannot be used: a column is missing, or only some rows have strength.
        """
        self._check_columns(row)
        prompt = prompt_of(row, self.ignored)
        margin, probability, disagreement = self._strength(row)
        swapped = self._prefers_rejected(row, margin, probability)
        first, second = ("rejected", "chosen") if swapped else ("chosen", "rejected")
        chosen, own = response_of(row, first, prompt, self.ignored)
        rejected, other = (None, {}) if self.one_sided else response_of(row, second, prompt, self.ignored)
        wanted = "extra_response" in self.required
        extra, extra_own = response_of(row, "extra_response", prompt, self.ignored) if wanted else (None, {})
        if chosen == rejected and own == other:
            same = f"and {row.named('rejected')} are the same text"
            raise BadRow(row, "chosen", same, "a pair needs two different responses")
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
            disagrees=disagreement is not None,
            disagreement=disagreement,
            extra_response=extra,
            further={k: v for k, v in (("chosen", own), ("rejected", other), ("extra_response", extra_own)) if v},
            spans=spans,
            sources=self._sources(row, swapped),
            chosen_first=None if row.chosen_first is None else row.chosen_first != swapped,
            clipped=row.clipped,
        )

    @staticmethod
    def _prefers_rejected(row: Row, margin: float | None, probability: float | None) -> bool:
        """Return whether the strength prefers the text that the row calls rejected."""
        if margin is not None:
            return margin < 0
        if probability is not None:
            return probability < 0.5
        return row.prefers == "rejected"

    def _check_columns(self, row: Row) -> None:
        """Refuse a row without the columns of the others, so that strength is never silently missing."""
        if self._first is None:
            self._check_first(row)
            self._first = row
        remedy = "give it to every row or to none"
        for name in (*STRENGTH, "id"):
            if name in row.values and name not in self._first.values:
                raise BadRow(row, name, "stands in this row", remedy, f", and not in line {self._first.line}")
            if name not in row.values and name in self._first.values:
                raise BadRow(row, name, "is missing", remedy, f" here, and line {self._first.line} has it")

    def _check_first(self, row: Row) -> None:
        has = row.values.keys()
        texts: tuple[str, ...] = ("prompt", "chosen") if self.one_sided else ("prompt", "chosen", "rejected")
        texts += ("extra_response",) if "extra_response" in self.required else ()
        sides = ("chosen",) if self.one_sided else ("chosen", "rejected")
        texts += tuple(f"{name}_{side}" for name in self.token_columns for side in sides)
        carried = (*self.columns, *([self.group_column] if self.group_column else []))
        missing = [name for name in (*texts, *carried) if name not in has]
        converted = ", as its mapping reads it," if row.names else ""
        start = f"{row.file}{converted} has the columns {', '.join(map(str, row.values)) or '(none)'}"
        if missing:
            names = " and ".join(f"`{name}`" for name in missing)
            remedy = "rename or add the missing columns"
            if "extra_response" in missing:
                remedy += (
                    ". `extra_response`, which the objective or one of its terms reads, is a further response to each "
                    f"prompt: `python -m lit_pref generate --model FOLDER --prompts {row.file} --unique false --out "
                    "OUT` writes one for each record, in their order, as `response`"
                )
                if "third" in has:
                    remedy = "the column `third` is now called `extra_response`: rename it"
            raise UserError(f"{start}, but not {names}; {remedy}.")
        if ("score_chosen" in has) != ("score_rejected" in has) and "margin" not in has:
            raise UserError(
                f"{start}: one score without the other; give `score_chosen` and `score_rejected`, or `margin`."
            )
        if "margin" in self.required and "margin" not in has and "score_chosen" not in has:
            raise UserError(
                f"{start}, and the objective needs the strength of each preference; add `margin`, or `score_chosen` "
                "and `score_rejected`, or choose an objective that needs none, such as DPO."
            )
        if "probability" in self.required and "probability" not in has and "p_chosen" not in has:
            raise UserError(
                f"{start}, and the objective needs P(chosen is better) of each pair; add `probability`, or choose an "
                "objective that does not need it."
            )

    def _strength(self, row: Row) -> tuple[float | None, float | None, Disagreement | None]:
        if self.one_sided and "rejected" not in row.values:
            return None, None, None
        has = row.values
        margin = probability = None
        disagreement: Disagreement | None = None
        if "margin" in has:
            margin = number_of(row, "margin")
            if "margin" not in row.names:  # otherwise a mapping has computed it from the scores
                disagreement = margin_against_scores(row, margin)
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
            disagreement = disagreement or probability_against(row, name, probability, margin)
        if row.prefers is not None and row.prefers != "tie":
            strength = margin if margin is not None else (0 if probability is None else probability - 0.5)
            if sign(strength) == (-1 if row.prefers == "chosen" else 1):
                words = "the label and the strength prefer different responses"
                disagreement = disagreement or (words, f"the label is for {row.prefers}, the strength {strength:g}")
        return margin, probability, disagreement

    def _column(self, row: Row, name: str, swapped: bool) -> float:
        return swapped_value(row, name, self.on_swap.get(name)) if swapped else number_of(row, name, truth=True)

    @staticmethod
    def _sources(row: Row, swapped: bool) -> tuple[str | None, str | None]:
        for names in SOURCES:
            if names[0] in row.values or names[1] in row.values:
                strict = names == SOURCES[0]
                chosen, rejected = (name_of(row, name, strict) for name in names)
                return (rejected, chosen) if swapped else (chosen, rejected)
        return None, None
