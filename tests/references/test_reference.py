import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import nn

from lit_pref.batch import PairData, PreferenceBatch
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Corpus, Lora, ModelSpec
from lit_pref.pairs import TruncatedText
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import AdapterOff, InitialPolicy
from lit_pref.scores import Kl, Tilt, TiltSlope, TokenLogps
from lit_pref.scoring.layout import padded
from lit_pref.scoring.scorer import Scorer, score_pairs

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
CORPUS = Corpus("some-texts", lambda: ["the quick brown fox jumps over the lazy dog", "pack my box"] * 20)
TEXTS = [
    TruncatedText("the quick", " brown fox", " dog", True, True),
    TruncatedText("pack", " my b", " a jug and a box", False, True),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def policy_of(vocabulary=280, **settings):
    policy = ModelSpec(config=LLAMA, vocabulary=vocabulary, dtype="float64", **settings)
    policy.load_tokenizer(CORPUS)
    return policy


def save(policy, folder, change=lambda model: None):
    model = policy.build()
    change(model)
    model.save_pretrained(folder)
    policy.load_tokenizer().save_pretrained(folder)
    return str(folder)


def encoded(tokenizer, text, end=False):
    return [*tokenizer(text, add_special_tokens=False).input_ids, *([tokenizer.eos_token_id] if end else [])]


def batch_of(tokenizer):
    """TEXTS in the ids of a tokenizer; none of its tokens crosses a boundary."""
    prompts = [[tokenizer.bos_token_id, *encoded(tokenizer, t.prompt)] for t in TEXTS]
    chosen = [encoded(tokenizer, t.chosen, t.chosen_complete) for t in TEXTS]
    rejected = [encoded(tokenizer, t.rejected, t.rejected_complete) for t in TEXTS]
    lengths = (torch.tensor([len(response) for response in side]) for side in (chosen, rejected))
    pairs = PairData(["one", "two"], *lengths, texts=TEXTS)
    return PreferenceBatch(pairs, padded(prompts, chosen, rejected, tokenizer.pad_token_id))


def attached(reference, policy):
    scorer = Scorer(policy.build())
    reference.attach(policy, scorer, policy.load_tokenizer())
    return scorer, batch_of(policy.load_tokenizer())


def train(scorer, batch, steps=2):
    optimizer = torch.optim.SGD([p for p in scorer.parameters() if p.requires_grad], lr=1.0)
    for _ in range(steps):
        optimizer.zero_grad()
        scores = scorer(batch)
        (scores.rejected.scores - scores.chosen.scores).sum().backward()
        optimizer.step()


def same(one, other):
    return torch.equal(one.chosen.scores, other.chosen.scores) and torch.equal(
        one.rejected.scores, other.rejected.scores
    )


@pytest.mark.parametrize(
    ("reference", "lora"), [(InitialPolicy, None), (InitialPolicy, Lora(r=2)), (AdapterOff, Lora(r=2))]
)
def test_a_reference_is_the_policy_at_its_start_and_stays_so(reference, lora):
    reference, policy = reference(), policy_of(lora=lora)
    scorer, batch = attached(reference, policy)
    before = reference.score(batch)
    assert same(before, scorer.eval()(batch))
    # Bit-equal to the model without adapters, which the same seed gives.
    assert same(before, score_pairs(policy_of().build(), batch))
    train(scorer.train(), batch)
    assert same(reference.score(batch), before)
    assert not same(scorer(batch), before)
    assert reference.fingerprint() == policy.fingerprint()
    assert policy.describe() in reference.describe()


def test_a_checkpoint_restored_after_attaching_does_not_move_it():
    policy, reference = policy_of(), InitialPolicy()
    scorer, batch = attached(reference, policy)
    before = reference.score(batch)
    scorer.load_state_dict({name: value + 0.1 for name, value in scorer.state_dict().items()})
    assert same(reference.score(batch), before)


@pytest.mark.parametrize("kind", ["initial", "adapter", "pretrained"])
def test_scores_carry_no_gradient_and_modes_come_back(kind, tmp_path):
    path = save(policy_of(), tmp_path / "model")
    reference = {"initial": InitialPolicy(), "adapter": AdapterOff(), "pretrained": Pretrained(path)}[kind]
    policy = policy_of(dropout=0.5, lora=Lora(r=2, dropout=0.5))
    scorer, batch = attached(reference, policy)
    scorer.model.get_base_model().model.layers[1].eval()
    modes = [module.training for module in scorer.modules()]
    trained = [p.requires_grad for p in scorer.parameters()]
    if kind != "adapter":  # without gradient even where its weights would take one
        assert not any(module.training for module in reference.scorer.modules())
        reference.scorer.requires_grad_(True)
    one, other = reference.score(batch, frozenset({TokenLogps()})), reference.score(batch)
    assert same(one, other)  # no dropout, although the policy is in train mode
    assert not one.chosen.scores.requires_grad and not one.chosen.statistics[TokenLogps()].requires_grad
    assert not reference.readout(batch).hidden.requires_grad
    assert [module.training for module in scorer.modules()] == modes
    assert [p.requires_grad for p in scorer.parameters()] == trained


@pytest.mark.parametrize("kind", [InitialPolicy, AdapterOff])
def test_a_reference_is_not_part_of_a_module_that_holds_it(kind):
    reference = kind()
    scorer, _ = attached(reference, policy_of(lora=Lora(r=2)))
    module = torch.nn.Module()
    module.references = [reference]
    module.reference = reference
    assert list(module.parameters()) == [] and module.state_dict() == {}
    if kind is InitialPolicy:
        assert not any(p.requires_grad for p in reference.scorer.parameters())
        assert not {p.data_ptr() for p in reference.scorer.parameters()} & {p.data_ptr() for p in scorer.parameters()}


def test_a_reference_moves_and_the_adapterless_policy_stays_with_the_policy():
    initial, off = InitialPolicy(), AdapterOff()
    scorer, _ = attached(initial, policy_of(lora=Lora(r=2)))
    off.attach(policy_of(lora=Lora(r=2)), scorer, None)
    for reference in (initial, off):
        reference.to("meta")
    assert {p.device.type for p in initial.scorer.parameters()} == {"meta"}
    assert {p.device.type for p in scorer.parameters()} == {"cpu"}


def test_an_adapter_cannot_be_switched_off_where_there_is_none():
    with pytest.raises(UsageError, match=r"AdapterOff needs adapters to switch off: set policy\.lora"):
        attached(AdapterOff(), policy_of())


def test_a_reference_that_is_not_attached_says_so():
    for use in (lambda r: r.score(None), lambda r: r.readout(None), lambda r: r.to("cpu"), lambda r: r.fingerprint()):
        with pytest.raises(RuntimeError, match="initial policy has not been attached"):
            use(InitialPolicy())


def test_the_readout_of_a_reference_serves_the_policys_comparisons():
    reference, policy = InitialPolicy(), policy_of()
    scorer, batch = attached(reference, policy)
    at_start = scorer(batch, frozenset({Kl()}), reference.readout(batch))
    assert at_start.chosen.statistics[Kl()].abs().max() < 1e-12
    train(scorer, batch)
    assert scorer(batch, frozenset({Kl()}), reference.readout(batch)).chosen.statistics[Kl()].min() > 1e-3


def test_a_fallen_back_policy_has_a_copy_that_falls_back_too():
    policy, reference = policy_of(), InitialPolicy()
    scorer = Scorer(policy.build())
    scorer.full_logits = True
    reference.attach(policy, scorer, policy.load_tokenizer())
    assert reference.readout(batch_of(policy.load_tokenizer())).weight is None


def test_another_model_with_the_same_tokenizer_scores_the_policys_tokens(tmp_path):
    other = policy_of(seed=9)
    reference = Pretrained(save(other, tmp_path / "other"), dtype="float64")
    scorer, batch = attached(reference, policy_of())
    needs = frozenset({TokenLogps()})
    ours, theirs = reference.score(batch, needs), score_pairs(other.build(), batch, needs)
    assert same(ours, theirs)
    assert torch.equal(ours.chosen.statistics[TokenLogps()], theirs.chosen.statistics[TokenLogps()])
    assert reference.readout(batch).vocabulary == 280
    assert reference.label == str(tmp_path / "other")
    assert reference.describe() == f"{tmp_path / 'other'}, float64"
    assert reference.fingerprint() == ModelSpec(path=str(tmp_path / "other")).fingerprint()
    assert not same(ours, scorer(batch))


def test_a_reference_with_another_tokenizer_scores_the_text_in_its_own_tokens(tmp_path):
    other = policy_of(vocabulary=264, seed=9)
    reference = Pretrained(save(other, tmp_path / "other"), dtype="float64")
    _, batch = attached(reference, policy_of())
    scores = reference.score(batch)
    model, tokenizer = other.build().eval(), other.load_tokenizer()
    for side, texts in (
        (scores.chosen, [(t.chosen, t.chosen_complete) for t in TEXTS]),
        (scores.rejected, [(t.rejected, t.rejected_complete) for t in TEXTS]),
    ):
        for i, (text, (response, complete)) in enumerate(zip(TEXTS, texts, strict=True)):
            prompt = tokenizer(text.prompt).input_ids
            row = tokenizer(text.prompt + response).input_ids + ([tokenizer.eos_token_id] if complete else [])
            assert row[: len(prompt)] == prompt and prompt[0] == tokenizer.bos_token_id
            logps = torch.log_softmax(model(torch.tensor([row])).logits[0], -1)
            by_hand = sum(logps[t - 1, row[t]].item() for t in range(len(prompt), len(row)))
            assert side.scores[i].item() == pytest.approx(by_hand, abs=1e-9)
            assert side.lengths[i] == len(row) - len(prompt)
    assert scores.chosen.lengths.tolist() != batch.pairs.chosen_lengths.tolist()
    assert reference.describe().endswith("reads the text with its own tokenizer")


def test_another_tokenizer_compares_neither_tokens_nor_distributions(tmp_path):
    reference = Pretrained(save(policy_of(vocabulary=264), tmp_path / "other"))
    _, batch = attached(reference, policy_of())
    with pytest.raises(
        UserError, match=r"EpsilonStep needs a reference with the policy's vocabulary, .* tokenizer of its own"
    ):
        reference.readout(batch)
    with pytest.raises(UserError, match="compares single tokens"):
        reference.score(batch, frozenset({TokenLogps()}))


def widened(ids):
    def widen(model):
        model.resize_token_embeddings(ids, mean_resizing=False)
        model.get_output_embeddings().weight.data[280:] *= 50

    return widen


@pytest.mark.parametrize("sizes", [(280, 290), (290, 280), (290, 296)], ids=str)
def test_padded_vocabularies_are_compared_on_the_shared_ids(sizes, tmp_path):
    needs = [Tilt(0.1), TiltSlope(), Kl()]

    def compared(policy_ids, reference_ids, folder):
        policy = ModelSpec(path=save(policy_of(), folder / "policy", widened(policy_ids)), dtype="float64")
        reference = Pretrained(save(policy_of(seed=9), folder / "reference", widened(reference_ids)), dtype="float64")
        scorer, batch = attached(reference, policy)
        scores = scorer(batch, frozenset(needs), reference.readout(batch))
        return reference, batch, [scores.rejected.statistics[need] for need in needs]

    reference, batch, ours = compared(*sizes, tmp_path / "padded")
    plain, _, theirs = compared(280, 280, tmp_path / "plain")
    if min(sizes) == 280:  # no padding is shared
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert plain.note is None
    assert f"of which the tokenizer uses 280: next-token distributions are compared over the first {min(sizes)}" in (
        reference.note
    )
    own = ModelSpec(path=reference.label, dtype="float64").build()
    assert same(reference.score(batch), score_pairs(own, batch))


def test_an_id_that_one_model_lacks_is_not_compared(tmp_path, monkeypatch):
    reference = Pretrained(save(policy_of(seed=9), tmp_path / "wide", widened(290)), dtype="float64")
    policy = policy_of()
    tokenizer = type(policy.load_tokenizer())
    vocabulary = policy.load_tokenizer().get_vocab() | {"<last>": 284}
    monkeypatch.setattr(tokenizer, "get_vocab", lambda self: vocabulary)
    _, batch = attached(reference, policy)
    with pytest.raises(UserError, match=r"EpsilonStep needs .*290 ids, the policy for 280, and the tokenizer uses 285"):
        reference.readout(batch)
    assert same(reference.score(batch), score_pairs(ModelSpec(path=reference.label, dtype="float64").build(), batch))


def test_a_text_longer_than_a_reference_can_read_is_refused_by_its_pair(tmp_path):
    path = save(policy_of(vocabulary=264), tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 16}))
    reference = Pretrained(path)
    _, batch = attached(reference, policy_of())
    long = replace(TEXTS[1], rejected=" a jug" * 20)
    with pytest.raises(UserError, match=r"pair two has 1\d\d tokens for the reference .* reads at most 16"):
        reference.score(replace(batch, pairs=replace(batch.pairs, texts=[TEXTS[0], long])))


