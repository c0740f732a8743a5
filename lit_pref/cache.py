"""The cache: folders that are built once per key, and digests of files."""

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from lit_pref.errors import UserError


def cache_folder(kind: str, key: str) -> Path:
    """Return the folder for `kind` and `key` in `$LIT_PREF_CACHE` (default `~/.cache/lit_pref`)."""
    root = Path(os.environ.get("LIT_PREF_CACHE", "~/.cache/lit_pref")).expanduser()
    return root / kind / key


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after calling `build(unfinished)` if it does not exist yet.

    If several processes need it at once, one builds it and the others wait. The folder appears by one rename, so a
    killed build leaves nothing that looks complete.

    Raises:
        UserError: the cache is not writable.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache is not writable ({error}): set the environment variable LIT_PREF_CACHE to a folder that is"
        ) from error
    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        build(unfinished)
        unfinished.rename(folder)
    return folder


def file_digest(file: Path) -> str:
    """Return the sha256 of a file's content; large files are hashed again only if size or times changed."""
    stat = file.stat()
    return _digest(file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.cache
def _digest(file: Path, *state: int) -> str:
    key = hashlib.sha256(json.dumps([str(file), *state]).encode()).hexdigest()
    kept = cache_folder("digests", key[:32])
    # Only digests of large files are cached: hashing a small file is as fast as reading its digest.
    if state[0] >= _WORTH_KEEPING and kept.is_file() and len(digest := kept.read_text()) == 64:
        return digest
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # A file that changed just now may change again within one tick of the file system's clock.
    if state[0] >= _WORTH_KEEPING and time.time_ns() - max(state[1:]) > _SETTLED:
        with suppress(OSError):  # without a writable cache the file is only hashed again
            kept.parent.mkdir(parents=True, exist_ok=True)
            unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
            unfinished.write_text(digest)
            unfinished.rename(kept)
    return digest


_WORTH_KEEPING = 2**20  # bytes
_SETTLED = 10**10  # nanoseconds
