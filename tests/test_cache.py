"""What is built once is verified when it is used again."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_pref import cache
from lit_pref.cache import build_once
from lit_pref.errors import UserError


def write(folder: Path) -> None:
    (folder / "small.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "large.bin").write_bytes(bytes(range(256)) * 8192)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARMS: dict[str, Callable[[Path], object]] = {
    "flipped": lambda folder: flip(folder / "sub" / "large.bin"),
    "truncated": lambda folder: (folder / "sub" / "large.bin").write_bytes(b"\0" * 100),
    "emptied": lambda folder: (folder / "small.json").write_text(""),
    "missing": lambda folder: (folder / "sub" / "large.bin").unlink(),
    "without checksums": lambda folder: (folder / "digests.json").unlink(),
    "with empty checksums": lambda folder: (folder / "digests.json").write_text(""),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_folder_is_made_again_with_a_sentence_and_a_whole_one_is_not(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
):
    built = []
    folder = tmp_path / "key"

    def build(unfinished: Path) -> None:
        built.append(unfinished)
        write(unfinished)

    for _ in range(2):
        assert build_once(folder, build) == folder
    assert len(built) == 1 and capsys.readouterr().out == ""
    HARMS[harm](folder)
    for _ in range(2):
        assert build_once(folder, build) == folder
    assert len(built) == 2
    said = capsys.readouterr().out
    assert said.startswith(f"warning     the cache {folder} is damaged (") and said.count("\n") == 1
    assert (folder / "sub" / "large.bin").read_bytes() == bytes(range(256)) * 8192
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["key"]


def test_files_reach_the_disk_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (done.append(f"rename to {b.name}"), rename(a, b)))
    build_once(tmp_path / "key", write)
    before = done[: done.index("rename to key")]
    assert set(before) == {"small.json", "large.bin", "digests.json", "key.unfinished"}
    assert done[-1] == tmp_path.name


def test_a_full_disk_and_a_read_only_cache_are_one_sentence_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(unfinished: Path) -> None:
        write(unfinished)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"the disk of the cache is full .*LIT_PREF_CACHE"):
        build_once(tmp_path / "key", full)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    build_once(tmp_path / "whole", write)
    monkeypatch.setattr("lit_pref.cache.FileLock.acquire", refuse)
    assert build_once(tmp_path / "whole", write) == tmp_path / "whole"
    with pytest.raises(UserError, match=r"the cache is not writable .*Read-only"):
        build_once(tmp_path / "key", write)


def test_bits_that_a_disk_loses_are_seen_though_size_and_times_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    folder = build_once(tmp_path / "prepared" / "key", write)
    large = folder / "sub" / "large.bin"
    state = large.stat()
    later = state.st_mtime_ns + 10**11
    monkeypatch.setattr(cache.time, "time_ns", lambda: later)
    digest = cache.file_digest(large)  # is kept in a file
    flip(large)
    # No program can set the time of a change, so the file's state is what it was before.
    before = (large.resolve(), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    real = cache._state
    monkeypatch.setattr(cache, "_state", lambda file: before if file.name == "large.bin" else real(file))
    for cached in (cache._digest, cache._content_digest):
        cached.cache_clear()  # as in another process
    assert cache.file_digest(large) == digest
    build_once(folder, write)
    assert "large.bin does not match its checksum" in capsys.readouterr().out
