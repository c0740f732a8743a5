import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    ClippedGeometric,
    Geometric,
    Harmonic,
    ImplicitRewards,
    NoReference,
    Requirements,
    Single,
)

ANCHOR, DECISIVE, FAR = (-13.0, -14.5), (-12.2, -16.0), (-20.0, -19.5)


def sides(*scores):
    return [(torch.tensor([w], dtype=torch.float64), torch.tensor([r], dtype=torch.float64)) for w, r in scores]


def mix(part, *scores):
    references = sides(*scores)
    (chosen, rejected), logged = part(references, references[0])
    return (chosen.item(), rejected.item()), {name: value.item() for name, value in logged.items()}


def test_single_is_the_reference_and_no_reference_is_zero():
    assert mix(Single(), ANCHOR)[0] == ANCHOR
    (chosen, rejected), _ = NoReference()([], sides(ANCHOR)[0])
    assert (chosen.tolist(), rejected.tolist()) == ([0.0], [0.0])
    assert NoReference().requirements == Requirements(max_references=0)


def test_harmonic_of_two_references_step_by_step():
    # ARWC: c = |-13 + 14.5|, |-12.2 + 16| = 1.5, 3.8, with 1e-6 shared out
    a = [(1.5 + 5e-7) / 5.300001, (3.8 + 5e-7) / 5.300001]
    assert a == pytest.approx([0.28301890886435677, 0.7169810911356432], abs=1e-15)
    # CTRO: b = -12.6, -15.25; eps_w = 0.1 * 12.6 / 27.85, and the rest of 0.1 for the rejected side
    eps = [0.1 * 12.6 / 27.85, 0.1 * 15.25 / 27.85]
    assert eps == pytest.approx([0.04524236983842011, 0.0547576301615799], abs=1e-15)
    # The window of w is -13 (1 +- eps_w) = [-13.588, -12.412]: -12.2 is clipped to its upper edge; -16 to the lower one
    clipped = [-13 * (1 - eps[0]), -14.5 * (1 + eps[1])]
    assert clipped == pytest.approx([-12.411849192100538, -15.29398563734291], abs=1e-13)
    expected = [
        -math.log(sum(weight / math.exp(score) for weight, score in zip(a, pair, strict=True)))
        for pair in ((-13.0, clipped[0]), (-14.5, clipped[1]))
    ]
    assert expected == pytest.approx([-12.61609585066681, -15.125468551220951], abs=1e-12)
    mixed, logged = mix(Harmonic(eta=0.1), ANCHOR, DECISIVE)
    assert mixed == pytest.approx(expected, abs=1e-12)
    assert logged["clipped"] == 1.0
    # Effective weight of the anchor: a_0 / pi_0 over the sum, averaged over both sides
    shares = [
        a[0] / math.exp(anchor) / (a[0] / math.exp(anchor) + a[1] / math.exp(other))
        for anchor, other in ((-13.0, clipped[0]), (-14.5, clipped[1]))
    ]
    assert logged["reference_weights/0"] == pytest.approx(sum(shares) / 2, abs=1e-12)
    assert logged["reference_weights/0"] + logged["reference_weights/1"] == pytest.approx(1, abs=1e-15)


def test_swapped_weights_give_the_mixed_scores_of_the_official_code():
    # Its formula: r_1 + r_0 - log(a e^{r_1} + (1 - a) e^{r_0}), a the weight of the second reference
    mixed, _ = mix(Harmonic(eta=0.1, arwc_swap=True), ANCHOR, DECISIVE)
    a = 3.8 / 5.300001
    for value, anchor, other in zip(mixed, ANCHOR, (-12.411849192100538, -15.29398563734291), strict=True):
        code = other + anchor - math.log(a * math.exp(other) + (1 - a) * math.exp(anchor))
        assert value == pytest.approx(code, abs=1e-6)
    assert mixed == pytest.approx((-12.865504178533675, -14.794961368208812), abs=1e-6)


