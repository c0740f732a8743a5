"""Describes the data of a run before anything takes long, so that a wrongly recognised file is noticed."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.prepared.preparation_report import PreparationReport


def data_lines(data: Any) -> Iterator[str]:
    """Lines on how the sources were read, with an example pair, how many records were left out, and possible faults.

    Args:
        data: the data module, after its preparation.
    """
    for split, (_, reports) in data.describe().items():
        for name, report in reports.items():
            which = f"{split} {name}" if len(reports) > 1 else split
            if split == "train":
                yield f"source      {name}, read as {report.format}"
                yield from (f"            {line}" for line in report.example.splitlines())
                if report.unread:
                    yield f"not read    {name}: {', '.join(sorted(report.unread))}"
            yield f"data        {which}: " + str(report).replace("\n", "\n            ")
    yield from _of_parts(data.train_pairs)
    yield from (f"note        {note}" for note in _notes(data))


def _of_parts(pairs: PairView) -> Iterator[str]:
    taken = [(part.source, len(part.indices), len(part.pairs)) for part in pairs.parts]
    if any(some < every for _, some, every in taken):
        shares = ", ".join(f"{name} {some} of {every}" for name, some, every in taken)
        yield f"mixture     {len(pairs)} training pairs: {shares}"
    for part in pairs.parts:
        if part.normaliser == Normaliser():
            continue
        margins = part.normaliser.apply(part.pairs.column("margin")[part.indices])
        how = "made quantiles" if part.normaliser.margins else f"divided by {part.normaliser.scale:.4g}"
        yield (
            f"normalised  {part.source}: margins are {how}, fitted on its {len(part.pairs)} training pairs; then mean "
            f"{margins.mean():.4g}, largest {margins.max():.4g}"
        )


def _notes(data: Any) -> Iterator[str]:
    train, val = data.train_pairs, data.val_pairs
    for name, report in train.reports.items():
        yield from _of_tokens(name, report, data.has_chat_template)
    held_out = val.column("prompt_group").astype(str)
    if not len(held_out):
        yield "no pair is held out, so there is no validation"
    elif shared := int(np.isin(held_out, train.column("prompt_group").astype(str)).sum()):
        yield f"{shared} of {len(held_out)} validation pairs have a prompt that is trained on"
    for name in train.unshared:
        yield f"only some of the sources have a {name}, so it is dropped for all, because batches mix the sources"


def _of_tokens(name: str, report: PreparationReport, template: bool) -> Iterator[str]:
    if report.unasked:
        yield (
            f"{name}: in {report.unasked} pairs the assistant's turn does not begin with the chat template's "
            "generation prompt, so the header of the turn is trained on: fix the template"
        )
    if report.lost:
        counts = ", ".join(f"{text} in {number} pairs" for text, number in report.lost.most_common())
        yield f"{name}: the chat template leaves out or rewrites {counts}; accepted by data.lost_text"
    if report.plain and template:
        yield (
            f"{name}: the tokenizer has a chat template, and {report.plain} prompts are plain text, which is not "
            "rendered by it; data.mapping {format: messages} turns them into messages"
        )
    if report.joined:
        yield (f"{name}: {report.joined} pairs have no space between prompt and response, and none is added")
