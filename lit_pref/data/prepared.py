"""Prepared pairs on disk: written in chunks, read memory-mapped. The format is Arrow IPC, one file a split."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lit_pref.data.report import PreparationReport
from lit_pref.data.rows import TextPair
from lit_pref.data.tokenization import TokenizedPair
from lit_pref.types import KeptText, PreferencePair

CHUNK = 512
_TEXT = pa.large_string()
_FIELDS = {
    "id": pa.string(),
    "prompt": pa.large_list(pa.int32()),
    "chosen": pa.large_list(pa.int32()),
    "rejected": pa.large_list(pa.int32()),
    "margin": pa.float64(),
    "probability": pa.float64(),
    "group": pa.string(),
    "prompt_text": _TEXT,  # JSON: a string or a message list
    "chosen_text": _TEXT,
    "rejected_text": _TEXT,
    "chosen_complete": pa.bool_(),
    "rejected_complete": pa.bool_(),
}


class PreparedPairs(Sequence[PreferencePair]):
    """The pairs of one split, read from the memory-mapped file as they are asked for.

    Args:
        folder: what `Preparation.prepare` returned.
        split: "train" or "validation".
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        reader = pa.ipc.open_file(pa.memory_map(str(folder / f"{split}.arrow")))
        self._chunks = [reader.get_batch(k) for k in range(reader.num_record_batches)]
        self._length = sum(chunk.num_rows for chunk in self._chunks)
        self._columns = [name for name in reader.schema.names if name not in _FIELDS]

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedPairs, (self.folder, self.split)  # a loader worker maps the file itself

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        chunk, k = self._chunks[index % len(self) // CHUNK], index % len(self) % CHUNK

        def value(name: str) -> Any:
            return chunk.column(name)[k].as_py()

        def ids(name: str) -> Any:
            scalar = chunk.column(name)[k]
            return scalar.values.to_numpy().tolist() if scalar.is_valid else None

        return PreferencePair(
            id=value("id"),
            prompt=ids("prompt"),
            chosen=ids("chosen"),
            rejected=ids("rejected"),
            margin=value("margin"),
            probability=value("probability"),
            columns={name.removeprefix("column:"): value(name) for name in self._columns},
            group=value("group"),
            text=KeptText(
                prompt=json.loads(value("prompt_text")),
                chosen=value("chosen_text"),
                rejected=value("rejected_text"),
                chosen_complete=value("chosen_complete"),
                rejected_complete=value("rejected_complete"),
            ),
        )

    @property
    def ids(self) -> list[str]:
        """The ids of all pairs, in order."""
        return [id for chunk in self._chunks for id in chunk.column("id").to_pylist()]

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """(pairs, 3): tokens of prompt, chosen and rejected response; 0 rejected ones in one-sided data."""
        counts = np.zeros((len(self), 3), np.int32)
        for first, chunk in zip(range(0, len(self), CHUNK), self._chunks, strict=True):
            for part, name in enumerate(("prompt", "chosen", "rejected")):
                # From the lists' offsets alone: no token is read.
                tokens = pc.fill_null(pc.list_value_length(chunk.column(name)), 0)
                counts[first : first + len(chunk), part] = tokens.to_numpy()
        return counts

    @cached_property
    def _about(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{self.split}.json").read_text()))

    @property
    def report(self) -> PreparationReport:
        return PreparationReport.from_json(self._about["report"])

    @property
    def fingerprint(self) -> str:
        """Of the pairs and their order: equal iff all ids, tokens, texts and numbers are."""
        return str(self._about["fingerprint"])


class PairWriter:
    """Writes one split, CHUNK pairs at a time, and keeps its report.

    Args:
        folder: where the split is written.
        split: its name.
        columns: names of the further columns that every pair has.
    """

    def __init__(self, folder: Path, split: str, columns: Sequence[str]) -> None:
        self.folder, self.split = folder, split
        self.report = PreparationReport()
        self._schema = pa.schema(_FIELDS | {f"column:{name}": pa.float64() for name in columns})
        self._writer = pa.ipc.new_file(str(folder / f"{split}.arrow"), self._schema)
        self._rows: list[dict[str, Any]] = []
        self._margins = array("d")
        self._hash = hashlib.sha256()

    def add(self, text: TextPair, tokenized: TokenizedPair) -> None:
        pair, kept = tokenized.pair, tokenized.pair.text
        self.report.count(text, tokenized)
        if pair.margin is not None:
            self._margins.append(pair.margin)
        row: dict[str, Any] = {name: getattr(pair, name) for name in ("id", "prompt", "chosen", "rejected")}
        row |= {name: getattr(pair, name) for name in ("margin", "probability", "group")}
        row |= {f"{side}_complete": getattr(kept, f"{side}_complete") for side in ("chosen", "rejected")}
        row |= {"prompt_text": json.dumps(kept.prompt), "chosen_text": kept.chosen, "rejected_text": kept.rejected}
        row |= {f"column:{name}": value for name, value in pair.columns.items()}
        self._hash.update(json.dumps(row).encode())
        self._rows.append(row)
        if len(self._rows) == CHUNK:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self.report.set_margins(self._margins)
        about = {"fingerprint": self._hash.hexdigest()[:16], "report": self.report.to_json()}
        (self.folder / f"{self.split}.json").write_text(json.dumps(about, indent=1))

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []
