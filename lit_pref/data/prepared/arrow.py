"""Prepared pairs on disk: written in chunks, read memory-mapped. The format is Arrow IPC, one file a split."""

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

from lit_pref.data.checking.row_reader import TextPair
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.tokenizing.tokenization import TokenizedPair
from lit_pref.pairs import PreferencePair, TruncatedText

CHUNK = 512
IDS = pa.large_list(pa.int32())
VALUES = pa.large_list(pa.float32())
TEXT = pa.large_string()

FIELDS: dict[str, tuple[pa.DataType, Callable[[TextPair, TokenizedPair], Any]]] = {
    "id": (pa.string(), lambda text, made: made.pair.id),
    "prompt": (IDS, lambda text, made: made.pair.prompt),
    "chosen": (IDS, lambda text, made: made.pair.chosen),
    "rejected": (IDS, lambda text, made: made.pair.rejected),
    "extra_response": (IDS, lambda text, made: made.pair.extra_response),
    "margin": (pa.float64(), lambda text, made: made.pair.margin),
    "probability": (pa.float64(), lambda text, made: made.pair.probability),
    "group": (pa.string(), lambda text, made: made.pair.group),
    "prompt_id": (pa.string(), lambda text, made: made.pair.prompt_id),
    "place": (pa.string(), lambda text, made: made.pair.place),
    "prompt_text": (TEXT, lambda text, made: json.dumps(made.pair.text.prompt)),  # a string or a message list
    "chosen_text": (TEXT, lambda text, made: made.pair.text.chosen),
    "rejected_text": (TEXT, lambda text, made: made.pair.text.rejected),
    "extra_response_text": (TEXT, lambda text, made: made.pair.text.extra_response),
    "chosen_complete": (pa.bool_(), lambda text, made: made.pair.text.chosen_complete),
    "rejected_complete": (pa.bool_(), lambda text, made: made.pair.text.rejected_complete),
    "extra_response_complete": (pa.bool_(), lambda text, made: made.pair.text.extra_response_complete),
    # What reports and choices are made of; a batch has none of it.
    "chosen_source": (pa.string(), lambda text, made: text.sources[0]),
    "rejected_source": (pa.string(), lambda text, made: text.sources[1]),
    "chosen_first": (pa.bool_(), lambda text, made: text.chosen_first),
    "swapped": (pa.bool_(), lambda text, made: text.swapped),
    "disagrees": (pa.bool_(), lambda text, made: text.disagrees),
    "clipped": (pa.bool_(), lambda text, made: text.clipped),
    "tie": (pa.bool_(), lambda text, made: text.tie),
    "prompt_cut": (pa.bool_(), lambda text, made: made.prompt_cut),
    "chosen_cut": (pa.bool_(), lambda text, made: made.chosen_cut),
    "rejected_cut": (pa.bool_(), lambda text, made: made.rejected_cut),
    "extra_response_cut": (pa.bool_(), lambda text, made: made.extra_response_cut),
    "merged": (pa.bool_(), lambda text, made: made.merged),
    "special_texts": (pa.int32(), lambda text, made: made.special_texts),
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
        further = [name for name in reader.schema.names if name not in FIELDS]
        self.columns = [name.removeprefix("column:") for name in further if name.startswith("column:")]
        tokens = (name.removeprefix("tokens:").rpartition(":")[0] for name in further if name.startswith("tokens:"))
        self.token_columns = list(dict.fromkeys(tokens))

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
        """(pairs, 3): tokens of prompt, chosen and rejected response; 0 rejected ones in one-sided data."""
        return np.stack([self.tokens_of(part) for part in ("prompt", "chosen", "rejected")], axis=1)

    def tokens_of(self, part: str) -> NDArray[np.int32]:
        """(pairs,) tokens of "prompt", "chosen", "rejected" or "extra_response"; 0 where there are none."""
        # From the lists' offsets alone: no token is read. An absent list is an empty one there.
        counts = (np.diff(chunk.column(part).offsets.to_numpy()) for chunk in self._chunks)
        return np.concatenate([np.zeros(0, np.int32), *counts]).astype(np.int32)

    def column(self, name: str) -> NDArray[Any]:
        """(pairs,) one value a pair, of a carried column or of those that `FIELDS` names.

        Numbers and truth values where every pair has one; else float64 with NaN, and texts as objects with None.
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
        return PreparationReport.from_json(self._about["report"])

    @property
    def fingerprint(self) -> str:
        """Of the pairs and their order: equal iff all ids, tokens, texts and numbers are, wherever they lie."""
        return str(self._about["fingerprint"])


class PairWriter:
    """Writes one split, CHUNK pairs at a time, and keeps its report.

    Args:
        folder: where the split is written.
        split: its name.
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
        self._rows: list[tuple[TextPair, TokenizedPair]] = []
        self._margins = array("d")
        self._prompts: set[str] = set()
        self._hash = hashlib.sha256()

    def add(self, text: TextPair, tokenized: TokenizedPair) -> None:
        self.report.count(text, tokenized)
        self._prompts.add(tokenized.pair.prompt_id)
        if tokenized.pair.margin is not None:
            self._margins.append(tokenized.pair.margin)
        self._rows.append((text, tokenized))
        if len(self._rows) == CHUNK:
            self._flush()

    def close(self) -> None:
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
            values = [take(text, made) for text, made in self._rows]
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
        if name != "place":  # a file may move
            self._digest(name, lengths, known)
        return pa.array(values, kind)

    def _lists(self, name: str, kind: pa.DataType, values: list[Any]) -> pa.Array:
        # From numbers in one array: a tenth of what Arrow takes for lists of them.
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


def _column_value(text: TextPair, made: TokenizedPair, name: str) -> float:
    return made.pair.columns[name]


def _token_values(text: TextPair, made: TokenizedPair, name: str, side: int) -> list[float] | None:
    return made.pair.token_columns[name][side]
