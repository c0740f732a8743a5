"""Weighted sums of token log-probs: their numbers, what they are constants of, and where they are refused."""

import math
import random
from collections import Counter
from difflib import SequenceMatcher

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.errors import UsageError, UserError
from lit_pref.objectives import DPO, MMPO, ColumnTokens, EditWeighted, EpsilonStep, Geometric, Harmonic, NoReference
from lit_pref.objectives.parts.tokens import edits
from lit_pref.scores import TokenLogps

POLICY = ([-0.2, -0.5, -0.1, -0.9], [-0.4, -0.6, -0.3])
REFERENCE = ([-0.3, -0.7, -0.2, -0.4], [-0.3, -0.35, -0.4])
MARKS = ([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0])


def test_edit_weighted_on_the_golden_pair_weighs_policy_and_reference_by_the_policy_s_confidence(make):
    golden = make.tokens([POLICY], [[REFERENCE]], edits=[MARKS])
    output = golden.into(DPO(beta=0.1, tokens=EditWeighted(2.0)))
    # lambda_w = 1, 1 + e^0.5, 1, 1 + min(e^0.9, 2); lambda_l = 1, 1 + e^0.6, 1
    chosen = 0.1 + (1 + math.exp(0.5)) * 0.2 + 0.1 + 3 * -0.5
    rejected = -0.1 + (1 + math.exp(0.6)) * -0.25 + 0.1
    assert chosen - rejected == pytest.approx(-0.0647260457623472, abs=1e-15)
    assert output.chosen_rewards.item() == pytest.approx(0.1 * chosen, abs=1e-15)
    assert output.logged["logits"].item() == pytest.approx(0.1 * -0.0647260457623472, abs=1e-15)
    # Weighed each by its own confidence, as in the official code, the loss would be 0.6872165277577085.
    assert output.losses.item() == pytest.approx(0.6963887196651712, abs=1e-15)


def test_a_token_of_probability_zero_weighs_one_plus_delta(make):
    policy = ([-0.2, -1e6, -0.1, -0.9], POLICY[1])
    made = make.tokens([policy], [[REFERENCE]], edits=[MARKS])
    logps = [own.statistics[TokenLogps()] for own in (made.policy.chosen, made.policy.rejected)]
    weights, _ = EditWeighted(1.5).weights(tuple(logps), made.pairs)
    assert weights.tolist() == [[1.0, 2.5, 1.0, 2.5]]
    assert bool(made.into(DPO(tokens=EditWeighted(1.5))).losses.isfinite())


def test_a_weight_of_one_on_every_token_is_the_sum(make):
    ones = [([1.0] * 4, [1.0] * 3), ([1.0] * 2, [1.0] * 5)]
    other = ([-1.0, -0.5], [-0.1, -2.0, -0.3, -0.4, -0.7])
    made = make.tokens([POLICY, other], [[REFERENCE, ([-0.4, -0.6], [-0.2, -1.0, -0.5, -0.4, -0.9])]], w=ones)
    weighted, plain = made.into(DPO(tokens=ColumnTokens("w"))), made.into(DPO())
    torch.testing.assert_close(weighted.losses, plain.losses, rtol=0, atol=1e-15)
    unedited = make.tokens([POLICY], [[REFERENCE]], edits=[([0.0] * 4, [0.0] * 3)])
    torch.testing.assert_close(
        unedited.into(DPO(tokens=EditWeighted())).losses, unedited.into(DPO()).losses, rtol=0, atol=1e-15
    )


def test_weighted_multiplies_each_token_of_each_response_by_its_own_value(make):
    column = [([0.0, 2.0, 0.0, 0.5], [1.0, 0.0, -1.0])]
    output = make.tokens([POLICY], [[REFERENCE]], w=column).into(DPO(beta=0.1, tokens=ColumnTokens("w")))
    # (-0.5 + 0.7) 2 + (-0.9 + 0.4) / 2 = 0.15 and (-0.4 + 0.3) - (-0.3 + 0.4) = -0.2
    assert output.chosen_rewards.item() == pytest.approx(0.015, abs=1e-15)
    assert output.rejected_rewards.item() == pytest.approx(-0.02, abs=1e-15)
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-0.035)), abs=1e-15)


def test_the_gradient_of_weighted_is_that_of_finite_differences(make):
    made = make.tokens([POLICY], [[REFERENCE]], w=[([0.3, 2.0, -1.0, 0.5], [1.0, 0.0, -1.0])])

    def losses(chosen, rejected):
        made.policy.chosen.statistics[TokenLogps()] = chosen
        made.policy.rejected.statistics[TokenLogps()] = rejected
        return made.into(MMPO(beta=0.7, tokens=ColumnTokens("w"))).losses

    leaves = [
        own.statistics[TokenLogps()].clone().requires_grad_() for own in (made.policy.chosen, made.policy.rejected)
    ]
    assert torch.autograd.gradcheck(losses, leaves)


