"""The cache: folders that are built once per key and verified when they are used again, and digests of files."""

import errno
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
from lit_pref.printing import say


def cache_folder(kind: str, key: str) -> Path:
    """Return the folder for `kind` and `key` in `$LIT_PREF_CACHE` (default `~/.cache/lit_pref`)."""
    root = Path(os.environ.get("LIT_PREF_CACHE", "~/.cache/lit_pref")).expanduser()
    return root / kind / key


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after calling `build(unfinished)` if it does not exist yet or a file in it has changed.

    If several processes need it at once, one builds it and the others wait. The folder appears by one rename, after its
    files have reached the disk, so a killed build leaves nothing that looks complete.

    Raises:
        UserError: the cache is not writable, or its disk is full.
    """
    if _damage(folder) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"the cache is not writable ({error}): set the environment variable LIT_PREF_CACHE to a folder that is"
        ) from error
    try:
        if (reason := _damage(folder)) is None:
            return folder
        if folder.exists():
            say(f"warning     the cache {folder} is damaged ({reason}): it is made again")
        _build(folder, build)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise UserError(
            f"the disk of the cache is full ({error}): make room, or set the environment variable LIT_PREF_CACHE to a "
            "folder on another disk"
        ) from error
    finally:
        lock.release()
    return folder


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    unfinished, damaged = (folder.with_name(f"{folder.name}.{state}") for state in ("unfinished", "damaged"))
    for leftover in (unfinished, damaged):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        # A copy of another cached folder brings that folder's digests along.
        (unfinished / _DIGESTS).unlink(missing_ok=True)
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        digests = {file.relative_to(unfinished).as_posix(): _content_digest(*_state(file)) for file in files}
        (unfinished / _DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")
        for file in [*files, unfinished / _DIGESTS, unfinished]:
            _to_disk(file)
        if folder.exists():
            folder.rename(damaged)
        unfinished.rename(folder)
        _to_disk(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)


def _damage(folder: Path) -> str | None:
    """Return why a folder cannot be used: it is absent, or a file differs from what was built; None if it can."""
    if not folder.is_dir():
        return "absent"
    try:
        digests = dict(json.loads((folder / _DIGESTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return f"{_DIGESTS}, its list of checksums, cannot be read"
    for name, digest in digests.items():
        try:
            # Not `file_digest`: a disk that loses bits changes neither size nor times.
            if _content_digest(*_state(folder / name)) != digest:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, have reached the disk."""
    with suppress(PermissionError):  # where folders cannot be opened
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def file_digest(file: Path) -> str:
    """Return the sha256 of a file's content; large files are hashed again only if size or times changed."""
    return _digest(*_state(file))


def _state(file: Path) -> tuple[Path, int, int, int]:
    stat = file.stat()
    return file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@functools.cache  # once in a process, which opens the same folder several times
def _content_digest(file: Path, *state: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def _digest(file: Path, *state: int) -> str:
    key = hashlib.sha256(json.dumps([str(file), *state]).encode()).hexdigest()
    kept = cache_folder("digests", key[:32])
    # Only digests of large files are cached: hashing a small file is as fast as reading its digest.
    if state[0] >= _WORTH_KEEPING and kept.is_file() and len(digest := kept.read_text()) == 64:
        return digest
    digest = _content_digest(file, *state)
    # A file that changed just now may change again within one tick of the file system's clock.
    if state[0] >= _WORTH_KEEPING and time.time_ns() - max(state[1:]) > _SETTLED:
        with suppress(OSError):  # without a writable cache the file is only hashed again
            kept.parent.mkdir(parents=True, exist_ok=True)
            unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
            unfinished.write_text(digest)
            unfinished.rename(kept)
    return digest


_DIGESTS = "digests.json"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORTH_KEEPING = 2**20  # bytes
_SETTLED = 10**10  # nanoseconds