def test_the_initial_policy_is_rounded_as_the_policy_was(policy_folder):
    policy = ModelSpec(path=str(policy_folder))
    scorer = Scorer(policy.build())
    reference = InitialPolicy()
    reference.attach(policy, scorer, policy.load_tokenizer())
    precision = HalfPrecision("bf16-true")
    run: Any = SimpleNamespace(convert=precision.convert_module, shard=None)
    reference.place(run)
    precision.convert_module(scorer)  # as Lightning does after the module was built
    assert reference.scorer is not None
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        pairs = list(zip(tensors(reference.scorer), tensors(scorer), strict=True))
        assert pairs and all(own.dtype == policys.dtype and torch.equal(own, policys) for own, policys in pairs)


def test_weights_of_its_own_are_sharded_and_those_of_the_policy_are_not(policy_folder):
    initial, off, other = InitialPolicy(), AdapterOff(), Pretrained(str(policy_folder), dtype="bfloat16")
    scorer, _ = attached(initial, policy_of(lora=Lora(r=2)))
    off.attach(policy_of(lora=Lora(r=2)), scorer, None)
    attached(other, ModelSpec(path=str(policy_folder)))
    sharded: list[Any] = []
    run: Any = SimpleNamespace(convert=lambda module: module.float(), shard=sharded.append)
    for reference in (initial, off, other):
        reference.place(run)
    assert sharded == [initial.scorer, other.scorer]
    assert [{p.dtype for p in model.parameters()} for model in sharded] == [{torch.float32}, {torch.bfloat16}]
    assert {p.dtype for p in scorer.parameters()} == {torch.float64}


def test_a_reference_tells_how_many_of_the_policys_tokens_it_reads(tmp_path):
    policy = policy_of()
    tokenizer = policy.load_tokenizer()
    alike = Pretrained(save(policy_of(seed=9), tmp_path / "alike"))
    other = Pretrained(save(policy_of(vocabulary=264), tmp_path / "other"))
    assert alike.max_length(tokenizer) == 64
    assert other.max_length(tokenizer) is None  # its own tokens are counted where they are made
    assert (InitialPolicy().max_length(tokenizer), AdapterOff().max_length(tokenizer)) == (None, None)
