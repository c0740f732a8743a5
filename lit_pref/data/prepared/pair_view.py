"""The pairs of a run: all or some pairs of prepared sources, read memory-mapped, with normalised margins."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_pref.data.prepared.arrow import CHUNK, FIELDS, LIST
from lit_pref.data.prepared.lists import Lists
from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.pairs import PreferencePair, TruncatedText

STRENGTH = ("margin", "probability")


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
        self.has_lists = LIST in reader.schema.names
        further = [name for name in reader.schema.names if name not in FIELDS]
        self.columns = [name.removeprefix("column:") for name in further if name.startswith("column:")]
        per_token = (name.removeprefix("tokens:").rpartition(":")[0] for name in further if name.startswith("tokens:"))
        self.token_columns = list(dict.fromkeys(per_token))

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedPairs, (self.folder, self.split)  # not pickled: each loader worker maps the file itself

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
        """Tokens of prompt, chosen and rejected response, (pairs, 3); 0 for the rejected one in one-sided data."""
        return np.stack([self.tokens_of(part) for part in ("prompt", "chosen", "rejected")], axis=1)

    def tokens_of(self, part: str) -> NDArray[np.int32]:
        """Return the number of tokens of a part, such as "prompt" or "extra_response": (pairs,), 0 if there is none."""
        # Computed from the lists' offsets, without reading any token; a missing list has length 0.
        counts = (np.diff(chunk.column(part).offsets.to_numpy()) for chunk in self._chunks)
        return np.concatenate([np.zeros(0, np.int32), *counts]).astype(np.int32)

    def column(self, name: str) -> NDArray[Any]:
        """Return a further column or one that `FIELDS` names: (pairs,), one value per pair.

        Numbers and booleans if every pair has a value, else float64 with NaN; texts are objects or None.
        """
        known = {*FIELDS, LIST} - {"prompt", "chosen", "rejected", "extra_response"}
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
        """Hash of the pairs (ids, tokens, texts and numbers) and their order; it does not depend on the folder."""
        return str(self._about["fingerprint"])


@dataclass(frozen=True)
class SourcePairs:
    """Some pairs of one prepared source.

    Args:
        source: name of the source.
        pairs: all pairs of its split.
        indices: the indices of the visible pairs, in order.
        normaliser: normaliser of the margins.
        as_group: whether metrics are split by the source's name.
    """

    source: str
    pairs: PreparedPairs
    indices: NDArray[np.int64]
    normaliser: Normaliser
    as_group: bool = False


class PairView(Sequence[PreferencePair]):
    """The pairs of one or more parts, one part after another.

    If only some parts have a margin (or probability), it is dropped for all, because batches mix parts.

    Metrics are counted by id, so a pair that is in several sources gets a new id for each further occurrence, which
    ends in the number of earlier occurrences.

    Args:
        parts: at least one part.
    """

    def __init__(self, parts: Sequence[SourcePairs]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part.indices) for part in self.parts])
        self.columns = sorted({name for part in self.parts for name in part.pairs.columns})

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        index = index % len(self)
        k = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[k]
        place = int(part.indices[index - int(self._ends[k])])
        pair = part.pairs[place]
        changes: dict[str, Any] = dict.fromkeys(self.unshared)
        if pair.margin is not None and "margin" not in changes and part.normaliser != Normaliser():
            changes["margin"] = float(part.normaliser.apply(np.array(pair.margin)))
        if part.as_group:
            changes["group"] = part.source
        if place in self._renamed[k]:
            changes["id"] = self._renamed[k][place]
        return replace(pair, **changes) if changes else pair

    @cached_property
    def unshared(self) -> list[str]:
        """The names, `margin` or `probability`, that only some parts have."""
        return [name for name in STRENGTH if len({np.isnan(values[0]) for values in self._known(name)}) > 1]

    def _known(self, name: str) -> list[NDArray[Any]]:
        every = (part.pairs.column(name) for part in self.parts)
        return [values for values in every if len(values)]

    def subset(self, indices: NDArray[Any]) -> "PairView":
        """Return a view of the pairs at these increasing indices."""
        starts = self._ends - [len(part.indices) for part in self.parts]
        bounds = zip(self.parts, starts, self._ends, strict=True)
        return PairView(
            [replace(p, indices=p.indices[indices[(indices >= a) & (indices < b)] - a]) for p, a, b in bounds]
        )

    def with_normalisers(self, normalisers: dict[str, Normaliser]) -> "PairView":
        """Return the same pairs with other normalisers for the named sources."""
        return PairView([replace(p, normaliser=normalisers.get(p.source, p.normaliser)) for p in self.parts])

    @property
    def own_margins(self) -> NDArray[Any]:
        """The margins before normalisation, (pairs,); NaN for a pair without margin."""
        return self.with_normalisers(dict.fromkeys(self.normalisers, Normaliser())).column("margin").astype(np.float64)

    @property
    def normalisers(self) -> dict[str, Normaliser]:
        """The normaliser of each source."""
        return {part.source: part.normaliser for part in self.parts}

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all pairs, in order; no two are the same."""
        return [
            renamed.get(int(index), name)
            for part, renamed in zip(self.parts, self._renamed, strict=True)
            for index, name in zip(part.indices, part.pairs.column("id")[part.indices].tolist(), strict=True)
        ]

    @cached_property
    def _renamed(self) -> list[dict[int, str]]:
        """The new ids of repeated pairs, by part and index, counting all pairs: a selection changes no id."""
        if len(self.parts) == 1:
            return [{}]
        seen: dict[str, int] = {}
        renamed: list[dict[int, str]] = []
        for part in self.parts:
            renamed.append({})
            for index, name in enumerate(part.pairs.ids):
                before = seen.get(name, 0)
                seen[name] = before + 1
                if before:
                    renamed[-1][index] = f"{name}-again{before}"
        return renamed

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of prompt, chosen and rejected response, (pairs, 3); 0 for the rejected one in one-sided data."""
        return np.concatenate([part.pairs.lengths[part.indices] for part in self.parts])

    @cached_property
    def extra_response_lengths(self) -> NDArray[np.int32]:
        """Tokens of the extra response, (pairs,); 0 if the objective reads none."""
        return np.concatenate([part.pairs.tokens_of("extra_response")[part.indices] for part in self.parts])

    @cached_property
    def lists(self) -> Lists | None:
        """The lists that the records form if each is one response of a list; None for pairs."""
        columns = [part.pairs.column(LIST)[part.indices] for part in self.parts if part.pairs.has_lists]
        return Lists(columns) if columns else None

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt with one of its responses."""
        responses = np.maximum(self.lengths[:, 1:].max(1, initial=0), self.extra_response_lengths)
        return int((self.lengths[:, 0] + responses).max(initial=0))

    def column(self, name: str) -> NDArray[Any]:
        """Return a column, (pairs,), with normalised margins; see `PreparedPairs.column`."""
        if name == "id":
            return np.array(self.ids, dtype=object)
        values = []
        for part in self.parts:
            column = part.pairs.column(name)[part.indices]
            if name in self.unshared:
                column = np.full(len(column), np.nan)
            elif name == "margin":
                column = part.normaliser.apply(column.astype(np.float64))
            elif name == "group" and part.as_group:
                column = np.full(len(column), part.source, dtype=object)
            values.append(column)
        return np.concatenate(values)

    @property
    def reports(self) -> dict[str, PreparationReport]:
        """The preparation report of each source."""
        return {part.source: part.pairs.report for part in self.parts}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the pairs, their order and their margins."""
        if len(self.parts) == 1 and self._is_whole(self.parts[0]):
            return self.parts[0].pairs.fingerprint
        digest = hashlib.sha256()
        for part in self.parts:
            normaliser = [part.normaliser.scale, part.normaliser.margins, part.normaliser.shares]
            name = part.source if part.as_group else None
            digest.update(json.dumps([part.pairs.fingerprint, normaliser, name]).encode())
            digest.update(part.indices.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def _is_whole(part: SourcePairs) -> bool:
        whole = len(part.indices) == len(part.pairs) and not part.as_group
        return whole and part.normaliser == Normaliser()
