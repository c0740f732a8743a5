"""Sources of data: a file, a folder, a glob or a dataset on the hub, their files and digests."""

import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_pref.data.sources.row import ARRAY_ENDINGS, CSV_ENDINGS, HUB_NAME
from lit_pref.errors import UsageError, UserError
from lit_pref.hints import nearest_names

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", *CSV_ENDINGS)
_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|valid|val|validation|dev|eval)(?:ing)?(?:[^a-z]|$)")


@dataclass
class Source:
    """Preference data from one place.

    Args:
        path: a JSONL, JSONL.gz, Parquet or CSV file, a folder of such files, a glob like `data/train-*.parquet`, or
            a dataset on the Hugging Face hub as `owner/name:split`. A string is a path if it exists here, begins with
            `./`, `../`, `~` or `/`, has `*`, `?` or `[` in its name, or ends like one of these files;
            `owner/name:split` with one slash and a colon is on the hub.
        mapping: the columns of texts and strength: the name of a shipped mapping, a YAML file, or its content; null
            recognises the format from the columns.
        name: name of this source in metrics; null takes the name of the file or folder or dataset.
        weight: the share of this source among all sources with a weight; any positive number.
        count: number of pairs taken from this source.
        subset: the configuration of a dataset on the hub that has several.
        revision: branch, tag or commit of a dataset on the hub.
    """

    path: str
    mapping: str | dict[str, Any] | None = None
    name: str | None = None
    weight: float | None = None
    count: int | None = None
    subset: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """The name of this source in metrics.

        >>> Source("data/pairs.jsonl.gz").label, Source("data/train-*.csv").label, Source("owner/name:train").label
        ('pairs', 'train', 'owner/name:train')
        """
        if self.name is not None or self.hub is not None:
            return self.name or self.path
        path = _local(self.path).absolute()
        name = path.name.removesuffix(_ending(path.name))
        if glob.has_magic(name) and not exists(path):
            name = re.sub(r"\W*[*?\[].*", "", name) or path.parent.name
        return name

    @property
    def hub(self) -> tuple[str, str] | None:
        """Name and split on the hub, or None for a path."""
        if self.path.startswith(("./", "../", "~", "/")) or exists(Path(self.path)):
            return None
        match = HUB_NAME.fullmatch(self.path)
        return (match[1], match[2]) if match else None


