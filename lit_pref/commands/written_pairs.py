"""Write pairs to a JSONL or Parquet file in random order."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from lit_pref.errors import UserError

CHUNK = 512  # number of pairs in a Parquet row group


def write_pairs(path: Path, rows: Iterator[tuple[int, dict[str, Any]]], ids: Sequence[str], seed: int) -> None:
    """Write records in a random order that depends only on `seed` and the ids.

    Records go through a temporary file, so memory stays bounded, and the finished file is renamed into place.

    Args:
        path: ends with .jsonl or .parquet.
        rows: (index into `ids`, record), in any order.
        ids: the ids of the pairs.
        seed: seed of the order.

    Raises:
        UserError: the file is Parquet, and some prompts are texts while others are lists of messages.
    """
    chance = [hashlib.sha256(f"{seed} {id}".encode()).digest() for id in ids]
    unfinished = path.with_name(path.name + ".unfinished")
    with TemporaryFile(dir=path.parent) as spool:
        starts = np.zeros(len(ids), np.int64)
        fields: dict[str, Any] = {}
        for place, row in rows:
            starts[place] = spool.tell()
            if path.suffix == ".parquet":
                refuse_mixed({type(row["prompt"]), type(fields.get("prompt", row["prompt"]))})
                _refuse_further_keys(row)
            fields |= {name: value for name, value in row.items() if name not in fields}
            spool.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

        def lines() -> Iterator[bytes]:
            for place in sorted(range(len(ids)), key=chance.__getitem__):
                spool.seek(starts[place])
                yield spool.readline()

        try:
            if path.suffix == ".jsonl":
                with unfinished.open("wb") as file:
                    file.writelines(lines())
            else:
                _write_parquet(unfinished, lines(), fields)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)


def refuse_mixed(prompts: set[type]) -> None:
    """Refuse to write a Parquet file of both texts and lists of messages.

    Args:
        prompts: the types of all prompts.

    Raises:
        UserError: there is more than one type.
    """
    if len(prompts) > 1:
        raise UserError(
            "some prompts are texts and others lists of messages, but a column of a Parquet file has one type; write a "
            ".jsonl file instead (--out)"
        )


def _refuse_further_keys(row: dict[str, Any]) -> None:
    """Refuse a row whose messages have more than role and content, which a Parquet column of messages cannot hold."""
    messages = row["prompt"] if isinstance(row["prompt"], list) else []
    further = {key for message in messages for key in message} - {"role", "content"}
    columns = {name for name, value in row.items() if isinstance(value, dict)} | {"tools"} & row.keys()
    sides = {name for name in ("chosen", "rejected", "extra_response") if isinstance(row.get(name), list)}
    if beyond := sorted(further | columns | sides):
        raise UserError(
            f"messages with more than role and content ({', '.join(beyond)}) do not fit the columns of a Parquet file; "
            "write a .jsonl file instead (--out)"
        )


def _write_parquet(path: Path, lines: Iterator[bytes], fields: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct({"role": pa.string(), "content": pa.string()})
    kinds = {str: pa.string(), float: pa.float64(), list: pa.list_(pa.list_(pa.float64()))}
    schema = pa.schema({name: kinds[type(value)] for name, value in fields.items()})
    if isinstance(fields["prompt"], list):
        schema = schema.set(schema.get_field_index("prompt"), pa.field("prompt", pa.list_(message)))
    with pq.ParquetWriter(path, schema) as writer:
        chunk: list[dict[str, Any]] = []
        for line in lines:
            chunk.append(json.loads(line))
            if len(chunk) == CHUNK:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
        writer.write_table(pa.Table.from_pylist(chunk, schema))