def test_three_references_are_clipped_and_weighed_one_by_one():
    # c = 1.5, 3.8, 0.5; b = -45.2/3, -50/3; eps_w = .1 * 45.2 / 95.2; windows -13 (1 +- eps_w), -14.5 (1 +- eps_l)
    a = [(c + 1e-6 / 3) / 5.800001 for c in (1.5, 3.8, 0.5)]
    eps = [0.1 * 45.2 / 95.2, 0.1 * 50 / 95.2]
    chosen = [-13, -13 * (1 - eps[0]), -13 * (1 + eps[0])]
    rejected = [-14.5, -14.5 * (1 + eps[1]), -14.5 * (1 + eps[1])]
    expected = [
        -math.log(sum(w * math.exp(-r) for w, r in zip(a, column, strict=True))) for column in (chosen, rejected)
    ]
    mixed, logged = mix(Harmonic(eta=0.1), ANCHOR, DECISIVE, FAR)
    assert mixed == pytest.approx(expected, abs=1e-12)
    assert logged["clipped"] == 1.0
    # A window three times as wide holds both scores of the second reference; the third still sits on its edges.
    assert mix(Harmonic(eta=0.3), ANCHOR, DECISIVE, FAR)[1]["clipped"] == 0.5


def test_a_fixed_window_is_eta_for_both_responses():
    # -12.2 within -13 +- 1.3; -16 below -14.5 - 1.45 = -15.95
    mixed, logged = mix(Harmonic(eta=0.1, adaptive=False, weights=[0.0, 1.0]), ANCHOR, DECISIVE)
    assert mixed == pytest.approx((-12.2, -15.95), abs=1e-13)
    assert logged["clipped"] == 0.5
    assert logged["reference_weights/1"] == 1.0


def test_a_wide_window_clips_nothing_and_geometric_exceeds_harmonic():
    harmonic, logged = mix(Harmonic(eta=100.0, weights=[1, 2, 1]), ANCHOR, DECISIVE, FAR)
    assert logged["clipped"] == 0.0
    geometric, logged = mix(Geometric(weights=[1, 2, 1]), ANCHOR, DECISIVE, FAR)
    assert geometric == pytest.approx(((-13 - 24.4 - 20) / 4, (-14.5 - 32 - 19.5) / 4), abs=1e-13)
    assert all(low <= high for low, high in zip(harmonic, geometric, strict=True))
    assert [logged[f"reference_weights/{k}"] for k in range(3)] == [0.25, 0.5, 0.25]


def test_harmonic_does_not_change_when_the_responses_swap():
    (chosen, rejected), _ = mix(Harmonic(), ANCHOR, DECISIVE, FAR)
    turned, _ = mix(Harmonic(), *((rejected, chosen) for chosen, rejected in (ANCHOR, DECISIVE, FAR)))
    assert turned == pytest.approx((rejected, chosen), abs=1e-13)


def test_geometric_has_equal_weights_by_default_and_one_reference_is_itself():
    assert mix(Geometric(), ANCHOR, DECISIVE)[0] == pytest.approx((-12.6, -15.25), abs=1e-13)
    assert mix(Geometric(), FAR)[0] == FAR
    assert mix(Harmonic(), FAR)[0] == FAR
    assert mix(Harmonic(), FAR)[1] == {"reference_weights/0": 1.0, "clipped": 0.0}


def test_scores_of_hundreds_of_nats_and_indifferent_references_stay_finite():
    far_apart = Harmonic(eta=1.0, weights=[1.0, 1e-30])
    mixed, _ = mix(far_apart, (-900.0, -950.0), (-200.0, -1700.0))
    assert all(math.isfinite(value) for value in mixed)
    mixed, _ = mix(Harmonic(), (-900.0, -900.0), (-901.0, -901.0))  # every c_k is 0
    assert mixed[0] == mixed[1]
    assert all(math.isfinite(value) for value in mix(Harmonic(), (0.0, 0.0), (0.0, 0.0))[0])


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.5], [1.0, math.inf], [math.nan, 1.0]])
@pytest.mark.parametrize("part", [Harmonic, Geometric, ClippedGeometric])
def test_weights_that_weigh_nothing_are_refused(part, weights):
    with pytest.raises(UsageError, match="weights must be finite, not negative and not all zero"):
        part(weights=weights)


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
@pytest.mark.parametrize("part", [Harmonic, ClippedGeometric])
def test_a_window_of_no_width_is_refused(part, eta):
    with pytest.raises(UsageError, match=f"{part.__name__}: eta .* must be >= 0, got {eta}"):
        part(eta=eta)


