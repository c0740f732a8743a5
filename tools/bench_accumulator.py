"""Times what training metrics cost a step: `TrainAccumulator.add` on 32 pairs with ten metrics, one thread, medians."""

import statistics
import time

import torch

from lit_pref.metrics.accumulator import TrainAccumulator
from lit_pref.objectives.dpo import DPO
from lit_pref.types import PairScores, PreferenceBatch, SequenceScores

PAIRS, STEPS, FLUSH = 32, 2000, 10


def scores(seed: int) -> PairScores:
    """Random scores of a batch."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.full((PAIRS,), 100)
    return PairScores(*(SequenceScores(-100 * torch.rand(PAIRS, generator=generator), length) for _ in range(2)))


def main() -> None:
    """Print the medians."""
    torch.set_num_threads(1)
    empty, length = torch.zeros(0, dtype=torch.long), torch.full((PAIRS,), 100)
    ids = [str(k) for k in range(PAIRS)]
    real = torch.ones(PAIRS, dtype=torch.bool)
    batch = PreferenceBatch(ids, empty, empty, empty, empty, empty, length, length, None, None, real, PAIRS)
    policy, reference = scores(0), scores(1)
    output = DPO()(policy, [reference], batch)
    accumulator, adds, flushes = TrainAccumulator(), [], []
    for step in range(STEPS):
        start = time.process_time()
        accumulator.add(output, policy, [reference], batch)
        adds.append(time.process_time() - start)
        if step % FLUSH == FLUSH - 1:
            start = time.process_time()
            metrics = accumulator.flush(lambda tensor: tensor)
            flushes.append(time.process_time() - start)
    add, flush = statistics.median(adds) * 1e3, statistics.median(flushes) * 1e3
    print(f"{len(metrics)} metrics, {PAIRS} pairs: add {add:.3f} ms a step, flush {flush:.3f} ms every {FLUSH} steps")
    print(f"together {add + flush / FLUSH:.3f} ms a step (goal: at most 0.1)")


if __name__ == "__main__":
    main()
