"""`python -m lit_pref evaluate` as a user runs it, on tiny models."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, make_policy, run_command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.commands.evaluate import evaluate
from lit_pref.errors import UsageError, UserError
from lit_pref.judging.reward_bench import SECTIONS
from lit_pref.metrics.records import read_parquet

PAIRS = [
    {
        "prompt": f"{WORDS[k % 7]} {WORDS[k % 5]} {k} :",
        "chosen": f" good {WORDS[k % 11]}",
        "rejected": " bad" + f" {WORDS[k % 13]}" * (1 + k % 3),
        "probability": 0.9 - k / 100,
        "kind": "even" if k % 2 == 0 else "odd",
    }
    for k in range(24)
]
"""Pairs with shares of votes, from two sources."""


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reward_model(folder: Path, policy: Path, seed: int) -> str:
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("rewards")
    return reward_model(folder / "one", policy_folder, 1), reward_model(folder / "two", policy_folder, 2)


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def test_pairs_are_evaluated_and_two_reward_models_compared(tmp_path: Path, rewards: tuple[str, str]):
    file, out = write(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "out"
    ran = run_command(
        *("evaluate", "--protocol", "pairs", "--data", file, "--model", rewards[0], "--against", rewards[1]),
        *("--votes", "10", "--group", "kind", "--out", out),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    items, others = read_parquet(out / "items.parquet"), read_parquet(out / "items_against.parquet")
    assert [(Path(name).name, line) for name, line in zip(items["file"], items["line"], strict=True)] == [
        ("pairs.jsonl", k + 1) for k in range(24)
    ]
    assert items["chosen"] == [row["chosen"] for row in PAIRS] and items["id"] == others["id"]
    assert items["label"] == pytest.approx([row["probability"] for row in PAIRS])
    found = report(out)
    assert found["settings"]["options"]["model"] == rewards[0] and found["settings"]["votes"] == 10
    accuracy = [sum(z > 0 for z in side["z"]) / 24 for side in (items, others)]
    assert found["pairs"]["calibration"]["accuracy"][0] == pytest.approx(accuracy[0])
    assert {group["name"]: group["pairs"] for group in found["pairs"]["by_source"]} == {"even": 12, "odd": 12}
    compared = {entry["measure"]: entry for entry in found["comparisons"]}
    assert compared["accuracy"]["difference"][0] == pytest.approx(accuracy[0] - accuracy[1])
    assert compared["accuracy"]["sentence"] in ran.stdout and compared["log-loss"]["sentence"] in ran.stdout
    page = (out / "report.html").read_text()
    assert (
        "Reliability" in page
        and "pairs of the largest loss" in page
        and "data:image/svg" in page
        and 'src="http' not in page
    )
    events = EventAccumulator(str(out)).Reload()
    assert events.Scalars("evaluate/pairs/accuracy")[0].value == pytest.approx(accuracy[0])
    assert "log-loss, nats" in ran.stdout and str(out / "report.html") in ran.stdout and "Next:" in ran.stdout
    assert "scored" in ran.stderr and "scored" not in ran.stdout
    again = run_command(
        *("evaluate", "--protocol", "pairs", "--data", file, "--model", rewards[0], "--out", out), cwd=tmp_path
    )
    assert again.returncode == 2 and "overwrites nothing" in again.stderr


def reward_bench_rows() -> list[dict[str, Any]]:
    """A file of RewardBench's layout with its 23 subsets, with 1 to 3 pairs each."""
    subsets = [subset for section in SECTIONS.values() for subset in section]
    places = [(subset, k) for n, subset in enumerate(subsets) for k in range(1 + n % 3)]
    return [
        {**pair, "subset": subset, "id": f"{subset} {k}"}
        for (subset, k), pair in zip(
            places, ({name: PAIRS[n % 24][name] for name in ("prompt", "chosen", "rejected")} for n in range(99)),
            strict=False,
        )
    ]  # fmt: skip


