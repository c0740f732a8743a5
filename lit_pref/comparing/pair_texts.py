"""The texts of held-out pairs, read again from the sources that the configuration of a run names."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lit_pref.comparing.run_record import RunRecord
from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source, check_source
from lit_pref.errors import UserError
from lit_pref.metrics.records import prompt_digest
from lit_pref.pairs import Text


@dataclass(frozen=True)
class PairText:
    """The texts of a pair, and the file and line where they are."""

    place: str
    prompt: Text
    chosen: str
    rejected: str | None


def read_texts(run: RunRecord, ids: Collection[str]) -> tuple[dict[str, PairText], str]:
    """Read the texts of held-out pairs of a run.

    The sources are read as the run has read them, without tokenization. A pair is found by its id; one whose id the
    data give must have the prompt of the record.

    Returns:
        The texts by id, and a sentence about pairs whose texts are not found; empty if all are.
    """
    data = run.config.get("data")
    if data is None:
        return {}, f"The texts are not known, because {run.folder} has no configuration that names the data."
    prompts = dict(zip(run.records["id"], run.records.get("prompt", [None] * len(run.records["id"])), strict=True))
    places = dict(zip(run.records["id"], run.records.get("place", [""] * len(run.records["id"])), strict=True))
    found: dict[str, PairText] = {}
    changed, reason = [], ""
    try:
        for name, pair in _held_out(data, "rejected_length" in run.records):
            if name in ids and name not in found:
                text = pair.text
                found[name] = PairText(pair.row.place, text.prompt, text.chosen, text.rejected)
                if pair.text.id is not None and prompts[name] not in (None, prompt_digest(text.prompt)):
                    changed.append(name)
    except (UserError, OSError) as error:
        reason = str(error).rstrip(".")
    missing = [name for name in ids if name not in found]
    words = []
    if missing:
        where = f", such as {places[missing[0]]}" if places[missing[0]] else ""
        why = reason or "the data have changed since the run"
        words.append(f"The texts of {len(missing)} of these pairs are not found{where}: {why}.")
    if changed:
        words.append(
            f"{len(changed)} of these pairs have another prompt in the file than the run has seen, such as "
            f"{found[changed[0]].place}: it was truncated, or the file has changed since."
        )
    return found, " ".join(words)


def _held_out(data: dict[str, Any], two_sided: bool) -> Iterator[tuple[str, CheckedPair]]:
    """Yield the held-out pairs of a configuration with their ids in its records."""
    own = data.get("val") is not None
    preparation = Preparation(
        mapping=data.get("mapping"),
        group_column=data.get("group_column"),
        ties=data.get("ties", "keep"),
        ignore_columns=tuple(data.get("ignore_columns") or ()),
        one_sided=not two_sided,
        val_fraction=0.0 if own else data.get("val_fraction", 0.1),
        split_seed=data.get("split_seed", 0),
    )
    given = data["val"] if own else data.get("train")
    seen: dict[str, int] = {}
    sources = [_source(one) for one in (given if isinstance(given, list) else [given])]
    for source in sources:
        check_source(source)
        for pair in preparation.checked_pairs(source):
            if pair.split == ("train" if own else "validation"):
                before = seen.get(pair.id, 0)
                seen[pair.id] = before + 1
                # A pair that is in several sources is known by another id from its second occurrence on.
                yield f"{pair.id}-again{before}" if before else pair.id, pair


def _source(given: Any) -> Source:
    if not isinstance(given, dict):
        return Source(str(given))
    return Source(**given.get("init_args", given))
