"""From a source's rows to rows in this project's own fields."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lit_pref.data.checking.fields import BadRow, number_of
from lit_pref.data.checking.row_reader import TextPair
from lit_pref.data.formats.conversations import Format
from lit_pref.data.formats.convert import SIDES, Conversion
from lit_pref.data.formats.ranked_lists import PairsFromList, Tree
from lit_pref.data.formats.strength import Label, Margin, Probability, Score, Signed
from lit_pref.data.sources.row import Row

Kind = Literal["pair", "ab", "ab_signed", "list", "none"]
FORMAT = 2  # raise it when the same mapping would give other rows


@dataclass(frozen=True)
class Filters:
    """Which pairs are left out: counted, and no fault of theirs.

    Args:
        min_margin: the smallest margin, after transform and scale.
        min_score_ratio: the smallest ratio of the larger to the smaller score, which must be above 0.
        drop_ties: pairs of equal strength.
        max_pairs_per_prompt: a cap; which pairs stay is drawn by lot.
        seed: of the lots.
    """

    min_margin: float | None = None
    min_score_ratio: float | None = None
    drop_ties: bool = False
    max_pairs_per_prompt: int | None = None
    seed: int = 42


@dataclass(frozen=True)
class RowMapping:
    """Where text and strength are in a source's rows.

    Kinds: `pair` has a chosen and a rejected text (strength as said, else under this project's own names where the rows
    have any); `ab` two texts and what tells which is better; `ab_signed` the same by a signed number; `list` several
    answers with scores or ranks; `none` a pair whose strength is not to be read.

    In `ab` and `list` the text that comes first in the source is called chosen; the strength turns the pair where it
    must (`RowReader`). Labels decide where there is no other strength: as the probabilities 1, 0 and 1/2 where the
    mapping names values that mean a tie, else by turning the pair alone. Beside another strength they only tell
    whether it disagrees.

    Args:
        name: of the mapping.
        kind: as above.
        prompt: path to the prompt (syntax: `lit_pref/data/formats/field_path.py`); None if the responses hold it.
        system: path to a system text.
        chosen, rejected: paths to the texts of `pair` and `none`; data of one side have no `rejected`.
        a, b: paths to the texts of `ab` and `ab_signed`.
        responses: path to the answers of a `list`, as `answers[].text`; with `group` or `tree` that of one row.
        group: consecutive rows with the same value here are one list.
        tree: consecutive rows are the messages of a tree.
        extra_response: path to a further response; None takes the column `extra_response`, if there is one.
        format: how texts are written (`Dialogues`); `as` (here `as_`): HH text becomes messages or stays text.
        prompt_repeated: the response strings begin with the prompt, which is cut off.
        score, signed, probability, label: where strength is; `margin`: what is made of it.
        pairs_from_list: which pairs are made of a list.
        filters: which pairs are left out.
        id: path to an id.
        source: paths to who wrote each text.
        columns: further columns by name: a path, or one for each side, then NAME_chosen and NAME_rejected. Others keep
            the name that they have in the source.
        spans: per-token columns by name, as lists of [start, end, value] in characters of each side's text.
        note: a remark for the log.

    >>> mapping = RowMapping("mine", kind="ab", prompt="q", a="x", b="y", score=Score(a="sx", b="sy"))
    >>> row = Row("mine.jsonl", 1, {"q": "2+2=", "x": "5", "y": "4", "sx": 1, "sy": 3})
    >>> native = next(mapping.native([row])).values
    >>> [native[name] for name in ("prompt", "chosen", "rejected", "margin")]
    ['2+2=', '5', '4', -2.0]
    """

    name: str
    kind: Kind = "pair"
    prompt: str | None = None
    system: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    a: str | None = None
    b: str | None = None
    responses: str | None = None
    group: str | None = None
    tree: Tree | None = None
    extra_response: str | None = None
    format: Format = "auto"
    as_: Literal["messages", "text"] = "messages"
    prompt_repeated: bool = False
    score: Score | None = None
    signed: Signed | None = None
    probability: Probability | None = None
    label: Label | None = None
    margin: Margin = field(default_factory=Margin)
    pairs_from_list: PairsFromList = field(default_factory=PairsFromList)
    filters: Filters = field(default_factory=Filters)
    id: str | None = None
    source: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str | dict[str, str]] = field(default_factory=dict)
    spans: dict[str, str | dict[str, str]] = field(default_factory=dict)
    note: str | None = None

    @property
    def normalise(self) -> Literal["none", "zscore", "minmax", "quantile"]:
        return self.margin.normalise

    @property
    def paths(self) -> dict[str, str]:
        """Every path that it reads, by its key."""
        found: dict[str, str | None] = {}
        for key in ("prompt", "system", "chosen", "rejected", "a", "b", "responses", "group", "extra_response", "id"):
            found[key] = getattr(self, key)
        for name in ("chosen", "rejected", "a", "b", "path"):
            found[f"score.{name}"] = getattr(self.score, name, None)
        for name in ("tree", "id", "parent", "role"):
            found[f"tree.{name}"] = getattr(self.tree, name, None)
        for part in ("signed", "probability", "label"):
            found[f"{part}.column"] = getattr(getattr(self, part), "column", None)
        for part in ("source", "columns", "spans"):
            for name, where in getattr(self, part).items():
                sides = where if isinstance(where, dict) else {"": where}
                found |= {f"{part}.{name}.{side}".rstrip("."): path for side, path in sides.items()}
        return {key: path for key, path in found.items() if path is not None}

    @property
    def names_strength(self) -> bool:
        """Whether it names columns of strength."""
        return any(said is not None for said in (self.score, self.signed, self.probability, self.label))

    @property
    def has_strength(self) -> bool:
        """Whether strength is as it says, and not as the rows have it under this project's own names."""
        return self.names_strength or self.margin.transform == "const"

    @property
    def is_own(self) -> bool:
        """Whether texts, names and strength are this project's own."""
        same = RowMapping(self.name, "pair", "prompt", chosen="chosen", rejected="rejected", id=self.id)
        return replace(self, filters=same.filters, note=None, margin=same.margin) == same

    @property
    def ascending(self) -> bool:
        """Whether the smaller score is the better one."""
        return self.margin.transform == "rank_gap" or (self.score is not None and self.score.order == "asc")

    @property
    def strength_column(self) -> str | None:
        """The column that a faulty margin is blamed on."""
        if self.score is not None:
            return self.score.path or self.score.chosen or self.score.a
        if self.signed is not None:
            return self.signed.column
        return self.probability.column if self.probability else self.label.column if self.label else None

    def native(self, rows: Iterable[Row]) -> Iterator[Row | BadRow]:
        """The rows in this project's own fields; in the place of one that cannot be a pair, why.

        A `LeftOut` among them is no fault of the data: an answer without a rank, or a prompt with one answer.

        Raises:
            UserError: rows of one list do not follow each other.
        """
        return Conversion(self).native(rows)

    def left_out(self, text: TextPair, row: Row) -> str | None:
        """Why a pair does not pass the filters, or None."""
        filters = self.filters
        if filters.drop_ties and text.tie:
            return "tie"
        if filters.min_margin is not None and (text.margin is None or text.margin < filters.min_margin):
            return "no margin" if text.margin is None else f"margin below {filters.min_margin:g}"
        if filters.min_score_ratio is not None:
            try:
                low, high = sorted((number_of(row, "score_chosen"), number_of(row, "score_rejected")))
            except BadRow:
                return "no scores to take the ratio of"
            if low <= 0 or high < filters.min_score_ratio * low:
                return f"score ratio below {filters.min_score_ratio:g}"
        return None

    def fingerprint(self) -> str:
        """sha256 over all that decides the outcome."""
        parts = {key: value for key, value in asdict(self).items() if key not in ("name", "note")}
        return hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True, default=str).encode()).hexdigest()

    def describe(self) -> str:
        """One line: where text and strength come from."""
        sides = [getattr(self, side) for side in SIDES.get(self.kind, ()) if getattr(self, side) is not None]
        texts = self.responses or " and ".join(sides)
        prompt = f"prompt {self.prompt}" if self.prompt else "prompt within them"
        told = f"layout {self.name}: texts {texts}, {prompt}, {self.strength_in_words}"
        return f"{told} ({self.note})" if self.note else told

    def in_words(self, pair: TextPair, row: Row) -> str:
        """One pair in words: prompt, which text is chosen, margin and where it is from."""
        asked = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"]
        first, second = row.named("chosen"), row.named("rejected")
        if pair.rejected is not None and _said(row.values.get("chosen")) != pair.chosen:
            first, second = second, first
        told = self.strength_in_words if "margin" in row.names else "as in the row"
        if "margin" not in row.values and "score_chosen" in row.values:
            told = "score_chosen - score_rejected"
        strength = "no margin" if pair.margin is None else f"margin {pair.margin:.4g} ({told})"
        strength += "" if pair.probability is None else f", probability {pair.probability:.4g}"
        return (
            f"{row.place}: to {_short(asked)}, {first} {_short(pair.chosen)} is preferred to {second} "
            f"{_short(pair.rejected or '')}, {strength}"
        )

    @property
    def strength_in_words(self) -> str:
        """Where the margin comes from."""
        transform = self.margin.transform
        told = "strength margin, scores or probability as the rows have it"
        if self.kind == "none":
            told = "no strength"
        elif self.score is not None:
            score = self.score
            first, second = (score.chosen or score.a, score.rejected or score.b) if not score.path else (score.path, "")
            between = f"{first} and {second}" if second else f"two {first}"
            told = f"margin {transform or 'diff'} of {between}"
        elif self.signed is not None:
            told = f"margin {self.signed.column}, positive for {self.signed.positive_means}"
        elif self.probability is not None:
            margin = "margin the log-odds of " if transform else ""
            told = f"{margin}probability {self.probability.column} of {self.probability.of or 'chosen'}"
        elif self.label is not None:
            told = f"label {self.label.column} ({self.label.a!r} is a, {self.label.b!r} is b)"
        told += f", times {self.margin.scale:g}" if self.margin.scale != 1 else ""
        return told + (f", cut to {self.margin.clip:g}" if self.margin.clip is not None else "")


def _said(value: Any) -> Any:
    """The text of a response, as a string or as messages."""
    return value[-1].get("content") if isinstance(value, list) and value and isinstance(value[-1], dict) else value


def _short(text: str) -> str:
    """A text on one line, cut."""
    line = " ".join(text[:200].split())
    return f'"{line}"' if len(line) <= 60 else f'"{line[:57]}..."'