def test_reward_bench_with_all_subsets_gives_the_published_formula_and_counts_prior_sets_half(
    tmp_path: Path, rewards: tuple[str, str]
):
    rows = reward_bench_rows()
    assert len({row["subset"] for row in rows}) == 23
    file, prior = write(tmp_path / "bench.jsonl", rows), write(tmp_path / "shp.jsonl", PAIRS[:6])
    evaluate(tmp_path / "out", "reward_bench", file, rewards[0], against=rewards[0], prior_sets={"shp": prior})
    found, items = report(tmp_path / "out"), read_parquet(tmp_path / "out" / "items.parquet")
    right: dict[str, list[bool]] = {}
    for subset, (chosen, rejected) in zip(items["subset"], items["scores"], strict=True):
        right.setdefault(subset, []).append(chosen > rejected)
    accuracy = {name: sum(own) / len(own) for name, own in right.items()}
    sections = {
        name: sum(n * accuracy[subset] for subset, n in counts.items()) / sum(counts.values())
        for name, counts in SECTIONS.items()
    }
    numbers = found["benchmarks"]["RewardBench"]
    assert numbers["score"][0] == pytest.approx((sum(sections.values()) + accuracy["shp"] / 2) / 4.5)
    assert {name: numbers[name][0] for name in sections} == pytest.approx(sections)
    assert found["settings"]["missing"] == [] and found["verdict"].startswith("RewardBench: score")
    assert all("have the same" in entry["sentence"] for entry in found["comparisons"]), "they differ by a constant"
    assert [entry["measure"] for entry in found["comparisons"]] == ["RewardBench score"]


def test_a_policy_with_a_reference_is_judged_by_beta_times_its_log_ratio(
    tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hf").symlink_to(policy_folder)
    file = write(tmp_path / "pairs.jsonl", PAIRS[:6])
    evaluate(tmp_path / "plain", "pairs", file, str(tmp_path / "run"), beta=0.5, per_token=True)
    evaluate(tmp_path / "ratio", "pairs", file, str(policy_folder), reference=str(policy_folder))
    plain, ratio = (read_parquet(tmp_path / name / "items.parquet") for name in ("plain", "ratio"))
    assert max(plain["chosen_score"]) < 0 and ratio["z"] == pytest.approx([0.0] * 6, abs=1e-6)
    assert "per token" in report(tmp_path / "plain")["settings"]["judge"]
    assert "log-ratio" in report(tmp_path / "ratio")["settings"]["judge"]


def test_prompts_of_benchmarks_get_the_chat_template_and_pairs_that_do_not_get_it_are_noted(tmp_path: Path):
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    chat = make_policy(tmp_path / "chat", seed=0)
    (chat / "chat_template.jinja").write_text(template)
    bench = write(tmp_path / "bench.jsonl", [{**row, "subset": "math-prm"} for row in PAIRS[:5]])
    file = write(tmp_path / "pairs.jsonl", [*PAIRS[:5], {"prompt": "a", "chosen": "b", "probability": 0.5}])
    lenient: dict[str, Any] = {"bad_rows": "lenient"}
    evaluate(tmp_path / "bench", "reward_bench", bench, str(chat))
    evaluate(tmp_path / "plain", "pairs", file, str(chat), **lenient)
    evaluate(tmp_path / "messages", "pairs", file, str(chat), mapping={"format": "messages"}, **lenient)
    scores = read_parquet(tmp_path / "bench" / "items.parquet")["scores"]
    plain, messages = (read_parquet(tmp_path / name / "items.parquet")["z"] for name in ("plain", "messages"))
    assert [chosen - rejected for chosen, rejected in scores] == pytest.approx(messages, abs=1e-5)
    assert plain != pytest.approx(messages, abs=1e-3)
    notes = report(tmp_path / "plain")["notes"]
    assert notes[0].startswith("Rows left out: 1 (") and "--mapping '{format: messages}'" in notes[1]
    assert len(report(tmp_path / "messages")["notes"]) == 1


def test_best_of_four_and_three_by_three_responses(tmp_path: Path, rewards: tuple[str, str]):
    texts = [f" {word} good" for word in WORDS]
    rows = [
        {"id": str(k), "prompt": f"red {k} :", "subset": "Math", "chosen": [texts[k]], "rejected": texts[k + 1 : k + 4]}
        for k in range(5)
    ]
    evaluate(tmp_path / "two", "reward_bench2", write(tmp_path / "two.jsonl", rows), rewards[0])
    items = read_parquet(tmp_path / "two" / "items.parquet")
    best = [own[0] == max(own) for own in items["scores"]]
    found = report(tmp_path / "two")
    assert found["benchmarks"]["RewardBench 2"]["Math"][0] == pytest.approx(sum(best) / 5)
    assert "cannot be compared with published" in found["notes"][0]
    rows = [
        {"id": str(k), "prompt": f"red {k} :", "domain": "chat", "chosen": texts[k : k + 3], "rejected": texts[-3:]}
        for k in range(4)
    ]
    evaluate(tmp_path / "rm", "rm_bench", write(tmp_path / "rm.jsonl", rows), rewards[0])
    assert set(report(tmp_path / "rm")["benchmarks"]["RM-Bench"]) >= {"score", "chat", "hard", "normal", "easy"}
    with pytest.raises(UserError, match=r"line 1 has no domain"):
        evaluate(tmp_path / "no", "rm_bench", str(tmp_path / "two.jsonl"), rewards[0])


def test_win_rates_of_annotations_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {
            "item": k,
            "model": name,
            "preference": 1 + share,
            "length_baseline": 100 + 7 * (k % 5),
            "length_model": 90 + 11 * (k % 7),
        }
        for name, every in (("strong", 0.8), ("weak", 0.3))
        for k in range(40)
        for share in [min(1.0, every + 0.2 * (k % 3 == 0))]
    ]
    file = write(tmp_path / "annotations.jsonl", rows)
    evaluate(tmp_path / "out", "win_rate", file, generator="strong", against="weak", length_controlled=True)
    found = report(tmp_path / "out")
    numbers = found["benchmarks"]["Win rate"]
    expected = sum(row["preference"] - 1 for row in rows if row["model"] == "strong") / 40
    assert numbers["win rate"][0] == pytest.approx(expected)
    assert 0 < numbers["length-controlled win rate"][0] < 1 and math.isfinite(numbers["length-controlled win rate"][1])
    items = read_parquet(tmp_path / "out" / "items.parquet")
    assert items["line"] == list(range(1, 41)) and sum(items["preference"]) / 40 == pytest.approx(expected)
    assert "strong is better than weak: win rate" in capsys.readouterr().out
    assert "win rate" in (tmp_path / "out" / "report.html").read_text()


