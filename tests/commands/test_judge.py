"""`python -m lit_pref judge` as a user runs it."""

import json
import random
import shutil

import pytest
import torch
from conftest import run_command
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.commands.judge import judge
from lit_pref.errors import UsageError, UserError
from lit_pref.testbed.world import EOS, Prompt, demonstrate, gold_reward, join_words, split_words

ROWS = [
    {"prompt": "red green :", "response": " blue good", "sample": 0},
    {"prompt": "red green :", "response": " tin bad iron", "sample": 1},
    {"prompt": "elm :", "response": " cat dog owl", "sample": 0},
]


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "responses.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_pairs_and_best_are_written_and_the_pairs_train(tmp_path, texts, policy_folder):
    folder = tmp_path / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=1)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(folder)
    ran = run_command(
        *("judge", "--texts", texts, "--out", tmp_path / "judged", "--model", folder),
        *("--pairs", "best_worst", "--best", "2"),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    rows = read(tmp_path / "judged" / "judged.jsonl")
    assert [{k: v for k, v in row.items() if k != "score"} for row in rows] == ROWS
    (pair,) = read(tmp_path / "judged" / "pairs.jsonl")
    scores = {row["response"]: row["score"] for row in rows}
    assert pair["margin"] == pytest.approx(scores[pair["chosen"]] - scores[pair["rejected"]]) and pair["margin"] > 0
    best = read(tmp_path / "judged" / "best.jsonl")
    assert [row["prompt"] for row in best] == ["red green :", "elm :"] and best[0]["response"] == pair["chosen"]
    assert "reward of" in ran.stdout and "--data.train" in ran.stdout
    checked = run_command(
        *("check", "--data.train", tmp_path / "judged" / "pairs.jsonl", "--model.objective", "MMPO"),
        *("--model.policy.path", policy_folder, "--data.val_fraction", "0", "--run_dir", "run"),
        cwd=tmp_path,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_given_scores_and_gold_rewards(tmp_path, capsys):
    prompt = Prompt.numbered(77)
    rows = [{"prompt": prompt.text, "response": [" lead", " gold tin"], "votes": [0.25, 0.75]}]
    (tmp_path / "r.jsonl").write_text(json.dumps(rows[0]) + "\n")
    judge(str(tmp_path / "r.jsonl"), tmp_path / "given", given="votes", pairs="all")
    assert read(tmp_path / "given" / "pairs.jsonl")[0]["margin"] == 0.5
    judge(str(tmp_path / "r.jsonl"), tmp_path / "gold", testbed=True)
    expected = [gold_reward(prompt, [*split_words(text), EOS]) for text in rows[0]["response"]]
    assert read(tmp_path / "gold" / "judged.jsonl")[0]["score"] == expected
    with pytest.raises(UserError, match="has no number"):
        judge(str(tmp_path / "r.jsonl"), tmp_path / "none", given="prompt")


def test_a_response_that_ended_at_the_length_limit_has_no_eos_for_the_gold_reward(tmp_path, capsys):
    prompt = Prompt.numbered(77)
    words = demonstrate(prompt, random.Random(0))
    rows = [
        {"prompt": prompt.text, "response": join_words(words[:-1]), "finish_reason": why} for why in ("stop", "length")
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge(str(tmp_path / "r.jsonl"), tmp_path / "gold", testbed=True, best=2)
    whole, cut = (row["score"] for row in read(tmp_path / "gold" / "judged.jsonl"))
    assert whole == gold_reward(prompt, words) == cut + 2, "a missing eos costs 2 points"
    assert "1 responses ended at the length limit" in capsys.readouterr().out
    assert read(tmp_path / "gold" / "best.jsonl") == [rows[0] | {"score": whole}]
    with pytest.raises(UserError, match="there is a column `score` already"):
        judge(str(tmp_path / "gold" / "best.jsonl"), tmp_path / "again", testbed=True)


def test_refusals(tmp_path, texts):
    with pytest.raises(UsageError, match="exactly one of"):
        judge(str(texts), tmp_path / "out")
    with pytest.raises(UsageError, match="exactly one of"):
        judge(str(texts), tmp_path / "out", given="a", testbed=True)
    with pytest.raises(UsageError, match="belong to --model"):
        judge(str(texts), tmp_path / "out", given="a", per_token=True)
    with pytest.raises(UsageError, match="nothing reads --dtype, --min_margin here"):
        judge(str(texts), tmp_path / "out", given="a", dtype="bfloat16", min_margin=1.0)
    with pytest.raises(UsageError, match="overwrites nothing"):
        judge(str(texts), tmp_path, given="a")
    with pytest.raises(UserError, match="testbed's prompts"):
        judge(str(texts), tmp_path / "out", testbed=True)
    assert not (tmp_path / "out").exists()


def test_words_of_cut_and_unreadable_texts_name_the_line_and_a_remedy_of_this_command(
    tmp_path, texts, policy_folder, capsys
):
    judge(str(texts), tmp_path / "out", model=str(policy_folder), max_length=8, reference=str(policy_folder))
    said = capsys.readouterr()
    assert "summed log-probs" not in said.out
    assert "2 prompts and 3 responses were cut (the first:" in said.out and "--max_length 8; raise it" in said.out
    assert "responses.jsonl, line 1" in said.out and said.out.count("judge  ") == 1 and "judge  " not in said.err
    assert "6 of 6 texts" in said.err  # by both models
    for name, value in {"response": " tin \ud800", "prompt": "red \ud800"}.items():
        texts.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], name: value}) + "\n")
        with pytest.raises(UserError, match=rf"responses.jsonl, line 2: `{name}` contains half a surrogate pair.*fix"):
            judge(str(texts), tmp_path / "no", model=str(policy_folder))
    chat = shutil.copytree(policy_folder, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    texts.write_text(json.dumps(ROWS[0]) + "\n")
    judge(str(texts), tmp_path / "plain", model=str(chat))
    said = capsys.readouterr().out
    assert "1 prompts are plain texts, which the model reads without its chat template" in said
    assert "summed log-probs, which favour short responses: give --reference or --per_token" in said
    row = {"prompt": [{"role": "user", "content": "red"}], "response": " tin"}
    texts.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"responses.jsonl, line 2: the prompt is read as messages, but") as refused:
        judge(str(texts), tmp_path / "no", model=str(policy_folder))
    assert "data." not in str(refused.value) and "model.policy" not in str(refused.value)


def test_half_a_surrogate_elsewhere_is_kept_and_the_last_lines_name_a_next_command(tmp_path, texts, capsys):
    texts.write_text(json.dumps({**ROWS[0], "note": "\ud800", "own": 1.5}) + "\n")
    judge(str(texts), tmp_path / "out", given="own")
    assert read(tmp_path / "out" / "judged.jsonl")[0]["note"] == "\ud800"
    assert "python -m lit_pref evaluate --protocol responses --data" in capsys.readouterr().out.splitlines()[-1]
