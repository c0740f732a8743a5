"""What a user mistypes or feeds in gets one plain sentence, the right exit code, and no traceback."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_policy, run_command, write_pairs

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


MISTYPED_OPTIONS: list[tuple[str, list[str]]] = [
    (
        "--model.objective MPO",
        ["model.objective: unknown class 'MPO'", "known", "DPO, ", "MRPO or MMPO?"],
    ),
    ("--model.objective torch.nn.Linear", ["unknown class 'torch.nn.Linear'", "module.Class"]),
    ("--model.objective my_own.Loss", ["cannot import my_own.Loss", "module.Class and must be importable from here"]),
    (
        "--model.objective.reference Harmonix",
        [
            "model.objective.reference: unknown class 'Harmonix'; known: ClippedGeometric, Geometric, Harmonic, "
            "ImplicitRewards, NoReference, Single; "
            "did you mean Harmonic?"
        ],
    ),
    ("--model.objective.bta 3", ["model.objective: DPO has no argument 'bta'", "known: beta,", "did you mean beta?"]),
    (
        "--model.objective.target MarginTarget --model.objective.target.gama 3",
        ["model.objective.target: MarginTarget has no argument 'gama'; known: gamma; did you mean gamma?"],
    ),
    (
        "--model.objective.terms+=ChosenNLL --model.objective.terms.coefficient high",
        ["model.objective.terms.coefficient: expected a number, got 'high'"],
    ),
    (
        "--model.objective.weight ColumnWeight",
        ["model.objective.weight: ColumnWeight needs column;", "--model.objective.weight.column VALUE"],
    ),
    ("--model.objectve.beta 3", ["unknown option --model.objectve.beta", "did you mean --model.objective"]),
    ("--data.trin x", ["unknown option --data.trin", "did you mean --data.train"]),
    ("extra", ["unknown word 'extra'"]),
    ("--model.objective", ["--model.objective needs a value"]),
    ("--model.objective.beta much", ["model.objective.beta: expected a number, got 'much'"]),
    ("--model.objective.beta -1", ["beta", "positive"]),
    ("--model.optimizer.lr inf", ["model.optimizer.lr: expected a number, got 'inf'; infinity is written .inf"]),
    ("--model.optimizer.lr fast", ["model.optimizer.lr: expected a number, got 'fast'"]),
    ("--model.optimizer AdamWW", ["model.optimizer: unknown class 'AdamWW'", "did you mean AdamW"]),
    ("--model.optimizer.weight_decy 0", ["model.optimizer: AdamW has no argument 'weight_decy'", "weight_decay?"]),
    ("--model.schedule Schedule", ["model.schedule: unknown class 'Schedule'; known: Cosine, Flat, Linear"]),
    ("--model.schedule.warmup lots", ["model.schedule.warmup: expected a number, got 'lots'"]),
    (
        "--model.references+=Reference",
        # Between the first two may stand what other tests define.
        ["model.references: unknown class 'Reference'; known: AdapterOff", "InitialPolicy, MovingReference, Pretr"],
    ),
    ("--model.references+=Pretraned", ["model.references: unknown class 'Pretraned'", "mean Pretrained"]),
    ("--model.references+=Pretrained", ["model.references: Pretrained needs path;"]),
    (
        "--model.references Pretrained",
        [
            "model.references: expected a list of classes, got 'Pretrained'; known: AdapterOff",
            "write --model.references+=Pretrained --model.references.path VALUE, or in a file `references: "
            "[{class_path: Pretrained, init_args: {path: VALUE}}]`",
        ],
    ),
    ("--model.references folder/x", ["got 'folder/x'", "write --model.references+=Pretrained --model.references.path"]),
    ("--model.references.path x", ["give the class before its arguments, such as --model.references+="]),
    (
        "--model.objective DPO --model.objective.terms ChosenNLL",
        ["model.objective.terms: expected a list of classes", "write --model.objective.terms+=ChosenNLL, or in a file"],
    ),
    (
        "--trainer.strategy.replicas 2",
        ["auto is a name without settings; write", ": --trainer.strategy FSDP2 --trainer.strategy.replicas 2"],
    ),
    (
        "--trainer.strategy ddp --trainer.strategy.static_graph true",
        ["ddp is a name", ": --trainer.strategy DDPStrategy --trainer.strategy.static_graph true"],
    ),
    (
        "--trainer.strategy.replica 2",
        ["trainer.strategy: give the class before its arguments, such as --trainer.strategy DDP", "FSDP2, "],
    ),
    ("--model.policy.lora.rank 3", ["model.policy.lora: Lora has no argument 'rank'; known: r, alpha"]),
    ("--model.policy.lora 8", ["model.policy.lora: expected the arguments of Lora", "--model.policy.lora.NAME"]),
    (
        "--model.objective MMPO --model.objective.link.help ownlink.Exp",
        ["model.objective.link.help: No module named 'ownlink'; a class of your own is written module.Class"],
    ),
    ("--data.selection.help Rndom", ["data.selection: unknown class 'Rndom'", "mean Random?"]),
    ("--data.selection.keep 0.4", ["data.selection: give the class before its arguments, such as --data.selection Al"]),
    ("--data.seed=", ["data.seed: expected a whole number or null, got ''"]),
    ("--data.global_batch 0", ["data.global_batch is 0", "at least 1"]),
    ("--data.global_batch 1.5", ["data.global_batch: expected a whole number, got '1.5'"]),
    ("--data.columns p_true", ["data.columns: expected a list (written [a, b]) or null, got 'p_true'"]),
    ("--trainer.max_epochs none", ["trainer.max_epochs: expected a whole number or null, got 'none'"]),
    ("--trainer.precision bf17", ["trainer.precision: expected one of 64, 32, 16,", "mean bf16?"]),
    ("--trainer.callbacks+=SampleText", ["trainer.callbacks: unknown class 'SampleText'", "mean SampleTexts"]),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor loss --trainer.callbacks.patience x",
        ["trainer.callbacks.patience: expected a whole number, got 'x'"],
    ),
    ("--trainer.accelerator cuda", ["CUDAAccelerator", "not available"]),
]


@pytest.mark.parametrize(("line", "parts"), MISTYPED_OPTIONS, ids=[line for line, _ in MISTYPED_OPTIONS])
def test_a_mistyped_command_line_is_answered_with_the_known_names_and_the_nearest(
    refuse: Refuse, line: str, parts: list[str]
):
    code, sentence = refuse(*PAIRS, *line.split())
    assert code == 2
    for part in parts:
        assert part in sentence
    assert_plain(sentence)


def assert_plain(sentence: str) -> None:
    """Short, and in words: no names of types as Python writes them."""
    assert len(sentence) <= 400
    assert not re.search(r"<class|Union|NoneType|Namespace|NestedArg|typing\.|Parser key", sentence)


MISTYPED_FILES: list[tuple[str, list[str]]] = [
    ("model: {objectve: DPO}", ["unknown key 'model.objectve", "model.objective"]),
    (
        "model: {objective: {class_path: MMPO, init_args: {gama: 3}}}",
        ["model.objective: MMPO has no argument 'gama'", "mean gamma"],
    ),
    ("model: {objective: {class: DPO}}", ["model.objective: DPO has no argument 'class'", "mean class_path?"]),
    ("model: {objective: [DPO]}", ["mine.yaml, line 1: model.objective: expected a class, got a list; name one"]),
    ("model: {objective: {class_path: Mmpo}}", ["unknown class 'Mmpo'", "mean MMPO"]),
    ("model: {optimizer: {class_path: AdamW, init_args: {lr: abc}}}", ["model.optimizer.lr: expected a number"]),
    (
        "model: {references: [InitialPolicy, {class_path: Pretrained, init_args: {pat: x}}]}",
        ["model.references: Pretrained has no argument 'pat'; known: path,", "mean path?"],
    ),
    ("model: {references: {class_path: Pretrained}}", ["model.references: expected a list"]),
    (
        "trainer: {strategy: {class_path: fsdp2, init_args: {replicas: 2}}}",
        ["trainer.strategy: fsdp2 is no class: write `class_path: FSDP2`, or `strategy: fsdp2`"],
    ),
    ("model: {policy: folder}", ["model.policy: expected a mapping, `name: value`, got 'folder'"]),
    (
        "trainer: {strategy: {class_path: ModelParallelStrategy, init_args: {data_parallel: 8}}}",
        ["trainer.strategy: ModelParallelStrategy has no argument 'data_parallel'", "mean data_parallel_size"],
    ),
    ("testbed: {pair: 3}", ["testbed: Testbed has no argument 'pair'", "mean pairs?"]),
    (
        "data: {train: 3}",
        ["data.train: expected a text or a list (written [a, b]) or null or a mapping with the arguments of Source, "],
    ),
    ("data: {train: {path: x, wait: 2}}", ["data.train: Source has no argument 'wait'; known: path", "weight"]),
    ("data: {train: [{path: x, weight: a}]}", ["data.train.weight: expected a number or null, got 'a'"]),
    ("modl: {a: 1}", ["unknown key 'modl"]),
    ("model: {objective: {class_path: MMPO", ["not valid YAML", "line 1"]),
    ("just text", ["contains no `name: value`, but 'just text'"]),
]


@pytest.mark.parametrize(("text", "parts"), MISTYPED_FILES, ids=[text for text, _ in MISTYPED_FILES])
def test_a_mistyped_file_is_answered_with_the_known_names_and_the_nearest(
    refuse: Refuse, tmp_path: Path, text: str, parts: list[str]
):
    (tmp_path / "mine.yaml").write_text(text)
    code, sentence = refuse(*PAIRS, "--config", "mine.yaml")
    assert code == 2
    for part in parts:
        assert part in sentence
    assert_plain(sentence)


def test_a_missing_file_is_answered_with_its_nearest_sibling(refuse: Refuse):
    code, sentence = refuse("fit", "--config", ROOT / "configs" / "mnpo.yaml")
    assert code == 2 and "does not exist" in sentence and "mmpo.yaml?" in sentence


def test_an_unknown_command_is_answered_with_the_known_ones(refuse: Refuse):
    code, sentence = refuse("fot")
    assert code == 2 and "unknown command 'fot'" in sentence and "mean fit" in sentence


def test_what_is_required_is_named(refuse: Refuse):
    code, sentence = refuse("fit", "--run_dir", "run")
    assert code == 2 and "missing: --model.objective" in sentence
    code, sentence = refuse("fit", "--model.objective.link.help", "ownlink.Exp")
    assert (
        code == 2 and "model.objective: give the class before its arguments, such as --model.objective DPO" in sentence
    )
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
    ("not JSON", "{prompt: red}", ["JSON"]),
]


@pytest.mark.parametrize(("row", "parts"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_a_bad_row_is_refused_by_file_line_and_field(
    refuse: Refuse, tmp_path: Path, row: dict[str, Any] | str, parts: list[str]
):
    line = row if isinstance(row, str) else json.dumps(row)
    (tmp_path / "pairs.jsonl").write_text(2 * (json.dumps(GOOD) + "\n") + line + "\n")
    code, sentence = refuse(*PAIRS, "--data.val_fraction", "0", "--data.max_length", "64")
    assert code == 1
    assert "pairs.jsonl" in sentence and "line 3" in sentence
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


def test_missing_data_is_answered_with_the_nearest_sibling_before_a_folder_is_made(refuse: Refuse, tmp_path: Path):
    code, sentence = refuse(*FIT, "--model.policy.path", "policy", "--data.train", "pair.jsonl")
    assert code == 1 and sentence == "There is no file pair.jsonl; did you mean pairs.jsonl?"
    assert not (tmp_path / "run").exists()


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
    assert code == 2 and "already contains a run" in sentence and "--ckpt_path last" in sentence


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


def test_callbacks_and_selections_are_known_by_their_short_names_in_a_process_of_their_own(tmp_path: Path):
    names = ["--trainer.callbacks+=Checkpoints", "--trainer.callbacks.every", "50", "--trainer.callbacks+=SampleTexts"]
    done = run_command(*PAIRS, *names, "--data.selection", "Random", "--print_config", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "every: 50" in done.stdout and "SampleTexts" in done.stdout and "Random" in done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lit_pref; print({'torch', 'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
