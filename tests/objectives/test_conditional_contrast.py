import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.objectives import (
    DPO,
    Anchor,
    ConditionalContrast,
    EpsilonStep,
    Geometric,
    MarginTarget,
    Mean,
    NoReference,
    Optimism,
    PromptContrast,
    SimPO,
)
from lit_pref.objectives.parts.prompt_contrast import PromptCrop
from lit_pref.pairs import PreferencePair, TruncatedText


def one_pair(make):
    inputs = make.inputs(make.pair([-12], [-15]), [make.pair([-13], [-14.5])], make.batch(1, margin=[2.0]))
    inputs.policy.extra_response, inputs.references[0].extra_response = make.side([-13.5]), make.side([-13.2])
    return inputs


def softplus(x):
    return math.log1p(math.exp(x))


def test_it_has_the_golden_loss_and_gradient_of_mdpo_with_the_anchor(make):
    inputs = one_pair(make)
    scores = [inputs.policy.chosen.scores, inputs.policy.rejected.scores, inputs.policy.extra_response.scores]
    for own in scores:
        own.requires_grad_()
    output = inputs.into(ConditionalContrast(beta=0.1, terms=[Anchor()]))
    # h_w = 1, h_l = -0.5, h_w' = -0.3: the logits of pair, contrast and anchor are 0.15, 0.13 and 0.1.
    assert output.losses.item() == pytest.approx(softplus(-0.15) + softplus(-0.13) + softplus(-0.1), abs=1e-15)
    assert output.losses.item() == pytest.approx(1.8956119025447937, abs=1e-15)
    assert output.logged["prompt_gap"].tolist() == pytest.approx([1.3], abs=1e-14)
    output.losses.sum().backward()
    pair, contrast, anchor = (0.1 / (1 + math.exp(x)) for x in (0.15, 0.13, 0.1))
    gradients = [own.grad.item() for own in scores]
    assert gradients == pytest.approx([-pair - contrast - anchor, pair, contrast], abs=1e-16)


def test_without_contrast_it_is_dpo_and_a_weight_multiplies_the_contrast(make):
    inputs = make.random(ConditionalContrast())
    none, one, three = (inputs.into(ConditionalContrast(beta=0.2, contrast=c)).losses for c in (0.0, 1.0, 3.0))
    plain = inputs.into(DPO(beta=0.2)).losses
    assert torch.equal(none, plain)
    torch.testing.assert_close(three - plain, 3 * (one - plain), rtol=0, atol=1e-12)


def test_other_parts_stay_open_and_the_contrast_takes_the_beta_of_its_pair(make):
    inputs = one_pair(make)
    graded = inputs.into(ConditionalContrast(target=MarginTarget(0.5))).losses
    expected = inputs.into(DPO(target=MarginTarget(0.5))).losses.item() + softplus(-0.13)
    assert graded.item() == pytest.approx(expected, abs=1e-14)
    stepping = ConditionalContrast(beta=0.1, temperature=EpsilonStep(0.5))
    inputs = make.random(stepping, size=8)
    output = inputs.into(stepping)
    without = inputs.into(ConditionalContrast(beta=0.1, contrast=0.0, temperature=EpsilonStep(0.5)))
    assert len(output.logged["beta"].unique()) > 1
    contrast = [softplus(-b * g) for b, g in zip(output.logged["beta"], output.logged["prompt_gap"], strict=True)]
    assert (output.losses - without.losses).tolist() == pytest.approx(contrast, abs=1e-12)