def test_judged_responses_win_against_those_of_a_baseline_to_the_same_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    mine = [{"prompt": f"p {k}", "response": "good " * (1 + k), "score": float(k)} for k in range(12)]
    twice = [{**row, "response": "other", "score": 3.0} for row in mine[1:3]]
    base = [{"prompt": f"p {k}", "response": "bad", "score": 5.0} for k in range(1, 13)]
    files = write(tmp_path / "mine.jsonl", [*mine, *twice]), write(tmp_path / "base.jsonl", base)
    evaluate(tmp_path / "out", "responses", files[0], against=files[1], length_controlled=True)
    found, items = report(tmp_path / "out"), read_parquet(tmp_path / "out" / "items.parquet")
    # p 1 to p 11: scores 1 to 4 lose, 5 ties, 6 to 11 win; the second responses lose too.
    assert found["benchmarks"]["Win rate"]["win rate"][0] == pytest.approx(6.5 / 11)
    assert items["preference"] == [0.0] * 4 + [0.5] + [1.0] * 6 and items["line"] == list(range(2, 13))
    assert items["scores"][0] == [1.0, 3.0] and items["baseline_responses"][0] == ["bad"]
    assert items["model_length"][0] == pytest.approx((len("good good ") + len("other")) / 2)
    assert "2 prompts are answered in one file only" in found["notes"][1] and "Next: look" in capsys.readouterr().out
    with pytest.raises(UserError, match="answer no prompt in common"):
        evaluate(tmp_path / "no", "responses", write(tmp_path / "x.jsonl", mine[:1]), against=files[1])
    with pytest.raises(UserError, match=r"mine.jsonl, line 1: `rating` has no number"):
        evaluate(tmp_path / "no", "responses", files[0], against=files[1], column="rating")
    with pytest.raises(UsageError, match="responses needs --against"):
        evaluate(tmp_path / "no", "responses", files[0])


