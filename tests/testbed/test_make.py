import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lit_pref
from lit_pref.errors import UsageError, UserError
from lit_pref.testbed.make import evaluation_prompts, make, run_fit
from lit_pref.testbed.settings import Testbed, sft_configuration
from lit_pref.testbed.world import EOS, ITEMS, VOCABULARY, Prompt, demonstrate, gold_reward, random_for, split_words

SMALL = Testbed(demonstrations=50, pairs=40, held_out_pairs=30, eval_prompts=20)
METALS = {metal: 0.07 for metal in ITEMS["metal"]}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def fit(write_policy):
    """A warm start that takes no time: a policy that writes metals at random, and an empty response in one of five."""

    def pretend(config: str, run_dir: str, folder: Path) -> None:
        pretend.asked.append(yaml.safe_load((folder / config).read_text()))
        assert (folder / "demos.jsonl").exists()
        write_policy(folder / run_dir / "hf", METALS | {"total": 0.05, "11": 0.05, EOS: 0.2})

    pretend.asked = []
    return pretend


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fit):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PREF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make(SMALL, fit)


def test_every_file_has_what_was_asked_and_no_prompt_is_in_two(folder):
    prompts = {
        name: [row["prompt"] for row in read(folder / f"{name}.jsonl")] for name in ("demos", "train", "val", "prompts")
    }
    assert {name: len(of) for name, of in prompts.items()} == {"demos": 50, "train": 40, "val": 30, "prompts": 20}
    everything = [prompt for of in prompts.values() for prompt in of]
    assert len(set(everything)) == 140
    assert [prompt.text for prompt in evaluation_prompts(folder)] == prompts["prompts"]


def test_the_policy_folder_opens_like_any_other(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    assert model.config.vocab_size == len(tokenizer) == len(VOCABULARY)


@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_carry_ratings_true_rewards_and_true_probability(folder, split):
    for row in read(folder / f"{split}.jsonl"):
        prompt = Prompt.parse(row["prompt"])
        assert row["chosen"] != row["rejected"]
        assert row["margin"] == row["score_chosen"] - row["score_rejected"] > 0
        for side in ("chosen", "rejected"):
            assert row[f"gold_{side}"] == gold_reward(prompt, [*split_words(row[side]), EOS])
        assert row["p_true"] == pytest.approx(1 / (1 + math.exp(row["gold_rejected"] - row["gold_chosen"])))


def test_every_rating_has_a_noise_of_its_own(folder):
    rows = [row for split in ("train", "val") for row in read(folder / f"{split}.jsonl")]
    noises = {round(row[f"score_{side}"] - row[f"gold_{side}"], 9) for row in rows for side in ("chosen", "rejected")}
    assert len(noises) == 2 * len(rows)


def test_demonstrations_are_those_of_the_world(folder):
    for index, row in enumerate(read(folder / "demos.jsonl")):
        response = demonstrate(Prompt.parse(row["prompt"]), random_for(0, "demonstration", index))
        assert [*split_words(row["chosen"]), EOS] == response


def test_it_is_made_once_and_again_for_other_settings(folder, fit):
    before = len(fit.asked)
    assert make(SMALL, fit) == folder
    assert len(fit.asked) == before
    assert make(replace(SMALL, tau=2.0), fit) != folder
    assert len(fit.asked) == before, "another annotator needs no other warm start"
    assert make(replace(SMALL, sft_steps=3), fit) != folder
    assert len(fit.asked) == before + 1


def test_the_same_settings_give_the_same_bytes_in_another_cache(folder, fit, tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "other"))
    again = make(SMALL, fit)
    assert again != folder
    for name in ("demos.jsonl", "train.jsonl", "val.jsonl", "prompts.jsonl", "sft.yaml"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_another_seed_shares_no_file_and_more_training_pairs_leave_the_held_out_ones_alone(folder, fit):
    other = make(replace(SMALL, seed=1), fit)
    more = make(replace(SMALL, pairs=60), fit)
    for name in ("demos.jsonl", "train.jsonl", "val.jsonl", "prompts.jsonl"):
        assert (other / name).read_bytes() != (folder / name).read_bytes(), name
    for name in ("demos.jsonl", "val.jsonl", "prompts.jsonl"):
        assert (more / name).read_bytes() == (folder / name).read_bytes(), name


def test_a_quantised_annotator_gives_whole_grades_without_ties(folder, fit):
    rows = read(make(replace(SMALL, quantised=True), fit) / "train.jsonl")
    assert len(rows) == 40
    assert {type(row["margin"]) for row in rows} == {int}
    assert all(1 <= row["score_rejected"] < row["score_chosen"] <= 10 for row in rows)


def test_the_warm_start_is_a_llama_of_113_thousand_weights():
    policy = sft_configuration(Testbed())["model"]["policy"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**policy["config"], vocab_size=len(VOCABULARY)))
    # Tied embeddings 104 x 64; a layer: attention 4 x 64^2, MLP 3 x 64 x 192, two norms of 64; a last norm.
    assert sum(p.numel() for p in model.parameters()) == 104 * 64 + 2 * (4 * 64**2 + 3 * 64 * 192 + 2 * 64) + 64
    assert model.config.num_attention_heads == 4


