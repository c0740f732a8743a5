"""What a user mistypes or feeds in gets one plain sentence, the right exit code, and no traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_policy, write_pairs

from lit_pref.__main__ import main

Refuse = Callable[..., tuple[int, str]]


@pytest.fixture
def refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy_folder: Path
) -> Refuse:
    """Runs a command that must be refused, beside `pairs.jsonl` and `policy`; gives exit code and sentence."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    (tmp_path / "policy").symlink_to(policy_folder)
    monkeypatch.setattr("sys.argv", ["lit_pref"])

    def run(*arguments: str | Path) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        sentences = [line for line in errors.splitlines() if line.startswith("lit_pref: ")]
        assert len(sentences) == 1, errors
        return int(ended.value.code or 0), sentences[0].removeprefix("lit_pref: ")

    return run


FIT = ["fit", "--config", ROOT / "configs" / "dpo.yaml", "--trainer.accelerator", "cpu", "--run_dir", "run"]
PAIRS = [*FIT, "--model.policy.path", "policy", "--data.train", "pairs.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--model.objective", "MPO"],
            ["unknown objective 'MPO'", "known: DPO, EpsilonDPO, MMPO, MRPO", "mean MRPO or MMPO?"],
        ),
        (
            ["--model.objective.reference", "Harmonix"],
            ["unknown referencemix 'Harmonix'", "Geometric", "mean Harmonic"],
        ),
        (["--model.objective.bta", "3"], ["unknown argument 'bta'", "did you mean beta"]),
        (["--model.objectve.beta", "3"], ["unknown option --model.objectve.beta", "did you mean --model.objective"]),
        (["--data.trin", "x"], ["unknown option --data.trin", "did you mean --data.train"]),
        (["--model.objective.beta", "much"], ["beta: expected float, got 'much'"]),
        (["--model.references+=Pretraned"], ["unknown reference 'Pretraned'", "mean Pretrained"]),
        (["--model.objective.beta", "-1"], ["beta", "positive"]),
        (["--data.global_batch", "0"], ["data.global_batch is 0", "at least 1"]),
        (["--trainer.accelerator", "cuda"], ["CUDAAccelerator", "not available"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistyped_command_line_is_answered_with_the_known_names_and_the_nearest(
    refuse: Refuse, arguments: list[str], parts: list[str]
):
    code, sentence = refuse(*PAIRS, *arguments)
    assert code == 2
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {objectve: DPO}", ["unknown key 'model.objectve", "model.objective"]),
        ("model: {objective: {class_path: MMPO, init_args: {gama: 3}}}", ["unknown argument 'gama'", "mean gamma"]),
        ("modl: {a: 1}", ["unknown key 'modl"]),
        ("model: {objective: {class_path: MMPO", ["not valid YAML", "line 1"]),
        ("model: {objective: {class_path: Mmpo}}", ["unknown objective 'Mmpo'", "mean MMPO"]),
    ],
)
def test_a_mistyped_file_is_answered_with_the_known_names_and_the_nearest(
    refuse: Refuse, tmp_path: Path, text: str, parts: list[str]
):
    (tmp_path / "mine.yaml").write_text(text)
    code, sentence = refuse(*PAIRS, "--config", "mine.yaml")
    assert code == 2
    for part in parts:
        assert part in sentence


def test_a_missing_file_is_answered_with_its_nearest_sibling(refuse: Refuse):
    code, sentence = refuse("fit", "--config", ROOT / "configs" / "mnpo.yaml")
    assert code == 2 and "does not exist" in sentence and "mmpo.yaml?" in sentence


def test_an_unknown_command_is_answered_with_the_known_ones(refuse: Refuse):
    code, sentence = refuse("fot")
    assert code == 2 and "unknown command 'fot'" in sentence and "mean fit" in sentence


def test_what_is_required_is_named(refuse: Refuse):
    code, sentence = refuse("fit", "--run_dir", "run")
    assert code == 2 and "missing: --model.objective" in sentence
    code, sentence = refuse(*FIT, "--model.policy.path", "policy")
    assert code == 2 and "data.train" in sentence
    code, sentence = refuse(*FIT, "--data.train", "pairs.jsonl")
    assert code == 2 and "`path`" in sentence


