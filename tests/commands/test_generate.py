"""`generate` from prompts to responses.jsonl, by a model in the process and by a real server of transformers."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import TEMPLATE, make_policy, run_command
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.__main__ import main
from lit_pref.commands.generate import stop_strings
from lit_pref.errors import UsageError


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = [f"red {'tin ' * (k % 5)}owl {k} :" for k in range(11)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(**options: Any) -> tuple[int, str, str]:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with pytest.raises(SystemExit) as ended:
            main(["generate", *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]


def without_logprob(out: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "logprob"} for row in rows(out)]


def test_responses_do_not_depend_on_batches_blocks_order_or_the_number_of_processes(
    generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path
):
    options = {"model": model, "prompts": prompts, "samples": 3, "temperature": 1.0, "max_new_tokens": 12, "seed": 5}
    code, out, _ = generate(**options, out=tmp_path / "a")
    assert code == 0 and "responses end at <eos>" in out and "33 responses: " in out
    assert f"responses   {tmp_path / 'a' / 'responses.jsonl'}" in out
    first = without_logprob(tmp_path / "a")
    assert len(first) == 33 and len({row["response"] for row in first}) > 25
    assert [(row["line"], row["sample"]) for row in first] == [(k + 1, j) for k in range(11) for j in range(3)]
    assert {row["finish_reason"] for row in first} <= {"stop", "length"} and {row["seed"] for row in first} == {5}
    assert generate(**options, out=tmp_path / "b", batch_tokens=1, block=4)[0] == 0
    assert without_logprob(tmp_path / "b") == first
    pairs = list(zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True))
    assert all(abs(a["logprob"] - b["logprob"]) < 1e-3 and a["logprob"] < 0 for a, b in pairs)
    lines = prompts.read_text().splitlines(keepends=True)
    prompts.with_name("turned.jsonl").write_text("".join(lines[::-1]))
    assert generate(**{**options, "prompts": prompts.with_name("turned.jsonl")}, out=tmp_path / "c")[0] == 0
    texts = {(row["prompt_id"], row["sample"]): row["response"] for row in rows(tmp_path / "c")}
    assert texts == {(row["prompt_id"], row["sample"]): row["response"] for row in first}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "lit_pref", "generate", *words, "--out", str(tmp_path / "d"), "--block", "4"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=200)[0] != "" and process.returncode for process in both] == [0, 0]
    assert (tmp_path / "d" / "responses.jsonl").read_text().count("\n") == 33
    assert without_logprob(tmp_path / "d") == first
    assert generate(**{**options, "seed": 6}, out=tmp_path / "e")[0] == 0
    assert sum(a["response"] == b["response"] for a, b in zip(first, rows(tmp_path / "e"), strict=True)) < 10


def test_the_same_command_resumes_and_another_is_refused(
    generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path
):
    options = {"model": model, "prompts": prompts, "out": tmp_path / "out", "max_new_tokens": 4, "block": 3}
    code, out, _ = generate(**options)
    assert code == 0 and "prompts leave fewer" not in out
    assert f"python -m lit_pref judge --texts {tmp_path}/out/responses.jsonl" in out.splitlines()[-1]
    whole = (tmp_path / "out" / "responses.jsonl").read_bytes()
    (tmp_path / "out" / "blocks" / "000002.jsonl").unlink()
    (tmp_path / "out" / "responses.jsonl").unlink()
    code, out, _ = generate(**options)
    assert code == 0 and "8 of 11 responses are there" in out
    assert (tmp_path / "out" / "responses.jsonl").read_bytes() == whole
    code, out, _ = generate(**options)
    assert code == 0 and "11 of 11 responses are there" in out and "responses end at" not in out, "no model is loaded"
    for name, value in {
        "max_new_tokens": 5,
        "seed": 1,
        "temperature": 0.5,
        "stop": "x",
        "limit": 3,
        "block": 4,
    }.items():
        code, _, error = generate(**{**options, name: value})
        assert code == 2 and f"{'prompts' if name == 'limit' else name} is " in error
    other = make_policy(tmp_path / "other", seed=9)
    code, _, error = generate(**{**options, "model": other})
    assert code == 2 and "other settings (model is " in error


def test_a_chat_model_reads_its_template_with_one_bos_and_stops_at_its_turn_end(
    generate: Callable[..., Any], chat_model: Path, prompts: Path, tmp_path: Path
):
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    common = {"model": chat_model, "prompts": prompts, "max_new_tokens": 3}
    _, out, _ = generate(**common, out=tmp_path / "a", mapping="{format: messages}")
    assert "first       '<bos><user>red owl 0 :<eos><assistant>'" in out and "warning" not in out
    assert rows(tmp_path / "a")[0]["prompt"] == [{"role": "user", "content": "red owl 0 :"}]
    _, out, _ = generate(**common, out=tmp_path / "b")
    assert "first       '<bos>red owl 0 :'" in out and "11 prompts are plain texts" in out
    (chat_model / "chat_template.jinja").write_text(TEMPLATE.replace("<eos>", "<pad>"))
    _, out, _ = generate(**common, out=tmp_path / "c", mapping="{format: messages}")
    (chat_model / "chat_template.jinja").write_text(TEMPLATE)
    assert "responses end at <eos>, <pad>" in out
    ids = tokenizer("<bos>red owl 0 :", add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_names_of_special_tokens_in_a_prompt_are_its_text_or_tokens(
    generate: Callable[..., Any], model: Path, tmp_path: Path
):
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "red<eos>owl"}) + "\n")
    common = {"model": model, "prompts": tmp_path / "p.jsonl", "max_new_tokens": 6}
    texts = []
    for special in ("plain", "token"):
        assert generate(**common, special_text=special, out=tmp_path / special)[0] == 0
        texts.append(rows(tmp_path / special)[0]["response"])
    assert texts[0] != texts[1]


def test_stop_strings_end_responses(generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path):
    common = {"model": model, "prompts": prompts, "temperature": 1.0, "max_new_tokens": 40}
    generate(**common, out=tmp_path / "a")
    letters = [row["response"] for row in rows(tmp_path / "a")]
    stop = json.dumps(["e", "o"])
    generate(**common, out=tmp_path / "b", stop=stop)
    for whole, row in zip(letters, rows(tmp_path / "b"), strict=True):
        assert row["response"] == re.split("[eo]", whole)[0]
        assert (row["finish_reason"] == "stop_string") == bool(re.search("[eo]", whole))


def test_a_prompt_that_leaves_no_room_is_refused_or_left_out_and_others_get_the_room_there_is(
    generate: Callable[..., Any], model: Path, tmp_path: Path
):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": "é" * (k + 1)}) + "\n" for k in (3, 61, 63, 200)))
    common = {"model": model, "prompts": path, "max_new_tokens": 500}
    code, _, error = generate(**common, out=tmp_path / "out")
    assert code == 1 and "line 3: prompt leaves no room for a response (129 tokens, and the model reads 128)" in error
    assert "shorten it, or leave such rows out with --bad_rows lenient" in error and not (tmp_path / "out").exists()
    code, out, _ = generate(**common, out=tmp_path / "out", bad_rows="lenient")
    assert code == 0 and "2 rows are left out (2: prompt leaves no room for a response)" in out
    short, long = rows(tmp_path / "out")
    assert long["tokens"] <= 3 and short["tokens"] <= 119
    assert generate(**common, out=tmp_path / "alone", bad_rows="lenient", batch_tokens=1)[0] == 0
    assert without_logprob(tmp_path / "alone") == without_logprob(tmp_path / "out")


def test_a_run_folder_gives_its_exported_model(
    generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path
):
    run = tmp_path / "runs" / "first"
    (run / "checkpoints").mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    common = {"prompts": prompts, "max_new_tokens": 2, "out": tmp_path / "out"}
    code, _, error = generate(**common, model=run)
    assert code == 1 and "is a run folder without hf/" in error and "lit_pref export --ckpt_path" in error
    shutil.copytree(model, run / "hf")
    code, out, _ = generate(**common, model=run)
    assert code == 0 and f"model       {run / 'hf'}, float32, on cpu" in out
    checkpoint = run / "checkpoints" / "step=00000001.ckpt"
    checkpoint.touch()
    code, _, error = generate(**common, model=checkpoint)
    assert code == 1 and "is a checkpoint: write it as a folder first" in error


def test_an_adapter_writes_what_the_merged_model_writes(
    generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path
):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model)
    settings = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, settings)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "merged")
    written = []
    for name, folder in (("base", model), ("adapter", tmp_path / "adapter"), ("merged", tmp_path / "merged")):
        assert generate(model=folder, prompts=prompts, max_new_tokens=8, out=tmp_path / f"out-{name}")[0] == 0
        written.append([row["response"] for row in rows(tmp_path / f"out-{name}")])
    assert written[0] != written[1] == written[2]


def test_a_reward_model_and_a_folder_without_a_model_are_refused(
    generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path
):
    torch.manual_seed(0)
    reward = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    reward.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "reward")
    for path, said in (("reward", "is a LlamaForSequenceClassification, not a causal"), ("none", "there is no folder")):
        code, _, error = generate(model=tmp_path / path, prompts=prompts, out=tmp_path / "out")
        assert code == 1 and said in error and not (tmp_path / "out").exists()
    code, _, error = generate(model=model, prompts=prompts, out=tmp_path / "out", device="cuda:77")
    assert code == 2 and "--device cuda:77 cannot be used here" in error


def test_options_that_exclude_each_other(generate: Callable[..., Any], tmp_path: Path):
    common = {"prompts": "p.jsonl", "out": tmp_path / "out"}
    for options, said in (
        ({}, "give either --model FOLDER or --endpoint URL; neither is given"),
        ({"model": "a", "endpoint": "http://b"}, "both are given"),
        ({"model": "a", "model_name": "b", "retries": 1}, "--model_name, --retries takes no effect with --model"),
        ({"endpoint": "http://b", "dtype": "bfloat16"}, "--dtype takes no effect with --endpoint"),
        ({"model": "a", "top_p": 0.9}, "--top_p restricts sampling; give a --temperature"),
        ({"model": "a", "samples": 4}, "4 samples of greedy decoding are the same text"),
        ({"model": "a", "stop": '["a", ""]'}, "a JSON list of texts that are not empty"),
        ({"model": "a", "temperature": -1}, "temperature is -1"),
        ({"model": "a", "top_p": 0, "temperature": 1}, "top_p is 0"),
    ):
        code, _, error = generate(**common, **options)
        assert code == 2 and said in error
    with pytest.raises(UsageError):
        stop_strings("[1]")


@pytest.mark.parametrize("mapping", ["{format: messages}", "{prompt: prompt}"])
def test_a_real_server_gives_the_greedy_responses_of_the_model_itself(
    generate: Callable[..., Any], serving: str, chat_model: Path, prompts: Path, tmp_path: Path, mapping: str
):
    common = {"prompts": prompts, "max_new_tokens": 12, "mapping": mapping, "limit": 6}
    assert generate(**common, model=chat_model, out=tmp_path / "here")[0] == 0
    code, out, _ = generate(**common, endpoint=serving, out=tmp_path / "there", concurrency=3)
    assert code == 0 and f"endpoint    {serving}, model {chat_model}" in out
    assert ("6 prompts are plain texts, which are sent to /completions" in out) == ("messages" not in mapping)
    here, there = rows(tmp_path / "here"), rows(tmp_path / "there")
    assert len({row["response"] for row in here}) > 3
    # The server strips the blanks around a text.
    texts = [[row["response"].strip() for row in of] for of in (here, there)]
    assert texts[0] == texts[1]
    assert [row["finish_reason"] for row in here] == [row["finish_reason"] for row in there]


def test_a_command_that_is_killed_loses_a_block_and_resumes(model: Path, prompts: Path, tmp_path: Path):
    options = ["--model", model, "--prompts", prompts, "--block", "1", "--max_new_tokens", "60", "--batch_tokens", "1"]
    words = [str(word) for word in options]
    command = [sys.executable, "-m", "lit_pref", "generate", *words, "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    blocks = tmp_path / "out" / "blocks"
    while not blocks.exists() or len(list(blocks.glob("*.jsonl"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in blocks.glob("*.jsonl")}
    assert 3 <= len(kept) < 11
    done = run_command("generate", *options, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0 and f"{len(kept)} of 11 responses are there" in done.stdout, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert run_command("generate", *options, "--out", tmp_path / "whole", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "responses.jsonl").read_bytes() == (tmp_path / "whole" / "responses.jsonl").read_bytes()


def test_prompts_that_leave_less_room_than_asked_for_are_counted_in_the_first_lines(
    generate: Callable[..., Any], model: Path, prompts: Path, tmp_path: Path
):
    lines = prompts.read_text().splitlines(keepends=True)
    prompts.write_text("".join(lines[:2]) + json.dumps({"prompt": "elm " * 25 + ":"}) + "\n")
    code, out, _ = generate(model=model, prompts=prompts, out=tmp_path / "out", max_new_tokens=60)
    assert code == 0
    (note,) = re.findall(
        r"note .*the model reads 128 tokens: 1 of 3 prompts leave fewer than --max_new_tokens 60 .*", out
    )
    least = int(re.findall(r"the least (\d+) \(.*prompts.jsonl, line 3\)", note)[0])
    assert out.index(note) < out.index("output  ") and rows(tmp_path / "out")[2]["tokens"] <= least < 60
