"""Scores of pairs against the model's own logits, summed by hand."""

import warnings

import peft
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.batch import PairData, PreferenceBatch
from lit_pref.errors import UserError
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.scores import Kl, LogSumSquares, ReferenceKl, Tilt, TokenLogps
from lit_pref.scoring.layout import padded, prefix_shared
from lit_pref.scoring.scorer import Scorer, readout, score_pairs, score_readout

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 61}
TINY = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 61}
FAMILIES = {
    "llama": SMALL | {"num_key_value_heads": 1},
    "llama-tied": SMALL | {"tie_word_embeddings": True},
    "qwen2": SMALL | {"num_key_value_heads": 1},
    "mistral": SMALL | {"num_key_value_heads": 1, "sliding_window": 4},
    "phi3": SMALL | {"num_key_value_heads": 1, "pad_token_id": 0},
    "gpt_neox": SMALL,
    "gpt2": TINY,
    "granite": SMALL | {"num_key_value_heads": 1, "logits_scaling": 3.0},
    "cohere": SMALL | {"num_key_value_heads": 1, "logit_scale": 0.3},
    "gemma2": SMALL | {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5},
}


def tiny(family, dtype=torch.float64, **changes):
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(family.partition("-")[0], **special | FAMILIES[family] | changes)
    for name in config.to_dict():
        if "dropout" in name or "pdrop" in name:
            setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # away from the start, where logits are nearly equal
            parameter.mul_(3.0)
    return model.train()


PROMPTS = [[1, 5, 6, 7], [1, 9]]
CHOSEN = [[11, 12, 13, 2], [14, 2]]
REJECTED = [[15, 2], [16, 17, 18, 19, 20, 2]]


def batch_of(prompts=PROMPTS, chosen=CHOSEN, rejected=REJECTED):
    lengths = [None if side is None else torch.tensor([len(r) for r in side]) for side in (chosen, rejected)]
    pairs = PairData([str(i) for i in range(len(prompts))], *lengths)
    return PreferenceBatch(pairs, padded(prompts, chosen, rejected, pad_id=0))


def by_hand(model, prompt, response):
    """The log-probs of one response, from the model's own logits over one unpadded row."""
    logits = model(torch.tensor([prompt + response])).logits[0].double()
    logps = torch.log_softmax(logits, -1)
    return torch.stack([logps[len(prompt) - 1 + i, token] for i, token in enumerate(response)])


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_the_models_own_logits(family):
    model = tiny(family)
    scorer = Scorer(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.probe()
    assert not scorer.full_logits
    scores = scorer(batch_of(), frozenset({TokenLogps()}))
    tokens = [[by_hand(model, p, r) for p, r in zip(PROMPTS, side, strict=True)] for side in (CHOSEN, REJECTED)]
    for side, expected in zip((scores.chosen, scores.rejected), tokens, strict=True):
        table = torch.nn.utils.rnn.pad_sequence(expected, batch_first=True)
        torch.testing.assert_close(side.statistics[TokenLogps()], table, rtol=0, atol=1e-10)
        torch.testing.assert_close(side.scores, table.sum(1), rtol=0, atol=1e-10)
        assert side.lengths.tolist() == [len(t) for t in expected]
        assert side.scores._base is None and side.statistics[TokenLogps()]._base is None
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    ours = gradients(model, (scores.chosen.scores * weights - scores.rejected.scores).sum())
    sums = [torch.stack([t.sum() for t in side]) for side in tokens]
    theirs = gradients(model, (sums[0] * weights - sums[1]).sum())
    assert ours.keys() == theirs.keys() == {n for n, _ in model.named_parameters()}
    for name, gradient in ours.items():
        # Hugging Face's norms round to fp32 inside, also in an fp64 model.
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_token_log_probs_carry_gradient():
    model = tiny("llama")
    table = score_pairs(model, batch_of(), frozenset({TokenLogps()})).chosen.statistics[TokenLogps()]
    ours = gradients(model, (table**2).sum())
    theirs = gradients(model, sum((by_hand(model, p, r) ** 2).sum() for p, r in zip(PROMPTS, CHOSEN, strict=True)))
    torch.testing.assert_close(ours["lm_head.weight"], theirs["lm_head.weight"], rtol=1e-8, atol=1e-9)


def test_fp32_scores_are_within_a_hundred_thousandth_a_token():
    model = tiny("llama", torch.float32)
    table = score_pairs(model, batch_of(), frozenset({TokenLogps()})).rejected.statistics[TokenLogps()]
    exact = score_pairs(model.double(), batch_of(), frozenset({TokenLogps()})).rejected.statistics[TokenLogps()]
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), exact, rtol=0, atol=1e-5)