GOOD = {"prompt": "red :", "chosen": " good", "rejected": " bad", "margin": 1.0}
ROWS: list[tuple[str, dict[str, Any] | str, list[str]]] = [
    ("missing column", {k: v for k, v in GOOD.items() if k != "chosen"}, ["chosen"]),
    ("null text", GOOD | {"rejected": None}, ["rejected", "null"]),
    ("null margin", GOOD | {"margin": None}, ["margin"]),
    ("NaN margin", '{"prompt": "a :", "chosen": " b", "rejected": " c", "margin": NaN}', ["margin"]),
    ("string margin", GOOD | {"margin": "large"}, ["margin", "large"]),
    ("empty response", GOOD | {"chosen": ""}, ["chosen", "empty"]),
    ("identical responses", GOOD | {"rejected": " good"}, ["the same text"]),
    ("a prompt that leaves no room", GOOD | {"prompt": "red " * 90 + ":"}, ["prompt", "max_length"]),
    ("a special token in the text", GOOD | {"chosen": " good <eos> more"}, ["chosen", "<eos>"]),
    ("not JSON", "{prompt: red}", ["JSON"]),
]


@pytest.mark.parametrize(("row", "parts"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_bad_row_is_refused_by_file_line_and_field(
    refuse: Refuse, tmp_path: Path, row: dict[str, Any] | str, parts: list[str]
):
    line = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n")
    code, sentence = refuse(*PAIRS, "--data.val_fraction", "0", "--data.max_length", "64")
    assert code == 1
    assert "pairs.jsonl" in sentence and "2" in sentence
    for part in parts:
        assert part in sentence


def test_an_objective_that_needs_margins_refuses_data_without(refuse: Refuse, tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({k: v for k, v in GOOD.items() if k != "margin"}) + "\n")
    code, sentence = refuse(*PAIRS, "--model.objective", "MMPO", "--data.val_fraction", "0")
    assert code == 1 and "margin" in sentence and "pairs.jsonl" in sentence


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("./polcy", ["./polcy", "policy"]),
        ("empty", ["empty", "config.json"]),
        ("nobody/nothing", ["nobody/nothing", "local folder"]),
    ],
)
def test_a_policy_that_is_not_there_is_recognised(refuse: Refuse, tmp_path: Path, path: str, parts: list[str]):
    (tmp_path / "empty").mkdir()
    code, sentence = refuse(*FIT, "--data.train", "pairs.jsonl", "--model.policy.path", path)
    assert code == 1
    for part in parts:
        assert part in sentence


def test_missing_data_is_answered_with_the_nearest_sibling(refuse: Refuse):
    code, sentence = refuse(*FIT, "--model.policy.path", "policy", "--data.train", "pair.jsonl")
    assert code == 1 and "pair.jsonl" in sentence and "pairs.jsonl" in sentence


def test_a_wrong_number_of_references_is_refused(refuse: Refuse):
    code, sentence = refuse(*PAIRS, "--model.references", "[]")
    assert code == 2 and "DPO takes exactly 1 reference(s), model.references has 0" in sentence
    code, sentence = refuse(*PAIRS, "--model.references+=InitialPolicy", "--model.references+=InitialPolicy")
    assert code == 2 and "exactly 1" in sentence and "has 2" in sentence
    code, sentence = refuse(*PAIRS, "--model.references+=AdapterOff")
    assert code == 2 and "LoRA" in sentence


def test_epsilon_dpo_refuses_a_reference_with_another_vocabulary(refuse: Refuse, tmp_path: Path):
    make_policy(tmp_path / "other", seed=1, vocabulary=262)
    arguments = [
        "--model.objective",
        "EpsilonDPO",
        "--model.references+=Pretrained",
        "--model.references.path",
        "other",
    ]
    code, sentence = refuse(*PAIRS, *arguments)
    assert code in (1, 2) and "the policy's vocabulary" in sentence


def test_a_used_run_folder_is_refused_with_what_can_be_done(refuse: Refuse, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    code, sentence = refuse(*PAIRS)
    assert code == 2 and "already holds a run" in sentence and "--ckpt_path last" in sentence


def test_help_costs_at_most_three_tenths_of_a_second_and_names_every_command():
    code = "import time, runpy, sys; sys.argv = ['lit_pref', '--help']\n"
    code += "try: runpy.run_module('lit_pref', run_name='__main__')\n"
    code += "except SystemExit: pass\n"
    code += "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse'} & set(sys.modules)\n"
    code += "print(heavy, time.process_time())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    for command in ("fit", "validate", "test", "predict", "export"):
        assert f"  {command} " in done.stdout
    # No heavy import is what makes it quick; the time itself is not tested, machines differ.
    assert done.stdout.splitlines()[-1].startswith("set() ")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lit_pref; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
