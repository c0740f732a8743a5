"""`python -m lit_pref select`: the training pairs that `data.selection` keeps, as a file, and what kind they are."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_pref.commands.written_pairs import refuse_mixed, write_pairs
from lit_pref.errors import UsageError, UserError

if TYPE_CHECKING:
    from lit_pref.data.checking.text_pair import CheckedPair
    from lit_pref.data.prepared.pair_view import PairView
    from lit_pref.modules.preference import PreferenceModule

HELP = """usage: python -m lit_pref select --config FILE --out CHOSEN [--data.selection CLASS] [options of fit]

Writes the training pairs that data.selection keeps, their texts uncut and shuffled, with what a run reads of them:
margin (before it is normalised), probability, data.columns, data.token_columns, the group, who wrote the texts; and a
column `selection_score`. Scores and further columns of a source are written where data.columns names them, and the
rejected text where the objective reads it. Beside the file a report says what was kept and what was left out. A run
that has data.selection itself needs no such file.

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
    if out.pairs.suffix == ".parquet":
        one_of_every = (part.pairs[int(part.indices[0])] for part in data.unselected.parts if len(part.indices))
        refuse_mixed({type(pair.text.prompt) for pair in one_of_every})
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
    ids, groups = chosen.ids, chosen.column("group")
    # Not those of the rows: what only some of the sources have, no pair has.
    strengths = {"margin": chosen.own_margins, "probability": chosen.column("probability")}
    for source, read in data.read_train():
        place = places.pop((source, read.id), None)
        if place is not None:
            numbers = {name: float(of[place]) for name, of in strengths.items() if np.isfinite(of[place])}
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
    texts = {name: getattr(text, name) for name in ("prompt", "chosen", "rejected", "extra_response")}
    return {name: value for name, value in texts.items() if value is not None}


def _carried(read: "CheckedPair") -> dict[str, Any]:
    text = read.text
    row: dict[str, Any] = dict(text.columns)
    for name, spans in text.spans.items():
        sides = dict(zip(("chosen", "rejected"), spans, strict=True))
        row |= {f"{name}_{side}": [list(span) for span in values] for side, values in sides.items()}
    writers = dict(zip(("chosen_source", "rejected_source"), text.sources, strict=True))
    return row | {name: writer for name, writer in writers.items() if writer is not None}


def _next(data: Any, pairs: Path, again: Sequence[str]) -> str:
    """The command that trains on the file, and in which ways it is not the run that chooses itself."""
    from lit_pref.data.prepared.splits import sources_of

    normalised = {mapping.normalise for mapping in data.train_mappings} - {"none"}
    mixture = len(data.unselected.parts) > 1
    mapping: Any = "pairs"
    notes = []
    if normalised and mixture:
        notes.append(
            "its margins are those of the sources, which this run normalised by constants of each, and a file has one "
            "scale: leave data.selection in the run itself, or bring the margins to one scale"
        )
    elif normalised:
        mapping = {"base": "pairs", "margin": {"normalise": next(iter(normalised))}}
        notes.append(
            "its margins are not normalised: the command does that by constants of the chosen pairs, where a run with "
            "data.selection takes those of all training pairs"
        )
    # The parser would leave the rest of what the configuration says of its sources in place.
    old = sources_of(data.train, "data.train")
    said = {field for source in old for field, value in vars(source).items() if value is not None}
    train: dict[str, Any] = dict.fromkeys(sorted(said)) | {"path": str(pairs), "mapping": mapping}
    change = ["--data.train", json.dumps(train), "--data.selection", "null"]
    if mixture and data.group_column is None and data.val is None:
        change += ["--data.group_column", "source"]
    elif mixture and data.group_column is None:
        notes.append(
            "`source` says where a pair is from: with --data.group_column source metrics are split by it, if the pairs "
            "of data.val have such a column too"
        )
    if data.val is None and data.val_fraction:
        notes.append(
            "it holds training prompts alone, of which the same split_seed and val_fraction hold none out, and the "
            "sources would be validated on whole, training prompts too: name other pairs with --data.val, or leave "
            "data.selection in the run itself"
        )
    command = shlex.join([Path(sys.executable).name, "-m", "lit_pref", "fit", *again, *change])
    return "\n".join([f"Next: train on them\n  {command}", *(f"  ({note})" for note in notes)])
