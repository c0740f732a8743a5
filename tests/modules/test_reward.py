"""Tests for `lit_pref.modules.reward` and `lit_pref.scoring.reward`: scores, training, export, refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_policy, run_command, write_pairs
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.data.batching.collation import collate
from lit_pref.errors import UsageError, UserError
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.models.reward import Embedding, reward_scorer
from lit_pref.models.saving import MARKER
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.checkpoint_info import check_state
from lit_pref.modules.preference import PreferenceModule
from lit_pref.modules.reward import RewardModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.terms import ChosenNLL
from lit_pref.objectives.requirements import Requirements
from lit_pref.objectives.reward.bradley_terry import BradleyTerry
from lit_pref.objectives.reward.fine_grained import FineGrained
from lit_pref.objectives.reward.gpm import GPM
from lit_pref.objectives.reward.pcrm import TokenPCRM
from lit_pref.objectives.sft import SFT
from lit_pref.objectives.weighted import Weighted
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.run.run import build
from lit_pref.scores import TokenRewards
from lit_pref.scoring.reward import response_positions, skew_symmetric

TEXT = TruncatedText("", "", "", True, True)
PAIRS = [
    PreferencePair("a", [5, 6, 7], [8, 9, 10], [11], 1.0, None, {}, None, TEXT),
    PreferencePair("b", [12, 13], [14], [15, 16, 17, 18], 0.5, None, {}, None, TEXT),
    PreferencePair("c", [5], [19, 20], [21, 22], 2.0, None, {}, None, TEXT),
]
FAMILIES = {
    "llama": {},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}


@pytest.fixture(scope="module")
def scorer(policy_folder):
    spec = ModelSpec(path=str(policy_folder), head="scalar", seed=1)
    built = reward_scorer(spec.build().eval(), spec.embedding)
    torch.nn.init.normal_(built.parameters_of_head()[0], std=0.1, generator=torch.Generator().manual_seed(0))
    enable_prefix_sharing(built.model)
    return built


def both(scores):
    return torch.cat([scores.chosen.scores, scores.rejected.scores]).detach()


def alone(scorer, pair, ids):
    """The score of one response by transformers' own forward, without padding."""
    return scorer.model(input_ids=torch.tensor([pair.prompt + ids])).logits.flatten().detach()


