"""From a source to prepared pairs, once, in bounded memory."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lit_pref.cache import build_once, cache_folder
from lit_pref.data.checking.checked_pairs import SPLITS, CheckedPairs
from lit_pref.data.checking.row_reader import OnSwap, RowReader
from lit_pref.data.formats.load import RowMapping, mapping_of
from lit_pref.data.prepared.arrow import PairWriter, PreparedPairs
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source, files_of, read_source, source_digest
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UserError

FORMAT = 3  # raise it when the same source and settings would give other pairs
CHUNK = 256  # pairs that are tokenised together
FIRST = 64  # rows by which a layout is recognised


@dataclass
class Preparation:
    """From a source to prepared pairs, split by prompt.

    Args:
        mapping: of sources that name none; None recognises their layout.
        columns: further columns of numbers to carry.
        on_swap: what they do where chosen and rejected swap (see `RowReader`).
        token_columns: names of the columns of character spans whose values go with the responses' tokens.
        group_column: names the group of a pair.
        required: what the objective cannot do without (see `RowReader`).
        one_sided: only the chosen text is wanted.
        ties: "keep" or "drop" pairs of equal strength.
        bad_rows: "strict" stops at the first bad row, "lenient" counts and leaves out.
        max_refused: the share of rows that lenient preparation may leave out.
        val_fraction: the share of prompts that goes to validation.
        split_seed: of the split by prompt.
    """

    mapping: str | dict[str, Any] | None = None
    columns: tuple[str, ...] = ()
    on_swap: Mapping[str, OnSwap] = field(default_factory=dict)
    token_columns: tuple[str, ...] = ()
    group_column: str | None = None
    required: frozenset[str] = frozenset()
    one_sided: bool = False
    ties: Literal["keep", "drop"] = "keep"
    bad_rows: Literal["strict", "lenient"] = "strict"
    max_refused: float = 0.01
    val_fraction: float = 0.0
    split_seed: int = 0

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The names of all columns that pairs carry: those asked for and those that the objective requires."""
        return self._reader().columns

    def _reader(self) -> RowReader:
        return RowReader(
            self.columns, self.group_column, self.required, self.one_sided, self.on_swap, self.token_columns
        )

    def mapping_of(self, source: Source) -> RowMapping:
        """How the source is read: as it says itself, or as all do, or as its first rows are recognised.

        Raises:
            UserError: what it is cannot be told, or the mapping is faulty.
        """
        given = self.mapping if source.mapping is None else source.mapping
        return mapping_of(
            given, lambda: [r for r in itertools.islice(read_source(source), FIRST) if isinstance(r, Row)]
        )

    def prepare(self, source: Source, tokenization: Tokenization) -> Path:
        """The folder with the prepared splits of a source, made now unless it is there already.

        Args:
            source: where the rows are.
            tokenization: of the policy.

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
        """sha256 of all that decides the texts: content, mapping, settings."""
        # How many faulty rows are too many is asked of what was prepared, so `check` and `fit` share it.
        judging = ("mapping", "bad_rows", "max_refused")
        settings = {name: value for name, value in vars(self).items() if name not in judging}
        settings["columns"] = self.all_columns
        settings["required"] = sorted(self.required)
        # The names of files too: every pair says where it stands.
        files = [source.path] if source.hub else [str(file) for file in files_of(source)]
        parts = [FORMAT, files, source_digest(source), mapping.fingerprint(), settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def pairs_of(self, source: Source, mapping: RowMapping | None = None) -> CheckedPairs:
        """The pairs of a source before tokenisation, with their whole texts."""
        mapping = mapping or self.mapping_of(source)
        split = (self.val_fraction, self.split_seed)
        return CheckedPairs(source, mapping, self._reader, *split, self.ties == "drop")

    def _build(self, source: Source, mapping: RowMapping, tokenization: Tokenization, folder: Path) -> None:
        columns = self.all_columns
        splits = {name: PairWriter(folder, name, columns, self.token_columns) for name in SPLITS}
        reports = {name: writer.report for name, writer in splits.items()}

        def refuse(bad: BadRow, split: str) -> None:
            if self.bad_rows == "strict":
                raise bad
            reports[split].refused[bad.kind] += 1
            reports[split].refused_first.setdefault(bad.kind, str(bad))

        for report in reports.values():
            report.layout = mapping.describe()
        pairs = self.pairs_of(source, mapping).read(refuse, reports)
        while chunk := list(itertools.islice(pairs, CHUNK)):
            made = tokenization.tokenize_all([(pair.row, pair.text, pair.id) for pair in chunk])
            for pair, tokenized in zip(chunk, made, strict=True):
                if isinstance(tokenized, BadRow):
                    refuse(tokenized, pair.split)
                    continue
                report = reports[pair.split]
                report.example = report.example or mapping.in_words(pair.text, pair.row)
                splits[pair.split].add(pair.text, tokenized)
        for writer in splits.values():
            writer.close()

    def _check_outcome(self, path: str, reports: list[PreparationReport]) -> None:
        rows = sum(report.rows for report in reports)
        refused = sum((report.refused for report in reports), Counter())
        example = next((first for report in reports for first in report.refused_first.values()), "")
        if refused and self.bad_rows == "strict":
            raise UserError(example)
        if refused.total() > self.max_refused * rows:
            reasons = ", ".join(f"{kind}: {count}" for kind, count in refused.most_common())
            raise UserError(
                f"{path}: {refused.total()} of {rows} rows cannot be used ({reasons}), more than data.max_refused "
                f"{self.max_refused:g} allows; mend the rows or raise it (the first: {example.partition(';')[0]})."
            )
        if not sum(report.pairs for report in reports):
            left = sum((report.left_out for report in reports), refused)
            ties = sum(report.ties_dropped for report in reports)
            reasons = ", ".join(f"{kind}: {n}" for kind, n in [*left.most_common(), ("ties dropped", ties)] if n)
            raise UserError(
                f"{path} holds no pairs to train on ({rows} rows{'; ' + reasons if reasons else ''}); give a source "
                "with pairs."
            )
