"""Folders that are made once, keyed by what determines their content."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lit_pref.errors import UserError


def cache_folder(kind: str, key: str) -> Path:
    """The folder of a `kind` of thing with this `key`, below `$LIT_PREF_CACHE` (default `~/.cache/lit_pref`)."""
    root = Path(os.environ.get("LIT_PREF_CACHE", "~/.cache/lit_pref")).expanduser()
    return root / kind / key


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, calling `build(unfinished)` first where it does not exist yet.

    Processes that ask at the same time build it once: the others wait. The folder appears by one rename, so a killed
    build leaves nothing that looks finished.

    Raises:
        UserError: the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache cannot be written ({error}): put it where you may write, with the environment variable "
            "LIT_PREF_CACHE"
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