def test_a_pair_scores_the_same_alone_and_beside_longer_ones():
    model = tiny("llama")
    together = score_pairs(model, batch_of())
    for i in range(2):
        alone = score_pairs(model, batch_of(PROMPTS[i : i + 1], CHOSEN[i : i + 1], REJECTED[i : i + 1]))
        torch.testing.assert_close(alone.chosen.scores, together.chosen.scores[i : i + 1], rtol=0, atol=1e-11)
        torch.testing.assert_close(alone.rejected.scores, together.rejected.scores[i : i + 1], rtol=0, atol=1e-11)


def test_the_order_of_tokens_in_the_layout_does_not_matter():
    batch, model = batch_of(), tiny("llama")
    expected = score_pairs(model, batch, frozenset({TokenLogps()}))
    # Sequences interleaved, each from its first token to its last: sorted by the place within the response.
    place = torch.cat([torch.arange(n) for n in torch.bincount(batch.rows.sequences).tolist()])
    order = torch.argsort(place, stable=True)
    for name in ("predictors", "targets", "sequences"):
        setattr(batch.rows, name, getattr(batch.rows, name)[order])
    scores = score_pairs(model, batch, frozenset({TokenLogps()}))
    torch.testing.assert_close(scores.rejected.scores, expected.rejected.scores, rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.chosen.statistics, expected.chosen.statistics, rtol=0, atol=1e-12)


def test_one_sided_data_has_no_rejected_scores():
    model = tiny("llama")
    scores = score_pairs(model, batch_of(rejected=None))
    assert scores.rejected is None
    torch.testing.assert_close(scores.chosen.scores, score_pairs(model, batch_of()).chosen.scores, rtol=0, atol=1e-11)


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_statistics_are_sums_over_the_response_in_either_layout(layout):
    policy, reference = tiny("llama"), tiny("gpt2")
    batch = batch_of()
    if layout == "prefix_shared":
        batch.rows = prefix_shared(PROMPTS, CHOSEN, REJECTED)
        for model in (policy, reference):
            enable_prefix_sharing(model)
    needs = frozenset({Kl(), Tilt(0.2), ReferenceKl(), LogSumSquares()})
    with torch.no_grad():
        against = Scorer(reference).readout(batch)
    scores = Scorer(policy)(batch, needs, against)
    for side, responses in ((scores.chosen, CHOSEN), (scores.rejected, REJECTED)):
        for i, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
            row, at = torch.tensor([prompt + response]), slice(len(prompt) - 1, -1)
            f, g = policy(row).logits[0, at], reference(row).logits[0, at].detach()
            p, q = torch.log_softmax(f, -1), torch.log_softmax(g, -1)
            tilted = (torch.log_softmax(1.2 * f - 0.2 * g, -1) - p).gather(1, torch.tensor(response)[:, None])
            assert side.statistics[Kl()][i].item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-10)
            assert side.statistics[Tilt(0.2)][i].item() == pytest.approx(tilted.sum().item(), abs=1e-10)
            squares = p.exp().square().sum(-1).log().sum()
            assert side.statistics[LogSumSquares()][i].item() == pytest.approx(squares.item(), abs=1e-10)
            from_reference = (q.exp() * (q - p)).sum()
            assert side.statistics[ReferenceKl()][i].item() == pytest.approx(from_reference.item(), abs=1e-10)
            assert not side.statistics[Kl()].requires_grad
            ours, theirs = (
                torch.autograd.grad(value, list(policy.parameters()), retain_graph=True)
                for value in (side.statistics[ReferenceKl()][i], from_reference)
            )
            for one, other in zip(ours, theirs, strict=True):
                assert (one - other).norm() <= 1e-6 * other.norm().clamp_min(1e-6)


def test_under_autocast_sums_are_fp32_and_the_head_is_not_rounded():
    model, batch = tiny("llama", torch.float32), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        read = readout(model, batch)
        scores = score_pairs(model, batch)
    assert scores.chosen.scores.dtype == torch.float32
    logps = torch.log_softmax(read.hidden.double() @ read.weight.double().T, -1)
    exact = torch.zeros(4, dtype=torch.float64).index_add(
        0, batch.rows.sequences, logps.gather(1, batch.rows.targets[:, None]).squeeze(1)
    )
    torch.testing.assert_close(scores.chosen.scores.double(), exact[:2], rtol=0, atol=2e-5)
    # It was bf16 that ran: the scores of the fp32 body are further away than that.
    assert (score_pairs(model, batch).chosen.scores - scores.chosen.scores).abs().max() > 1e-3


