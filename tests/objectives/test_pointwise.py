"""Properties of every loss of single responses; the classes are found, not listed."""

import itertools
import math

import pytest
import torch

from lit_pref.describing import required_arguments, subclasses
from lit_pref.errors import UsageError
from lit_pref.objectives import AOT, NCA, SPPO, Pointwise

KINDS = subclasses(Pointwise)


def at_ratios(make, objective, chosen, rejected, dtype=torch.float64):
    """Inputs with the log-ratios h_w and h_l to a reference of log-prob 0, which the policy's scores are then."""
    columns = {name: [1.0] * len(chosen) for name in objective.requirements.columns}
    inputs = make.inputs(
        make.pair(chosen, rejected),
        [make.pair([0] * len(chosen), [0] * len(chosen))],
        make.batch(len(chosen), **columns),
    )
    for scores in (inputs.policy, *inputs.references):
        for side in (scores.chosen, scores.rejected):
            side.scores = side.scores.to(dtype)
    for side in (inputs.policy.chosen, inputs.policy.rejected):
        side.scores.requires_grad_()
    return inputs


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_ratios_of_ten_thousand_nats_overflow_nowhere(make, kind, dtype):
    objective = kind(**required_arguments(kind))
    chosen, rejected = zip(*itertools.product([-1e4, -1.0, 0.0, 1e4], repeat=2), strict=True)
    inputs = at_ratios(make, objective, chosen, rejected, dtype)
    losses = inputs.into(objective).losses
    losses.sum().backward()
    gradients = [side.scores.grad for side in (inputs.policy.chosen, inputs.policy.rejected)]
    assert all(bool(value.isfinite().all()) for value in (losses, *gradients))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_gradient_is_that_of_finite_differences(make, kind):
    objective = kind(**required_arguments(kind))

    def losses(chosen, rejected):
        inputs = at_ratios(make, objective, [0.0] * 4, [0.0] * 4)
        inputs.policy.chosen.scores, inputs.policy.rejected.scores = chosen, rejected
        return inputs.into(objective).losses

    generator = torch.Generator().manual_seed(3)
    leaves = [3 * torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)]
    assert torch.autograd.gradcheck(losses, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_rewards_are_beta_times_the_log_ratios_and_the_reference_gets_no_gradient(make, kind):
    objective = kind(**required_arguments(kind) | {"beta": 0.25})
    inputs = at_ratios(make, objective, [2.0, -4.0], [8.0, 0.0])
    reference = inputs.references[0].chosen.scores.requires_grad_()
    output = inputs.into(objective)
    assert output.chosen_rewards.tolist() == [0.5, -1.0]
    assert output.rejected_rewards.tolist() == [2.0, 0.0]
    output.losses.sum().backward()
    assert reference.grad is None


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_not_positive_and_finite_is_refused(beta):
    with pytest.raises(UsageError, match=f"NCA: beta must be positive and finite, got {beta}"):
        NCA(beta=beta)


def test_they_are_for_policies_and_need_one_reference_and_no_more_than_their_data():
    assert NCA().log_prob_parts() == ["NCA"]
    for objective in (NCA(), AOT(), SPPO()):
        asked = objective.requirements
        assert (asked.min_references, asked.max_references, asked.columns) == (1, 1, frozenset())