def test_it_is_relative_to_the_first_reference_if_there_is_one(make):
    inputs = one_pair(make)
    inputs.references.append(make.pair([-1], [-2]))
    inputs.references[1].extra_response = make.side([-9.0])
    several = inputs.into(ConditionalContrast(reference=Geometric())).logged["prompt_gap"]
    assert several.tolist() == pytest.approx([1.3], abs=1e-14)
    inputs.references = []
    none = inputs.into(ConditionalContrast(reference=NoReference())).logged["prompt_gap"]
    assert none.tolist() == [1.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("score", [-1e4, 0.0, 1e4])
def test_extreme_scores_give_finite_losses_and_gradients(make, dtype, score):
    inputs = one_pair(make)
    own = torch.tensor([score], dtype=dtype, requires_grad=True)
    inputs.policy.extra_response.scores = own
    losses = inputs.into(ConditionalContrast(beta=1.0)).losses
    losses.sum().backward()
    assert losses.isfinite().all() and own.grad.isfinite().all()


def test_what_it_cannot_use_is_refused():
    for contrast in (-1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match=f"ConditionalContrast: contrast must be finite and >= 0, got {contrast}"):
            ConditionalContrast(contrast=contrast)
    for smallest, largest in ((-0.1, 0.2), (0.3, 0.2), (0.1, 1.0)):
        with pytest.raises(
            UsageError, match=f"ConditionalContrast: 0 <= smallest <= largest < 1 must hold, got {smallest}, {largest}"
        ):
            ConditionalContrast(smallest=smallest, largest=largest)
    with pytest.raises(UsageError, match=r"PromptContrast compares sums of log-probs.* choose `tokens: Sum`"):
        ConditionalContrast(tokens=Mean())


def test_the_contrast_is_a_term_of_any_objective_for_sums(make):
    inputs = make.random(ConditionalContrast(), size=6)
    own = ConditionalContrast(beta=0.3, contrast=0.7, largest=0.4, terms=[Anchor()])
    term = DPO(beta=0.3, terms=[Anchor(), PromptContrast(0.7, largest=0.4)])
    assert torch.equal(inputs.into(own).losses, inputs.into(term).losses)
    assert own.requirements == term.requirements
    with pytest.raises(UsageError, match="SimPO: PromptContrast compares sums"):
        SimPO(terms=[PromptContrast()])


def test_terms_that_read_different_extra_responses_are_refused():
    DPO(terms=[PromptContrast(0.5), PromptContrast(0.7)])
    for terms in ([PromptContrast(), Optimism()], [PromptContrast(), PromptContrast(seed=1)]):
        with pytest.raises(UsageError, match=r"DPO: .* read different extra responses .* choose one of them"):
            DPO(terms=terms)


def pair_of(prompt, name="a"):
    return PreferencePair(name, prompt, [5], [6], None, None, {}, None, TruncatedText("", "", "", True, True))


def test_a_crop_is_one_piece_of_the_ordinary_tokens_and_all_special_ones():
    special, prompt = frozenset({1, 2}), [1, *range(100, 150), 2, *range(150, 200), 1]
    sizes, starts = set(), set()
    for k in range(200):
        crop = PromptCrop(0.05, 0.2, seed=0)(pair_of(prompt, str(k)), special)[0]
        piece = [token for token in crop if token not in special]
        assert [token for token in crop if token in special] == [1, 2, 1]
        assert piece == list(range(piece[0], piece[0] + len(piece)))
        sizes.add(len(piece))
        starts.add(piece[0])
    assert sizes == set(range(5, 21)) and len(starts) > 50


def test_a_crop_depends_on_seed_and_pair_alone():
    prompt = list(range(100))
    draw = [PromptCrop(0.1, 0.5, seed)(pair_of(prompt, name), frozenset())[0] for seed in (0, 1) for name in "ab"]
    assert len({tuple(crop) for crop in draw}) == 4
    assert PromptCrop(0.1, 0.5, 0)(pair_of(prompt, "a"), frozenset())[0] == draw[0]


def test_a_crop_keeps_a_token_and_prompts_of_special_tokens():
    assert len(PromptCrop(0.0, 0.0, 0)(pair_of([7, 8, 9]), frozenset())[0]) == 1
    assert PromptCrop(0.0, 0.5, 0)(pair_of([7]), frozenset()) == ([7], [5])
    assert PromptCrop(0.0, 0.5, 0)(pair_of([1, 1]), frozenset({1}))[0] == [1, 1]
