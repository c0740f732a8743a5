"""Checks that a file's content matches its ending; damaged or wrong files are refused with a remedy."""

from dataclasses import dataclass
from pathlib import Path

from lit_pref.errors import UserError

HEAD = 4096
"""Bytes at a file's beginning by which its type is recognised."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_SIGNS = (
    (
        b"version https://git-lfs.github.com/",
        "is a git-lfs pointer, not the data",
        "fetch it with `git lfs pull`",
    ),
    (b"PAR1", "is a Parquet file", "give it the ending .parquet"),
    (b"\x1f\x8b", "is compressed by gzip", "decompress it with gunzip, or give it the ending .jsonl.gz or .csv.gz"),
    (b"PK\x03\x04", "is a zip archive", "unpack it"),
    (b"BZh", "is compressed by bzip2", "decompress it, or compress it with gzip"),
    (b"\xfd7zXZ\x00", "is compressed by xz", "decompress it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd", "decompress it, or compress it with gzip"),
    (b"ARROW1", "is an Arrow file", "write it as Parquet"),
    (b"\xff\xfe", "is UTF-16 text", "save it in UTF-8"),
    (b"\xfe\xff", "is UTF-16 text", "save it in UTF-8"),
)
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


@dataclass(frozen=True)
class Fault:
    """An error in one row of a file whose other rows can be read; `detail` is text about this row only."""

    reason: str
    remedy: str
    detail: str = ""


def refuse_unless_text(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes, decompressed, are not text.

    Raises:
        UserError: the file is of another type.
    """
    if not head:
        raise UserError(f"{path} is empty, as after a failed download or on a full disk; fetch it again.")
    _refuse_by_signs(path, head)
    if head[0:1] == b"\0" or head[1:2] == b"\0":  # an ASCII letter in UTF-16 without a byte order mark
        raise UserError(f"{path} is UTF-16 text or a binary file; save it as text in UTF-8.")
    if b"\0" in head.partition(b"\n")[0]:
        raise UserError(f"{path} is a binary file, or damaged: it contains zero bytes; give a text file in UTF-8.")


def refuse_unless_parquet(path: Path) -> None:
    """Refuse a file that does not begin and end like a Parquet file.

    Raises:
        UserError: the file is of another type, or is cut short.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
        size = file.seek(0, 2)
        file.seek(max(0, size - 4))
        tail = file.read(4)
    if head.startswith(b"PAR1"):
        if size < 12 or tail != b"PAR1":
            raise UserError(f"{path} is cut short: a Parquet file ends with the mark PAR1; fetch it again.")
        return
    if not head:
        refuse_unless_text(path, head)
    _refuse_by_signs(path, head)
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip()
    is_json = text[:1] in (b"{", b"[")
    reason = "contains JSON; give it the ending .jsonl" if is_json else "is not a Parquet file; write it again"
    raise UserError(f"{path} {reason}.")


def refuse_unless_gzip(path: Path) -> None:
    """Refuse a file that is not compressed by gzip, although its ending says so.

    Raises:
        UserError: the file is not compressed by gzip.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head.startswith(b"\x1f\x8b"):
        return
    refuse_unless_text(path, head)
    raise UserError(f"{path} is not compressed by gzip; give it the ending {''.join(path.suffixes[-2:-1])}.")


def _refuse_by_signs(path: Path, head: bytes) -> None:
    for sign, what, remedy in _SIGNS:
        if head.startswith(sign):
            raise UserError(f"{path} {what}; {remedy}.")
    if head.removeprefix(BYTE_ORDER_MARK).lstrip().lower().startswith(_PAGE):
        raise UserError(
            f"{path} is a web page (HTML), such as an error page saved in place of the data; download the file itself."
        )
