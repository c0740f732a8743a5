import math

import numpy as np
import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    DPO,
    MMPO,
    MRPO,
    SELM,
    SFT,
    BetaDPO,
    ChosenNLL,
    EpsilonDPO,
    Fitted,
    Harmonic,
    ListNet,
    NoReference,
    Weighted,
)
from lit_pref.pairs import Strengths
from lit_pref.scores import Tilt


def softplus(x):
    return math.log1p(math.exp(x))


def test_the_loss_is_the_weighted_sum_and_the_first_objective_gives_the_rewards(make):
    inputs = make.g0()
    chosen = inputs.policy.chosen.scores.requires_grad_()
    output = inputs.into(Weighted([DPO(beta=0.1), SFT()], [2.0, 0.5]))
    assert output.losses.item() == pytest.approx(2 * softplus(-0.15) + 0.5 * 12 / 10, abs=1e-14)
    output.losses.sum().backward()
    assert chosen.grad.item() == pytest.approx(-2 * 0.1 / (1 + math.exp(0.15)) - 0.5 / 10, abs=1e-14)
    rewards = output.chosen_rewards.item(), output.rejected_rewards.item()
    assert rewards == pytest.approx((0.1, -0.05), abs=1e-15)
    assert output.logged["logits"].item() == pytest.approx(0.15, abs=1e-15)
    assert (output.logged["DPO/loss"].item(), output.logged["SFT/loss"].item()) == pytest.approx((softplus(-0.15), 1.2))


def test_a_sum_of_dpo_and_sft_is_dpo_with_the_term_for_it(make):
    inputs = make.random(DPO())
    expected = inputs.into(DPO(terms=[ChosenNLL(0.3)])).losses
    torch.testing.assert_close(inputs.into(Weighted([DPO(), SFT()], [1.0, 0.3])).losses, expected, rtol=1e-14, atol=0)


def test_one_objective_of_weight_one_is_itself(make):
    inputs = make.random(MMPO())
    alone, summed = inputs.into(MMPO()), inputs.into(Weighted([MMPO()]))
    assert torch.equal(alone.losses, summed.losses)
    assert alone.logged.keys() | {"MMPO/loss"} == summed.logged.keys()


def test_values_of_further_objectives_are_logged_under_their_class_and_number(make):
    objective = Weighted([MMPO(), DPO(beta=0.2), DPO(beta=0.3)])
    logged = make.random(objective).into(objective).logged
    assert (logged["beta"][0], logged["DPO1/beta"][0], logged["DPO2/beta"][0]) == (0.1, 0.2, 0.3)
    assert {"MMPO/loss", "DPO1/loss", "DPO2/kl_to_target"} <= logged.keys() and "MMPO/beta" not in logged


def test_requirements_are_united_and_each_objective_gets_as_many_references_as_it_takes(make):
    objective = Weighted([DPO(), MRPO(), SFT(), EpsilonDPO()])
    asked = objective.requirements
    assert (asked.min_references, asked.max_references) == (1, None)
    assert asked.statistics == {Tilt(0.01), Tilt(-0.01)} and asked.sides == ("chosen", "rejected")
    inputs = make.random(objective, references=3)
    logged = inputs.into(objective).logged
    assert "MRPO/reference_weights/2" in logged
    inputs.references = inputs.references[:1]
    assert torch.equal(logged["DPO/loss"], inputs.into(DPO()).losses)
    sides = Weighted([DPO(), SELM(), MMPO()]).requirements
    assert sides.sides[-1] == "extra_response" and sides.columns == {"margin"} and sides.max_references == 1
    assert Weighted([SFT(), DPO(reference=NoReference())]).requirements.max_references == 0
    three = Weighted([DPO(reference=Harmonic(weights=[1, 1, 1])), DPO()]).requirements
    assert (three.min_references, three.max_references) == (3, 3)


def test_state_is_updated_reported_and_checkpointed_for_each_objective(make):
    objective, other = (Weighted([EpsilonDPO(epsilon=0.1), BetaDPO(), EpsilonDPO(epsilon=0.2)]) for _ in range(2))
    inputs = make.random(objective, size=9)
    inputs.into(objective)
    objective.update(lambda total: total)
    assert objective.progress.keys() == {"beta", "BetaDPO/gap_mean", "BetaDPO/gap_deviation", "EpsilonDPO2/beta"}
    assert objective.progress["beta"] != 0.01 != objective.progress["EpsilonDPO2/beta"]
    assert "objectives.0.temperature.scale" in objective.state_dict()
    other.load_state_dict(objective.state_dict())
    assert other.progress == objective.progress
    assert Weighted([DPO(), BetaDPO()]).batch_coupled and not Weighted().batch_coupled
    # Validation changes none of them.
    inputs.into(objective.eval())
    objective.update(lambda total: total)
    assert objective.progress == other.progress


def test_every_rank_reduces_as_often_as_there_is_state():
    calls = []
    Weighted([EpsilonDPO(), BetaDPO(), DPO()]).update(lambda own: calls.append(len(own)) or own)
    assert calls == [3, 3]


def test_open_parameters_of_each_objective_are_fitted():
    objective = Weighted([DPO(), MMPO(gamma=Fitted(mean_probability=0.8))])
    assert objective.requirements.fit_inputs == MMPO(gamma=Fitted(mean_probability=0.8)).requirements.fit_inputs
    margin = np.array([1.0, 2.0, 3.0, 4.0])
    (line,) = objective.fit(Strengths(margin, None, {}, np.arange(4), None, margin))
    assert "gamma" in line and objective.objectives[1].target.strength > 0


def test_readers_of_log_probs_are_named_and_a_reward_model_needs_none():
    assert Weighted([DPO(), SFT()]).log_prob_parts() == ["SFT"]
    assert Weighted([MMPO(beta=1.0, reference=NoReference())]).log_prob_parts() == []


def test_a_first_objective_of_one_side_has_no_rejected_rewards(make):
    objective = Weighted([SFT(), DPO()], [1.0, 0.1])
    output = make.random(objective).into(objective)
    assert output.rejected_rewards is None and bool(output.losses.isfinite().all())


@pytest.mark.parametrize(
    ("objectives", "weights", "sentence"),
    [
        ([], [], "one for each of the 0 objectives, got"),
        ([DPO(), SFT()], [1.0], r"one for each of the 2 objectives, got \[1.0\]"),
        ([DPO(), SFT()], [1.0, -0.5], "not negative"),
        ([DPO(), SFT()], [0.0, 0.0], "not all zero"),
        ([DPO(), SFT()], [1.0, math.nan], "must be finite"),
        ([DPO(), ListNet()], None, "one of the objectives reads lists of responses and another reads pairs"),
    ],
)
def test_sums_that_are_none_are_refused(objectives, weights, sentence):
    with pytest.raises(UsageError, match=f"^Weighted: .*{sentence}"):
        Weighted(objectives, weights)


def test_the_repr_shows_the_objectives_with_their_values():
    assert repr(Weighted(weights=[1, 0.2])) == f"Weighted(objectives=[{DPO()!r}, SFT()], weights=[1, 0.2])"
