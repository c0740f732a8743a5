"""`python -m lit_pref select`: the training pairs that `data.selection` keeps, as a file, and what kind they are."""

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_pref.errors import UsageError, UserError

if TYPE_CHECKING:
    from lit_pref.data.checked import CheckedPair
    from lit_pref.data.view import PairView
    from lit_pref.modules.preference import PreferenceModule

HELP = """usage: python -m lit_pref select --config FILE --out CHOSEN [--data.selection CLASS] [options of fit]

Writes the training pairs that data.selection keeps, whole and shuffled, with all their numbers and a column
`selection_score`: an ordinary file of pairs, which `fit` reads as it is. Beside it a report says what was kept and what
was left out. A run that has data.selection itself needs no such file.

  --config FILE    the configuration of a run, with any option of `fit` after it: its policy before training, its
                   training pairs, and data.selection (AlignmentPotential, ExplicitMargin, ImplicitMargin, Random,
                   PredictiveEntropy, Certainty, or a class of your own)
  --out CHOSEN     the file that is written, .jsonl or .parquet; it must not exist. The report goes to
                   CHOSEN.report.html and CHOSEN.report.json, less the ending

  --data.selection AlignmentPotential --data.selection.keep 0.4       the best 40 %
  --data.selection.per_prompt true    of every prompt;    --data.selection.which bottom    the worst
  --data.selection.help AlignmentPotential      what it computes and takes
"""

ENDINGS = (".jsonl", ".parquet")
CHUNK = 512  # pairs of a Parquet row group


def main(arguments: list[str]) -> None:
    """Print the help."""
    print(HELP, end="")


class Out(NamedTuple):
    """The files that are written."""

    pairs: Path
    page: Path
    numbers: Path


def out_of(arguments: list[str]) -> tuple[Out, list[str]]:
    """The files of `--out CHOSEN`, and the other arguments.

    >>> out_of(["--config", "a.yaml", "--out", "best.jsonl"])[0].page.name
    'best.report.html'

    Raises:
        UsageError: none is named, its ending is unknown, or it is there already.
    """
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--out=") else [a])]
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    name = "".join(arguments[at + 1 : at + 2])
    if not name.endswith(ENDINGS) or name.startswith("--"):
        raise UsageError(
            f"select writes the chosen pairs into a new file: --out chosen.jsonl or --out chosen.parquet; got "
            f"{name or 'nothing'!r}"
        )
    path = Path(name)
    out = Out(path, path.with_suffix(".report.html"), path.with_suffix(".report.json"))
    if there := [str(file) for file in out if file.exists()]:
        raise UsageError(f"{there[0]} is there already, and select replaces nothing: remove it or name another --out")
    return out, arguments[:at] + arguments[at + 2 :]


def write(module: "PreferenceModule", out: Out, again: Sequence[str]) -> None:
    """Write the chosen training pairs of a run, and the report.

    Args:
        module: with its Trainer, whose data are prepared.
        out: the files.
        again: the run's options, for what to do next.

    Raises:
        UsageError: the run chooses nothing.
        UserError: a file cannot be written.
    """
    from lit_pref.commands.selection_report import page, plain, report_of
    from lit_pref.modules.selecting import chosen_of

    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]
    if data.selection is None:
        raise UsageError(
            "this configuration has no data.selection, by which pairs are chosen: add one, such as "
            "--data.selection AlignmentPotential"
        )
    pool, choice = chosen_of(module, data.unselected, data.selection)
    if not module.trainer.is_global_zero:
        return
    chosen = data.unselected.subset(choice.indices)
    try:
        out.pairs.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(out.pairs, rows_of(data, chosen, choice.scores[choice.indices]), chosen.ids, data.seed)
        report = report_of(data.selection, pool, choice, data.unselected)
        out.numbers.write_text(json.dumps(report.numbers, indent=1) + "\n", encoding="utf-8")
        out.page.write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out.pairs} cannot be written ({error}): free space or permissions, or another --out") from (
            error
        )
    print(f"\n{plain(report)}\n\nchosen pairs  {out.pairs}\nreport        {out.page}  (numbers: {out.numbers})")
    print(_next(data, out.pairs, again), flush=True)


