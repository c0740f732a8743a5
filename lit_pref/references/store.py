"""Scores of references on disk: computed once for all runs, written by several processes, read memory-mapped.

Each combination of reference, numerics and aggregation has a folder of immutable Arrow IPC files. A process writes a
file under a temporary name and renames it, so that a killed writer leaves no file that looks finished. A score is found
by the key of its response, never by its position.
"""

import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lit_pref.cache import cache_folder
from lit_pref.errors import UserError, visible

FORMAT = 1  # raise it when a code change makes a model give a response another score
KEY = np.dtype("S16")
DAMAGED, UNFINISHED = ".damaged", ".unfinished"


@dataclass(frozen=True)
class StoreIdentity:
    """Everything that a score depends on besides the response's tokens, and a description for tables.

    Args:
        fingerprint: sha256 of the weights and of everything else that the numbers depend on.
        numerics: `fp32`, `fp64`, or a description of how scores of lower precision were computed, which changes them.
        aggregation: `sum`, or `tokens` if the log-prob of every token is stored as well.
        description: text for people; not part of the key.
    """

    fingerprint: str
    numerics: str
    aggregation: str
    description: str

    @property
    def key(self) -> str:
        parts = [FORMAT, self.fingerprint, self.numerics, self.aggregation]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


class Scores(NamedTuple):
    """Scores of n responses."""

    keys: NDArray[Any]  # (n,) KEY
    scores: NDArray[Any]  # (n,) float64, nats
    lengths: NDArray[Any]  # (n,) int32, tokens
    tokens: NDArray[Any] | None  # the log-probs of all tokens, response after response; float64 for fp64, else float32


class ReferenceStore:
    """The scores of one reference.

    Args:
        identity: the reference, its numerics and the aggregation.
    """

    def __init__(self, identity: StoreIdentity) -> None:
        self.identity = identity
        self.folder = cache_folder("references", identity.key)

    def open(self) -> None:
        """Create the folder if it does not exist, and update the time of its last use."""
        about = self.folder / "about.json"
        with _writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not about.exists():
                unfinished = self._unfinished()
                unfinished.write_text(json.dumps(asdict(self.identity), indent=1) + "\n", encoding="utf-8")
                unfinished.rename(about)
        with suppress(OSError):  # a store of another user can still be read
            os.utime(about)

    def parts(self) -> list[str]:
        """The names of all finished files, the oldest first: if a response has two scores, the first is used."""
        return sorted(path.name for path in self.folder.glob("*.arrow"))

    def read(self, name: str) -> Scores | None:
        """Return the scores in one file, as views of the mapped file.

        None if the content does not match the digest in the file's name: its scores then count as missing, with a
        warning, and the file is renamed.
        """
        path = self.folder / name
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        if _digest(content) != path.stem.partition("-")[2]:
            warnings.warn(visible(f"{path} is damaged: its scores count as missing"), stacklevel=2)
            with suppress(OSError):  # another user may own the file
                path.rename(path.with_name(path.name + DAMAGED))
            return None
        batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
        keys, scores, lengths = (batch.column(name) for name in ("address", "score", "length"))
        tokens = batch.column("tokens").values.to_numpy() if "tokens" in batch.schema.names else None
        raw = np.frombuffer(keys.buffers()[1], KEY, len(keys), keys.offset * KEY.itemsize)
        return Scores(raw, scores.to_numpy(), lengths.to_numpy(), tokens)

    def write(self, scores: Scores) -> str:
        """Add a file with these scores and return its name."""
        binary = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(KEY.itemsize), len(scores.keys), [None, pa.py_buffer(scores.keys.tobytes())]
        )
        columns = {"address": binary, "score": pa.array(scores.scores, pa.float64())}
        columns["length"] = pa.array(scores.lengths, pa.int32())
        if scores.tokens is not None:
            ends = np.concatenate([[0], np.cumsum(scores.lengths, dtype=np.int64)])
            columns["tokens"] = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(scores.tokens))
        batch = pa.RecordBatch.from_pydict(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        content = sink.getvalue()
        with _writing():
            unfinished = self._unfinished()
            unfinished.write_bytes(content)
            # Files are named by time, so that a later writer never changes which of two scores is used.
            name = f"{time.time_ns()}-{_digest(content)}.arrow"
            unfinished.rename(self.folder / name)
        return name

    def claim(self, block: str) -> FileLock | None:
        """Return the acquired lock of a block, or None if a running process has it."""
        folder = self.folder / "locks"
        with _writing():
            folder.mkdir(exist_ok=True)
            lock = FileLock(folder / f"{block}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
        return lock if lock.is_locked else None

    @contextmanager
    def present(self) -> Iterator[None]:
        """Mark the store as in use by this process, including the time between two blocks."""
        lock = self.claim(f"here-{uuid.uuid4().hex}")
        assert lock is not None
        try:
            yield
        finally:
            self.release(lock)

    @staticmethod
    def release(lock: FileLock) -> None:
        """Release a block and remove the lock's file; a process that waits for it then finds the block complete."""
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()

    def _unfinished(self) -> Path:
        return self.folder / f"{uuid.uuid4().hex}{UNFINISHED}"


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@contextmanager
def _writing() -> Iterator[None]:
    """Turns an operating system's error while writing the store into a sentence for users."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the reference store cannot be written ({error}): free space or permissions, or put it elsewhere with the "
            "environment variable LIT_PREF_CACHE"
        ) from error
