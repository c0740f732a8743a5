"""Tests for `lit_pref.judging.model_judge`: scores of texts by reward models, embeddings and policies."""

import re
import shutil

import pytest
import torch
from conftest import ROOT, make_policy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.errors import UserError
from lit_pref.judging.model_judge import ModelJudge, judge_spec
from lit_pref.models.reward import Embedding
from lit_pref.models.saving import save_embedding
from lit_pref.models.spec import ModelSpec

QUESTIONS = [
    ("red green :", [" blue good", " tin bad iron", " oak"]),
    ("elm :", [" cat dog owl", " one two three four five six"]),
    ("big old blue tin iron :", [" red"]),
    ("red green :", [" blue", " blue", " good"]),
]


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory, policy_folder):
    folder = tmp_path_factory.mktemp("reward") / "model"
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(folder)
    return folder


def ids_of(tokenizer, prompt, response):
    ids = tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]


def test_a_reward_model_scores_every_response_like_transformers(reward_folder):
    spec = judge_spec(reward_folder)
    assert spec.head == "scalar"
    judge = ModelJudge(spec, max_tokens=40)
    found = judge.scores(QUESTIONS)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    model.config.pad_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    for (prompt, responses), scores in zip(QUESTIONS, found, strict=True):
        for response, score in zip(responses, scores, strict=True):
            expected = float(model(input_ids=torch.tensor([ids_of(tokenizer, prompt, response)])).logits)
            assert score == pytest.approx(expected, abs=1e-6)
    assert found[3][0] == found[3][1] != found[3][2]
    together, alone = judge.scores(QUESTIONS[::-1])[::-1], [judge.scores([question])[0] for question in QUESTIONS]
    for other in (together, alone):
        for a, b in zip(found, other, strict=True):
            assert a == pytest.approx(b, abs=1e-6)
    assert judge.cut == (0, 0) and "reward of" in judge.describe()


CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }} : {{ m.content }}{{ eos_token }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant : {% endif %}"


def test_the_code_of_the_docs_reads_the_score_at_the_end_of_the_turn(reward_folder, tmp_path):
    folder = tmp_path / "chat"
    shutil.copytree(reward_folder, folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    page = (ROOT / "docs" / "reward_models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    values = {}
    exec(code.replace("runs/reward/hf", str(folder)), values)
    prompt = [{"role": "user", "content": "Name a metal."}]
    ((score,),) = ModelJudge(judge_spec(folder)).scores([(prompt, [[{"role": "assistant", "content": "Tin."}]])])
    assert values["score"] == pytest.approx(score, abs=1e-6)
    assert values["tokenizer"].apply_chat_template(values["chat"], tokenize=False).endswith("\n")


def test_a_policy_scores_by_log_probs_ratios_and_means(policy_folder, tmp_path):
    reference_folder = make_policy(tmp_path / "reference", seed=5)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)

    def logp(folder, prompt, response):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = torch.tensor([ids_of(tokenizer, prompt, response)])
        start = 1 + len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return float(logps[start - 1 :].sum()), ids.shape[1] - start

    (prompt, responses) = QUESTIONS[0]
    policy, reference = ModelSpec(path=str(policy_folder)), ModelSpec(path=str(reference_folder))
    for kwargs in ({}, {"reference": reference}, {"per_token": True}, {"reference": reference, "per_token": True}):
        (found,) = ModelJudge(policy, **kwargs).scores(QUESTIONS[:1])
        for response, score in zip(responses, found, strict=True):
            expected, tokens = logp(policy_folder, prompt, response)
            expected -= logp(reference_folder, prompt, response)[0] if "reference" in kwargs else 0.0
            assert score == pytest.approx(expected / tokens if "per_token" in kwargs else expected, abs=1e-4)


def test_an_embedding_gives_the_mean_of_a_skew_symmetric_table(policy_folder, tmp_path):
    folder = tmp_path / "embedding"
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=4)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(folder)
    gate = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    save_embedding(folder, Embedding(4, gate=True, normalise=True), gate)
    spec = judge_spec(folder)
    assert spec.embedding == Embedding(4, gate=True, normalise=True)
    judge = ModelJudge(spec)
    (scores,) = judge.scores(QUESTIONS[:1])
    assert sum(scores) == pytest.approx(0, abs=1e-5) and max(scores) > 0.01
    prompt, (a, b, c) = QUESTIONS[0]
    table = {pair: judge.scores([(prompt, pair)])[0] for pair in ((a, b), (a, c), (b, c), (b, a))}
    assert table[a, b][0] == pytest.approx(-table[b, a][0], abs=1e-6) == pytest.approx(-table[a, b][1], abs=1e-6)
    assert scores[0] == pytest.approx(2 * (table[a, b][0] + table[a, c][0]) / 3, abs=1e-5)
    assert judge.scores([(prompt, [a])]) == [[0.0]]
    ungated = ModelJudge(ModelSpec(str(folder), head="scalar", embedding=Embedding(4, normalise=True)))
    assert ungated.scores(QUESTIONS[:1])[0] != pytest.approx(scores, abs=1e-4)


def test_refusals(reward_folder, policy_folder):
    with pytest.raises(UserError, match="is a reward model, whose scores are compared with no reference"):
        ModelJudge(judge_spec(reward_folder), per_token=True)
    with pytest.raises(UserError, match=r"chosen is empty|has no token"):
        ModelJudge(judge_spec(reward_folder)).scores([("red :", [""])])


def test_long_texts_are_cut_and_counted(reward_folder):
    judge = ModelJudge(judge_spec(reward_folder), max_length=24)
    judge.scores([("red :", [" blue" * 60, " good"])])
    assert judge.cut == (0, 1) and judge.first_cut == "questions, line 1" and judge.longest == 24
    seen = []
    judge.scores([("red :", [" blue", " good", " tin"])], lambda done, of: seen.append((done, of)))
    assert seen[-1] == (3, 3)
