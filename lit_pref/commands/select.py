"""The command `select`: write the training pairs that `data.selection` keeps, and a report on them."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_pref.commands.run_options import RunOptions
from lit_pref.errors import UsageError, UserError, printable
from lit_pref.pairs import TEMPLATE_ARGUMENTS
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.data.checking.text_pair import CheckedPair
    from lit_pref.data.prepared.pair_view import PairView
    from lit_pref.modules.preference import PreferenceModule

ENDINGS = (".jsonl", ".parquet")
_OF_THE_CHOICE = ("--data.selection", "--data.train")
"""Options that a run on the chosen pairs does not repeat."""


def select(run: RunOptions, out: Path) -> None:
    """Write the training pairs that data.selection keeps, with a report on the selection.

    The pairs are shuffled and written with their whole texts and every field that a run reads: margin (before it is
    normalised), probability, data.columns, data.token_columns, the group, the writers of the texts; and a column
    `selection_score`. Scores and further columns of a source are written if data.columns names them, and the rejected
    text if the objective reads it. A run that sets data.selection itself needs no such file.

      --data.selection AlignmentPotential --data.selection.keep 0.4       the best 40 %
      --data.selection.per_prompt true    of every prompt;    --data.selection.which bottom    the worst
      --data.selection.help AlignmentPotential      its formula and arguments

    Args:
        run: the options of the run: its policy before training, its training pairs, and data.selection
            (AlignmentPotential, ExplicitMargin, ImplicitMargin, Random, PredictiveEntropy, Certainty, or your own).
        out: the file to write, .jsonl or .parquet; it must not exist. The report is written next to it, to files that
            end in .report.html and .report.json.
    """
    files = files_of(out)
    built = run.build()
    again = run.without(_OF_THE_CHOICE)
    built.before_training(lambda module: write(module, files, again))


class Out(NamedTuple):
    """The files that are written."""

    pairs: Path
    page: Path
    numbers: Path


def files_of(path: Path) -> Out:
    """The files that are written for `--out`.

    >>> files_of(Path("best.jsonl")).page.name
    'best.report.html'

    Raises:
        UsageError: the ending is unknown, or a file exists already.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"select writes the chosen pairs to a new file: give --out chosen.jsonl or --out chosen.parquet, not "
            f"{str(path)!r}"
        )
    out = Out(path, path.with_suffix(".report.html"), path.with_suffix(".report.json"))
    if there := [str(file) for file in out if file.exists()]:
        raise UsageError(f"{there[0]} exists already, and select overwrites no file: remove it or name another --out")
    return out


def write(module: "PreferenceModule", out: Out, again: Sequence[str]) -> None:
    """Write the chosen training pairs of a run, and the report.

    Args:
        module: a module with its Trainer and prepared data.
        out: the files to write.
        again: the run's options, for the next command.

    Raises:
        UsageError: the run has no selection.
        UserError: a file cannot be written.
    """
    from lit_pref.commands.selection_report import page, plain, report_of
    from lit_pref.commands.written_pairs import refuse_mixed, write_pairs

    data = module.data
    if data.selection is None:
        raise UsageError(
            "this configuration does not say how to choose pairs: add a data.selection, such as "
            "--data.selection AlignmentPotential"
        )
    if out.pairs.suffix == ".parquet":
        one_of_every = (part.pairs[int(part.indices[0])] for part in data.unselected.parts if len(part.indices))
        refuse_mixed({type(pair.text.prompt) for pair in one_of_every})
    pool, choice = module.pool_and_choice(data.unselected, data.selection)
    if not module.trainer.is_global_zero:
        return
    chosen = data.unselected.subset(choice.indices)
    try:
        out.pairs.parent.mkdir(parents=True, exist_ok=True)
        write_pairs(out.pairs, rows_of(data, chosen, choice.scores[choice.indices]), chosen.ids, data.seed)
        report = report_of(data.selection, pool, choice, data.unselected)
        out.numbers.write_text(json.dumps(report.numbers, indent=1) + "\n", encoding="utf-8")
        out.page.write_text(printable(page(report)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out.pairs} cannot be written ({error}): free space or permissions, or another --out") from (
            error
        )
    say(f"\n{plain(report)}\n\nselected pairs  {out.pairs}\nreport          {out.page}  (numbers: {out.numbers})")
    say(_next(data, out.pairs, again))


