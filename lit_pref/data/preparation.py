"""From a source file to prepared pairs, once, in bounded memory."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_pref.cache import build_once, cache_folder
from lit_pref.data.fields import BadRow
from lit_pref.data.prepared import PairWriter
from lit_pref.data.reading import Row, content_digest, read_rows, source_file
from lit_pref.data.report import PreparationReport
from lit_pref.data.rows import OnSwap, RowReader, TextPair
from lit_pref.data.tokenization import Tokenization
from lit_pref.errors import UserError

FORMAT = 1  # raise it when the same source and settings would give other pairs
SPLITS = ("train", "validation")


def in_validation(prompt: Any, val_fraction: float, split_seed: int) -> bool:
    """Whether the rows of this prompt go to validation: iff hash(split_seed, prompt) < val_fraction.

    All rows of a prompt stay together, and further rows move no prompt from one side to the other.

    >>> sum(in_validation(f"prompt {k}", val_fraction=0.1, split_seed=0) for k in range(1000))
    94
    """
    text = json.dumps([split_seed, prompt], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < val_fraction * 2**64


def digest_of_split(source: str | Path, val_fraction: float, split_seed: int) -> str:
    """sha256 that changes with the rows of the training split and with nothing else but the split's own numbers."""
    parts = [content_digest(source), val_fraction, split_seed if val_fraction else 0]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def training_texts(source: str | Path, val_fraction: float, split_seed: int) -> Iterator[str]:
    """The texts of the training split, as they stand in the file, for a tokenizer that is trained on them."""
    for row in read_rows(source):
        if in_validation(row.values.get("prompt"), val_fraction, split_seed):
            continue
        for value in (row.values.get(name) for name in ("prompt", "chosen", "rejected")):
            parts = [m.get("content") for m in value if isinstance(m, dict)] if isinstance(value, list) else [value]
            yield from (part for part in parts if isinstance(part, str))


@dataclass
class Preparation:
    """From a source file to prepared pairs, split by prompt (`in_validation`).

    Args:
        tokenization: of the policy.
        columns: further columns of numbers to carry.
        on_swap: what they do where chosen and rejected swap (see `RowReader`).
        group_column: names the group of a pair.
        required: what the objective cannot do without (see `RowReader`).
        one_sided: only the chosen text is wanted.
        ties: "keep" or "drop" pairs of equal strength.
        bad_rows: "strict" stops at the first bad row, "lenient" counts and leaves out.
        max_refused: the share of rows that lenient preparation may leave out.
        val_fraction: the share of prompts that goes to validation.
        split_seed: of the split by prompt.
    """

    tokenization: Tokenization
    columns: tuple[str, ...] = ()
    on_swap: Mapping[str, OnSwap] = field(default_factory=dict)
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
        return RowReader(self.columns, required=self.required).columns

    def prepare(self, source: str | Path) -> Path:
        """The folder with the prepared splits of a source file, made now unless it is there already.

        Raises:
            UserError: the source cannot be read or used.
        """
        path = source_file(source)
        return build_once(cache_folder("prepared", self.key(path)), lambda folder: self._build(path, folder))

    def key(self, path: Path) -> str:
        """sha256 of all that decides the outcome: content, tokenization, settings."""
        settings = {name: value for name, value in vars(self).items() if name != "tokenization"}
        settings["columns"] = self.all_columns
        settings["required"] = sorted(self.required)
        parts = [FORMAT, content_digest(path), self.tokenization.fingerprint(), settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _build(self, path: Path, folder: Path) -> None:
        reader = RowReader(self.columns, self.group_column, self.required, self.one_sided, self.on_swap)
        splits = {name: PairWriter(folder, name, reader.columns) for name in SPLITS}
        ids = _Ids()
        example = ""
        for row in read_rows(path):
            split = splits[
                "validation" if in_validation(row.values.get("prompt"), self.val_fraction, self.split_seed) else "train"
            ]
            split.report.rows += 1
            try:
                text = reader.read(row)
                tokenized = self.tokenization.tokenize(row, text, ids.of(row, text))
            except BadRow as bad:
                if self.bad_rows == "strict":
                    raise
                split.report.refused[bad.kind] += 1
                example = example or str(bad)
                continue
            split.report.ties += text.tie
            if text.tie and self.ties == "drop":
                split.report.ties_dropped += 1
            else:
                split.add(text, tokenized)
        for split in splits.values():
            split.close()
        self._check_outcome(path, [split.report for split in splits.values()], example)

    def _check_outcome(self, path: Path, reports: list[PreparationReport], example: str) -> None:
        rows = sum(report.rows for report in reports)
        refused = sum((report.refused for report in reports), Counter())
        if refused.total() > self.max_refused * rows:
            reasons = ", ".join(f"{kind}: {count}" for kind, count in refused.most_common())
            raise UserError(
                f"{path}: {refused.total()} of {rows} rows cannot be used ({reasons}), more than data.max_refused "
                f"{self.max_refused:g} allows; mend the rows or raise it (the first: {example.partition(';')[0]})."
            )
        if not sum(report.pairs for report in reports):
            raise UserError(f"{path} holds no pairs to train on ({rows} rows); give a file with pairs.")


class _Ids:
    """Stable ids: the row's own, or a hash of its texts with an ordinal for exact duplicates."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, row: Row, text: TextPair) -> str:
        key = text.id
        if key is None:
            texts = json.dumps([text.prompt, text.chosen, text.rejected], sort_keys=True)
            key = hashlib.sha256(texts.encode()).hexdigest()[:16]
        before = self._seen.get(key)
        if before is not None and text.id is not None:
            raise UserError(
                f"{row.place}: the id {key!r} is that of line {before} too; make ids unique or remove the column `id`."
            )
        self._seen[key] = row.line if text.id is not None else (before or 0) + 1
        return key if before is None else f"{key}-{before}"
