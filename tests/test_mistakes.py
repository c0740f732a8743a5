"""Mistakes that a new user makes, coming from TRL, Lightning or transformers: each sentence has place and remedy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_command, write_pairs

from lit_pref.__main__ import main
from lit_pref.config_files import refuse_mistakes
from lit_pref.errors import UsageError
from lit_pref.other_names import ELSEWHERE, EXPLAINED
from lit_pref.run.config import instantiate, resolve, run_parser

DPO = "model:\n  objective:\n    class_path: DPO\n"


FILES: dict[str, tuple[str, str]] = {
    "beta beside class_path": (
        f"{DPO}    beta: 0.2\n",
        "line 4: `beta` stands beside `class_path`; the arguments of a class belong under `init_args`: {class_path: "
        "DPO, init_args: {beta: 0.2}}",
    ),
    "a part's argument beside class_path": (
        f"{DPO}    init_args:\n      target:\n        class_path: MarginTarget\n        gamma: 2\n",
        "line 7: `gamma` stands beside `class_path`; the arguments of a class belong under `init_args`: {class_path: "
        "MarginTarget, init_args: {gamma: 2}}",
    ),
    "tab": (
        "model:\n\tobjective: DPO\n",
        "line 2, column 1: not valid YAML: the line is indented with a tab; indent with spaces",
    ),
    "key twice": (
        "data: {seed: 1}\nmodel:\n  objective: DPO\ndata: {train: x}\n",
        "line 4: `data` is given already in line 1, and YAML keeps only the last one; merge them into one",
    ),
    "colon missing": (
        "model:\n  objective DPO\n",
        "line 2: model: expected a mapping, `name: value`, got 'objective DPO'; write `objective: DPO`, with a colon "
        "and a space",
    ),
    "colon missing before a block": (
        f"{DPO}    init_args\n      beta: 0.1\n",
        "line 4, column 5: not valid YAML (could not find expected ':'): a colon is missing, `name: value`",
    ),
    "space missing": (
        "data:\n  seed:3\n",
        "line 2: data: expected a mapping, `name: value`, got 'seed:3'; write `seed: 3`, with a colon and a space",
    ),
    "brace not closed": (
        "model: {objective: {class_path: DPO\ndata: {seed: 3}\n",
        "line 1, column 20: not valid YAML (expected ',' or '}', but got ':'): a bracket or brace is not closed, or a "
        "comma is missing",
    ),
    "quote not closed": ("data:\n  train: 'x.jsonl\n", "line 2, column 10: not valid YAML (found unexpected end of"),
    "uneven indent": (
        "model:\n  objective: DPO\n   policy: x\n",
        "line 3, column 10: not valid YAML (mapping values are not allowed here): indent the keys of one mapping "
        "equally, and quote a text that contains a colon",
    ),
    "None": ("data:\n  val: None\n", "line 2: None is a text in YAML; write null for nothing, or 'None' in quotes"),
    "empty section": (
        "model: {objective: DPO}\ndata:\n",
        "line 2: data: expected a mapping, `name: value`, got nothing (null); write settings below `data:`, indented, "
        "or leave it out",
    ),
    "list for a section": ("trainer:\n- max_steps\n", "line 1: trainer: expected a mapping, `name: value`, got a list"),
    "number for a section": ("data: 3\n", "line 1: data: expected a mapping, `name: value`, got '3'"),
    "policy is empty": ("model:\n  policy:\n", "line 2: model.policy: expected a mapping, `name: value`, got nothing"),
    "policy is a text": (
        "model:\n  policy: gpt2\n",
        "line 2: model.policy: expected a mapping, `name: value`, got 'gpt2'; a model is named by its path: `policy: "
        "{path: gpt2}`",
    ),
    "policy is a list": (
        "model:\n  policy: [a]\n",
        "line 2: model.policy: expected a mapping, `name: value`, got a list",
    ),
    "objective is empty": (
        "model:\n  objective:\n",
        "line 2: model.objective: expected a class, got nothing (null); name",
    ),
    "optimizer is empty": (
        "model:\n  optimizer:\n",
        "line 2: model.optimizer: expected a class, got nothing (null); name",
    ),
    "no arguments": (
        f"{DPO}    init_args:\n",
        "line 4: init_args: expected a mapping of arguments, `name: value`, got",
    ),
    "no class": (
        "model:\n  objective:\n    class_path:\n",
        "line 3: class_path: expected the name of a class, got nothing",
    ),
    "a list": ("- a\n- b\n", "line 1: the file contains no `name: value`, but"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file_is_found_with_its_line(tmp_path: Path, name: str):
    text, sentence = FILES[name]
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        refuse_mistakes([str(file)])
    assert str(refused.value).startswith(f"{file}, {sentence}")


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    (tmp_path / "latin.yaml").write_bytes("data: {train: é}".encode("latin-1"))
    (tmp_path / "mine.yaml").write_text("data: {seed: 1}\n")
    for name, sentence in {
        "empty.yaml": "empty.yaml is empty: write settings into it",
        "latin.yaml": "must be UTF-8 text",
        "": "is a folder",
        "mien.yaml": "mien.yaml does not exist; did you mean mine.yaml",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            refuse_mistakes([str(tmp_path / name)])


def test_what_yaml_allows_is_not_refused(tmp_path: Path):
    file = tmp_path / "fine.yaml"
    aliases = "".join(
        f"  {b}: [{', '.join([f'*{a}'] * 9)}]\n".replace(":", f": &{b}", 1)
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    file.write_text(
        f"x:\n  a: &a 1\n{aliases}trainer: {{callbacks: null}}\ntestbed: null\ndata: {{mapping: {{prompt: 'None'}}}}\n"
    )
    given = [str(file), "model: {objective: DPO}", *map(str, (ROOT / "configs").rglob("*.yaml"))]
    assert refuse_mistakes(given) is None and len(given) > 10  # nothing is raised


KEYS: dict[str, tuple[str, str]] = {
    "lr: 1e-5": ("line 1: unknown key 'lr'", "here it is called model.optimizer.lr"),
    "model:\n  learning_rate: 1e-5": ("line 2: unknown key 'model.learning_rate'", "called model.optimizer.lr"),
    "model:\n  objective: DPO\n  beta: 0.2": ("line 3: unknown key 'model.beta'", "called model.objective.beta"),
    "trainer:\n  num_train_epochs: 3": ("line 2: unknown key", "here it is called trainer.max_epochs"),
    "data:\n  batch_size: 8": ("line 2: unknown key", "here it is called data.global_batch (it counts the pairs"),
    "model:\n  objective: dpo": ("line 2: model.objective: unknown class 'dpo'", "; did you mean DPO?"),
    f"{DPO}    init_args:\n      arwc_swap: true": (
        "line 5: model.objective: DPO has no argument 'arwc_swap'",
        "it is an argument of MRPO",
    ),
    "model:\n  objective:\n    class_path: MMPO\n    init_args: {target: Smoothed}": (
        "line 4: model.objective: MMPO has no argument 'target', because it sets its own",
        "or take DPO, which takes any target",
    ),
    "model:\n  objective:\n    class_path: SimPO\n    init_args: {tokens: Sum}": (
        "line 4: model.objective: SimPO has no argument 'tokens', because it sets its own",
        "or take DPO, which takes any tokens",
    ),
    "model:\n  objective:\n    class_path: SFT\n    init_args: {target: Smoothed}": (
        "line 4: model.objective: SFT has no argument 'target', because it is not made of parts",
        "leave it out, or take DPO",
    ),
    "model:\n  objective:\n    class_path: CDPO\n    init_args: {gamma: 1.0}": (
        "line 4: model.objective: CDPO has no argument 'gamma'",
        "it is an argument of AlphaPO, HPO, MMPO",
    ),
    "model:\n  objective:\n    class_path: Weighted\n    init_args: {weight: [1.0, 2.0]}": (
        "line 4: model.objective: Weighted has no argument 'weight'; known: objectives, weights",
        "did you mean weights?",
    ),
    f"{DPO}    init_args: {{beta: strong}}": ("line 4: model.objective.beta: expected a number", "got 'strong'"),
    "model:\n  optimizer:\n    class_path: AdamW\n    init_args: {weight_decy: 0}": (
        "line 4: model.optimizer: AdamW has no argument 'weight_decy'",
        "did you mean weight_decay?",
    ),
    "data:\n  global_batch:": ("line 2: data.global_batch: expected a value, got null", "leave it out for 32"),
    "trainer:\n  max_steps:\n": ("line 2: trainer.max_steps: expected a value, got null", "leave it out for -1"),
    "trainer:\n  precision: fp16": ("line 2: trainer.precision: expected one of", "did you mean 16-mixed"),
}


@pytest.mark.parametrize("text", KEYS)
def test_a_mistyped_key_is_named_with_its_file_and_line(tmp_path: Path, text: str):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        resolve([f"--config={ROOT / 'configs' / 'dpo.yaml'}", f"--config={file}"])
    place, remedy = KEYS[text]
    assert str(refused.value).startswith(f"{file}, {place}") and remedy in str(refused.value)


REFUSED_BY_CONSTRUCTORS: dict[str, str] = {
    f"{DPO}    init_args:\n      beta: 0": "line 5: DPO: beta must be a positive, finite number, got 0.0",
    f"{DPO}    init_args: {{beta: .nan}}": "line 4: DPO: beta must be a positive, finite number, got nan",
    "data:\n  seed: 1\n  global_batch: 0": "line 3: data.global_batch is 0; it must be at least 1",
    "model:\n  policy:\n    dropout: 3": "line 3: policy.dropout is 3.0: it must be a probability below 1",
    "model:\n  schedule:\n    class_path: Cosine\n    init_args: {warmup: -3}": "line 4: schedule: warmup is -3.0",
    "model:\n  references:\n  - class_path: Pretrained\n    init_args: {path: x, head_precision: bf61}": "line 4: "
    "Pretrained: head_precision is 'bf61': it must be one of auto, bf16, split, fp32; did you mean bf16?",
    "model:\n  references:\n  - class_path: Pretrained\n    init_args: {path: x, attention: egar}": "line 4: "
    "Pretrained: attention 'egar' is unknown: transformers has eager",
}


@pytest.mark.parametrize("text", REFUSED_BY_CONSTRUCTORS)
def test_a_value_that_a_constructor_refuses_is_named_with_its_file_and_line(tmp_path: Path, text: str):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    words = [f"--config={ROOT / 'configs' / 'dpo.yaml'}", f"--config={file}", "--model.policy.path=x"]
    with pytest.raises(UsageError) as refused:
        instantiate(run_parser(), resolve(words), words)
    assert str(refused.value).startswith(f"{file}, {REFUSED_BY_CONSTRUCTORS[text]}")
    words.append("--model.objective.beta=-1")
    file.write_text("model: {objective: {class_path: DPO, init_args: {beta: 0.2}}}")
    with pytest.raises(UsageError, match=r"^DPO: beta must be"):
        instantiate(run_parser(), resolve(words), words)


def test_an_error_on_the_command_line_is_not_said_to_be_in_a_file(tmp_path: Path):
    file = tmp_path / "my.yaml"
    file.write_text("model: {objective: {class_path: DPO, init_args: {beta: 0.1}}}")
    with pytest.raises(UsageError, match=r"^model\.objective\.beta: expected a number, got 'much'"):
        resolve([f"--config={file}", "--model.objective.beta=much"])


LINES: dict[str, str] = {
    "--learning_rate 1e-5": "unknown option --learning_rate; here it is called --model.optimizer.lr",
    "--beta 0.1": "here it is called --model.objective.beta",
    "--output_dir out": "here it is called --run_dir",
    "--bf16": "here it is called --trainer.precision (such as bf16-mixed)",
    "--report_to wandb": "here it is called --trainer.logger (TensorBoard files are written by default)",
    "--save_steps 50": "checkpoints are saved by a callback: --trainer.callbacks+=Checkpoints",
    "--per-device-train-batch-size 4": "here it is called --data.micro_batch",
    "--model.path x": "here it is called --model.policy.path",
    "dpo.yaml": "unknown word 'dpo.yaml' on the command line; a configuration file is given as --config dpo.yaml",
    "--data.val None": "--data.val None: None is a text here; write null for nothing",
    "--model.objective DPO --data.mapping {format: messages}": "put a value that contains spaces into quotes",
    "--model.objective DPO(beta=0.1)": "arguments are written apart from their class: --model.objective DPO --model.",
    "--model.objective DPO --data null": "data: expected a mapping",
    "--model.objective DPO --model.optimizer null": "model.optimizer: expected a class, its name or `class_path` with",
    "--model.objective DPO --model.objective.gamma 1": "DPO has no argument 'gamma'",
    "--center_rewards_coefficient 1": "it is a term of the objective: terms: [{class_path: Center, init_args: {coef",
    "--model.objective BradleyTerry --model.objective.margin m": "requires a larger difference by offset: {class_path",
    "--reward_model x": "a reward model is trained with model.policy.head: scalar; `judge` and `evaluate` use one",
    "--model.objective DPO --model.optimizer.learning_rate 1": "; did you mean lr?",
    "--model.objective.beta 1 --model.objective DPO": "give the class before its arguments, such as --model.objective",
}


@pytest.mark.parametrize("line", LINES)
def test_a_mistyped_option_leads_to_ours(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    with pytest.raises(SystemExit) as ended:
        main(["fit", *line.split()])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and LINES[line] in errors and len(errors.splitlines()) == 1


def test_a_mapping_for_judge_leads_to_generate(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["judge", "--texts", "x.jsonl", "--out", "o", "--model", "m", "--mapping", "messages"])
    assert "--mapping; judge has none: prompts that are messages are lists of {role" in capsys.readouterr().err


def test_another_library_s_word_for_a_command_leads_to_ours(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["train", "--config", "x.yaml"])
    assert "unknown command 'train'" in (said := capsys.readouterr().err) and "did you mean fit?" in said


def test_every_option_that_a_hint_names_exists():
    parser = run_parser()
    known = {action.dest for action in parser._actions}
    for option in {*ELSEWHERE.values(), *EXPLAINED}:
        base = next(name for name in (option, option.rpartition(".")[0]) if name in known)
        assert base == option or base in ("model.objective", "model.optimizer", "model.schedule", "model.policy.lora")


@pytest.fixture
def refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy_folder: Path
) -> Callable[..., str]:
    """Runs `fit`, which must refuse; gives its sentence."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    line = [f"--config={ROOT / 'configs' / 'dpo.yaml'}", f"--model.policy.path={policy_folder}", "--run_dir=run"]

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["fit", *line, "--trainer.accelerator=cpu", "--data.train=pairs.jsonl", *arguments])
        errors = capfd.readouterr().err
        assert ended.value.code in (1, 2) and "Traceback" not in errors
        assert not Path("run").exists(), "a refused run leaves no folder"
        (sentence,) = [line for line in errors.splitlines() if line.startswith("lit_pref: ")]
        return sentence

    return run


