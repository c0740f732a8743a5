"""The settings of an output folder, so that processes share it only if they would write the same responses."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_pref.errors import UsageError, UserError
from lit_pref.generating.prompts import Prompt
from lit_pref.printing import say

SETTINGS = "settings.json"
LOCK = ".lock"


def agree(out: Path, settings: dict[str, Any], remarks: dict[str, Any]) -> None:
    """Write the settings of a new output folder, or compare them with those of an existing one.

    Args:
        out: the folder; it is made.
        settings: values that decide the responses.
        remarks: further values, which are written and not compared.

    Raises:
        UsageError: the folder has other settings, or contains something else.
        UserError: the folder cannot be written.
    """
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with folder_lock(out):
            path = out / SETTINGS
            if path.exists():
                _refuse_others(out, path, settings)
                return
            if others := sorted(file.name for file in out.iterdir() if file.name != LOCK):
                raise UsageError(
                    f"{out} contains {', '.join(others[:3])} and no {SETTINGS}, so it was not written by generate; "
                    "give another --out"
                )
            write_whole(path, json.dumps({"settings": settings, "remarks": remarks}, indent=1, ensure_ascii=False))


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Return 16 characters that identify the prompts and their order."""
    ids = hashlib.sha256()
    for prompt in prompts:
        ids.update(f"{prompt.id}\n".encode())
    return ids.hexdigest()[:16]


def _refuse_others(out: Path, path: Path, settings: dict[str, Any]) -> None:
    try:
        written = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path} was not written by generate; give another --out") from error
    # Values are compared as JSON holds them.
    given = json.loads(json.dumps(settings))
    different = [name for name in {**written, **given} if written.get(name) != given.get(name)]
    if different:
        differences = ", ".join(
            f"{name} is {_shown(given.get(name))} and was {_shown(written.get(name))}" for name in different[:3]
        )
        raise UsageError(
            f"{out} holds responses that were generated with other settings ({differences}); give another --out, or "
            "the same settings to resume"
        )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:56]} ..."


@contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Context in which no other process reads or writes the settings, or merges.

    Where files cannot be locked, a remark is printed and nothing is locked: blocks then may be generated twice, with
    the same result.
    """
    lock = FileLock(out / LOCK)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        say(f"note        {out} cannot be locked ({error}): processes that share it may do work twice")
        yield
        return
    try:
        yield
    finally:
        lock.release()


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears only once its content has reached the disk."""
    write_lines(path, [text, "\n"])


def write_lines(path: Path, lines: Iterator[str] | Sequence[str]) -> None:
    """Write texts to a file that appears only once its content has reached the disk."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Context that turns an operating system's error while writing the folder into a sentence for users."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error}): free space or permissions, or give another --out; finished blocks are "
            "kept, and the same command resumes"
        ) from error
