"""Rows of Arrow batches as Python values, decoded a bounded number of bytes at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lit_pref.data.sources.damage import Fault
from lit_pref.data.sources.jsonl import MAX_LINE

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
DECODED = 8 * 2**20
"""Bytes of cells that are converted to Python values at once, unless a single row has more."""


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Fault]:
    """Yield the rows of a batch; a row of more than `MAX_LINE` bytes, which JSONL does not allow either, is a `Fault`.

    A value that a dictionary stores once can stand in every row, so the bytes are counted before they are decoded.
    """
    sizes = {name: cell_sizes(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    total = np.zeros(len(batch), np.int64)
    for size in sizes.values():
        total += size
    ends, start = total.cumsum(), 0
    too_long = np.append(np.flatnonzero(total > MAX_LINE), len(batch))
    while start < len(batch):
        next_too_long = int(too_long[np.searchsorted(too_long, start)])
        if next_too_long == start:
            yield _too_long(start, int(total[start]), sizes)
            start += 1
            continue
        fitting = int(np.searchsorted(ends, int(ends[start] - total[start]) + DECODED, side="right"))
        stop = min(max(start + 1, fitting), next_too_long)
        yield from _decoded(batch.slice(start, stop - start)).to_pylist()
        start = stop


def cell_sizes(array: pa.Array) -> NDArray[np.int64]:
    """Return the bytes of each cell of a column once it is decoded; a number counts 8.

    >>> cell_sizes(pa.array([["ab", "c"], None, ["ä"]])).tolist()
    [3, 0, 2]
    """
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return cell_sizes(array.storage)
    if pa.types.is_dictionary(kind):
        if not len(array.dictionary):
            return np.zeros(len(array), np.int64)
        places = pc.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)
        return np.where(_known(array), cell_sizes(array.dictionary)[places], 0)
    if pa.types.is_struct(kind):
        parts = [cell_sizes(array.field(k)) for k in range(kind.num_fields)]
        return np.where(_known(array), sum(parts, np.zeros(len(array), np.int64)), 0)
    if pa.types.is_map(kind):
        return _sums(array, cell_sizes(array.keys) + cell_sizes(array.items))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _sums(array, cell_sizes(array.values))
    if any(is_kind(kind) for is_kind in _TEXTS):
        return np.asarray(pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False), np.int64)
    if pa.types.is_fixed_size_list(kind):
        return np.full(len(array), 8 * kind.list_size, np.int64)
    return np.full(len(array), 8, np.int64)


def _known(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)


def _sums(array: pa.Array, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of the entries' sizes over each list."""
    ends = np.concatenate([[0], sizes.cumsum()])
    offsets = array.offsets.to_numpy()
    return np.asarray(ends[offsets[1:]] - ends[offsets[:-1]], np.int64)


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch with plain columns in place of those with a dictionary."""
    columns = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _too_long(row: int, size: int, sizes: dict[str, NDArray[np.int64]]) -> Fault:
    name = max(sizes, key=lambda name: sizes[name][row])
    return Fault(
        f"is longer than {MAX_LINE // 2**20} MiB",
        "shorten or remove its text",
        f" ({size} bytes, {sizes[name][row]} of them in the column {name!r:.80})",
    )
