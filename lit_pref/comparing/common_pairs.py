"""The held-out pairs that several runs share, by their ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lit_pref.comparing.run_record import RunRecord
from lit_pref.errors import UserError
from lit_pref.metrics.records import Records

_OF_TEXTS = re.compile(r"[0-9a-f]{16}(-\d+)?(-again\d+)?")


@dataclass(frozen=True)
class CommonPairs:
    """The held-out pairs common to all runs, in one order, with the records of each run.

    `notes` are sentences about pairs that were left out.
    """

    ids: list[str]
    prompts: list[str]
    records: list[Records]
    notes: list[str]


def common_pairs(runs: Sequence[RunRecord]) -> CommonPairs:
    """Return the pairs that all runs have at their compared steps, in the order of the first.

    An id of 16 hex digits is a hash of the texts. One that the data give is that of the same pair only if the prompt is
    the same as well.

    Raises:
        UserError: there are none.
    """
    rows = [{name: k for k, name in enumerate(run.records["id"])} for run in runs]
    shared = [name for name in rows[0] if all(name in own for own in rows[1:])]
    if not shared:
        raise UserError(_none_shared(runs, rows))
    other_prompt = [name for name in shared if not _OF_TEXTS.fullmatch(name) and len(_prompts(name, runs, rows)) > 1]
    ids = [name for name in shared if name not in set(other_prompt)]
    if not ids:
        raise UserError(
            f"all {len(shared)} ids that the runs share have other prompts in {runs[-1].name} than in {runs[0].name}, "
            f"so they name other pairs: {_remedy(runs)}"
        )
    notes = []
    if any(len(own) > len(ids) for own in rows):
        counts = ", ".join(f"{run.name} {len(own)}" for run, own in zip(runs, rows, strict=True))
        notes.append(
            f"The runs were validated on different pairs ({counts}): compared are the {len(ids)} that all of them have."
        )
    if other_prompt:
        notes.append(
            f"{len(other_prompt)} pairs have one id and different prompts, such as {other_prompt[0]!r}: left out."
        )
    records = [
        {name: [column[own[pair]] for pair in ids] for name, column in run.records.items()}
        for run, own in zip(runs, rows, strict=True)
    ]
    prompts = [str(prompt) for prompt in records[0].get("prompt", ids)]
    return CommonPairs(ids, prompts, records, notes)


def _prompts(name: str, runs: Sequence[RunRecord], rows: Sequence[dict[str, int]]) -> set[str]:
    found = (run.records["prompt"][own[name]] for run, own in zip(runs, rows, strict=True) if "prompt" in run.records)
    return set(found)


def _none_shared(runs: Sequence[RunRecord], rows: Sequence[dict[str, int]]) -> str:
    alone = [k for k in range(1, len(runs)) if not rows[0].keys() & rows[k].keys()]
    if not alone:
        return (
            f"the {len(runs)} runs have no held-out pair that all of them share, although each shares some with "
            f"{runs[0].name}: compare fewer of them, or {_remedy(runs)}"
        )
    other = runs[alone[0]]
    sided = ""
    if len({"rejected_length" in run.records for run in (runs[0], other)}) == 2:
        sided = " One of them reads only chosen responses, and the id of a pair is then another."
    first, second = (next(iter(run.records["id"]), None) for run in (runs[0], other))
    return (
        f"{runs[0].name} and {other.name} have no held-out pair in common ({len(rows[0])} pairs, the first with the id "
        f"{first!r}, and {len(rows[alone[0]])}, the first {second!r}).{sided} To compare them, {_remedy(runs)}"
    )


def _remedy(runs: Sequence[RunRecord]) -> str:
    return (
        f"validate each on the same file (validate --config {runs[0].folder / 'config.yaml'} --ckpt_path last "
        "--data.val FILE) and compare with --records validate"
    )
