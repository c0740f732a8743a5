"""Fabricated scores: no model, float64, every number chosen by the test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.objectives import Objective
from lit_pref.scores import Need, ObjectiveOutput, PairScores, SequenceScores, TokenLogps, TokenRewards

PER_TOKEN = frozenset({TokenLogps(), TokenRewards()})
CHOSEN, REJECTED = 10, 12  # tokens of every response of a fabricated batch


def make_side(scores: Sequence[float] | Tensor, lengths: Sequence[int] | None = None) -> SequenceScores:
    scores = torch.as_tensor(scores, dtype=torch.float64)
    lengths = [10] * len(scores) if lengths is None else lengths
    return SequenceScores(scores=scores, lengths=torch.tensor(lengths))


def make_pair(chosen, rejected, lengths=None, rejected_lengths=None) -> PairScores:
    return PairScores(make_side(chosen, lengths), make_side(rejected, rejected_lengths))


def make_batch(size: int, margin=None, probability=None, is_real=None, **columns: Sequence[float]) -> PairData:
    return PairData(
        ids=[f"pair-{i}" for i in range(size)],
        chosen_lengths=torch.full((size,), CHOSEN),
        rejected_lengths=torch.full((size,), REJECTED),
        margin=None if margin is None else torch.tensor(margin, dtype=torch.float64),
        probability=None if probability is None else torch.tensor(probability, dtype=torch.float64),
        is_real=torch.ones(size, dtype=torch.bool) if is_real is None else torch.tensor(is_real),
        window_pairs=size,
        columns={name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()},
    )


@dataclass
class Inputs:
    policy: PairScores
    references: list[PairScores]
    pairs: PairData

    def into(self, objective: Objective) -> ObjectiveOutput:
        return objective(self.policy, self.references, self.pairs)

    def parts(self) -> list[list[int]]:
        """The indices of each pair, or of the records of each list."""
        numbers = range(len(self.pairs)) if self.pairs.lists is None else self.pairs.lists.tolist()
        return [[i for i, own in enumerate(numbers) if own == number] for number in dict.fromkeys(numbers)]

    def select(self, index: Sequence[int]) -> "Inputs":
        """The pairs `index`, in that order."""
        tokens = {name: self.pairs.token_column(name) for name in self.pairs.token_columns}

        def side(scores: SequenceScores) -> SequenceScores:
            statistics = {need: value[index] for need, value in scores.statistics.items()}
            return SequenceScores(scores.scores[index], scores.lengths[index], statistics)

        def pair(scores: PairScores) -> PairScores:
            others = (None if own is None else side(own) for own in (scores.rejected, scores.extra_response))
            return PairScores(side(scores.chosen), *others)

        pairs = make_batch(len(index), **{name: value[index].tolist() for name, value in self.pairs.columns.items()})
        pairs.ids = [self.pairs.ids[i] for i in index]
        for name in ("margin", "probability", "is_real"):
            value = getattr(self.pairs, name)
            setattr(pairs, name, None if value is None else value[index])
        pairs.token_columns = {name: (first[index], second[index]) for name, (first, second) in tokens.items()}
        pairs.lists = None if self.pairs.lists is None else self.pairs.lists[index]
        return Inputs(pair(self.policy), [pair(reference) for reference in self.references], pairs)


def random_inputs(objective: Objective, size: int = 5, references: int | None = None, seed: int = 0) -> Inputs:
    """Random inputs with everything that `objective` requires; the scores of the policy require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    asked = objective.requirements

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    def side(needs: frozenset[Need], tokens: int, trained: bool) -> SequenceScores:
        lengths = torch.randint(5, 30, (size,), generator=generator)
        scores = -2.0 * lengths + normal(1.0)
        # Around zero, so that every epsilon step s occurs.
        statistics: dict[Need, Tensor] = {need: normal(2.0) for need in sorted(needs - PER_TOKEN, key=repr)}
        scores.requires_grad_(trained)
        if TokenLogps() in needs:
            shares = torch.rand(size, tokens, generator=generator, dtype=torch.float64)
            statistics[TokenLogps()] = scores[:, None] * shares / shares.sum(1, keepdim=True)
        if TokenRewards() in needs:
            statistics[TokenRewards()] = scores[:, None] + torch.arange(tokens)
        return SequenceScores(scores, lengths, statistics)

    def pair(needs: frozenset[Need], trained: bool = False) -> PairScores:
        rejected = side(needs, REJECTED, trained) if "rejected" in asked.sides else None
        chosen = side(needs, CHOSEN, trained)
        extra = "extra_response" in asked.sides
        extra_response = side(frozenset(), CHOSEN, trained) if extra else None
        return PairScores(chosen, rejected, extra_response)

    count = asked.min_references if references is None else references
    policy = pair(asked.statistics, trained=True)
    columns = asked.columns - {"margin", "probability"}
    pairs = make_batch(
        size,
        margin=(normal(1.0).abs() + 0.1).tolist(),
        probability=torch.rand(size, generator=generator, dtype=torch.float64).tolist(),
        **{name: (normal(1.0).abs() + 0.1).tolist() for name in sorted(columns)},  # positive: a beta may read one
    )
    names = sorted(asked.token_columns | asked.token_functions.keys())
    widths = (CHOSEN, REJECTED)
    pairs.token_columns = {
        name: tuple(torch.rand(size, tokens, generator=generator).round() for tokens in widths) for name in names
    }
    pairs.lists = torch.arange(size) // 3 if asked.lists else None
    return Inputs(policy, [pair(asked.reference_statistics) for _ in range(count)], pairs)


