"""The order of pairs: the permutation of an epoch, its optimizer steps, and the micro-batches of every rank.

All functions are pure, so that every rank knows the micro-batches of all others. `window` is the list of pairs of one
optimizer step. For an objective over lists of responses, every index here is that of a list: lists take the place of
pairs, and none is split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from lit_pref.data.batching.token_budget import TokenBudget


@dataclass(frozen=True)
class MicroBatch:
    """The pairs of one forward pass of one rank, by index.

    `is_real` is False for a filler, a repeated pair that is counted nowhere. `window_pairs` is the number of real pairs
    in the optimizer step, over all ranks and micro-batches.
    """

    indices: tuple[int, ...]
    is_real: tuple[bool, ...]
    window_pairs: int


def epoch_order(pairs: int, seed: int, epoch: int) -> list[int]:
    """Return the order in which all ranks together see the pairs of an epoch; it depends on (seed, epoch) alone.

    >>> epoch_order(5, seed=0, epoch=0), epoch_order(5, seed=0, epoch=1)
    ([2, 4, 3, 0, 1], [1, 4, 3, 0, 2])
    """
    return np.random.default_rng((seed, epoch)).permutation(pairs).tolist()


def accumulation(window: int, world: int, micro_batch: int) -> int:
    """Return the micro-batches per rank of an optimizer step: ceil(window / (micro_batch * world))."""
    return -(-window // (micro_batch * world))


def micro_batches(window: Sequence[int], world: int, micro_batch: int) -> list[list[MicroBatch]]:
    """Cut one optimizer step into micro-batches: `result[k][rank]` is the k-th of that rank.

    Every rank gets the same number of micro-batches, the sizes of any two differ by at most one, and none is empty: if
    there are fewer pairs than micro-batches, those without a pair get one filler.

    Args:
        window: indices of the step's pairs.
        world: number of ranks.
        micro_batch: the most pairs of one forward pass of one rank.

    >>> [[batch.indices for batch in ranks] for ranks in micro_batches([7, 3, 5, 1, 6], world=2, micro_batch=2)]
    [[(7,), (3,)], [(5,), (1, 6)]]
    """
    rounds = accumulation(len(window), world, micro_batch)
    count = rounds * world

    def batch(k: int) -> MicroBatch:
        start, end = k * len(window) // count, (k + 1) * len(window) // count
        if start == end:
            return MicroBatch((window[start],), (False,), len(window))
        return MicroBatch(tuple(window[start:end]), (True,) * (end - start), len(window))

    return [[batch(k * world + rank) for rank in range(world)] for k in range(rounds)]


@lru_cache(maxsize=1)  # cached, because a loader, a schedule and the Trainer need the same numbers
def least_rounds(budget: TokenBudget, seed: int, epochs: int, global_batch: int, world: int) -> tuple[int, int]:
    """Return the micro-batches per rank that suffice in all `epochs`, for a full step and for the last one.

    The number is 0 for a step that does not exist.
    """
    pairs = len(budget.costs)
    whole = pairs - pairs % global_batch
    full = last = 0
    for epoch in range(epochs):
        order = epoch_order(pairs, seed, epoch)
        for start in range(0, whole, global_batch):
            full = max(full, budget.least(order[start : start + global_batch]))
        if whole < pairs:
            last = max(last, budget.least(order[whole:]))
    return -(-full // world), -(-last // world)


def micro_batches_within(window: Sequence[int], world: int, budget: TokenBudget, rounds: int) -> list[list[MicroBatch]]:
    """Cut one optimizer step by tokens: `result[k][rank]` is the k-th of `rounds` of that rank.

    The micro-batches of all ranks in one round have nearly the same cost, and ranks take turns at the larger ones. If
    there are fewer pairs than micro-batches, the smallest pair is the filler, and fillers come first: the last round
    always contains a real pair, so that no step is finished before it.
    """
    batches = [MicroBatch(tuple(part), (True,) * len(part), len(window)) for part in budget.cut(window, rounds * world)]
    filler = MicroBatch(batches[0].indices, (False,), len(window))
    batches = [filler] * (rounds * world - len(batches)) + batches
    return [batches[k * world : (k + 1) * world][:: -1 if k % 2 else 1] for k in range(rounds)]


def evaluation_batches(pairs: int, rank: int, world: int, batch: int | TokenBudget) -> list[MicroBatch]:
    """Return the evaluation batches of `rank`: its share of all pairs, which are cut like one optimizer step.

    Fillers give all ranks the same number of batches; every pair is real exactly once over all ranks. Batches cut by
    number of pairs follow the order of the data. Batches cut by tokens combine pairs of similar lengths and are
    shuffled, always in the same way, so that the first ones are not the shortest.
    """
    if not isinstance(batch, TokenBudget):
        return [ranks[rank] for ranks in micro_batches(range(pairs), world, batch)]
    rounds = micro_batches_within(range(pairs), world, batch, -(-batch.least(range(pairs)) // world))
    return [rounds[k][rank] for k in np.random.default_rng(0).permutation(len(rounds))]


class WindowSampler(Sampler[MicroBatch]):
    """Samples the micro-batches of one rank, optimizer step after step, in the epoch that was set last.

    Nothing is dropped: the last step of an epoch may have fewer pairs and fewer micro-batches. All others have exactly
    `accumulation` micro-batches, so that Lightning, which counts batches and always steps after the last one of an
    epoch, steps exactly after the pairs of each optimizer step.

    Args:
        pairs: number of pairs of the training data.
        seed: seed of the order.
        global_batch: pairs per optimizer step, over all ranks.
        micro_batch: the most pairs per rank and forward, or the most tokens.
        world: number of ranks.
        rank: the rank whose micro-batches are yielded.
        epochs: number of epochs of the run. Lightning has one accumulation for all: with a token budget, the steps of
            all these epochs get as many micro-batches as the one that needs most.

    >>> sampler = WindowSampler(pairs=5, seed=0, global_batch=4, micro_batch=2, world=1, rank=0)
    >>> [(batch.indices, batch.window_pairs) for batch in sampler]
    [((2, 4), 4), ((3, 0), 4), ((1,), 1)]
    """

    def __init__(
        self,
        pairs: int,
        seed: int,
        global_batch: int,
        micro_batch: int | TokenBudget,
        world: int,
        rank: int,
        epochs: int = 1,
    ) -> None:
        most = micro_batch.tokens if isinstance(micro_batch, TokenBudget) else micro_batch
        if min(pairs, global_batch, most, world, epochs) < 1 or not 0 <= rank < world or seed < 0:
            raise ValueError(f"impossible sampler: {pairs=} {seed=} {global_batch=} {micro_batch=} {world=} {rank=}")
        self.pairs, self.seed, self.global_batch = pairs, seed, global_batch
        self.micro_batch, self.world, self.rank = micro_batch, world, rank
        if isinstance(micro_batch, TokenBudget):
            full, self._last = least_rounds(micro_batch, seed, epochs, global_batch, world)
            self.accumulation = max(full, self._last)
        else:
            self.accumulation = accumulation(global_batch, world, micro_batch)
            self._last = accumulation(pairs % global_batch, world, micro_batch)
        self.windows = -(-pairs // global_batch)
        self.epoch = 0
        self.start_window = 0
        self._ordered: tuple[int, list[int]] = (-1, [])
        self._counted: tuple[int, int, list[int]] = (-1, -1, [])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the micro-batches per rank of a whole epoch, wherever iteration starts."""
        return self.pairs // self.global_batch * self.accumulation + self._last

    def __iter__(self) -> Iterator[MicroBatch]:
        return (ranks[self.rank] for ranks in self.rounds())

    def rounds(self) -> Iterator[list[MicroBatch]]:
        """Iterate over the micro-batches of all ranks, those that are read at the same time together."""
        order = self._order()
        for w in range(self.start_window, self.windows):
            yield from self._cut(order, w)

    def pairs_in(self, given: int) -> int:
        """Return the pairs of all ranks together in the first `given` micro-batches of an epoch."""
        if given >= len(self):
            return self.pairs
        w, k = divmod(given, self.accumulation)
        if self._counted[:2] != (self.epoch, w):
            rounds = self._cut(self._order(), w)
            self._counted = (self.epoch, w, [sum(sum(batch.is_real) for batch in ranks) for ranks in rounds])
        return w * self.global_batch + sum(self._counted[2][:k])

    def _order(self) -> list[int]:
        if self._ordered[0] != self.epoch:
            self._ordered = (self.epoch, epoch_order(self.pairs, self.seed, self.epoch))
        return self._ordered[1]

    def _cut(self, order: list[int], w: int) -> list[list[MicroBatch]]:
        window = order[w * self.global_batch : (w + 1) * self.global_batch]
        if not isinstance(self.micro_batch, TokenBudget):
            return micro_batches(window, self.world, self.micro_batch)
        rounds = self.accumulation if len(window) == self.global_batch else self._last
        return micro_batches_within(window, self.world, self.micro_batch, rounds)
