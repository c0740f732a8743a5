"""Every objective is finite, value and gradient, where log-ratios, lengths, margins and probabilities are extreme."""

import itertools

import pytest
import torch

from lit_pref.describing import required_arguments, subclasses
from lit_pref.errors import UserError
from lit_pref.objectives import Objective
from lit_pref.scores import SequenceScores

FAR = 1e4  # nats
SCORES = list(itertools.product((-FAR, -1.0), repeat=4))
"""Scores of the policy's and of the references' chosen and rejected responses: log-ratios of -FAR, 0 and FAR."""


def extreme(make, objective, dtype, margin, probability):
    """Inputs with SCORES, for responses of one token."""
    inputs = make.random(objective, size=len(SCORES))
    columns = torch.tensor(SCORES, dtype=dtype).unbind(1)

    def side(scores, values):
        if scores is None:
            return None
        statistics = {need: value.to(dtype) for need, value in scores.statistics.items()}
        return SequenceScores(values.clone(), torch.ones(len(SCORES)).long(), statistics)

    for pair in (inputs.policy, *inputs.references):
        chosen, rejected = columns[:2] if pair is inputs.policy else columns[2:]
        pair.chosen, pair.rejected = side(pair.chosen, chosen), side(pair.rejected, rejected)
        pair.extra_response = side(pair.extra_response, chosen)
    inputs.pairs.margin = torch.full((len(SCORES),), margin)
    inputs.pairs.probability = torch.full((len(SCORES),), probability)
    return inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", subclasses(Objective), ids=lambda kind: kind.__name__)
def test_losses_and_gradients_are_finite_for_extreme_inputs(make, kind, dtype):
    objective = kind(**required_arguments(kind))
    for margin, probability in ((1e3, 1.0), (1e-3, 0.0), (0.0, 0.5), (-1e3, 1.0)):
        inputs = extreme(make, objective, dtype, margin, probability)
        sides = [getattr(inputs.policy, side).scores.requires_grad_() for side in objective.requirements.sides]
        try:
            losses = inputs.into(objective).losses
        except UserError as refused:
            assert margin <= 0 and "margin" in str(refused)
            continue
        assert bool(losses.isfinite().all()), losses
        for gradient in torch.autograd.grad(losses.sum(), sides, allow_unused=True):
            assert gradient is None or bool(gradient.isfinite().all()), gradient
