"""Lists and prunes the reference store."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout

from lit_pref.cache import cache_folder
from lit_pref.references.store import DAMAGED, UNFINISHED

_STRAY_AFTER = 3600.0
"""Seconds after which an unfinished file counts as abandoned, as the scores of a block are written in one go."""


@dataclass(frozen=True)
class Kept:
    """One folder of the store, as shown in tables."""

    folder: Path
    about: dict[str, str]
    rows: int
    size: int  # bytes
    used: float  # seconds since the epoch


def kept() -> Iterator[Kept]:
    """Yield every folder of the store, the most recently used first."""
    root = cache_folder("references", "")
    abouts = [path for path in root.glob("*/about.json") if path.is_file()]
    for path in sorted(abouts, key=lambda path: -path.stat().st_mtime):
        rows = 0
        for file in path.parent.glob("*.arrow"):
            try:
                with pa.memory_map(str(file)) as source:
                    rows += pa.ipc.open_file(source).get_batch(0).num_rows
            except (pa.ArrowInvalid, FileNotFoundError):
                continue  # the folder is damaged, or was renamed a moment ago
        size = sum(_size(file) for file in path.parent.rglob("*"))
        yield Kept(path.parent, _about(path), rows, size, path.stat().st_mtime)


def _about(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError:
        return dict.fromkeys(("numerics", "aggregation"), "") | {"description": "(about.json is damaged: prune it)"}


def _size(path: Path) -> int:
    """The size of a file; 0 for a folder, or a file that another process has just renamed or removed."""
    with suppress(FileNotFoundError):
        return path.stat().st_size if path.is_file() else 0
    return 0


def in_use(folder: Path) -> bool:
    """Whether a process is filling this folder."""
    for path in (folder / "locks").glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
    return False


def tidy(folder: Path) -> int:
    """Remove leftovers of killed processes and damaged files; return the number of bytes freed."""
    stray = [path for path in folder.glob(f"*{UNFINISHED}") if time.time() - path.stat().st_mtime > _STRAY_AFTER]
    stray += [*folder.glob(f"*{DAMAGED}")]
    stray += [] if in_use(folder) else [*(folder / "locks").glob("*.lock")]
    freed = sum(path.stat().st_size for path in stray)
    for path in stray:
        path.unlink(missing_ok=True)
    return freed
