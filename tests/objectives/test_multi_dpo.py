import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, BatchAdaptive, ClippedGeometric, EpsilonStep, Mean, MultiDPO

ANCHOR, DECISIVE, FAR = (-13.0, -14.5), (-12.2, -16.0), (-20.0, -19.5)


def softplus(x):
    return math.log1p(math.exp(x))


def pair_with(make, *references):
    """The golden pair (l_w = -12, l_l = -15) against references (r_w, r_l)."""
    inputs = make.g0()
    inputs.references = [make.pair([chosen], [rejected]) for chosen, rejected in references]
    return inputs


def test_the_losses_against_two_clipped_references_are_averaged_with_their_weights(make):
    inputs = pair_with(make, ANCHOR, DECISIVE)
    chosen = inputs.policy.chosen.scores.requires_grad_()
    losses = inputs.into(MultiDPO(beta=0.1, eta=0.1)).losses
    # c = |-13 + 14.5|, |-12.2 + 16|; the second reference lies on the edges of its interval, see test_part_reference
    a = [(1.5 + 5e-7) / 5.300001, (3.8 + 5e-7) / 5.300001]
    clipped = -13 * (1 - 0.1 * 12.6 / 27.85), -14.5 * (1 + 0.1 * 15.25 / 27.85)
    logits = [0.1 * (3 - 1.5), 0.1 * (3 - (clipped[0] - clipped[1]))]
    assert losses.item() == pytest.approx(sum(w * softplus(-x) for w, x in zip(a, logits, strict=True)), abs=1e-14)
    losses.sum().backward()
    slope = -0.1 * sum(w / (1 + math.exp(x)) for w, x in zip(a, logits, strict=True))
    assert chosen.grad.item() == pytest.approx(slope, abs=1e-14)


def test_the_official_code_gives_the_second_reference_its_own_weight(make):
    # alpha times the loss against the other reference, alpha = c_1 / (c_0 + c_1 + 1e-6), and a fixed clipping rate
    logits = [0.1 * (3 - 1.5), 0.1 * (3 - (-12.2 + 15.95))]  # -16 is clipped to -14.5 - 1.45
    alpha = 3.8 / (1.5 + 3.8 + 1e-6)
    code = alpha * softplus(-logits[1]) + (1 - alpha) * softplus(-logits[0])
    output = pair_with(make, ANCHOR, DECISIVE).into(MultiDPO(eta=0.1, adaptive=False))
    assert output.losses.item() == pytest.approx(code, abs=1e-7)
    assert output.logged["clipped"].item() == 0.5


def test_fixed_weights_are_relative_and_the_geometric_mean_gives_the_rewards(make):
    inputs = pair_with(make, ANCHOR, DECISIVE, FAR)
    output = inputs.into(MultiDPO(eta=100.0, weights=[2, 1, 1]))
    logits = [0.1 * (3 - (w - r)) for w, r in (ANCHOR, DECISIVE, FAR)]
    expected = sum(w * softplus(-x) for w, x in zip((0.5, 0.25, 0.25), logits, strict=True))
    assert output.losses.item() == pytest.approx(expected, abs=1e-14)
    rewards = output.chosen_rewards.item(), output.rejected_rewards.item()
    # -12 + (2 * 13 + 12.2 + 20) / 4 and -15 + (2 * 14.5 + 16 + 19.5) / 4
    assert rewards == pytest.approx((0.255, 0.1125), abs=1e-15)
    mean = sum(w * x for w, x in zip((0.5, 0.25, 0.25), logits, strict=True))
    assert output.logged["logits"].item() == pytest.approx(mean, abs=1e-15)
    assert [output.logged[f"reference_weights/{k}"].item() for k in range(3)] == [0.5, 0.25, 0.25]


def test_one_reference_is_dpo_exactly_and_equal_ones_are_one(make):
    inputs = make.random(MultiDPO())
    expected = inputs.into(DPO()).losses
    assert torch.equal(inputs.into(MultiDPO()).losses, expected)
    inputs.references = inputs.references * 3
    torch.testing.assert_close(inputs.into(MultiDPO()).losses, expected, rtol=1e-13, atol=0)


def test_the_mean_outside_of_the_loss_is_never_below_the_mean_inside(make):
    inputs = make.random(MultiDPO(), size=20, references=3)
    outside, inside = (inputs.into(objective).losses for objective in (MultiDPO(), DPO(reference=ClippedGeometric())))
    assert bool((outside >= inside).all()) and bool((outside > inside + 1e-4).any())


def test_a_temperature_with_state_moves_as_against_one_reference(make):
    several, one = (kind(temperature=EpsilonStep(0.1)) for kind in (MultiDPO, DPO))
    inputs = make.random(several, size=12, references=3)
    several(inputs.policy, inputs.references, inputs.pairs)
    one(inputs.policy, inputs.references[:1], inputs.pairs)
    for objective in (several, one):
        objective.update(lambda total: total)
    assert several.progress["beta"] == pytest.approx(one.progress["beta"], rel=1e-14)
    assert one.progress["beta"] != 0.1


@pytest.mark.parametrize("temperature", [lambda: BatchAdaptive(filtered=0.25), lambda: EpsilonStep(0.1)])
def test_a_temperature_counts_each_pair_once_and_has_the_state_of_dpo_against_the_mixture(make, temperature):
    several, mixed = MultiDPO(temperature=temperature()), DPO(temperature=temperature(), reference=ClippedGeometric())
    inputs = make.random(several, size=8, references=2)
    outputs = [inputs.into(objective) for objective in (several, mixed)]
    assert torch.equal(several.temperature._window, mixed.temperature._window)
    for objective in (several, mixed):
        objective.update(lambda total: total)
    assert several.progress == mixed.progress
    for name in outputs[1].logged:
        assert torch.equal(outputs[0].logged[name], outputs[1].logged[name])


def test_the_clip_is_refused_for_other_aggregations_and_with_wrong_numbers():
    with pytest.raises(UsageError, match=r"ClippedGeometric clips to an interval .*: choose `tokens: Sum`"):
        MultiDPO(tokens=Mean())
    with pytest.raises(UsageError, match="MultiDPO: eta is the relative width"):
        MultiDPO(eta=-1.0)
    assert (MultiDPO(weights=[1, 2]).requirements.min_references, MultiDPO().requirements.max_references) == (2, None)
