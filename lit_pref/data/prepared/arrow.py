"""Writes prepared pairs to disk: one Arrow IPC file per split, in chunks."""

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.tokenizing.tokenization import TokenizedPair

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
    # The following fields are for reports and selection; batches do not contain them.
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
LIST = "list"
"""A further field of data of lists: the number of the list in the source."""
UNHASHED = frozenset(("place", "further", "prompt_group"))
"""Fields that the fingerprint leaves out: the source file may be moved, and the others follow from what it covers."""


class PairWriter:
    """Writes one split, CHUNK pairs at a time, and keeps its report.

    Args:
        folder: the folder of the split.
        split: name of the split.
        columns: names of the further columns that every pair has.
        token_columns: names of the per-token columns.
        lists: whether every pair is one response of a list.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        columns: Sequence[str],
        token_columns: Sequence[str] = (),
        lists: bool = False,
    ) -> None:
        self.folder, self.split = folder, split
        self.report = PreparationReport()
        self._fields = dict(FIELDS)
        for name in columns:
            self._fields[f"column:{name}"] = (pa.float64(), partial(_column_value, name=name))
        for name in token_columns:
            for k, side in enumerate(("chosen", "rejected")):
                self._fields[f"tokens:{name}:{side}"] = (VALUES, partial(_token_values, name=name, side=k))
        if lists:
            self._fields[LIST] = (pa.int64(), lambda pair, tokens: pair.row.list_number)
        self._schema = pa.schema({name: kind for name, (kind, _) in self._fields.items()})
        self._writer = pa.ipc.new_file(str(folder / f"{split}.arrow"), self._schema)
        self._rows: list[list[Any]] = []
        self._margins = array("d")
        self._prompts: set[str] = set()
        self._list: int | None = None
        self._hash = hashlib.sha256()

    def add(self, pair: CheckedPair, tokens: TokenizedPair) -> None:
        """Add one pair."""
        self.report.count(pair.text, tokens, pair.row.place)
        self._prompts.add(pair.text.prompt_id)
        self.report.lists += pair.row.list_number != self._list
        self._list = pair.row.list_number
        if pair.text.margin is not None:
            self._margins.append(pair.text.margin)
        # Only the kept values are stored, not the pair, whose whole texts may be many times as long.
        self._rows.append([_compact(kind, take(pair, tokens)) for kind, take in self._fields.values()])
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
        for (name, (kind, _)), *values in zip(self._fields.items(), *self._rows, strict=True):
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
        # Built from one flat array, ten times as fast as from Python lists.
        lengths = np.array([-1 if value is None else len(value) for value in values])
        empty = np.array([], kind.value_type.to_pandas_dtype())
        flat = np.concatenate([empty, *(value for value in values if value is not None)])
        self._digest(name, lengths, flat.tobytes())
        offsets = np.concatenate([[0], np.maximum(lengths, 0).cumsum()])
        absent = pa.array(lengths < 0) if (lengths < 0).any() else None
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind, mask=absent)

    def _digest(self, name: str, lengths: NDArray[Any], values: bytes) -> None:
        for part in (name.encode(), lengths.tobytes(), values):
            self._hash.update(part)


def _compact(kind: pa.DataType, value: Any) -> Any:
    """Return a list of numbers as an array, which takes a tenth of its memory."""
    is_list = value is not None and pa.types.is_large_list(kind)
    return np.array(value, kind.value_type.to_pandas_dtype()) if is_list else value


def _column_value(pair: CheckedPair, tokens: TokenizedPair, name: str) -> float:
    return pair.text.columns[name]


def _token_values(pair: CheckedPair, tokens: TokenizedPair, name: str, side: int) -> list[float] | None:
    return tokens.token_columns[name][side]