def check_source(source: Source) -> None:
    """Refuse a source that cannot be read, without reading it or contacting the hub.

    Raises:
        UserError: there is no such file or folder (the message names similar ones), or it cannot be read.
        UsageError: weight, count, subset or revision are invalid here.
    """
    if source.weight is not None and source.count is not None:
        raise UsageError(f"{source.path} has a weight and a count, which both decide the number of pairs; keep one.")
    for name, value in (("weight", source.weight), ("count", source.count)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{source.path} has the {name} {value}; it must be above 0.")
    if source.hub is None:
        for name in ("subset", "revision"):
            if getattr(source, name) is not None:
                raise UsageError(
                    f"{source.path} is a local path, and `{name}` is for datasets on the hub; leave it out."
                )
        files_of(source)
    elif exists(Path(source.hub[0])):
        raise UserError(
            f"{source.path} is written like a dataset on the hub, but {source.hub[0]} exists here; for its files "
            f"give ./{source.hub[0]} or a pattern such as ./{source.hub[0]}/{source.hub[1]}*."
        )


def source_digest(source: Source) -> str:
    """Return a sha256, in hex, that depends on the content of a source but not on its path.

    It covers contents and endings of files in the order in which they are read; on the hub, commit, subset and split.

    Raises:
        UserError: there is no such source.
    """
    check_source(source)
    parts: list[Any]
    if source.hub is None:
        from lit_pref.cache import file_digest

        try:
            parts = [[_ending(file.name), file_digest(file)] for file in files_of(source)]
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be read ({error.strerror}); check its permissions and the disk."
            ) from error
    else:
        from lit_pref.data.sources.hub import hub_digest

        parts = [source.path, source.subset, hub_digest(*source.hub, source.subset, source.revision)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def files_of(source: Source) -> list[Path]:
    """Return the files of a local source, sorted.

    Raises:
        UserError: there are no files, or they should not be read together.
    """
    path = _local(source.path)
    if exists(path):
        return _readable(path, _entries(path)) if path.is_dir() else [source_file(path)]
    if glob.has_magic(source.path):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UserError(f"No file matches {source.path}; {_nearest(path.parent / '*')}.")
        inside = [file for match in matches if match.is_dir() for file in _entries(match)]
        return _readable(path, [*(match for match in matches if not match.is_dir()), *inside])
    if source.path.endswith((*ENDINGS, *ARRAY_ENDINGS)) or source.path.startswith(("./", "../", "~", "/")):
        return [source_file(path)] if source.path.endswith((*ENDINGS, *ARRAY_ENDINGS)) else _no_such(path)
    return _no_such(path, "; a dataset on the Hugging Face hub is written owner/name:split")


def _readable(place: Path, candidates: list[Path]) -> list[Path]:
    files = sorted({file for file in candidates if file.is_file() and not file.name.startswith(".")})
    chosen = [file for file in files if file.name.endswith(ENDINGS)]
    if not chosen:
        others = ", ".join(file.name for file in files[:8])
        files_there = f"; there are {others}" if others else "; there is no file at all (subfolders are not searched)"
        json_files = " (name a .json file itself)" if ".json" in others else ""
        raise UserError(f"{place} contains no file that ends in {', '.join(ENDINGS)}{files_there}{json_files}.")
    forms: dict[Path, Path] = {}
    for file in chosen:
        stem = file.with_name(file.name.removesuffix(_ending(file.name)))
        if stem in forms:
            raise UserError(
                f"{forms[stem]} and {file.name} look like the same rows in two formats; remove or rename one of them, "
                "or name one file."
            )
        forms[stem] = file
    splits = {_split(file.name): file for file in chosen if _split(file.name)}
    if len(splits) > 1:
        first, second = list(splits.values())[:2]
        raise UserError(
            f"{place} contains {first.name} and {second.name}, which look like different splits of one dataset; name "
            "the files of one split by a pattern, such as train*."
        )
    return chosen


def _split(name: str) -> str | None:
    match = _SPLIT.search(name.lower())
    return None if match is None else "val" if match[1] in ("valid", "validation", "dev") else match[1]


def _ending(name: str) -> str:
    return next(
        (ending for ending in sorted((*ENDINGS, *ARRAY_ENDINGS), key=len, reverse=True) if name.endswith(ending)), ""
    )


def _no_such(path: Path, otherwise: str = "") -> list[Path]:
    raise UserError(f"There is no file or folder {path} ({_nearest(path)}){otherwise}.")


def _nearest(path: Path) -> str:
    folder = path.parent
    while not exists(folder):
        folder = folder.parent
    entries = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    files = sorted(entry.name for entry in entries if entry.name.endswith(ENDINGS))
    near = nearest_names(path.name, [*files, *(entry.name for entry in entries if entry.is_dir())])
    if near and folder == path.parent:
        return f"did you mean {folder / near[0]}?"
    return f"the folder {folder.absolute()} contains {', '.join(files[:8]) or 'no data file'}"


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}); check its permissions.") from error


def _local(path: str) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser, it never raises for an unknown user


def source_file(path: str | Path) -> Path:
    """Return the path if it is a file that can be read as a source.

    Raises:
        UserError: there is no such file (the message names similar ones), or its ending is unknown.
    """
    path = Path(os.path.expanduser(path))
    if not exists(path):
        raise UserError(f"There is no file {path}; {_files_beside(path)}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; training data are read from a file that ends in {', '.join(ENDINGS)}.")
    if not path.name.endswith((*ENDINGS, *ARRAY_ENDINGS)):
        raise UserError(
            f"{path} has an unknown ending; training data are read from a file that ends in {', '.join(ENDINGS)}."
        )
    return path


def exists(path: Path) -> bool:
    """Return whether the path exists; a name that is too long does not."""
    try:
        return path.exists()
    except OSError:
        return False


def _files_beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either."
    names = sorted(p.name for p in path.parent.iterdir() if p.name.endswith(ENDINGS))
    near = nearest_names(path.name, names)
    if near:
        return f"did you mean {path.with_name(near[0])}?"
    return f"{path.parent} contains {', '.join(names[:8]) or 'no ' + ', '.join(ENDINGS) + ' file'}."