def rows_of(data: Any, chosen: "PairView", scores: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every chosen pair with its place among them, as a row of this project's own fields, its texts uncut.

    Raises:
        UserError: the sources have changed meanwhile.
    """
    places: dict[tuple[str, str], int] = {}
    for part in chosen.parts:
        for id in part.pairs.column("id")[part.indices]:
            places[part.source, id] = len(places)
    ids, margins, groups = chosen.ids, chosen.column("margin"), chosen.column("group")
    for source, read in data.read_train():
        place = places.pop((source, read.id), None)
        if place is not None:
            numbers = {"margin": float(margins[place])} if np.isfinite(margins[place]) else {}
            group = {data.group_column or "source": groups[place]} if groups[place] is not None else {}
            score = {"selection_score": float(scores[place])}
            yield place, {"id": ids[place], **_texts(read), **numbers, **_carried(read), **group, **score}
    if places:
        (source, id), number = next(iter(places)), len(places)
        raise UserError(
            f"{number} of the chosen pairs are not in the sources (the first: {id} of {source}), which have changed "
            "since this command began: run it again"
        )


def _texts(read: "CheckedPair") -> dict[str, Any]:
    text = read.text
    texts = {"prompt": text.prompt, "chosen": text.chosen, "rejected": text.rejected, "third": text.third}
    return {name: value for name, value in texts.items() if value is not None}


def _carried(read: "CheckedPair") -> dict[str, Any]:
    text = read.text
    row: dict[str, Any] = {} if text.probability is None else {"probability": text.probability}
    row |= text.columns
    for name, spans in text.spans.items():
        sides = dict(zip(("chosen", "rejected"), spans, strict=True))
        row |= {f"{name}_{side}": [list(span) for span in values] for side, values in sides.items()}
    writers = dict(zip(("chosen_source", "rejected_source"), text.sources, strict=True))
    return row | {name: writer for name, writer in writers.items() if writer is not None}


def write_pairs(path: Path, rows: Iterator[tuple[int, dict[str, Any]]], ids: Sequence[str], seed: int) -> None:
    """Write rows in an order of chance that `seed` and the ids decide, in bounded memory; the file appears whole.

    Args:
        path: ends in .jsonl or .parquet.
        rows: each with its place in `ids`, in any order.
        ids: of the pairs.
        seed: of the order.
    """
    chance = [hashlib.sha256(f"{seed} {id}".encode()).digest() for id in ids]
    unfinished = path.with_name(path.name + ".unfinished")
    with TemporaryFile(dir=path.parent) as spool:
        starts = np.zeros(len(ids), np.int64)
        fields: dict[str, Any] = {}
        for place, row in rows:
            starts[place] = spool.tell()
            fields |= {name: value for name, value in row.items() if name not in fields}
            spool.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

        def lines() -> Iterator[bytes]:
            for place in sorted(range(len(ids)), key=chance.__getitem__):
                spool.seek(starts[place])
                yield spool.readline()

        try:
            if path.suffix == ".jsonl":
                with unfinished.open("wb") as file:
                    file.writelines(lines())
            else:
                _write_parquet(unfinished, lines(), fields)
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _write_parquet(path: Path, lines: Iterator[bytes], fields: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct({"role": pa.string(), "content": pa.string()})
    kinds = {str: pa.string(), float: pa.float64(), list: pa.list_(pa.list_(pa.float64()))}
    schema = pa.schema({name: kinds[type(value)] for name, value in fields.items()})
    if isinstance(fields["prompt"], list):
        schema = schema.set(schema.get_field_index("prompt"), pa.field("prompt", pa.list_(message)))
    with pq.ParquetWriter(path, schema) as writer:
        chunk: list[dict[str, Any]] = []
        for line in lines:
            chunk.append(json.loads(line))
            if len(chunk) == CHUNK:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
        writer.write_table(pa.Table.from_pylist(chunk, schema))


def _next(data: Any, pairs: Path, again: Sequence[str]) -> str:
    """The command that trains on the file."""
    change = ["--data.train", str(pairs), "--data.selection", "null"]
    change += [] if data.mapping is None else ["--data.mapping", "null"]
    command = [Path(sys.executable).name, "-m", "lit_pref", "fit", *again, *change]
    note = ""
    if data.val is None and data.val_fraction:
        note = (
            "\n  (it holds training prompts only, of which the same split_seed holds none out: name pairs to validate "
            "on with --data.val, or leave data.selection in the run itself)"
        )
    return f"Next: train on them\n  {shlex.join(command)}{note}"