def test_devices_and_loggers_that_are_not_here_are_named_with_a_remedy(refuse: Callable[..., str]):
    assert "trainer.accelerator: No supported gpu backend found; leave the option out" in refuse(
        "--trainer.accelerator=gpu"
    )
    assert "trainer.accelerator" in (said := refuse("--trainer.accelerator=tpu")) and "cpu" in said
    assert "trainer.devices" in refuse("--trainer.devices=[0,1]")
    said = refuse("--trainer.logger=WandbLogger")
    assert "WandbLogger needs the package wandb, which is not installed: pip install wandb" in said


def test_a_run_that_is_refused_after_its_data_are_read_leaves_no_folder(refuse: Callable[..., str]):
    assert "data.global_batch" in refuse("--trainer.accumulate_grad_batches=4")
    assert "flash" in refuse("--model.policy.attention=flash")


AB = {"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1, "generator_1": "x", "generator_2": "y"}
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "margins": (
        {"prompt": "p", "chosen": " a", "rejected": " b", "margins": 1.5},
        "set data.mapping to {margin: {column: margins, positive_means: chosen}}",
    ),
    "list of strings": (
        {"prompt": "p", "chosen": ["b", "c"], "rejected": "d"},
        "chosen is a list of texts, not of messages; write `chosen[]` in the mapping",
    ),
    "AlpacaEval's 0": (
        AB | {"preference": 0},
        "preference is not between 1 and 2 (0); outside the range this usually stands for a tie or a missing "
        "judgement, so write 1.5 for a tie",
    ),
    "equal outputs": (AB | {"output_2": "a"}, "output_1 and output_2 are the same text"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_faulty_record_is_answered_in_the_words_of_its_file(refuse: Callable[..., str], tmp_path: Path, name: str):
    row, sentence = ROWS[name]
    good = AB if "output_1" in row else row
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in [row, good]))
    said = refuse("--data.train=rows.jsonl")
    assert "rows.jsonl" in said and sentence in said and "probability.range" not in said