def test_refusals_come_before_anything_is_loaded(tmp_path: Path, rewards: tuple[str, str], policy_folder: Path):
    file, out = write(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "out"
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "needs --protocol .one of pairs, .* or --tasks; none is given"),
        ({"protocol": "pairs", "tasks": "gsm8k"}, "both are given"),
        ({"protocol": "pairs", "data": file}, "pairs needs --model"),
        ({"protocol": "pairs", "model": rewards[0]}, "pairs needs --data"),
        ({"protocol": "pairs", "data": file, "model": rewards[0], "generator": "x"}, "--generator belongs to win_rate"),
        ({"protocol": "win_rate", "data": file, "model": rewards[0]}, "--model belongs to pairs"),
        ({"protocol": "pairs", "data": file, "model": rewards[0], "against_reference": "x"}, "which is not given"),
        ({"protocol": "pairs", "data": file, "model": rewards[0], "votes": 0.0}, "is above 0"),
        (
            {"protocol": "pairs", "data": file, "model": rewards[0], "reference": str(policy_folder)},
            "is a reward model",
        ),
        ({"protocol": "pairs", "data": file, "model": rewards[0], "beta": 0.1}, "leave out --beta"),
        (
            {"protocol": "pairs", "data": file, "model": str(policy_folder), "reference": rewards[0]},
            "name the policy that training began with",
        ),
    ]
    for options, said in refused:
        with pytest.raises(UsageError, match=said):
            evaluate(out, **options)
    embedding = tmp_path / "embedding"
    embedding.mkdir()
    for path in Path(rewards[0]).iterdir():
        (embedding / path.name).symlink_to(path)
    (embedding / "preference_embedding.json").write_text('{"dimensions": 2}')
    with pytest.raises(UsageError, match="compares two responses and scores none alone, as RM-Bench needs"):
        evaluate(out, "rm_bench", file, str(embedding))
    with pytest.raises(UserError, match=r"no file .*pairs.json; did you mean .*pairs\.jsonl"):
        evaluate(out, "pairs", str(tmp_path / "pairs.json"), rewards[0])
    bad = write(tmp_path / "bad.jsonl", [*PAIRS[:3], {"prompt": "a", "chosen": "b", "probability": 0.5}])
    with pytest.raises(UserError, match=r"bad.jsonl, line 4: .*--bad_rows lenient"):
        evaluate(out, "pairs", bad, rewards[0])
    assert not out.exists()


TASK = """task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_task_of_lm_eval_runs_offline_on_an_exported_folder(
    tmp_path: Path, policy_folder: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("lm_eval")
    rows = [{"prompt": f"{WORDS[k]} {k} :", "choices": [" good", " bad cat"], "answer": k % 2} for k in range(8)]
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(
        TASK.replace("FILE", write(tmp_path / "colours.jsonl", rows)).replace("CACHE", str(tmp_path / "cache"))
    )
    out, other = tmp_path / "out", make_policy(tmp_path / "other", seed=3)
    evaluate(out, tasks="colours", task_folder=folder, model=str(policy_folder), against=str(other), device="cpu")
    items, found = read_parquet(out / "items.parquet"), report(out)
    assert len(items["value"]) == 8 and [str(prompt) for prompt in items["prompt"]] == [row["prompt"] for row in rows]
    assert found["benchmarks"]["colours"]["acc"][0] == pytest.approx(sum(items["value"]) / 8)
    others = read_parquet(out / "items_against.parquet")
    (compared,) = found["comparisons"]
    assert compared["difference"][0] == pytest.approx((sum(items["value"]) - sum(others["value"])) / 8)
    assert "colours: acc" in (out / "report.html").read_text()
    with pytest.raises(UserError, match=r"knows no task 'colour'; did you mean colours"):
        evaluate(tmp_path / "no", tasks="colour", task_folder=folder, model=str(policy_folder))


def test_tasks_without_lm_eval_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lit_pref.commands.evaluate.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'lit_pref\[lm-eval\]'"):
        evaluate(tmp_path / "out", tasks="gsm8k", model="x")