def test_scores_are_those_of_transformers_for_each_response_alone(scorer):
    expected = torch.cat([alone(scorer, p, p.chosen) for p in PAIRS] + [alone(scorer, p, p.rejected) for p in PAIRS])
    torch.testing.assert_close(both(scorer(collate(PAIRS, 0))), expected, atol=1e-6, rtol=0)
    assert both(scorer(collate(PAIRS, 0))).std() > 0.05


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
@pytest.mark.parametrize("pad", [0, 10, 22], ids=["pad", "pad_is_an_end", "pad_is_another_end"])
def test_scores_depend_neither_on_layout_nor_padding_nor_batch_nor_order(scorer, layout, pad):
    expected = both(scorer(collate(PAIRS, 0)))
    whole = both(scorer(collate(PAIRS, pad, layout=layout)))
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)
    one_by_one = [both(scorer(collate([pair], pad, layout=layout))) for pair in PAIRS]
    torch.testing.assert_close(torch.stack(one_by_one).T.flatten(), expected, atol=1e-6, rtol=0)
    backwards = both(scorer(collate(PAIRS[::-1], pad, layout=layout))).reshape(2, 3).flip(1).flatten()
    torch.testing.assert_close(backwards, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_rewards_of_tokens_end_with_the_score_and_are_those_of_every_prefix(scorer, layout):
    scores = scorer(collate(PAIRS, 0, layout=layout), frozenset({TokenRewards()}))
    for side, ids in ((scores.chosen, "chosen"), (scores.rejected, "rejected")):
        for row, pair, score in zip(side.statistics[TokenRewards()], PAIRS, side.scores, strict=True):
            response = getattr(pair, ids)
            expected = torch.cat([alone(scorer, pair, response[: k + 1]) for k in range(len(response))])
            torch.testing.assert_close(row[: len(response)].detach(), expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(row[len(response) - 1], score, atol=1e-6, rtol=0)
            assert not row[len(response) :].any()


@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_positions_of_response_tokens_hold_the_response_ids(layout):
    rows = collate(PAIRS, 0, layout=layout).rows
    assert torch.equal(rows.input_ids.flatten()[response_positions(rows)], rows.targets)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_head_computes_in_fp32_under_autocast(scorer, precision):
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=precision):
        found = scorer.outputs(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden @ scorer.parameters_of_head()[0].T)


# Preference embeddings


def embedding_scorer(folder, **settings):
    spec = ModelSpec(path=str(folder), head="scalar", embedding=Embedding(dimensions=4, **settings), seed=1)
    built = reward_scorer(spec.build().eval(), spec.embedding)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(built.parameters_of_head()[0], generator=generator)
    if built.gate is not None:
        torch.nn.init.normal_(built.gate.weight, generator=generator)
    enable_prefix_sharing(built.model)
    return built


@pytest.mark.parametrize("settings", [{}, {"gate": True}, {"normalise": True}, {"gate": True, "normalise": True}])
@pytest.mark.parametrize("layout", ["padded", "prefix_shared"])
def test_an_embedding_is_skew_symmetric_and_is_the_equation(policy_folder, settings, layout):
    scorer = embedding_scorer(policy_folder, **settings)
    scores = scorer(collate(PAIRS, 0, layout=layout))
    found = scores.chosen.scores - scores.rejected.scores
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in PAIRS]
    back = scorer(collate(swapped, 0, layout=layout))
    torch.testing.assert_close(back.chosen.scores - back.rejected.scores, -found, atol=1e-6, rtol=1e-5)
    for s, pair in zip(found, PAIRS, strict=True):
        hidden = [
            scorer.model.base_model(input_ids=torch.tensor([pair.prompt + ids])).last_hidden_state[0]
            for ids in (pair.chosen, pair.rejected)
        ]
        v = [h[-1] @ scorer.model.score.weight.T for h in hidden]
        if settings.get("normalise"):
            v = [x / x.norm() for x in v]
        lam = torch.ones(2)
        if settings.get("gate"):
            lam = (scorer.gate.weight @ hidden[0][len(pair.prompt) - 1]).softmax(-1)
        expected = sum(lam[b] * (v[0][2 * b] * v[1][2 * b + 1] - v[0][2 * b + 1] * v[1][2 * b]) for b in range(2))
        torch.testing.assert_close(s, expected, atol=1e-5, rtol=1e-5)


def test_golden_values_of_the_skew_symmetric_score():
    w = torch.tensor([[0.6, 0.8, 0.1, -0.2], [0.5, -0.5, 0.5, 0.5]], dtype=torch.float64)
    l = torch.tensor([[0.8, -0.6, 0.0, 0.3], [0.5, 0.5, -0.5, 0.5]], dtype=torch.float64)  # noqa: E741
    torch.testing.assert_close(skew_symmetric(w, l), torch.tensor([-0.97, 1.0], dtype=torch.float64))
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (w, l)]
    expected = torch.tensor([-0.9067004593707638, 1.0], dtype=torch.float64)
    torch.testing.assert_close(skew_symmetric(*unit), expected)
    lam = torch.tensor([[0.3, -0.2], [0.0, 0.0]], dtype=torch.float64).softmax(-1)
    expected = torch.tensor([-0.6111331111379102, 0.5], dtype=torch.float64)
    torch.testing.assert_close(skew_symmetric(w, l, lam), expected)
    angles = torch.tensor([0.0, 120.0, 240.0], dtype=torch.float64).deg2rad()
    circle = torch.stack([angles.cos(), angles.sin()], -1)
    torch.testing.assert_close(
        skew_symmetric(circle, circle.roll(-1, 0)), torch.full((3,), 0.8660254037844387).double()
    )


