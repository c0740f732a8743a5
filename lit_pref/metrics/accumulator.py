"""Training metrics: summed on the device, read once every N optimizer steps."""

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.device_data import without_waiting
from lit_pref.metrics.pair_metrics import measures
from lit_pref.metrics.records import pair_values
from lit_pref.scores import ObjectiveOutput, PairScores

SLOTS = 64
"""The reduced tensor has a multiple of SLOTS rows, so that ranks with different names still share one all_reduce and
raise an error, instead of waiting for each other forever."""


class TrainAccumulator:
    """Exact means over the real pairs of every rank and micro-batch since the last flush.

    `self.log` costs 0.3 ms per metric and step; here a step costs one stack and one masked sum for all metrics
    together, and nothing is copied to the host before `flush`. The metrics are those of `measures`, under `train/`.

    >>> from lit_pref.scores import SequenceScores
    >>> length = torch.tensor([3, 5])
    >>> pairs = PairData(["a", "b"], chosen_lengths=length, rejected_lengths=None)
    >>> policy = PairScores(SequenceScores(torch.tensor([-4.0, -5.0]), length), None)
    >>> accumulator = TrainAccumulator()
    >>> accumulator.add(ObjectiveOutput(torch.tensor([4.0, 5.0]), torch.zeros(2), None), policy, [], pairs)
    >>> metrics = accumulator.flush(lambda tensor: tensor)
    >>> metrics["train/loss"], metrics["train/pairs"], metrics["train/response_tokens"]
    (4.5, 2.0, 8.0)
    """

    def __init__(self) -> None:
        # One running tensor per set of names that occurs in a micro-batch: the sum of each name, then the number of
        # pairs.
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def add(
        self, output: ObjectiveOutput, policy: PairScores, references: Sequence[PairScores], pairs: PairData
    ) -> None:
        """Add the real pairs of a micro-batch; fillers are not counted.

        The router loss of the micro-batch counts once for each pair, which is its weight in the training loss. The
        loss of lists is a mean over lists; all else is a mean over their responses.

        Raises:
            ValueError: as `pair_values` and `measures`.
        """
        values = measures(pair_values(policy, references, output, len(pairs)))
        if policy.router_loss is not None:
            values["router_loss"] = policy.router_loss.detach().expand(len(pairs))
        if pairs.lists is not None:
            self._add({"loss": values.pop("loss")}, pairs.is_real, pairs.weights)
        self._add(values, pairs.is_real)

    def _add(self, values: dict[str, Tensor], is_real: Tensor, weights: Tensor | None = None) -> None:
        columns = [value if value.is_floating_point() else value.float() for value in values.values()]
        rows = torch.stack([*columns, torch.ones_like(columns[0])])
        rows = rows if weights is None else rows * weights
        sums = torch.where(is_real, rows, 0).sum(
            1, dtype=torch.float64
        )  # multiplying by `is_real` would keep a filler's NaN
        names = tuple(values)
        if names in self._sums:
            self._sums[names] += sums
        else:
            self._sums[names] = sums

    def flush(self, all_reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last flush and reset them; one reduction, one wait for the device.

        The result also has `train/pairs` and `train/response_tokens`, totals over ranks, for the throughput. Each mean
        is over the pairs that had the value. A non-finite value makes its mean non-finite.

        Args:
            all_reduce: returns the sum of a tensor over ranks. Every rank must call `flush` equally often.

        Raises:
            ValueError: nothing was added on this rank, or ranks logged different names.
        """
        if not self._sums:
            raise ValueError("flush needs at least one micro-batch on every rank")
        names = sorted({name for group in self._sums for name in group})
        slot = {name: k for k, name in enumerate(names)}
        hashes = [zlib.crc32(name.encode()) for name in names]
        # Columns: sum, pairs, hash of the name, 1. The last two show whether a slot has the same name on every rank.
        table = torch.zeros(-(-len(names) // SLOTS) * SLOTS, 4, dtype=torch.float64)
        table[: len(names), 2] = torch.tensor(hashes, dtype=torch.float64)
        table[:, 3] = 1
        device = next(iter(self._sums.values())).device
        table = without_waiting(table, device)
        for group, sums in self._sums.items():
            index = without_waiting(torch.tensor([slot[name] for name in group]), device)
            table[index, 0] += sums[:-1]
            table[index, 1] += sums[-1]
        self._sums = {}
        rows = all_reduce(table).tolist()
        if any(
            row[2] != row[3] * hash_ for row, hash_ in zip(rows, hashes + [0] * (len(rows) - len(hashes)), strict=True)
        ):
            raise ValueError(
                f"the ranks logged different values (here: {', '.join(names)}): an objective must log the same "
                "names on every rank between two flushes"
            )
        metrics = {f"train/{name}": rows[k][0] / rows[k][1] for name, k in slot.items() if rows[k][1]}
        metrics["train/pairs"] = rows[slot["lengths/chosen"]][1]
        lengths = ("lengths/chosen", "lengths/rejected")
        metrics["train/response_tokens"] = sum(rows[slot[name]][0] for name in lengths if name in slot)
        return metrics