class Bent(torch.nn.Linear):
    """A head that does more to its logits than any attribute of the config says."""

    def forward(self, hidden):
        return 2.0 * torch.tanh(super().forward(hidden) / 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_head_of_another_form_is_found_by_the_probe_and_scored_by_its_own_logits(dtype):
    model = tiny("llama", dtype)
    model.lm_head.__class__ = Bent
    scorer = Scorer(model)
    with pytest.warns(UserWarning, match="falls back to full logits") as caught:
        scorer.probe()
    assert len(caught) == 1
    scores = scorer(batch_of(), frozenset({TokenLogps()}))
    expected = torch.stack([by_hand(model, p, r).sum() for p, r in zip(PROMPTS, CHOSEN, strict=True)])
    torch.testing.assert_close(
        scores.chosen.scores.double(), expected, rtol=0, atol=1e-10 if dtype.itemsize > 4 else 1e-4
    )
    ours = gradients(model, scores.chosen.scores.sum())
    theirs = gradients(model, sum(by_hand(model, p, r).sum() for p, r in zip(PROMPTS, CHOSEN, strict=True)))
    torch.testing.assert_close(ours["lm_head.weight"], theirs["lm_head.weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours["model.norm.weight"], theirs["model.norm.weight"], rtol=1e-4, atol=1e-4)


def test_the_probe_finds_a_cap_that_the_models_own_small_logits_never_reach():
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)
    model.lm_head.__class__ = Bent
    with pytest.warns(UserWarning, match="falls back to full logits"):
        Scorer(model).probe()


def test_the_probe_leaves_modes_and_random_state_alone():
    model = tiny("llama")
    model.model.layers[0].eval()
    state = torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    Scorer(model).probe()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.model._forward_hooks


def lora(model, **settings):
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(3))
    return wrapped


def test_adapters_are_scored_and_the_frozen_head_gets_no_gradient():
    model = lora(tiny("llama"), target_modules="all-linear")
    scores = score_pairs(model, batch_of())
    expected = torch.stack([by_hand(model, p, r).sum() for p, r in zip(PROMPTS, CHOSEN, strict=True)])
    torch.testing.assert_close(scores.chosen.scores, expected, rtol=0, atol=1e-10)
    ours, theirs = gradients(model, scores.chosen.scores.sum()), gradients(model, expected.sum())
    assert ours.keys() == theirs.keys() and all("lora_" in name for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-8, atol=1e-9)


def test_an_adapter_on_the_head_is_refused_and_the_scorer_takes_the_models_logits():
    model = lora(tiny("llama"), target_modules=["lm_head"])
    with pytest.raises(UserError, match="output head carries a LoRA adapter"):
        score_pairs(model, batch_of())
    scorer = Scorer(model)
    with pytest.warns(UserWarning, match="LoRA adapter.*falls back to full logits"):
        scorer.probe()
    expected = torch.stack([by_hand(model, p, r).sum() for p, r in zip(PROMPTS, CHOSEN, strict=True)])
    torch.testing.assert_close(scorer(batch_of()).chosen.scores, expected, rtol=0, atol=1e-10)


def test_a_head_trained_beside_adapters_is_the_one_that_is_read():
    model = lora(tiny("llama"), target_modules=["q_proj"], modules_to_save=["lm_head"])
    base = score_pairs(model, batch_of()).chosen.scores
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.mul_(2.0)
    scores = score_pairs(model, batch_of()).chosen.scores
    expected = torch.stack([by_hand(model, p, r).sum() for p, r in zip(PROMPTS, CHOSEN, strict=True)])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-10)
    assert (scores - base).abs().min() > 1e-3
    assert any("modules_to_save" in name for name in gradients(model, scores.sum()))


@pytest.fixture
def mesh():
    """A data-parallel mesh of this process alone: weights are shards outside the root's forward all the same."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_a_sharded_scorer_reads_its_head_inside_its_own_forward(family, mesh):
    plain, scorer = Scorer(tiny(family)), Scorer(tiny(family))
    for layer in scorer.model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(scorer, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in scorer.parameters())
    with torch.no_grad():
        against = scorer.readout(batch_of())
    ours = scorer(batch_of(), frozenset({Kl(), ReferenceKl()}), against)
    # The divergence from itself adds nothing to the gradient.
    (ours.chosen.scores + ours.chosen.statistics[ReferenceKl()]).sum().backward()
    plain(batch_of()).chosen.scores.sum().backward()
    assert ours.chosen.statistics[Kl()].abs().max() < 1e-12
    for one, other in zip(scorer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad.full_tensor(), other.grad, rtol=1e-12, atol=1e-12)


def test_a_batch_whose_layout_does_not_add_up_is_refused():
    batch, model = batch_of(), tiny("llama")
    read = readout(model, batch)
    batch.rows.sequences = batch.rows.sequences[:-1]
    with pytest.raises(ValueError, match="one entry for each response token"):
        score_readout(read, batch)