# Training and export


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_exported_folder_scores_like_the_checkpoint(tmp_path, family, lora):
    base = make_policy(tmp_path / "base", seed=0, **FAMILIES[family])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(272)  # room for the tokens that Qwen2's own tokenizer class adds
    model.save_pretrained(base)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 24)
    options = {
        "model.policy": {"path": str(base), "head": "scalar", **({"lora": {"r": 4}} if lora else {})},
        "model.objective": {"class_path": "BradleyTerry"},
        "model.optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01}},
        "data": {"train": str(pairs), "global_batch": 8, "val_fraction": 0.2},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "run_dir": str(tmp_path / "run"),
        "print_summary": False,
    }
    config = {"model": {}}
    for name, value in options.items():
        place = config
        *path, last = name.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    run = build(config)
    exported = run.fit()
    assert exported.largest_difference < 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(exported.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    held_out = [run.data.val_pairs[k] for k in range(len(run.data.val_pairs))]
    rows = [{"input_ids": pair.prompt + ids} for pair in held_out for ids in (pair.chosen, pair.rejected)]
    # GPT-2's position embeddings count the padding on the left.
    for side in ("right", "left") if family != "gpt2" else ("right",):
        batch = tokenizer.pad(rows, return_tensors="pt", padding_side=side)
        by_transformers = model(**batch).logits.flatten().reshape(-1, 2).detach()
        ours = run.module.scorer.eval()(collate(held_out, 0))
        torch.testing.assert_close(by_transformers[:, 0], ours.chosen.scores.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(by_transformers[:, 1], ours.rejected.scores.detach(), atol=2e-5, rtol=1e-4)
    trained = {name for name, p in run.module.scorer.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained)
    if lora:
        adapter = run.export(tmp_path / "adapter", merge=False)
        assert adapter.largest_difference < 1e-5
        assert "score" in json.loads((adapter.folder / "adapter_config.json").read_text())["modules_to_save"]
    # A classifier's head is kept when training starts from it.
    again = ModelSpec(path=str(exported.folder), head="scalar").build()
    assert torch.equal(again.score.weight, model.score.weight)
    with pytest.raises(UserError, match="head would be lost"):
        ModelSpec(path=str(exported.folder)).build()


def test_an_embedding_is_exported_with_the_module_that_reads_it(tmp_path, policy_folder):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 16)
    ran = run_command(
        *("fit", "--model.policy.path", policy_folder, "--model.policy.head", "scalar"),
        *("--model.policy.embedding", '{"dimensions": 4, "gate": true, "normalise": true}'),
        *("--model.objective", "GPM", "--data.train", pairs, "--data.global_batch", "4", "--trainer.max_steps", "3"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--model.optimizer.lr", "0.01"),
        *("--run_dir", tmp_path / "run"),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "run" / "hf"
    code = "from embedding_reader import PreferenceModel; m = PreferenceModel('.'); "
    code += "print(m.score([5, 6], [7, 8], [9]), m.score([5, 6], [9], [7, 8]), m.gate is not None)"
    read = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    first, second, gated = read.stdout.split()
    assert float(first) == pytest.approx(-float(second), abs=1e-6) and float(first) != 0 and gated == "True"
    assert "embedding_reader.py" in json.loads((folder / MARKER).read_text())["files"]


# Refusals


@pytest.mark.parametrize(
    "objective, words",
    [
        (DPO(), "has none: add `reference: NoReference`"),
        (SFT(), "SFT reads log-probs of tokens"),
        (BradleyTerry(terms=[ChosenNLL()]), "ChosenNLL"),
    ],
)
def test_objectives_that_a_reward_model_cannot_serve_are_refused(policy_folder, objective, words):
    spec = ModelSpec(path=str(policy_folder), head="scalar")
    with pytest.raises(UsageError, match=words):
        RewardModule(spec, objective)


class TokenReader(DPO):
    """A user's own objective, without a flag."""

    requirements = Requirements(max_references=0, statistics=frozenset({TokenRewards()}))


@pytest.mark.parametrize(
    ("objective", "names"),
    [
        (BradleyTerry(), "BradleyTerry"),
        (TokenPCRM(), "TokenPCRM"),
        (FineGrained(), "FineGrained"),
        (TokenReader(), "TokenReader"),
        (Weighted([BradleyTerry(), SFT()]), "BradleyTerry"),
        (Weighted([SFT(), Weighted([TokenPCRM(), GPM()])]), "TokenPCRM and GPM"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_policy_refuses_the_objectives_of_reward_models_also_in_a_sum(objective, names):
    with pytest.raises(UsageError, match=rf"^{names} (is|are) for reward models: set model\.policy\.head to scalar"):
        PreferenceModule(ModelSpec(path="policy"), objective)


def test_a_policy_and_a_reward_model_take_the_objectives_of_both():
    objective = Weighted([MMPO(beta=1, reference=NoReference()), DPO(reference=NoReference())])
    assert PreferenceModule(ModelSpec(path="policy"), objective).objective is objective
    assert RewardModule(ModelSpec(path="policy", head="scalar"), objective).objective is objective


def test_a_head_and_a_module_that_do_not_fit_are_refused(policy_folder):
    with pytest.raises(UsageError, match=r"set model\.policy\.head to scalar"):
        RewardModule(ModelSpec(path=str(policy_folder)), BradleyTerry())
    with pytest.raises(UsageError, match=r"must be one of lm, scalar"):
        ModelSpec(path=str(policy_folder), head="regression")
    with pytest.raises(UsageError, match=r"set policy\.head to scalar"):
        ModelSpec(path=str(policy_folder), embedding=Embedding())
    with pytest.raises(UsageError, match="must be even"):
        Embedding(dimensions=3)
    spec = ModelSpec(path=str(policy_folder), head="scalar", embedding=Embedding())
    with pytest.raises(UsageError, match="scores pairs"):
        RewardModule(spec, TokenPCRM())
    assert RewardModule(spec, MMPO(beta=1, reference=NoReference()))


def test_a_classifier_of_several_labels_is_refused(tmp_path, policy_folder):
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=3)
    model.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="has 3 outputs and this run reads 1"):
        ModelSpec(path=str(tmp_path / "three"), head="scalar").build()


def test_references_of_a_reward_model_are_refused(tmp_path, policy_folder):
    with pytest.raises(UsageError, match="has no references"):
        build(
            {
                "model": {
                    "policy": {"path": str(policy_folder), "head": "scalar"},
                    "objective": {"class_path": "BradleyTerry"},
                    "reference_store": False,
                },
                "data": {"train": str(Path(tmp_path) / "pairs.jsonl")},
            }
        )


def test_lora_trains_and_saves_the_head(policy_folder):
    spec = ModelSpec(path=str(policy_folder), head="scalar", lora=Lora(r=2))
    trained = [name for name, p in spec.build().named_parameters() if p.requires_grad]
    assert [name for name in trained if "lora" not in name] == ["base_model.model.score.modules_to_save.default.weight"]


def test_an_exported_adapter_of_a_reward_model_is_trained_further(tmp_path, policy_folder):
    model = ModelSpec(path=str(policy_folder), head="scalar", lora=Lora(r=2), seed=1).build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    again = ModelSpec(path=str(tmp_path / "adapter"), head="scalar", base_model=str(policy_folder), seed=9)
    torch.testing.assert_close(again.build().eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    assert [n for n, p in again.build().named_parameters() if p.requires_grad and "score" in n]
    with pytest.raises(UserError, match="has the adapter of a reward model"):
        ModelSpec(path=str(tmp_path / "adapter"), base_model=str(policy_folder)).build()


def test_a_checkpoint_of_a_reward_model_is_refused_by_the_run_of_a_policy(policy_folder):
    saved = {"model": {"head": "scalar"}, "lora": None, "objective_state": [], "objective": "", "policy_text": ""}
    with pytest.raises(UserError, match=r"is of a reward model and this run trains a language model"):
        check_state(saved, ModelSpec(path=str(policy_folder)), DPO())
