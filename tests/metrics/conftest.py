"""Pairs with arbitrary values in float64, laid out as the micro-batches of any rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.pairs import TruncatedText
from lit_pref.scores import ObjectiveOutput, PairScores, SequenceScores


@dataclass
class Step:
    """The inputs of metrics from one micro-batch."""

    pairs: PairData
    policy: PairScores
    references: list[PairScores]
    output: ObjectiveOutput


Take = Callable[..., Step]


def make_take(size: int, seed: int = 0, references: int = 2) -> Take:
    """A function that lays out the pairs with the given indices, of `size` pairs with random values."""
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    names = ["loss", "chosen_reward", "rejected_reward", "chosen", "rejected", "beta", "target_entropy", "margin"]
    data = {name: draw() for name in names}
    data["rejected_reward"][3] = data["chosen_reward"][3]  # a tie
    others = [(draw(), draw()) for _ in range(references)]
    lengths = torch.randint(1, 40, (2, size), generator=generator)

    def take(indices: Sequence[int], is_real: Sequence[bool] | None = None) -> Step:
        at = torch.tensor(indices)
        kept = torch.tensor([True] * len(indices) if is_real is None else is_real)
        texts = [TruncatedText(f"prompt {i % 5}", "yes", "no", True, True) for i in indices]
        pairs = PairData(
            ids=[f"pair-{i:03d}" for i in indices],
            chosen_lengths=lengths[0][at],
            rejected_lengths=lengths[1][at],
            margin=data["margin"][at].abs(),
            probability=data["margin"][at].abs().sigmoid(),
            is_real=kept,
            window_pairs=int(kept.sum()),
            columns={"p_true": data["beta"][at].sigmoid()},
            groups=[f"source {i % 3}" for i in indices],
            texts=texts,
        )
        return Step(
            pairs,
            PairScores(
                SequenceScores(data["chosen"][at], lengths[0][at]), SequenceScores(data["rejected"][at], lengths[1][at])
            ),
            [
                PairScores(SequenceScores(chosen[at], lengths[0][at]), SequenceScores(rejected[at], lengths[1][at]))
                for chosen, rejected in others
            ],
            ObjectiveOutput(
                data["loss"][at],
                data["chosen_reward"][at],
                data["rejected_reward"][at],
                {"beta": data["beta"][at], "target_entropy": data["target_entropy"][at]},
            ),
        )

    return take


@pytest.fixture
def take() -> Take:
    """37 pairs, two references."""
    return make_take(37)


@pytest.fixture
def one_sided() -> Step:
    """Two pairs of which only the chosen response was read, though batch and references hold the rejected one too."""
    step = make_take(8)([0, 1])
    step.policy.rejected = None
    step.output.rejected_rewards = None
    return step


def ranks_of(take: Take, size: int, world: int, micro: int = 4) -> list[list[Step]]:
    """`size` pairs dealt to `world` ranks in micro-batches of `micro`, filled up with repeated pairs (not real)."""
    stride = world * micro
    order = [(i % size, i < size) for i in range(-(-size // stride) * stride)]
    ranks: list[list[Step]] = [[] for _ in range(world)]
    for start in range(0, len(order), stride):
        for rank in range(world):
            part = order[start + rank : start + stride : world]
            ranks[rank].append(take([i for i, _ in part], [real for _, real in part]))
    return ranks


@pytest.fixture
def deal(take: Take) -> Callable[[int], list[list[Step]]]:
    """The 37 pairs over a number of ranks."""
    return lambda world: ranks_of(take, 37, world)