def g0(margin: float | None = 2.0, probability: float | None = None, **columns: float) -> Inputs:
    """The common golden pair: l_w = -12, l_l = -15, r_w = -13, r_l = -14.5, n_w = 10, n_l = 12.

    So h_w = 1, h_l = -0.5, D = h_w - h_l = 1.5, and x = 0.15 at beta = 0.1.
    """
    return Inputs(
        make_pair([-12.0], [-15.0], [10], [12]),
        [make_pair([-13.0], [-14.5], [10], [12])],
        make_batch(
            1,
            margin=None if margin is None else [margin],
            probability=None if probability is None else [probability],
            **{name: [value] for name, value in columns.items()},
        ),
    )


def finite_at_extremes(objective: Objective, dtype: torch.dtype) -> bool:
    """Whether losses and gradients are finite for log-ratios of +-10^4 nats, lengths of 1 and extreme data."""
    inputs = random_inputs(objective, size=9)
    asked = objective.requirements
    ratios = torch.tensor([-1e4, 0.0, 1e4])
    changes = {"chosen": ratios.repeat(3), "rejected": ratios.repeat_interleave(3), "extra_response": ratios.repeat(3)}
    for side in asked.sides:
        for k, pair in enumerate([inputs.policy, *inputs.references]):
            scores = getattr(pair, side)
            scores.lengths = torch.ones(9, dtype=torch.long)
            # The policy's log-ratio to the first reference; every further one is another 10^4 nats lower.
            scores.scores = (-2e4 + changes[side] if k == 0 else torch.full((9,), -1e4 - 1e4 * k)).to(dtype)
            scores.statistics = {need: 1e4 * value.sign().to(dtype) for need, value in scores.statistics.items()}
        getattr(inputs.policy, side).scores.requires_grad_()
    inputs.pairs.margin = torch.tensor([0.0, 1e3, 1e-3]).repeat(3)
    inputs.pairs.probability = torch.tensor([0.0, 1.0, 0.5]).repeat(3)
    inputs.pairs.columns = {name: torch.tensor([0.0, 1e3, -1e3]).repeat(3) for name in inputs.pairs.columns}
    losses = inputs.into(objective).losses
    losses.sum().backward()
    values = [losses, *(getattr(inputs.policy, side).scores.grad for side in asked.sides)]
    return all(value is None or bool(value.isfinite().all()) for value in values)


@dataclass
class Fabricate:
    """Builders of test inputs, as the fixture `make`."""

    side: Callable = make_side
    pair: Callable = make_pair
    batch: Callable = make_batch
    inputs: Callable = Inputs
    random: Callable = random_inputs
    g0: Callable = g0
    finite_at_extremes: Callable = finite_at_extremes


@pytest.fixture
def make() -> Fabricate:
    return Fabricate()