def rows_of(data: Any, chosen: "PairView", scores: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the selected pairs again, with their full texts, as records in the format that `fit` reads by default.

    Args:
        data: the data module.
        chosen: the selected pairs.
        scores: their selection scores.

    Yields:
        The index of the pair in `chosen`, and its record.

    Raises:
        UserError: the sources have changed since they were prepared.
    """
    import numpy as np

    places: dict[tuple[str, str], int] = {}
    for part in chosen.parts:
        for id in part.pairs.column("id")[part.indices]:
            places[part.source, id] = len(places)
    ids, groups = chosen.ids, chosen.column("group")
    # The strength is not read from the records: if only some of the sources have one, it is dropped for all pairs.
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
            f"{number} of the selected pairs are no longer in the sources (the first: {id} of {source}): the sources "
            "changed while this command ran; run it again"
        )


def _texts(read: "CheckedPair") -> dict[str, Any]:
    text = read.text
    texts: dict[str, Any] = {name: getattr(text, name) for name in ("prompt", "chosen", "rejected", "extra_response")}
    for side, further in text.further.items():
        texts[side] = [{"role": "assistant", "content": texts[side], **further}]
    if not isinstance(text.prompt, str) and (arguments := text.prompt[0].get(TEMPLATE_ARGUMENTS)):
        first = {key: part for key, part in text.prompt[0].items() if key != TEMPLATE_ARGUMENTS}
        texts["prompt"] = [first, *text.prompt[1:]]
        texts["tools"] = arguments.get("tools")
        texts["chat_template_kwargs"] = {key: part for key, part in arguments.items() if key != "tools"} or None
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
    """The command that trains on the file, with notes on how that run differs from one with data.selection."""
    from lit_pref.data.prepared.splits import sources_of

    normalised = {mapping.normalise for mapping in data.train_mappings} - {"none"}
    mixture = len(data.unselected.parts) > 1
    mapping: Any = "pairs"
    notes = []
    if normalised and mixture:
        notes.append(
            "the margins in the file are those of the sources, before this run normalised each source by its own "
            "constants: bring them to one scale, or keep data.selection in the run"
        )
    elif normalised:
        mapping = {"base": "pairs", "margin": {"normalise": next(iter(normalised))}}
        notes.append(
            "the margins in the file are not normalised: this command fits the normalisation to the selected pairs, a "
            "run with data.selection fits it to all training pairs"
        )
    # Options of the configuration's own sources would remain in force unless they are set to null.
    old = sources_of(data.train, "data.train")
    given = {field for source in old for field, value in vars(source).items() if value is not None}
    train: dict[str, Any] = dict.fromkeys(sorted(given)) | {"path": str(pairs), "mapping": mapping}
    change = ["--data.train", json.dumps(train), "--data.selection", "null"]
    if mixture and data.group_column is None and data.val is None:
        change += ["--data.group_column", "source"]
    elif mixture and data.group_column is None:
        notes.append(
            "the column `source` names the source of each pair; --data.group_column source gives metrics for each, if "
            "data.val has this column too"
        )
    if data.val is None and data.val_fraction:
        notes.append(
            "the file contains training prompts only, so the same split_seed and val_fraction hold out none of them, "
            "and the sources cannot be used as data.val because they contain the same prompts: name other validation "
            "pairs with --data.val, or keep data.selection in the run"
        )
    command = shlex.join([Path(sys.executable).name, "-m", "lit_pref", "fit", *again, *change])
    return "\n".join([f"Next: train on them\n  {command}", *(f"  ({note})" for note in notes)])
