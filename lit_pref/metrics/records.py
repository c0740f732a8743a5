"""Records of evaluated pairs, from which validation computes metrics that are exact over pairs and ranks."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UserError
from lit_pref.metrics.meaning import Meaning
from lit_pref.pairs import Text
from lit_pref.scores import ObjectiveOutput, PairScores

Records = dict[str, list[Any]]
"""Column name -> one entry per pair: a number, a string, or None if the pair has no such value. `id` always exists."""

COLUMNS: dict[str, Meaning] = {
    "id": Meaning("the pair's id in the data, or a hash of its texts", ""),
    "loss": Meaning("the objective's loss", "nats, for a log-loss"),
    "chosen_reward": Meaning("reward of the chosen response", "reward"),
    "rejected_reward": Meaning("reward of the rejected response", "reward"),
    "z": Meaning("chosen_reward - rejected_reward", "reward"),
    "chosen_logp": Meaning("log π(chosen), summed over its tokens", "nats"),
    "rejected_logp": Meaning("log π(rejected), summed over its tokens", "nats"),
    "chosen_length": Meaning("tokens of the chosen response", "tokens"),
    "rejected_length": Meaning("tokens of the rejected response", "tokens"),
    "chosen_change": Meaning("log π(chosen) - log π_reference0(chosen); with references", "nats"),
    "z_reference0": Meaning("log-ratio to reference 0 of chosen - of rejected; with several references", "nats"),
    "margin": Meaning("strength of the preference, after normalisation", "units of the data"),
    "probability": Meaning("P(chosen is better), from the data", "1"),
    "group": Meaning("the source, or the value of `data.group_column`", ""),
    "prompt": Meaning("16 hex digits that identify the prompt", ""),
    "list": Meaning("the id of the first response of the list, for lists of responses; the record is a response", ""),
    "place": Meaning("file and line of the pair", ""),
}
"""Columns of a record, apart from the values that the objective logs and the numeric columns of the data."""


def pair_values(
    policy: PairScores, references: Sequence[PairScores], output: ObjectiveOutput, size: int
) -> dict[str, Tensor]:
    """Return the values of the pairs of a micro-batch as detached (B,) tensors; only values that exist.

    `COLUMNS` describes them; the result also contains everything in `output.logged`, under its own name.

    Args:
        policy: scores of the policy.
        references: scores of each reference.
        output: output of the objective.
        size: B, against which every shape is checked.

    Raises:
        ValueError: a tensor is not (B,), or the objective logs a name that the record uses itself.
    """
    chosen = policy.chosen.scores.detach()
    values = {
        "loss": output.losses.detach(),
        "chosen_reward": output.chosen_rewards,
        **({"chosen_logp": chosen} if policy.log_probs else {}),
        "chosen_length": policy.chosen.lengths,
    }
    if output.rejected_rewards is not None:
        values["rejected_reward"] = output.rejected_rewards
        values["z"] = output.chosen_rewards - output.rejected_rewards
    if policy.rejected is not None:
        if policy.log_probs:
            values["rejected_logp"] = policy.rejected.scores.detach()
        values["rejected_length"] = policy.rejected.lengths
    if references:
        first = references[0]
        values["chosen_change"] = chosen - first.chosen.scores
        if len(references) > 1 and policy.rejected is not None and first.rejected is not None:
            values["z_reference0"] = values["chosen_change"] - (values["rejected_logp"] - first.rejected.scores)
    if taken := sorted(set(values) & set(output.logged)):
        raise ValueError(f"an objective may not log {', '.join(taken)}: records already have a column of that name")
    values.update(output.logged)
    for name, value in values.items():
        if value.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected ({size},): one value per pair")
        if value.requires_grad:
            values[name] = value.detach()
    return values


class PairRecords:
    """The records of the pairs of one rank, kept on the device until `collect`.

    Args:
        columns: names of columns of the batch to include in the records (e.g. `p_true`).

    A record has `id`, the entries of `pair_values`, and, if the batch has them, `margin`, `probability`, `group`,
    `prompt` and `list`; see `COLUMNS`.

    >>> import torch
    >>> from lit_pref.batch import PairData
    >>> from lit_pref.scores import ObjectiveOutput, PairScores, SequenceScores
    >>> length = torch.tensor([3, 3])
    >>> pairs = PairData(["a", "b"], length, None, is_real=torch.tensor([True, False]))
    >>> policy = PairScores(SequenceScores(torch.tensor([-4.0, -5.0]), length), None)
    >>> records = PairRecords()
    >>> records.add(pairs, policy, [], ObjectiveOutput(torch.tensor([4.0, 5.0]), torch.zeros(2), None))
    >>> records.collect()  # "b" is a filler
    {'id': ['a'], 'loss': [4.0], 'chosen_reward': [0.0], 'chosen_logp': [-4.0], 'chosen_length': [3]}
    """

    def __init__(self, columns: Iterable[str] = ()) -> None:
        self.columns = tuple(columns)
        self._batches: list[tuple[dict[str, Tensor | list[Any]], Tensor]] = []

    def add(
        self, pairs: PairData, policy: PairScores, references: Sequence[PairScores], output: ObjectiveOutput
    ) -> None:
        """Keep the values of a micro-batch; nothing is copied to the host, so there is no wait for the device.

        Raises:
            UserError: the batch does not have one of `columns`.
            ValueError: as `pair_values`, or the record already has the name of one of `columns`.
        """
        values: dict[str, Tensor | list[Any]] = {"id": list(pairs.ids)}
        values.update(pair_values(policy, references, output, len(pairs)))
        if pairs.margin is not None:
            values["margin"] = pairs.margin
        if pairs.probability is not None:
            values["probability"] = pairs.probability
        if pairs.groups is not None:
            values["group"] = list(pairs.groups)
        if pairs.texts is not None:
            values["prompt"] = [prompt_digest(text.prompt) for text in pairs.texts]
        if (lists := pairs.host.lists) is not None:
            firsts: dict[int, str] = {}
            values["list"] = [firsts.setdefault(k, id) for k, id in zip(lists.tolist(), pairs.ids, strict=True)]
        for name in self.columns:
            if name not in pairs.columns:
                known = ", ".join(sorted(pairs.columns)) or "none"
                raise UserError(
                    f"The validation records need the column '{name}', which the data do not have (columns: {known}): "
                    "add it to the data, or leave it out."
                )
            if name in values:
                raise ValueError(f"records already have a column '{name}': rename the column of the data")
            values[name] = pairs.columns[name]
        self._batches.append((values, pairs.is_real))

    def collect(self) -> Records:
        """Return the records since the last call, without fillers, as lists; a missing value is None."""
        names = dict.fromkeys(["id", *(name for values, _ in self._batches for name in values)])
        records: Records = {name: [] for name in names}
        for values, is_real in self._batches:
            keep = is_real.tolist()
            for name, column in records.items():
                entry = values.get(name)
                entries = entry.tolist() if isinstance(entry, Tensor) else entry or [None] * len(keep)
                column.extend(value for value, kept in zip(entries, keep, strict=True) if kept)
        self._batches = []
        return records


def merge(parts: Sequence[Records]) -> Records:
    """Merge the records of all ranks: each pair id once, sorted by id.

    The order makes every later sum the same to the last bit, however the pairs were distributed over ranks. If an id
    occurs more than once, the record of the first rank is kept.

    >>> merge([{"id": ["b"], "z": [1.0]}, {"id": ["a", "b"], "z": [2.0, 1.0]}])
    {'id': ['a', 'b'], 'z': [2.0, 1.0]}
    """
    positions: dict[str, tuple[Records, int]] = {}
    for part in parts:
        for index, pair_id in enumerate(part["id"]):
            positions.setdefault(pair_id, (part, index))
    rows = [positions[pair_id] for pair_id in sorted(positions)]
    names = dict.fromkeys(["id", *(name for part in parts for name in part)])
    return {name: [part[name][index] if name in part else None for part, index in rows] for name in names}


def select(records: Records, keep: Sequence[bool]) -> Records:
    """Return the records for which `keep` is true."""
    return {name: [value for value, kept in zip(column, keep, strict=True) if kept] for name, column in records.items()}


def write_parquet(records: Records, path: Path | str) -> None:
    """Write one row per pair. The file appears by one rename, so a killed run leaves no partial file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        pq.write_table(pa.table(records), unfinished)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def read_parquet(path: Path | str) -> Records:
    """Read the records that `write_parquet` wrote, column by column."""
    import pyarrow.parquet as pq

    return pq.read_table(Path(path)).to_pydict()


def prompt_digest(prompt: Text) -> str:
    """Return 16 hex digits that identify a prompt, as a record has them."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:16]