def test_swapping_fixed_weights_is_refused():
    with pytest.raises(UsageError, match="leave arwc_swap out and write the weights in the order you want"):
        Harmonic(weights=[1, 2], arwc_swap=True)


def test_the_clipped_geometric_mean_has_the_clip_and_the_weights_of_the_harmonic_one():
    a = [(1.5 + 5e-7) / 5.300001, (3.8 + 5e-7) / 5.300001]  # see the harmonic mean of the same references
    clipped = [-12.411849192100538, -15.29398563734291]
    expected = [a[0] * anchor + a[1] * other for anchor, other in zip(ANCHOR, clipped, strict=True)]
    mixed, logged = mix(ClippedGeometric(eta=0.1), ANCHOR, DECISIVE)
    assert mixed == pytest.approx(expected, abs=1e-12)
    assert (logged["reference_weights/0"], logged["clipped"]) == pytest.approx((a[0], 1.0), abs=1e-15)


def test_the_clipped_geometric_mean_has_known_limits():
    unclipped = mix(ClippedGeometric(eta=100.0, weights=[1, 2, 1]), ANCHOR, DECISIVE, FAR)
    geometric = mix(Geometric(weights=[1, 2, 1]), ANCHOR, DECISIVE, FAR)
    assert unclipped[0] == pytest.approx(geometric[0], abs=1e-13) and unclipped[1]["clipped"] == 0.0
    assert mix(ClippedGeometric(eta=0.0), ANCHOR, DECISIVE, FAR)[0] == pytest.approx(ANCHOR, abs=1e-13)
    assert mix(ClippedGeometric(), FAR) == (FAR, {"reference_weights/0": 1.0, "clipped": 0.0})
    inside, outside = (mix(part(), ANCHOR, DECISIVE, FAR)[0] for part in (Harmonic, ClippedGeometric))
    assert all(low <= high for low, high in zip(inside, outside, strict=True))
    (chosen, rejected), _ = mix(ClippedGeometric(), ANCHOR, DECISIVE, FAR)
    turned, _ = mix(ClippedGeometric(), *((rejected, chosen) for chosen, rejected in (ANCHOR, DECISIVE, FAR)))
    assert turned == pytest.approx((rejected, chosen), abs=1e-13)


def test_implicit_rewards_tilt_the_first_reference():
    # -13 + 0.5 (-12.2 + 13) - 0.1 (-20 + 13), and -14.5 + 0.5 (-16 + 14.5) - 0.1 (-19.5 + 14.5)
    assert mix(ImplicitRewards([0.5, -0.1]), ANCHOR, DECISIVE, FAR)[0] == pytest.approx((-11.9, -14.75), abs=1e-13)
    tilted = mix(ImplicitRewards([0.3, 0.2]), ANCHOR, DECISIVE, FAR)[0]
    assert tilted == pytest.approx(mix(Geometric([0.5, 0.3, 0.2]), ANCHOR, DECISIVE, FAR)[0], abs=1e-13)
    assert mix(ImplicitRewards([0.0]), ANCHOR, DECISIVE)[0] == ANCHOR
    assert ImplicitRewards([0.5, -0.1]).requirements == Requirements(3, 3)


@pytest.mark.parametrize("weights", [[], [math.nan], [0.5, math.inf]])
def test_implicit_rewards_without_a_weight_are_refused(weights):
    with pytest.raises(UsageError, match="ImplicitRewards: weights are finite numbers, one for each reference after"):
        ImplicitRewards(weights)
