"""Prepared pairs on disk: one Arrow IPC file per split, written in chunks and read memory-mapped."""

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.tokenizing.tokenization import TokenizedPair
from lit_pref.pairs import PreferencePair, TruncatedText

CHUNK = 512
IDS = pa.large_list(pa.int32())
VALUES = pa.large_list(pa.float32())
TEXT = pa.large_string()

FIELDS: dict[str, tuple[pa.DataType, Callable[[CheckedPair, TokenizedPair], Any]]] = {
    "id": (pa.string(), lambda pair, tokens: pair.id),
    "prompt": (IDS, lambda pair, tokens: tokens.prompt),
    "chosen": (IDS, lambda pair, tokens: tokens.chosen),
    "rejected": (IDS, lambda pair, tokens: tokens.rejected),
    "extra_response": (IDS, lambda pair, tokens: tokens.extra_response),
    "margin": (pa.float64(), lambda pair, tokens: pair.text.margin),
    "probability": (pa.float64(), lambda pair, tokens: pair.text.probability),
    "group": (pa.string(), lambda pair, tokens: pair.text.group),
    "prompt_id": (pa.string(), lambda pair, tokens: pair.text.prompt_id),
    "prompt_group": (pa.string(), lambda pair, tokens: pair.text.prompt_group),
    "place": (pa.string(), lambda pair, tokens: pair.row.place),
    "prompt_text": (TEXT, lambda pair, tokens: json.dumps(tokens.text.prompt)),  # a string or a message list
    "chosen_text": (TEXT, lambda pair, tokens: tokens.text.chosen),
    "rejected_text": (TEXT, lambda pair, tokens: tokens.text.rejected),
    "extra_response_text": (TEXT, lambda pair, tokens: tokens.text.extra_response),
    "chosen_complete": (pa.bool_(), lambda pair, tokens: tokens.text.chosen_complete),
    "rejected_complete": (pa.bool_(), lambda pair, tokens: tokens.text.rejected_complete),
    "extra_response_complete": (pa.bool_(), lambda pair, tokens: tokens.text.extra_response_complete),
    # The following are for reports and selection; a batch has none of them.
    "chosen_source": (pa.string(), lambda pair, tokens: pair.text.sources[0]),
    "rejected_source": (pa.string(), lambda pair, tokens: pair.text.sources[1]),
    "chosen_first": (pa.bool_(), lambda pair, tokens: pair.text.chosen_first),
    "swapped": (pa.bool_(), lambda pair, tokens: pair.text.swapped),
    "disagrees": (pa.bool_(), lambda pair, tokens: pair.text.disagrees),
    "clipped": (pa.bool_(), lambda pair, tokens: pair.text.clipped),
    "tie": (pa.bool_(), lambda pair, tokens: pair.text.tie),
    "prompt_cut": (pa.bool_(), lambda pair, tokens: tokens.prompt_cut),
    "chosen_cut": (pa.bool_(), lambda pair, tokens: tokens.chosen_cut),
    "rejected_cut": (pa.bool_(), lambda pair, tokens: tokens.rejected_cut),
    "extra_response_cut": (pa.bool_(), lambda pair, tokens: tokens.extra_response_cut),
    "merged": (pa.bool_(), lambda pair, tokens: tokens.merged),
    "special_texts": (pa.int32(), lambda pair, tokens: tokens.special_texts),
    "further": (pa.string(), lambda pair, tokens: json.dumps(tokens.text.further) if tokens.text.further else None),
}
UNHASHED = frozenset(("place", "further", "prompt_group"))
"""Fields that the fingerprint leaves out: the source file may be moved, and the others follow from what it covers."""


class PreparedPairs(Sequence[PreferencePair]):
    """The pairs of one split, read from the memory-mapped file on access.

    Args:
        folder: the folder returned by `Preparation.prepare`.
        split: "train" or "validation".
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        reader = pa.ipc.open_file(pa.memory_map(str(folder / f"{split}.arrow")))
        self._chunks = [reader.get_batch(k) for k in range(reader.num_record_batches)]
        self._length = sum(chunk.num_rows for chunk in self._chunks)
        further = [name for name in reader.schema.names if name not in FIELDS]
        self.columns = [name.removeprefix("column:") for name in further if name.startswith("column:")]
        per_token = (name.removeprefix("tokens:").rpartition(":")[0] for name in further if name.startswith("tokens:"))
        self.token_columns = list(dict.fromkeys(per_token))

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedPairs, (self.folder, self.split)  # each loader worker maps the file itself

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

        def numbers(name: str) -> Any:
            scalar = chunk.column(name)[k]
            return scalar.values.to_numpy().tolist() if scalar.is_valid else None

        return PreferencePair(
            **{name: numbers(name) for name in ("prompt", "chosen", "rejected", "extra_response")},
            **{name: value(name) for name in ("id", "margin", "probability", "group", "prompt_id", "place")},
            columns={name: value(f"column:{name}") for name in self.columns},
            token_columns={
                name: (numbers(f"tokens:{name}:chosen"), numbers(f"tokens:{name}:rejected"))
                for name in self.token_columns
            },
            text=TruncatedText(
                prompt=json.loads(value("prompt_text")),
                further=json.loads(value("further") or "{}"),
                **{side: value(f"{side}_text") for side in ("chosen", "rejected", "extra_response")},
                **{f"{side}_complete": value(f"{side}_complete") for side in ("chosen", "rejected", "extra_response")},
            ),
        )

    @property
    def ids(self) -> list[str]:
        """The ids of all pairs, in order."""
        return [id for chunk in self._chunks for id in chunk.column("id").to_pylist()]

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """(pairs, 3): tokens of prompt, chosen and rejected response; 0 for the rejected one in one-sided data."""
        return np.stack([self.tokens_of(part) for part in ("prompt", "chosen", "rejected")], axis=1)

    def tokens_of(self, part: str) -> NDArray[np.int32]:
        """Return (pairs,) tokens of "prompt", "chosen", "rejected" or "extra_response"; 0 if there are none."""
        # From the lists' offsets alone, without reading a token. A missing list has length 0 there.
        counts = (np.diff(chunk.column(part).offsets.to_numpy()) for chunk in self._chunks)
        return np.concatenate([np.zeros(0, np.int32), *counts]).astype(np.int32)

    def column(self, name: str) -> NDArray[Any]:
        """Return (pairs,) one value per pair, of a carried column or of one that `FIELDS` names.

        Numbers and booleans if every pair has a value, else float64 with NaN; texts are objects or None.
        """
        known = FIELDS.keys() - {"prompt", "chosen", "rejected", "extra_response"}
        field = name if name in known else f"column:{name}"
        chunks = [chunk.column(field) for chunk in self._chunks]
        if not chunks:
            return np.zeros(0)
        values = pa.chunked_array(chunks)
        if values.null_count and pa.types.is_boolean(values.type):
            values = values.cast(pa.float64())
        return values.to_numpy()

    @cached_property
    def _about(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"{self.split}.json").read_text()))

    @property
    def report(self) -> PreparationReport:
        """The report of the split's preparation."""
        return PreparationReport.from_json(self._about["report"])

    @property
    def fingerprint(self) -> str:
        """Hash of the pairs and their order: equal if all ids, tokens, texts and numbers are, in any folder."""
        return str(self._about["fingerprint"])


