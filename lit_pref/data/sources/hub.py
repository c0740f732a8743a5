"""Datasets of the Hugging Face hub, row by row, from the memory-mapped copy of the `datasets` library."""

import os
import re
from collections.abc import Iterator
from typing import Any

from lit_pref.data.sources.arrow_rows import rows_of
from lit_pref.data.sources.damage import Fault
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.tables import ARROW_ERRORS, in_short, refuse_duplicate_columns, rows_at_a_time
from lit_pref.errors import UserError


def hub_rows(name: str, split: str, subset: str | None = None, revision: str | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of one split, numbered from 1; a few rows are in memory at a time.

    Args:
        name: `owner/name` on the hub, or any other name that `datasets.load_dataset` accepts.
        split: a split or a slice of one.
        subset: the configuration, if the dataset has several.
        revision: branch, tag or commit.

    Raises:
        UserError: there is no such dataset, subset, split or revision, it cannot be reached, or its files are damaged.
    """
    data = _load(name, split, subset, revision)
    place, number = f"{name}:{split}", 0
    refuse_duplicate_columns(place, data.column_names)
    batch_size = rows_at_a_time(data.data.nbytes, len(data))
    try:
        for values in _values(data, batch_size):
            number += 1
            row = Row(place, number, {} if isinstance(values, Fault) else values)
            if isinstance(values, Fault):
                yield BadRow(row, None, values.reason, values.remedy, values.detail)
            else:
                yield row
    except ARROW_ERRORS as error:
        raise UserError(
            f"{place} cannot be read after row {number} ({in_short(error)}); its copy is kept in HF_DATASETS_CACHE "
            "(~/.cache/huggingface/datasets): remove it there to fetch it again."
        ) from error


def _values(data: Any, batch_size: int) -> Iterator[dict[str, Any] | Fault]:
    if "Json(" in str(data.features):  # the column has several types, which only `datasets` can decode
        for columns in data.iter(batch_size=batch_size):
            yield from (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    else:
        for table in data.with_format("arrow").iter(batch_size=batch_size):
            for batch in table.to_batches():
                yield from rows_of(batch)


def hub_digest(name: str, split: str, subset: str | None = None, revision: str | None = None) -> str:
    """Return the fingerprint by which `datasets` identifies a split: of name, configuration, commit and split.

    Raises:
        UserError: see `hub_rows`.
    """
    return _load(name, split, subset, revision)._fingerprint


def _load(name: str, split: str, subset: str | None, revision: str | None) -> Any:
    import datasets

    try:
        data = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # the HTTP library and the readers of the files raise errors of any type
        raise _refusal(error, name, split, subset, revision) from error
    # Offline, `datasets` returns its copy, even if another commit was requested.
    kept = [file["filename"] for file in data.cache_files]
    if re.fullmatch("[0-9a-f]{40}", revision or "") and kept and not any(revision in file for file in kept):
        raise UserError(
            f"The hub cannot be reached, and the local copy of '{name}' is of another commit than {revision}; connect, "
            "or leave the revision out."
        )
    return data


def _refusal(error: Exception, name: str, split: str, subset: str | None, revision: str | None) -> UserError:
    import datasets

    message = str(error)
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        if "gated" in message:
            return UserError(f"'{name}' is gated on the Hugging Face hub; accept its terms there and log in.")
        if revision is not None and "Revision" in message:
            return UserError(f"'{name}' has no revision '{revision}' on the Hugging Face hub; name one that exists.")
        return UserError(
            f"There is no dataset '{name}' on the Hugging Face hub, or it is private; a dataset there is written "
            "owner/name:split, and a path here begins with ./ or / or has an ending such as .jsonl."
        )
    if isinstance(error, ConnectionError):
        set_offline = any(
            os.environ.get(flag, "0") not in ("", "0") for flag in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        )
        offline = " (HF_HUB_OFFLINE is set)" if set_offline else ""
        return UserError(
            f"'{name}' is not in the local cache, and the Hugging Face hub cannot be reached{offline}; connect, or "
            "give a local file."
        )
    if match := re.search(r"Unknown split .*?Should be one of (\[.*?\])", message, re.DOTALL):
        return UserError(f"'{name}' has no split '{split}'; it has {_names(match[1])}.")
    if match := re.search(r"BuilderConfig .*? not found. Available: (\[.*?\])", message, re.DOTALL):
        return UserError(f"'{name}' has no subset '{subset}'; it has {_names(match[1])}.")
    if match := re.search(r"Config name is missing.*?(\[.*?\])", message, re.DOTALL):
        return UserError(f"'{name}' has several subsets; give one of {_names(match[1])} as `subset`.")
    cause = error.__cause__ or error
    return UserError(
        f"'{name}' cannot be read by the library datasets ({type(cause).__name__}: {in_short(cause)}); look at the "
        "dataset's page on the hub, or download its files and give their folder."
    )


def _names(listed: str) -> str:
    return ", ".join(re.findall(r"'([^']*)'", listed)[:20]) or listed[:200]
