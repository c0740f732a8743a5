"""Scores of references on disk: kept once for all runs, written by many at a time, read memory-mapped.

A reference, the numerics it was computed in and what of a response was kept make one folder. In it lie immutable Arrow
IPC files, each written by one process under another name and renamed into place, so that a killed writer leaves nothing
that looks finished. What a score belongs to is said by the address of its response, never by a row's place.
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
from lit_pref.errors import UserError

FORMAT = 1  # raise it when the same model would give the same response another score
ADDRESS = np.dtype("S16")
DAMAGED, UNFINISHED = ".damaged", ".unfinished"
_STRAY_AFTER = 3600.0
"""Seconds after which an unfinished file is nobody's: a block's scores are written in one go."""


@dataclass(frozen=True)
class Identity:
    """What decides a score beside the response's tokens, and how it is called in tables.

    Args:
        fingerprint: sha256 of the weights and of what else the numbers come from.
        numerics: `fp32`, `fp64`, or how a lower precision was computed, for there the numbers depend on it.
        aggregation: `sum`, or `tokens` where the log-prob of every token is kept as well.
        description: for people; it is no part of the key.
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
    """Of n responses."""

    addresses: NDArray[Any]  # (n,) ADDRESS
    scores: NDArray[Any]  # (n,) float64, nats
    lengths: NDArray[Any]  # (n,) int32, tokens
    tokens: NDArray[Any] | None  # the log-probs of all tokens, response after response; float64 for fp64, else float32


class ReferenceStore:
    """The scores of one reference.

    Args:
        identity: which reference, and what of it.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.folder = cache_folder("references", identity.key)

    def open(self) -> None:
        """Make the folder where there is none, and note that it is used now."""
        about = self.folder / "about.json"
        with _writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not about.exists():
                unfinished = self._unfinished()
                unfinished.write_text(json.dumps(asdict(self.identity), indent=1) + "\n", encoding="utf-8")
                unfinished.rename(about)
        with suppress(OSError):  # another user's store can be read all the same
            os.utime(about)

    def parts(self) -> list[str]:
        """The names of all finished files, the oldest first: of two scores of one response the first stands."""
        return sorted(path.name for path in self.folder.glob("*.arrow"))

    def read(self, name: str) -> Scores | None:
        """The scores in one file, as views of the mapped file.

        None where its content is not what was written (its name says which that is): then its scores count as missing,
        with a warning, and the file is set aside.
        """
        path = self.folder / name
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        if _digest(content) != path.stem.partition("-")[2]:
            warnings.warn(f"{path} is damaged: its scores count as missing", stacklevel=2)
            with suppress(OSError):  # it may not be ours to move
                path.rename(path.with_name(path.name + DAMAGED))
            return None
        batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
        addresses, scores, lengths = (batch.column(name) for name in ("address", "score", "length"))
        tokens = batch.column("tokens").values.to_numpy() if "tokens" in batch.schema.names else None
        raw = np.frombuffer(addresses.buffers()[1], ADDRESS, len(addresses), addresses.offset * ADDRESS.itemsize)
        return Scores(raw, scores.to_numpy(), lengths.to_numpy(), tokens)

    def write(self, scores: Scores) -> str:
        """Add a file with these scores; its name."""
        binary = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(ADDRESS.itemsize), len(scores.addresses), [None, pa.py_buffer(scores.addresses.tobytes())]
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
            # By time, so that whoever comes later never changes which of two scores stands.
            name = f"{time.time_ns()}-{_digest(content)}.arrow"
            unfinished.rename(self.folder / name)
        return name

    def claim(self, block: str) -> FileLock | None:
        """The held lock of a block, or None where another process has it; a dead process holds nothing."""
        folder = self.folder / "locks"
        with _writing():
            folder.mkdir(exist_ok=True)
            lock = FileLock(folder / f"{block}.lock")
            with suppress(Timeout):
                lock.acquire(timeout=0)
        return lock if lock.is_locked else None

    @contextmanager
    def present(self) -> Iterator[None]:
        """Within, `in_use` sees this process also between two blocks."""
        lock = self.claim(f"here-{uuid.uuid4().hex}")
        assert lock is not None
        try:
            yield
        finally:
            self.release(lock)

    @staticmethod
    def release(lock: FileLock) -> None:
        """Let a block go and leave no file behind; who waits for the removed one finds the block done."""
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()

    def _unfinished(self) -> Path:
        return self.folder / f"{uuid.uuid4().hex}{UNFINISHED}"


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@contextmanager
def _writing() -> Iterator[None]:
    """Turns what the operating system says of a store that cannot be written into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the reference store cannot be written ({error}): free space or permissions, or put it elsewhere with the "
            "environment variable LIT_PREF_CACHE"
        ) from error


@dataclass(frozen=True)
class Kept:
    """One folder of the store, for tables."""

    folder: Path
    about: dict[str, str]
    rows: int
    size: int  # bytes
    used: float  # seconds since the epoch


def kept() -> Iterator[Kept]:
    """Every folder of the store, the one used last first."""
    root = cache_folder("references", "")
    abouts = [path for path in root.glob("*/about.json") if path.is_file()]
    for path in sorted(abouts, key=lambda path: -path.stat().st_mtime):
        rows = 0
        for file in path.parent.glob("*.arrow"):
            try:
                with pa.memory_map(str(file)) as source:
                    rows += pa.ipc.open_file(source).get_batch(0).num_rows
            except (pa.ArrowInvalid, FileNotFoundError):
                continue  # damaged, or set aside a moment ago: it holds nothing
        size = sum(_size(file) for file in path.parent.rglob("*"))
        yield Kept(path.parent, _about(path), rows, size, path.stat().st_mtime)


def _about(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError:
        return dict.fromkeys(("numerics", "aggregation"), "") | {"description": "(about.json is damaged: prune it)"}


def _size(path: Path) -> int:
    """0 for what another process has just renamed or removed."""
    with suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


def in_use(folder: Path) -> bool:
    """Whether a process is filling it."""
    for path in (folder / "locks").glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
    return False


def tidy(folder: Path) -> int:
    """Remove what killed processes left, and files that are damaged; the bytes that were freed."""
    stray = [path for path in folder.glob(f"*{UNFINISHED}") if time.time() - path.stat().st_mtime > _STRAY_AFTER]
    stray += [*folder.glob(f"*{DAMAGED}")]
    stray += [] if in_use(folder) else [*(folder / "locks").glob("*.lock")]
    freed = sum(path.stat().st_size for path in stray)
    for path in stray:
        path.unlink(missing_ok=True)
    return freed