def test_the_weights_of_edits_are_constants_of_the_gradient(make):
    """Weighted by the same weights, held still, the gradient is the same; its own is that of finite differences."""
    held = [([1.0, 1 + math.exp(0.5), 1.0, 3.0], [1.0, 1 + math.exp(0.6), 1.0])]
    gradients = []
    for tokens in (EditWeighted(2.0), ColumnTokens("held")):
        made = make.tokens([POLICY], [[REFERENCE]], edits=[MARKS], held=held)
        leaves = [own.statistics[TokenLogps()].requires_grad_() for own in (made.policy.chosen, made.policy.rejected)]
        gradients.append(torch.autograd.grad(made.into(DPO(tokens=tokens)).losses.sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # a column is fp32
        assert ours.abs().min() > 0


# Which tokens are edited


def test_edits_are_the_tokens_that_are_replaced_deleted_or_inserted():
    assert edits([9], [1, 2, 3, 4], [1, 5, 6, 3, 4]) == ([0, 1, 0, 0], [0, 1, 1, 0, 0])  # replaced
    assert edits([9], [1, 2, 3], [1, 3]) == ([0, 1, 0], [0, 0])  # inserted
    assert edits([9], [1, 3], [1, 2, 3]) == ([0, 0], [0, 1, 0])  # deleted
    assert edits([9], [1, 2], [1, 2]) == ([0, 0], [0, 0])
    assert edits([9], [1, 2], [3]) == ([1, 1], [1])


ids = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(ids, ids)
def test_unedited_tokens_form_a_common_subsequence_and_operations_agree(chosen, rejected):
    marks = edits([0], chosen, rejected)
    kept = [
        [token for token, mark in zip(*own, strict=True) if not mark]
        for own in zip((chosen, rejected), marks, strict=True)
    ]
    assert kept[0] == kept[1]
    # As the official code reads the operations.
    expected = ([0.0] * len(chosen), [0.0] * len(rejected))
    for kind, i, j, m, n in SequenceMatcher(None, rejected, chosen).get_opcodes():
        if kind in ("replace", "delete"):
            expected[1][i:j] = [1.0] * (j - i)
        if kind in ("replace", "insert"):
            expected[0][m:n] = [1.0] * (n - m)
    assert marks == expected


def test_frequent_tokens_of_long_responses_are_no_noise():
    rejected = random.Random(0).choices(range(5), k=300)
    chosen = [*rejected[:100], 7, *rejected[100:]]
    assert Counter(edits([0], chosen, rejected)[0]) == {0.0: 300, 1.0: 1}


# What is asked for, and what is refused


def test_they_ask_for_token_log_probs_of_policy_and_references_and_for_their_columns():
    weighted, edited = DPO(tokens=ColumnTokens("spans")), DPO(tokens=EditWeighted())
    for objective in (weighted, edited):
        assert objective.requirements.statistics == objective.requirements.reference_statistics == {TokenLogps()}
    assert (weighted.requirements.token_columns, dict(weighted.requirements.token_functions)) == ({"spans"}, {})
    assert (edited.requirements.token_columns, edited.requirements.token_functions) == (frozenset(), {"edits": edits})
    assert (DPO().requirements.token_columns, DPO().requirements.token_functions) == (frozenset(), {})


def test_a_token_column_that_is_not_there_is_named_with_those_that_are(make):
    made = make.tokens([POLICY], [[REFERENCE]], others=[MARKS])
    with pytest.raises(UserError, match=r"the token column `spans`.*token columns: others.*data\.token_columns"):
        made.into(DPO(tokens=ColumnTokens("spans")))


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan])
def test_a_delta_that_bounds_nothing_is_refused(delta):
    with pytest.raises(UsageError, match="EditWeighted: delta bounds a token's weight"):
        EditWeighted(delta)


@pytest.mark.parametrize("tokens", [ColumnTokens("w"), EditWeighted()])
def test_weighted_sums_are_no_sums_to_an_epsilon_step_or_a_window(tokens):
    with pytest.raises(UsageError, match="EpsilonStep compares sums of log-probs, not another aggregation"):
        DPO(tokens=tokens, temperature=EpsilonStep())
    with pytest.raises(UsageError, match="Harmonic clips to an interval relative to the summed log-prob"):
        DPO(tokens=tokens, reference=Harmonic())
    DPO(tokens=tokens, reference=Geometric())
    DPO(tokens=tokens, reference=NoReference())
