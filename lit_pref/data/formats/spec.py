"""The mapping of a file format: which columns contain texts, strength and further values."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from lit_pref.data.formats.conversations import TextFormat
from lit_pref.data.formats.ranked_lists import PairsFromList, Tree
from lit_pref.data.formats.several import Label, listed
from lit_pref.data.formats.strength import Margin, Probability, Score, Signed

Kind = Literal["pair", "ab", "ab_signed", "list", "none"]
FORMAT = 2  # raise it when a code change makes a mapping give other rows
SIDES = {"pair": ("chosen", "rejected"), "none": ("chosen", "rejected"), "ab": ("a", "b"), "ab_signed": ("a", "b")}
STRENGTH = ("margin", "score_chosen", "score_rejected", "probability", "p_chosen")
"""Canonical columns of strength."""
SOURCES = (("chosen_source", "rejected_source"), ("chosen_model", "rejected_model"))
"""Canonical columns that name who wrote the chosen and the rejected text, and an accepted alternative."""


@dataclass(frozen=True)
class Filters:
    """Filters that leave pairs out; these pairs are counted, but are not errors in the data.

    Args:
        min_margin: the smallest margin, after transform and scale.
        min_score_ratio: the smallest ratio of the larger to the smaller score, which must be above 0.
        drop_ties: drop pairs of equal strength.
        max_pairs_per_prompt: a cap; the pairs to keep are drawn at random.
        seed: seed of the random draws.
    """

    min_margin: float | None = None
    min_score_ratio: float | None = None
    drop_ties: bool = False
    max_pairs_per_prompt: int | None = None
    seed: int = 42


@dataclass(frozen=True)
class RowMapping:
    """Names the columns of a source that contain texts and strength.

    Kinds: `pair` has a chosen and a rejected text, and strength as given here, or else in the canonical columns if the
    rows have any; `ab` has two texts and values that show which is better; `ab_signed` has two texts and one signed
    number; `list` has several answers with scores or ranks; `none` is a pair whose strength is ignored.

    In `ab` and `list` the text that comes first in the source is called chosen, and the strength swaps the pair where
    necessary (`RowReader`). If there is no other strength, labels decide: as the probabilities 1, 0 and 1/2 if the
    mapping names values for a tie, else only by swapping the pair. If there is another strength, a label is only used
    to detect disagreement.

    Args:
        name: name of the mapping.
        kind: see above.
        prompt: path to the prompt (syntax: `lit_pref/data/formats/field_path.py`); None if the responses contain it.
        prompt_then: paths to texts that follow the prompt, each after an empty line; empty ones are left out.
        system: path to a system text.
        chosen, rejected: paths to the texts of `pair` and `none`; one-sided data have no `rejected`. With a path to
            many, such as `chosen[]`, every chosen text is paired with every rejected one.
        a, b: paths to the texts of `ab` and `ab_signed`.
        responses: path to the answers of a `list`, such as `answers[].text`; with `group` or `tree`, to the answer of
            one row.
        group: consecutive rows with the same value here are one list.
        tree: consecutive rows are the messages of a tree.
        extra_response: path to a further response; None takes the column `extra_response`, if there is one.
        format: how texts are written (`Dialogues`); `as` (here `as_`): HH text becomes messages or stays text.
        prompt_repeated: the response strings begin with the prompt, which is removed.
        score, signed, probability, label: columns of strength; `margin`: how the margin is computed from them.
        pairs_from_list: which pairs are taken from a list.
        filters: which pairs are left out.
        id: path to an id.
        source: paths to the author of each text.
        columns: further columns by name: one path, or one per side, which gives NAME_chosen and NAME_rejected. All
            other columns keep their name.
        spans: per-token columns by name, as lists of [start, end, value] in characters of each side's text.
        ignore: columns that do not belong to prompt or response, although their name or content may suggest it.
        note: a remark for the log.
    """

    name: str
    kind: Kind = "pair"
    prompt: str | None = None
    prompt_then: list[str] = field(default_factory=list)
    system: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    a: str | None = None
    b: str | None = None
    responses: str | None = None
    group: str | None = None
    tree: Tree | None = None
    extra_response: str | None = None
    format: TextFormat = "auto"
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
    ignore: list[str] = field(default_factory=list)
    note: str | None = None

    @property
    def columns_read(self) -> frozenset[str]:
        """The names of the columns from which the mapping reads a value."""
        paths = self.paths.values()
        return frozenset(paths) | frozenset(re.split(r"[.\[]", path, maxsplit=1)[0] for path in paths)

    @property
    def normalise(self) -> Literal["none", "zscore", "minmax", "quantile"]:
        return self.margin.normalise

    @property
    def paths(self) -> dict[str, str]:
        """Every path that the mapping reads, by its key."""
        paths: dict[str, str | None] = {}
        for key in ("prompt", "system", "chosen", "rejected", "a", "b", "responses", "group", "extra_response", "id"):
            paths[key] = getattr(self, key)
        paths |= {f"prompt_then.{k}": path for k, path in enumerate(self.prompt_then)}
        strength = {
            f"score.{name}": getattr(self.score, name, None) for name in ("chosen", "rejected", "a", "b", "path")
        }
        for part in ("signed", "probability", "label"):
            strength[f"{part}.column"] = getattr(getattr(self, part), "column", None)
        for key, columns in strength.items():
            several = isinstance(columns, list)
            paths |= {f"{key}.{k}" if several else key: path for k, path in enumerate(listed(columns))}
        for name in ("tree", "id", "parent", "role"):
            paths[f"tree.{name}"] = getattr(self.tree, name, None)
        for part in ("source", "columns", "spans"):
            for name, where in getattr(self, part).items():
                sides = where if isinstance(where, dict) else {"": where}
                paths |= {f"{part}.{name}.{side}".rstrip("."): path for side, path in sides.items()}
        return {key: path for key, path in paths.items() if path is not None}

    @property
    def names_strength(self) -> bool:
        """Whether the mapping names columns of strength."""
        return any(part is not None for part in (self.score, self.signed, self.probability, self.label))

    @property
    def has_strength(self) -> bool:
        """Whether the mapping itself defines the strength, instead of leaving it to the canonical columns."""
        return self.names_strength or self.margin.transform == "const"

    @property
    def combines(self) -> bool:
        """Whether a row has several chosen or several rejected responses, each pair of which is read."""
        return any("[]" in (path or "") for path in (self.chosen, self.rejected))

    @property
    def is_canonical(self) -> bool:
        """Whether texts, names and strength are already in the canonical columns."""
        same = RowMapping(self.name, "pair", "prompt", chosen="chosen", rejected="rejected", id=self.id)
        return replace(self, filters=same.filters, note=None, ignore=[], margin=same.margin) == same

    @property
    def ascending(self) -> bool:
        """Whether the smaller score is the better one."""
        return self.margin.transform == "rank_gap" or (self.score is not None and self.score.order == "asc")

    @property
    def strength_column(self) -> str | None:
        """The columns that messages name if the margin is faulty."""
        if self.score is not None:
            columns = self.score.path or self.score.chosen or self.score.a
        else:
            part = self.signed or self.probability or self.label
            columns = part.column if part else None
        return " and ".join(listed(columns)) or None

    def fingerprint(self) -> str:
        """Return a sha256 over every setting that affects the pairs."""
        parts = {key: value for key, value in asdict(self).items() if key not in ("name", "note")}
        return hashlib.sha256(json.dumps([FORMAT, parts], sort_keys=True, default=str).encode()).hexdigest()
