"""Which pair is seen when: the order of an epoch, optimiser windows, and the micro-batches of every rank.

Everything is a pure function of its arguments, so that every rank knows what all the others do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class MicroBatch:
    """The pairs of one forward pass of one rank, by index.

    `real` is False for a filler, a repeated pair that counts nowhere. `window_pairs` is the number of real pairs in the
    optimiser window, over all ranks and micro-batches.
    """

    indices: tuple[int, ...]
    real: tuple[bool, ...]
    window_pairs: int


def epoch_order(pairs: int, seed: int, epoch: int) -> list[int]:
    """The order in which all ranks together see the pairs of an epoch: a permutation fixed by (seed, epoch) alone.

    >>> epoch_order(5, seed=0, epoch=0), epoch_order(5, seed=0, epoch=1)
    ([2, 4, 3, 0, 1], [1, 4, 3, 0, 2])
    """
    return np.random.default_rng((seed, epoch)).permutation(pairs).tolist()


def accumulation(window: int, world: int, micro_batch: int) -> int:
    """The number of micro-batches per rank of a window with that many pairs: ceil(window / (micro_batch * world))."""
    return -(-window // (micro_batch * world))


def micro_batches(window: Sequence[int], world: int, micro_batch: int) -> list[list[MicroBatch]]:
    """Cut one optimiser window into micro-batches: `result[k][rank]` is the k-th of that rank.

    Every rank gets the same number of micro-batches, the sizes of any two differ by at most one, and none is empty:
    where there are fewer pairs than cells, a cell without a pair holds one filler.

    Args:
        window: indices of the window's pairs.
        world: number of ranks.
        micro_batch: the most pairs that one rank takes in one forward.

    >>> [[cell.indices for cell in ranks] for ranks in micro_batches([7, 3, 5, 1, 6], world=2, micro_batch=2)]
    [[(7,), (3,)], [(5,), (1, 6)]]
    """
    rounds = accumulation(len(window), world, micro_batch)
    cells = rounds * world

    def cell(c: int) -> MicroBatch:
        start, end = c * len(window) // cells, (c + 1) * len(window) // cells
        if start == end:
            return MicroBatch((window[start],), (False,), len(window))
        return MicroBatch(tuple(window[start:end]), (True,) * (end - start), len(window))

    return [[cell(k * world + rank) for rank in range(world)] for k in range(rounds)]


def evaluation_batches(pairs: int, rank: int, world: int, batch: int) -> list[MicroBatch]:
    """What `rank` evaluates: its share of one window that holds all pairs in the order of the data.

    Fillers keep the ranks in step; every pair is real exactly once over all ranks.
    """
    return [ranks[rank] for ranks in micro_batches(range(pairs), world, batch)]


class WindowSampler(Sampler[MicroBatch]):
    """The micro-batches of one rank, window after window, of the epoch that was set last.

    Nothing is dropped: the last window of an epoch may hold fewer pairs and fewer micro-batches. All others have
    exactly `accumulation` micro-batches, so that Lightning, which counts batches and always steps at the last one of an
    epoch, steps at every window's end and nowhere else.

    Args:
        pairs: number of pairs of the training data.
        seed: of the order.
        global_batch: pairs per optimiser step, over all ranks.
        micro_batch: the most pairs per rank and forward.
        world: number of ranks.
        rank: whose micro-batches are yielded.

    >>> sampler = WindowSampler(pairs=5, seed=0, global_batch=4, micro_batch=2, world=1, rank=0)
    >>> [(cell.indices, cell.window_pairs) for cell in sampler]
    [((2, 4), 4), ((3, 0), 4), ((1,), 1)]
    """

    def __init__(self, pairs: int, seed: int, global_batch: int, micro_batch: int, world: int, rank: int) -> None:
        if min(pairs, global_batch, micro_batch, world) < 1 or not 0 <= rank < world or seed < 0:
            raise ValueError(f"impossible sampler: {pairs=} {seed=} {global_batch=} {micro_batch=} {world=} {rank=}")
        self.pairs, self.seed, self.global_batch = pairs, seed, global_batch
        self.micro_batch, self.world, self.rank = micro_batch, world, rank
        self.accumulation = accumulation(global_batch, world, micro_batch)
        self.windows = -(-pairs // global_batch)
        self.epoch = 0
        self.start_window = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Micro-batches per rank of a whole epoch, wherever iteration starts."""
        ragged = self.pairs % self.global_batch
        full = self.pairs // self.global_batch
        return full * self.accumulation + accumulation(ragged, self.world, self.micro_batch)

    def __iter__(self) -> Iterator[MicroBatch]:
        order = epoch_order(self.pairs, self.seed, self.epoch)
        for w in range(self.start_window, self.windows):
            window = order[w * self.global_batch : (w + 1) * self.global_batch]
            for ranks in micro_batches(window, self.world, self.micro_batch):
                yield ranks[self.rank]

    def pairs_in(self, given: int) -> int:
        """The pairs that all ranks together were given in the first `given` micro-batches of an epoch."""
        if given >= len(self):
            return self.pairs
        w, k = divmod(given, self.accumulation)
        window = min(self.global_batch, self.pairs - w * self.global_batch)
        return w * self.global_batch + k * window // accumulation(window, self.world, self.micro_batch)