def test_the_warm_start_follows_the_settings(folder, fit):
    make(replace(SMALL, sft_steps=7, hidden_size=32, layers=1, seed=5), fit)
    asked = fit.asked[-1]
    assert asked["trainer"]["max_steps"] == 7
    llama = asked["model"]["policy"]["config"]
    assert (llama["hidden_size"], llama["intermediate_size"], llama["num_hidden_layers"]) == (32, 96, 1)
    assert asked["model"]["policy"]["seed"] == 5
    assert asked["data"]["train"] == "demos.jsonl"


def test_more_prompts_than_the_language_has_are_refused(folder, fit):
    with pytest.raises(UserError, match="96091 prompts in all"):
        make(replace(SMALL, demonstrations=96_001), fit)


def test_a_warm_start_that_never_ends_a_response_is_refused(folder, write_policy):
    def pretend(config: str, run_dir: str, place: Path) -> None:
        write_policy(place / run_dir / "hf", METALS)

    settings = replace(SMALL, eval_prompts=95_800)  # leaves 150 prompts for pairs
    with pytest.raises(UserError, match=r"0 of 30 pairs could be made.*sft_steps"):
        make(settings, pretend)


def test_a_noise_without_scale_is_refused():
    with pytest.raises(UsageError, match="tau"):
        Testbed(tau=0.0)


def test_the_warm_start_runs_as_a_process_of_its_own(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        subprocess, "run", lambda *args, **kwargs: calls.append((args, kwargs)) or subprocess.CompletedProcess(args, 0)
    )
    for name, value in {"SLURM_NTASKS": "8", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "KEPT": "yes"}.items():
        monkeypatch.setenv(name, value)
    run_fit("sft.yaml", "sft", tmp_path)
    ((command,), options) = calls[0]
    assert command == [sys.executable, "-m", "lit_pref", "fit", "--config", "sft.yaml", "--run_dir", "sft"]
    assert options["cwd"] == tmp_path
    environment = options["env"]
    assert environment["KEPT"] == "yes"
    assert not {"SLURM_NTASKS", "LOCAL_RANK", "WORLD_SIZE"} & set(environment)
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "33554432"  # glibc ignores anything above 32 MiB
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(Path(lit_pref.__file__).parents[1])
    assert "stdout" not in options and "stderr" not in options  # its progress is seen


def test_a_warm_start_that_fails_names_its_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: subprocess.CompletedProcess(args, 3))
    with pytest.raises(UserError, match=r"fit --config sft.yaml --run_dir sft` in .* exit code 3"):
        run_fit("sft.yaml", "sft", tmp_path)


def test_further_references_are_made_once_beside_the_same_pairs(folder, fit):
    before = len(fit.asked)
    more = make(replace(SMALL, references=True), fit)
    assert make(replace(SMALL, references=True), fit) == more  # its copied files are no damage
    stronger, weaker = fit.asked[before:]
    for name in ("demos.jsonl", "train.jsonl", "val.jsonl", "prompts.jsonl"):
        assert (more / name).read_bytes() == (folder / name).read_bytes(), name
    assert weaker["trainer"]["max_steps"] == SMALL.sft_steps // 4
    assert stronger["model"]["policy"]["path"] == "policy" and stronger["data"]["train"] == "stronger.jsonl"
    rows = read(more / "stronger.jsonl")
    assert len(rows) == SMALL.pairs and all(row["gold_chosen"] >= row["gold_rejected"] for row in rows)
    used = {row["prompt"] for name in ("demos", "train", "val", "prompts") for row in read(more / f"{name}.jsonl")}
    assert not used & {row["prompt"] for row in rows}
    assert (more / "stronger" / "config.json").exists() and (more / "weaker" / "config.json").exists()


def test_permuted_margins_are_the_same_margins_in_another_order(folder):
    for split in ("train", "val"):
        rows = read(folder / f"{split}.jsonl")
        own, permuted = ([row[name] for row in rows] for name in ("margin", "permuted_margin"))
        assert own != permuted and sorted(own) == sorted(permuted)


def test_a_testbed_without_a_seed_is_made_by_runs_only(fit):
    with pytest.raises(UsageError, match="seed is null, which a run replaces by its seed_everything"):
        make(replace(SMALL, seed=None), fit)