def test_a_reader_that_ends_first_ends_the_program_quietly(tmp_path: Path):
    script = (
        "import sys; import lit_pref.cli as cli\n"
        "def run(*a, **b):\n    [print('x' * 100, flush=k % 2 == 0) for k in range(5000)]\n"
        "cli.main = run\nfrom lit_pref.__main__ import main\nmain(['check'])"
    )
    command = f'{sys.executable} -c "$SCRIPT" 2>err | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={"SCRIPT": script, **os.environ}, check=False)
    assert done.returncode == 141 and (tmp_path / "err").read_text() == ""
    assert run_command("fot", cwd=tmp_path).returncode == 2


def test_a_run_that_is_tried_out_leaves_nothing_and_says_nothing_of_deprecated_names(
    tmp_path: Path, policy_folder: Path
):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 12)
    line = [
        "fit",
        "--config",
        ROOT / "configs" / "sft.yaml",
        "--model.policy.path",
        policy_folder,
        "--data.train",
        pairs,
    ]
    line += ["--model.policy.gradient_checkpointing", "true", "--run_dir", "run", "--data.val_fraction", "0.4"]
    done = run_command(*line, "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists()
    assert "FutureWarning" not in done.stderr and "rejected" not in done.stdout and "swapped" not in done.stdout
