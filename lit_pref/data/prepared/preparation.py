"""Preparation of a source: its rows are read, converted, checked, filtered, split, tokenized and written."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lit_pref.cache import build_once, cache_folder
from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.checking.swapping import OnSwap
from lit_pref.data.checking.text_pair import CheckedPair, TextPair, split_key
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.describe import describe
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.formats.whole_lists import refuse_unless_list
from lit_pref.data.prepared.arrow import PairWriter
from lit_pref.data.prepared.garbage import collection_paused
from lit_pref.data.prepared.pair_rules import Lots, PairIds, filtered_out, in_validation, last_lots
from lit_pref.data.prepared.pair_view import PreparedPairs
from lit_pref.data.prepared.preparation_report import PreparationReport, example_of
from lit_pref.data.prepared.tokenized_pairs import lists_with_an_order, tokenized_pairs
from lit_pref.data.sources.first_rows import first_rows
from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow, LeftOut, Row
from lit_pref.data.sources.source import Source, files_of, source_digest
from lit_pref.data.sources.unread import UnreadColumns
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UsageError, UserError

FORMAT = 6  # raise it when a code change makes the same source and settings give other pairs
SPLITS = ("train", "validation")
Refuse = Callable[[BadRow, str], None]
"""A function that is called with each faulty row and its split."""


@dataclass
class Preparation:
    """Prepares the pairs of a source, split by prompt: dialogues with the same first text of a user stay together.

    Args:
        mapping: mapping of sources that have none of their own; None recognises their format.
        columns: further columns of numbers to keep with the pairs.
        on_swap: rules for these columns if chosen and rejected are swapped (see `RowReader`).
        token_columns: names of the columns of character spans whose values go with the responses' tokens.
        group_column: the column that names the group of a pair.
        required: columns that the objective needs (see `RowReader`).
        one_sided: read only the chosen text.
        lists: keep lists of answers whole: every answer is a one-sided pair with a label (see `WholeLists`).
        ties: "keep" or "drop" pairs of equal strength.
        bad_rows: "strict" stops at the first faulty row, "lenient" counts them and leaves them out.
        max_refused: the share of rows that lenient preparation may leave out.
        val_fraction: the share of prompts that go to validation.
        split_seed: seed of the split by prompt.
        lost_text: "refuse" or "accept" pairs of which the chat template leaves out or rewrites a text.
        ignore_columns: columns and message keys that may be left out although they may belong to prompt or response.

    Raises:
        UsageError: an argument is out of range.
    """

    mapping: str | dict[str, Any] | None = None
    columns: tuple[str, ...] = ()
    on_swap: Mapping[str, OnSwap] = field(default_factory=dict)
    token_columns: tuple[str, ...] = ()
    group_column: str | None = None
    required: frozenset[str] = frozenset()
    one_sided: bool = False
    lists: bool = False
    ties: Literal["keep", "drop"] = "keep"
    bad_rows: Literal["strict", "lenient"] = "strict"
    max_refused: float = 0.01
    val_fraction: float = 0.0
    split_seed: int = 0
    lost_text: Literal["refuse", "accept"] = "refuse"
    ignore_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choices = {"ties": ("keep", "drop"), "bad_rows": ("strict", "lenient"), "lost_text": ("refuse", "accept")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"data.{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}.")
        if not 0 <= self.val_fraction <= 1:
            raise UsageError(f"data.val_fraction is {self.val_fraction:g}; it must be at least 0 and below 1.")
        if not 0 <= self.max_refused <= 1:
            raise UsageError(f"data.max_refused is {self.max_refused:g}; it must be between 0 and 1.")
        if self.lists and self.ties == "drop":
            raise UsageError(
                "data.ties is drop, which is for pairs: an objective over lists compares no responses of equal scores "
                "anyway; leave it out."
            )

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The names of all further columns of the pairs: the given ones and those that the objective requires."""
        return self._reader().columns

    def _reader(self) -> RowReader:
        return RowReader(
            self.columns,
            self.group_column,
            self.required,
            self.one_sided,
            self.on_swap,
            self.token_columns,
            self.ignore_columns,
        )

    def mapping_of(self, source: Source) -> RowMapping:
        """Return the mapping of a source: its own, the common one, or the one recognised by its first rows.

        Raises:
            UserError: the format cannot be recognised, or the mapping has an error.
        """
        given = self.mapping if source.mapping is None else source.mapping
        mapping = mapping_of(given, lambda: [row for row in first_rows(read_source(source)) if isinstance(row, Row)])
        if self.lists:
            refuse_unless_list(mapping, source.path)
        return mapping

    def prepare(self, source: Source, tokenization: Tokenization) -> Path:
        """Return the folder with the prepared splits of a source, after building it if it does not exist.

        Args:
            source: the source of the rows.
            tokenization: tokenization of the policy.

        Raises:
            UserError: the source cannot be read or used.
        """
        mapping = self.mapping_of(source)
        key = hashlib.sha256(f"{self.key(source, mapping)} {tokenization.fingerprint()}".encode()).hexdigest()
        build = partial(self._build, source, mapping, tokenization)
        folder = build_once(cache_folder("prepared", key), build)
        self._check_outcome(source.path, [PreparedPairs(folder, split).report for split in SPLITS])
        return folder

    def key(self, source: Source, mapping: RowMapping) -> str:
        """Return a sha256 of everything that affects the texts: content, mapping, settings."""
        # Limits on faulty rows are checked after preparation, so `check` and `fit` share prepared data.
        judging = ("mapping", "bad_rows", "max_refused", "lost_text")
        settings = {name: value for name, value in vars(self).items() if name not in judging}
        settings["columns"] = self.all_columns
        settings["required"] = sorted(self.required)
        # File names are included because every pair knows its file and line.
        files = [source.path] if source.hub else [str(file) for file in files_of(source)]
        parts = [FORMAT, files, source_digest(source), mapping.fingerprint(), settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def checked_pairs(
        self,
        source: Source,
        mapping: RowMapping | None = None,
        refuse: Refuse | None = None,
        reports: Mapping[str, PreparationReport] | None = None,
    ) -> Iterator[CheckedPair]:
        """Yield the pairs of a source in order, before tokenization, with their whole texts.

        Args:
            source: the source of the rows.
            mapping: mapping of the source; None takes `mapping_of(source)`.
            refuse: called with each faulty row and its split; None skips faulty rows.
            reports: the report of each split, in which rows are counted.
        """
        mapping = mapping or self.mapping_of(source)
        filters = mapping.filters
        cap = filters.max_pairs_per_prompt
        last = (
            {} if cap is None else last_lots((text for _, text, _ in self._texts(source, mapping)), cap, filters.seed)
        )
        reports = reports or {split: PreparationReport() for split in SPLITS}
        ids, lots = PairIds(), Lots(filters.seed)
        for row, text, split in self._texts(source, mapping, refuse, reports):
            if cap is not None and lots.draw(text) > last[text.prompt_id]:
                reports[split].capped += 1
                continue
            id, repeated = ids.of(row, text)
            reports[split].repeated += repeated
            yield CheckedPair(row, text, id, split)

    def _texts(
        self,
        source: Source,
        mapping: RowMapping,
        refuse: Refuse | None = None,
        reports: Mapping[str, PreparationReport] | None = None,
    ) -> Iterator[tuple[Row, TextPair, str]]:
        """Yield the checked pairs that pass the filters, each with its row and its split."""
        reports = reports or {split: PreparationReport() for split in SPLITS}
        reader = self._reader()
        unread = UnreadColumns(reader.read_columns | mapping.columns_read, (*self.ignore_columns, *mapping.ignore))
        reports["train"].unread, reports["train"].unread_texts = unread.rows, unread.of_note
        rows = Conversion(mapping, self.lists).canonical_rows(unread.watch(read_source(source)))
        for row, text in reader.read_all(rows):
            # A row that cannot be read has no prompt, which decides the split, so it counts as training data.
            key = None if row is None else split_key(row.values.get("prompt"))
            held_out = row is not None and in_validation(key, self.val_fraction, self.split_seed)
            split = "validation" if held_out else "train"
            report = reports[split]
            report.rows += 1
            if isinstance(text, LeftOut):
                report.left_out[text.kind] += 1
            elif isinstance(text, BadRow):
                if refuse is not None:
                    refuse(text, split)
            elif row is not None:
                if reason := filtered_out(mapping.filters, text, row):
                    report.left_out[reason] += 1
                    continue
                report.ties += text.tie
                if text.tie and self.ties == "drop":
                    report.ties_dropped += 1
                    continue
                yield row, text, split

    def _build(self, source: Source, mapping: RowMapping, tokenization: Tokenization, folder: Path) -> None:
        columns = self.all_columns
        splits = {name: PairWriter(folder, name, columns, self.token_columns, self.lists) for name in SPLITS}
        reports = {name: writer.report for name, writer in splits.items()}

        def refuse(bad: BadRow, split: str) -> None:
            if self.bad_rows == "strict":
                raise bad
            reports[split].refused[bad.kind] += 1
            reports[split].refused_first.setdefault(bad.kind, str(bad))

        for report in reports.values():
            report.format = describe(mapping, self.one_sided, self.lists)
        pairs = self.checked_pairs(source, mapping, refuse, reports)
        with collection_paused():
            rows = tokenized_pairs(pairs, tokenization)
            for pair, tokenized in lists_with_an_order(rows) if self.lists else rows:
                report = reports[pair.split]
                if isinstance(tokenized, LeftOut):
                    report.left_out[tokenized.kind] += 1
                    continue
                if isinstance(tokenized, BadRow):
                    refuse(tokenized, pair.split)
                    continue
                if tokenized.lost:
                    report.lost_first = report.lost_first or pair.row.place
                    self._check_lost(report.lost_first, tokenized.lost)
                report.example = report.example or example_of(mapping, pair.text, pair.row)
                splits[pair.split].add(pair, tokenized)
            for writer in splits.values():
                writer.close()

    def _check_outcome(self, path: str, reports: list[PreparationReport]) -> None:
        rows = sum(report.rows for report in reports)
        refused = sum((report.refused for report in reports), Counter())
        example = next((first for report in reports for first in report.refused_first.values()), "")
        if refused and self.bad_rows == "strict":
            raise UserError(example)
        for report in reports:
            self._check_lost(report.lost_first, tuple(report.lost))
        if refused.total() > self.max_refused * rows:
            reasons = ", ".join(f"{kind}: {count}" for kind, count in refused.most_common())
            raise UserError(
                f"{path}: {refused.total()} of {rows} rows cannot be used ({reasons}), more than data.max_refused "
                f"{self.max_refused:g} allows; fix the rows or raise it (the first: {example.partition(';')[0]})."
            )
        if not sum(report.pairs for report in reports):
            left_out = sum((report.left_out for report in reports), refused)
            ties = sum(report.ties_dropped for report in reports)
            reasons = ", ".join(f"{kind}: {n}" for kind, n in [*left_out.most_common(), ("ties dropped", ties)] if n)
            raise UserError(
                f"{path} contains no pairs to train on ({rows} rows{'; ' + reasons if reasons else ''}); give a source "
                "with pairs."
            )

    def _check_lost(self, place: str, lost: tuple[str, ...]) -> None:
        """Refuse pairs of which the chat template leaves out or rewrites a text."""
        if lost and self.lost_text == "refuse":
            raise UserError(
                f"{place}: the chat template leaves out or rewrites {' and '.join(lost)}, so that other text than the "
                "row's would be trained on; give the tokenizer a template that writes it, write a system text into the "
                "user's message, or accept it by data.lost_text: accept."
            )