class PairWriter:
    """Writes one split, CHUNK pairs at a time, and keeps its report.

    Args:
        folder: the folder of the split.
        split: name of the split.
        columns: names of the further columns that every pair has.
        token_columns: names of the per-token columns.
    """

    def __init__(self, folder: Path, split: str, columns: Sequence[str], token_columns: Sequence[str] = ()) -> None:
        self.folder, self.split = folder, split
        self.report = PreparationReport()
        self._fields = dict(FIELDS)
        for name in columns:
            self._fields[f"column:{name}"] = (pa.float64(), partial(_column_value, name=name))
        for name in token_columns:
            for k, side in enumerate(("chosen", "rejected")):
                self._fields[f"tokens:{name}:{side}"] = (VALUES, partial(_token_values, name=name, side=k))
        self._schema = pa.schema({name: kind for name, (kind, _) in self._fields.items()})
        self._writer = pa.ipc.new_file(str(folder / f"{split}.arrow"), self._schema)
        self._rows: list[tuple[CheckedPair, TokenizedPair]] = []
        self._margins = array("d")
        self._prompts: set[str] = set()
        self._hash = hashlib.sha256()

    def add(self, pair: CheckedPair, tokens: TokenizedPair) -> None:
        """Add one pair."""
        self.report.count(pair.text, tokens)
        self._prompts.add(pair.text.prompt_id)
        if pair.text.margin is not None:
            self._margins.append(pair.text.margin)
        self._rows.append((pair, tokens))
        if len(self._rows) == CHUNK:
            self._flush()

    def close(self) -> None:
        """Write the remaining pairs and the report."""
        self._flush()
        self._writer.close()
        self.report.prompts = len(self._prompts)
        self.report.set_margins(self._margins)
        about = {"fingerprint": self._hash.hexdigest()[:16], "report": self.report.to_json()}
        (self.folder / f"{self.split}.json").write_text(json.dumps(about, indent=1))

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = []
        for name, (kind, take) in self._fields.items():
            values = [take(pair, tokens) for pair, tokens in self._rows]
            columns.append(self._column(name, kind, values))
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows = []

    def _column(self, name: str, kind: pa.DataType, values: list[Any]) -> pa.Array:
        if pa.types.is_large_list(kind):
            return self._lists(name, kind, values)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            lengths = np.array([-1 if value is None else len(value) for value in values])
            known = "".join(value for value in values if value is not None).encode()
        else:
            lengths = np.array([value is None for value in values])
            known = np.array([0.0 if value is None else value for value in values]).tobytes()
        if name not in UNHASHED:
            self._digest(name, lengths, known)
        return pa.array(values, kind)

    def _lists(self, name: str, kind: pa.DataType, values: list[Any]) -> pa.Array:
        # Built from one flat array, which takes a tenth of the time of Python lists.
        lengths = np.array([-1 if value is None else len(value) for value in values])
        numbers = list(itertools.chain.from_iterable(value for value in values if value is not None))
        flat = np.array(numbers, kind.value_type.to_pandas_dtype())
        self._digest(name, lengths, flat.tobytes())
        offsets = np.concatenate([[0], np.maximum(lengths, 0).cumsum()])
        absent = pa.array(lengths < 0) if (lengths < 0).any() else None
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind, mask=absent)

    def _digest(self, name: str, lengths: NDArray[Any], values: bytes) -> None:
        for part in (name.encode(), lengths.tobytes(), values):
            self._hash.update(part)


def _column_value(pair: CheckedPair, tokens: TokenizedPair, name: str) -> float:
    return pair.text.columns[name]


def _token_values(pair: CheckedPair, tokens: TokenizedPair, name: str, side: int) -> list[float] | None:
    return tokens.token_columns[name][side]
