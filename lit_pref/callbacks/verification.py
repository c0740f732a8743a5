"""Verifies the checksums of checkpoints before they are read, and reads nothing in them that could run code."""

import functools
import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as index_classes

from lit_pref.errors import UserError

INDEX = ".metadata"
ALLOWED = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("collections", "OrderedDict"),
    *(("torch.distributed.checkpoint.metadata", name) for name in (*index_classes.__all__, "_MEM_FORMAT_ENCODING")),
    *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}
"""The classes that torch writes into the index of a folder of shards, by module and name."""


def verify(path: Path) -> None:
    """Refuse a checkpoint that was changed or cut off since it was written, or that would run code.

    Raises:
        UserError: `path` is damaged.
    """
    if reason := damage(path):
        raise UserError(f"the checkpoint {path} is damaged: {reason}; take another one")


def damage(path: Path) -> str | None:
    """Return the damage to a checkpoint (a file or a folder of shards) as text; None if all checksums match."""
    try:
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
        states = tuple((file.name, *_state(file)) for file in files)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return _damage(path.resolve(), states)


def _state(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@functools.lru_cache(maxsize=64)  # a run verifies what it finds, and again what it loads
def _damage(path: Path, states: tuple[Any, ...]) -> str | None:
    if path.is_file():
        return _damage_of_archive(path) or _damage_of_headers(path)
    for name in (INDEX, "meta.pt"):
        if not (path / name).is_file():
            return f"{name} is missing"
    if reason := _damage_of_archive(path / "meta.pt") or _damage_of_headers(path / "meta.pt"):
        return f"meta.pt: {reason}"
    try:
        index = read_index(path)
    except UserError as error:
        return str(error)
    return _damage_of_shards(path, index)


def _damage_of_archive(file: Any) -> str | None:
    """Return the damage to a file written by torch.save, a zip archive whose checksums torch does not verify."""
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except Exception:  # zipfile raises errors of many types for damaged headers
        return "it was not written to its end, or is no archive of torch.save"
    return None if bad is None else f"{bad} does not match its checksum"


def _damage_of_headers(file: Path) -> str | None:
    """Return the reason why torch cannot or must not read the headers of an archive; None if it can."""
    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # no tensor is read
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            return f"it would run {found[1]}, which no checkpoint contains"
        return "its headers cannot be read"
    except RuntimeError:
        return "its headers cannot be read"
    except Exception:  # what it contains is judged where it is loaded
        return None
    return None


def read_index(folder: Path) -> Any:
    """Read the index of a folder of shards, a pickle, and refuse classes that torch does not write there.

    Raises:
        UserError: it holds another class, or cannot be read.
    """
    try:
        return _IndexUnpickler(io.BytesIO((folder / INDEX).read_bytes())).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises errors of any type
        raise UserError(f"{INDEX} cannot be read") from error


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"{INDEX} would run {module}.{name}, which no checkpoint contains")
        return super().find_class(module, name)


def _damage_of_shards(folder: Path, index: Any) -> str | None:
    try:
        for key, place in index.storage_data.items():
            shard = folder / place.relative_path
            if shard.parent != folder:
                return f"{INDEX} names the file {shard} elsewhere"
            if not shard.is_file():
                return f"{shard.name} is missing"
            if shard.stat().st_size < place.offset + place.length:
                return f"{shard.name} is cut off"
            with shard.open("rb") as file:
                file.seek(place.offset)
                content = io.BytesIO(file.read(place.length))
            if reason := _damage_of_archive(content):
                return f"{key.fqn} in {shard.name}: {reason}"
            if not isinstance(index.state_dict_metadata[key.fqn], index_classes.TensorStorageMetadata):
                # Torch reads tensors safely, and everything else as a pickle that may run code.
                content.seek(0)
                torch.load(content, map_location="cpu", weights_only=True)
    except (AttributeError, KeyError, TypeError, ValueError):
        return f"{INDEX} is not that of a checkpoint"
    except OSError as error:
        return f"a shard cannot be read ({error.strerror})"
    except (pickle.UnpicklingError, RuntimeError):
        return f"{key.fqn} in {shard.name} would run code, which no checkpoint contains"
    return None
