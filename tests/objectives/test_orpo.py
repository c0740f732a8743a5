import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UsageError
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.objectives import DPO, ORPO, SFT, LogOdds, Mean, NoReference, TextNLL
from lit_pref.objectives.parts.terms import WholeText
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scoring.scorer import score_pairs

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 23}


def pair_of(*ids):
    return PreferencePair("a", *ids, None, None, {}, None, TruncatedText("", "", "", True, True))


def log_odds(a):
    return a - math.log1p(-math.exp(a))


def test_orpo_has_the_golden_value_and_gradient(make):
    ratio = log_odds(-12 / 10) - log_odds(-15 / 12)
    inputs = make.g0().policy_alone()
    output = inputs.into(ORPO(lambd=0.1))
    assert ratio == pytest.approx(0.07080285277302278, abs=1e-14)
    assert output.logged["logits"].item() == pytest.approx(ratio, abs=1e-14)
    assert output.losses.item() == pytest.approx(1.2 + 0.1 * math.log1p(math.exp(-ratio)), abs=1e-14)
    assert output.losses.item() - 1.2 == pytest.approx(0.06583722538236679, abs=1e-14)
    # d log odds / da = 1 / (1 - e^a)
    slope = -0.1 / (1 + math.exp(ratio))
    chosen, rejected = inputs.gradients(ORPO(lambd=0.1))
    assert chosen == pytest.approx([(slope / (1 - math.exp(-1.2)) - 1) / 10], abs=1e-14)
    assert rejected == pytest.approx([-slope / (1 - math.exp(-1.25)) / 12], abs=1e-14)


def test_two_pairs_of_one_token_have_the_golden_mean(make):
    inputs = make.inputs(make.pair([-0.5, -1.0], [-0.9, -0.8], [1, 1], [1, 1]), [], make.batch(2))
    output = inputs.into(ORPO(lambd=0.05))
    assert output.logged["logits"].tolist() == pytest.approx([0.8109166866584663, -0.3379425338018934], abs=1e-14)
    assert output.losses.mean().item() == pytest.approx(0.7811013904122269, abs=1e-14)


def test_without_the_odds_it_is_supervised_fine_tuning(make):
    inputs = make.random(ORPO())
    assert torch.equal(inputs.into(ORPO(lambd=0.0)).losses, inputs.into(SFT()).losses)


def test_the_cross_entropy_may_include_the_prompt(make):
    inputs = make.g0().policy_alone()
    inputs.policy.extra_response = make.side([-18.0], [14])
    plain, whole = ORPO(lambd=0.1), ORPO(lambd=0.1, prompt_nll=True)
    added = inputs.into(whole).losses - inputs.into(plain).losses
    assert added.item() == pytest.approx(18 / 14 - 12 / 10, abs=1e-14)
    assert plain.requirements.sides == ("chosen", "rejected") and whole.requirements.sides[2] == "extra_response"


def test_prompt_and_chosen_response_are_read_as_one_text(make):
    """Its mean log-prob is the cross-entropy that a causal LM computes of all its tokens."""
    pairs = [pair_of([1, 5, 6, 7], [8, 2], [9, 2]), pair_of([1], [8, 9, 2], [2])]
    texts = [pair.with_extra_response(*WholeText()(pair, frozenset())) for pair in pairs]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE)).double()
    enable_prefix_sharing(model)
    for layout in ("padded", "prefix_shared"):
        scores = score_pairs(model, collate(texts, 0, layout=layout, extra_response=True))
        found = TextNLL()(None, None, scores, [], None).tolist()
        for pair, value in zip(pairs, found, strict=True):
            ids = torch.tensor([pair.prompt + pair.chosen])
            assert value == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), abs=1e-6)


def test_certain_and_impossible_responses_have_finite_odds():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        a = torch.tensor([0.0, -1e-30, -1e-3, -40.0, -1e4], dtype=dtype, requires_grad=True)
        odds, _ = LogOdds()((a, a))
        assert bool(odds.isfinite().all()) and odds[-1].item() == a[-1].item()
        (slope,) = torch.autograd.grad(odds.sum(), a)
        assert bool(slope.isfinite().all()) and slope[:2].tolist() == [0.0, 0.0]


def test_log_odds_of_anything_but_mean_log_probs_are_refused():
    for parts in ({"tokens": Mean()}, {"reference": NoReference()}, {}):
        with pytest.raises(UsageError, match="LogOdds is a function of the mean log-prob per token"):
            DPO(score=LogOdds(), **parts)
    assert DPO(score=LogOdds(), tokens=Mean(), reference=NoReference()).score.arguments == {}
    with pytest.raises(UsageError, match="ORPO: lambd must be finite and >= 0, got -1"):
        ORPO(lambd=-1.0)
