"""What the pages say is run: README's commands, CONTRIBUTING's three steps, the generated page."""

import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, make_policy, run_command, write_pairs
from scripted_server import Server, chat
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_pref import Pool
from lit_pref.__main__ import main
from lit_pref.cli import command_parser
from lit_pref.commands.table import command_named, lines
from lit_pref.data.formats.load import load_mapping
from lit_pref.describing import subclasses
from lit_pref.objectives import Requirements
from lit_pref.objectives.parts.part import Part
from lit_pref.run.config import resolve


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)```", text, flags=re.DOTALL | re.MULTILINE)


def test_the_commands_of_the_readme_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "FOLDER").symlink_to(policy_folder)
    make_policy(tmp_path / "OTHER_FOLDER", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", 46)
    answers = [
        {"prompt": "red tin :", "response": f" {word} good", "sample": k} for k, word in enumerate(["oak", "elm"])
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    mine, three = blocks("README.md", "yaml")
    (tmp_path / "my.yaml").write_text(mine)
    (tmp_path / "three.yaml").write_text(three)
    lines = [line for block in blocks("README.md", "bash") for line in block.splitlines()]
    commands = [line for line in lines if line.startswith("python -m lit_pref")]
    assert len(commands) >= 7 and len(lines) == len(commands) + 2, "two commands with an environment of their own"
    for command in commands:
        arguments = shlex.split(command.replace("step=00000500", "step=00000001"), comments=True)[3:]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code in (0, None), command
    assert (tmp_path / "runs" / "first" / "hf" / "model.safetensors").exists()
    assert (tmp_path / "exported" / "README.md").exists()
    assert (tmp_path / "judged" / "pairs.jsonl").exists()
    assert "MarginTarget" in (tmp_path / "runs" / "three" / "config.yaml").read_text()


def test_the_commands_of_the_page_about_generating_run_or_are_at_least_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path
):
    monkeypatch.chdir(tmp_path)
    template = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    (make_policy(tmp_path / "FOLDER", seed=0) / "chat_template.jinja").write_text(template)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "manifest.json").write_text("{}")
    (tmp_path / "runs" / "first" / "hf").symlink_to(policy_folder)
    write_pairs(tmp_path / "pairs.jsonl", 9, prompts=5)
    commands = [line for block in blocks("docs/generating.md", "bash") for line in block.splitlines()]
    command = command_named("generate")
    parser = command_parser(command, command.load())
    for line in commands:
        arguments = shlex.split(line)[3:]
        options = parser.parse_args(arguments[1:])
        if options.endpoint is not None:
            continue
        limits = [] if "--max_new_tokens" in arguments else ["--max_new_tokens", "8"]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *limits])
        assert ended.value.code in (0, None), line
        written = (options.out / "responses.jsonl").read_text().splitlines()
        assert len(written) == 5 * options.samples
    assert sum("--endpoint" in line for line in commands) == 2 and len(commands) == 6
    page = (ROOT / "docs" / "generating.md").read_text(encoding="utf-8")
    columns = {
        name
        for names in re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert columns == {*json.loads(written[0]), "id", "error"}


def test_the_mapping_that_the_readme_names_for_chat_models_puts_strings_into_the_chat_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (make_policy(tmp_path / "chat", seed=0) / "chat_template.jinja").write_text(template)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    command = ["check", "--config", str(ROOT / "configs/mmpo.yaml"), "--model.policy.path", "chat"]
    command += ["--data.train", "pairs.jsonl"]
    (option,) = re.findall(r"`(--data\.mapping '\{.*?\}')`", (ROOT / "README.md").read_text(encoding="utf-8"))
    shown = []
    for mapping in ([], shlex.split(option)):
        with pytest.raises(SystemExit) as ended:
            main([*command, *mapping])
        assert ended.value.code in (0, None)
        shown.append(capsys.readouterr().out)
    plain, chat = shown
    assert "chat template" in plain and "<|assistant|>" not in plain, "check warns of plain text"
    assert "chat template" not in chat and "<|assistant|>" in chat


def test_the_two_commands_to_start_with_are_the_ones_that_ci_and_the_quickstart_test_run():
    first, second = (block.strip() for block in blocks("README.md", "bash")[:2])
    venv = "python3 -m venv .venv && .venv/bin/pip install -c versions.txt -e "
    assert first == venv + ". && .venv/bin/python -m lit_pref fit --config configs/quickstart.yaml"
    assert second == venv + '".[test]" && .venv/bin/python -m pytest -q'
    assert (ROOT / ".ci" / "run").read_text().endswith('.venv/bin/python" -m pytest -q\n')


def method_file(text: str) -> str:
    return f'''"""A method."""

from typing import Any

from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Squared
from lit_pref.objectives.parts.offset import ColumnsOffset, ConstantOffset
from lit_pref.objectives.parts.reference import NoReference
from lit_pref.objectives.parts.tokens import Mean


{textwrap.dedent(text)}'''


# What other papers add: a name of their own for beta, no reference, a rescaled beta and an argument without default.
OTHER_METHODS = {
    "lit_pref/objectives/own_ipo.py": method_file('''
        class OwnIPO(Pairwise):
            """Identity preference optimisation.

                L = (h_w - h_l - 1 / (2 tau))^2

            **When**: as an example.

            **Source**: arXiv 2310.12036.

            Args:
                tau: > 0, per nat of the gap.
            """

            faithfulness = "derived"
            family = "links"

            def __init__(self, tau: float = 0.1, **parts: Any) -> None:
                super().__init__(beta=tau, link=Squared(), **parts)
        '''),
    "lit_pref/objectives/own_simpo.py": method_file('''
        class OwnSimPO(Pairwise):
            """Simple preference optimisation.

                L = -log sigmoid(beta (l_w / n_w - l_l / n_l) - gamma)

            **When**: as an example.

            **Source**: arXiv 2405.14734.

            Args:
                beta: > 0, reward units per nat per token.
                gamma: finite, units of the logit.
            """

            faithfulness = "derived"
            family = "reference-free"

            def __init__(self, beta: float = 2.0, gamma: float = 0.5, **parts: Any) -> None:
                offset = ConstantOffset(gamma)
                super().__init__(beta=beta, reference=NoReference(), tokens=Mean(), offset=offset, **parts)
        '''),
    "lit_pref/objectives/own_modpo.py": method_file('''
        class OwnMODPO(Pairwise):
            """Multi-objective direct preference optimisation.

                L = -log sigmoid((beta (h_w - h_l) - o) / w_0)

            **When**: as an example.

            **Source**: arXiv 2310.03708.

            Args:
                rewards: weights of the other rewards.
                beta: > 0, reward units per nat.
            """

            faithfulness = "derived"
            family = "several rewards"

            def __init__(self, rewards: dict[str, float], beta: float = 0.1, **parts: Any) -> None:
                own = 1 - sum(rewards.values())
                super().__init__(beta=beta / own, offset=ColumnsOffset(rewards, scale=1 / own), **parts)
        '''),
    **{
        f"configs/{name}.yaml": f"# python -m lit_pref fit --config configs/{name}.yaml --model.policy.path A "
        f"--data.train B\nmodel:\n  objective:\n    class_path: {method}\n    init_args: {arguments}\n"
        for name, method, arguments in (
            ("own_ipo", "OwnIPO", "{tau: 0.2}"),
            ("own_simpo", "OwnSimPO", "{beta: 2.5, gamma: 1.0}"),
            ("own_modpo", "OwnMODPO", "{beta: 0.1, rewards: {help: 0.25, harm: 0.25}}"),
        )
    },
}


def test_objectives_are_added_in_the_three_steps_of_contributing(tmp_path: Path):
    copy = tmp_path / "copy"
    for folder in ("lit_pref", "tests", "configs", "docs", "experiments", "tools"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for page in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / page, copy)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = dict(re.findall(r"\n`(\S+\.(?:py|yaml))`\n\n```\w+\n(.*?)```", page, flags=re.DOTALL))
    files = ["lit_pref/objectives/margin_dpo.py", "tests/objectives/test_margin_dpo.py", "configs/margin_dpo.yaml"]
    assert list(steps) == files
    for name, text in {**steps, **OTHER_METHODS}.items():
        assert not (copy / name).exists(), f"{name} is in the package: take another method as the example"
        (copy / name).write_text(text, encoding="utf-8")

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(copy)}
        return subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)

    # `make docs`, as the page says; then the method's own test, and every test that finds methods and configurations.
    assert "then `make docs`" in page
    generators = ["write_objectives.py", "write_methods.py", "write_stub.py"]
    assert all(f"$(PYTHON) tools/{generator}\n" in (ROOT / "Makefile").read_text() for generator in generators)
    # One process for all of them, because each would import torch.
    run_all = "import runpy, sys; [runpy.run_path(f'tools/{name}', run_name='__main__') for name in sys.argv[1:]]"
    assert python("-c", run_all, *generators).returncode == 0
    tests = [files[1], "tests/objectives/test_objective_contract.py", "tests/test_configs.py"]
    methods = "margindpo or margin_dpo or ownipo or own_ipo or ownsimpo or own_simpo or ownmodpo or own_modpo"
    new = f"{methods} or methods or stub or links or subclasses or switches"
    done = python("-m", "pytest", "-n", "0", "-v", "-k", new, *tests, "tests/test_docs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (
        "MarginDPO",
        "margin_dpo.yaml",
        "OwnIPO",
        "own_simpo.yaml",
        "OwnMODPO",
        "write_methods.py",
        "write_stub.py",
        "CONTRIBUTING.md",
    ):
        assert re.search(rf"\[\S*{re.escape(name)}\S*\] PASSED", done.stdout), name
    assert "`OwnMODPO`" in (copy / "docs" / "objectives.md").read_text(encoding="utf-8")
    options = ["--data.train", "x", "--model.policy.path", "y", "--model.objective.reference", "Harmonic"]
    printed = python("-m", "lit_pref", "fit", "--config", files[2], *options, "--print_config")
    assert "class_path: lit_pref.MarginDPO" in printed.stdout, printed.stderr
    assert "Harmonic" in printed.stdout


def test_a_part_of_ones_own_is_written_tested_and_named_as_its_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path
):
    part, test, _ = blocks("docs/own_parts.md", "python")
    (tmp_path / "my_parts.py").write_text(part)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "FOLDER").symlink_to(policy_folder)
    write_pairs(tmp_path / "margins.jsonl", 12)
    rows = [json.loads(line) for line in (tmp_path / "margins.jsonl").read_text().splitlines()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({**row, "trust": 0.7}) + "\n" for row in rows))
    monkeypatch.syspath_prepend(str(tmp_path))
    exec(test, {})
    (command,) = (line for block in blocks("docs/own_parts.md", "bash") for line in block.splitlines())
    arguments = [*shlex.split(command)[3:], "--run_dir", "run", "--trainer.max_steps", "1"]
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "weight=Confidence(column='trust', power=2.0)" in manifest["objective"]


def test_a_criterion_of_ones_own_chooses_pairs_and_its_page_names_every_field():
    names: dict[str, Any] = {}
    exec(blocks("docs/own_parts.md", "python")[2], names)
    lengths = np.array([[5, 1], [3, 9], [4, 1]])
    of_pairs = np.array(["a", "b", "c"])
    pool = Pool(["a", "b", "c"], of_pairs, of_pairs, {"margin": np.ones(3)}, lengths)
    assert names["Shortest"](count=1).choose(pool).indices.tolist() == [1]
    assert names["Shortest"](count=1, both=True).choose(pool).indices.tolist() == [2]
    page = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(Pool) if f"`{field.name}`" not in page] == []


def test_the_page_of_parts_names_every_kind_requirement_and_flag():
    page = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
    bases = {base for cls in subclasses(Part) for base in cls.__mro__ if inspect.isabstract(base)} - {Part}
    named = {base.__name__ for base in bases} | {f.name for f in fields(Requirements)}
    for base in (Part, *bases):
        annotated = inspect.get_annotations(base)
        named |= {name for name in annotated if not name.startswith("_") and hasattr(base, name)}
    assert {"TokenWeights", "Gamma", "sums_only", "symmetric", "max_references"} <= named
    assert [name for name in sorted(named) if f"`{name}`" not in page] == []


OWN = '''
from lit_pref.objectives import Objective, Requirements
from lit_pref.scores import ObjectiveOutput


class Gap(Objective):
    """The negative gap of log-probs, without a reference."""

    faithfulness = "derived"
    requirements = Requirements(max_references=0)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, policy, references, pairs):
        gap = self.scale * (policy.chosen.scores - policy.rejected.scores)
        return ObjectiveOutput(-gap, policy.chosen.scores.detach(), policy.rejected.scores.detach())
'''


def test_an_objective_in_a_users_own_file_works_the_same_way(tmp_path: Path, policy_folder: Path):
    (tmp_path / "my_file.py").write_text(OWN)
    write_pairs(tmp_path / "pairs.jsonl", 12)
    config = ROOT / "configs" / "dpo.yaml"
    own = ["--model.objective", "my_file.Gap", "--model.objective.scale", "0.01"]
    paths = ["--model.policy.path", policy_folder, "--data.train", "pairs.jsonl", "--run_dir", "run"]
    done = run_command("fit", "--config", config, *own, *paths, "--trainer.max_steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "objective   Gap(" in done.stdout and "reference   none" in done.stdout
    assert (tmp_path / "run" / "hf" / "model.safetensors").exists()


GENERATORS = sorted(path.name for path in (ROOT / "tools").glob("write_*.py") if path.stem != "write_performance")


@pytest.mark.parametrize("generator", GENERATORS)
def test_generated_pages_are_up_to_date(generator: str, monkeypatch: pytest.MonkeyPatch):
    # In this process, because a process of its own would import torch for each page.
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setattr(sys, "argv", [generator, "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / generator), run_name="__main__")
    assert not ended.value.code, ended.value.code


def test_what_the_page_of_data_says_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said = blocks("docs/data.md", "yaml")
    assert len(said) == 9
    for text in said:
        text = textwrap.dedent(text)
        (tmp_path / "said.yaml").write_text(text)
        values = yaml.safe_load(text)
        if "kind" in values:
            assert load_mapping("said.yaml").kind == values["kind"]
            continue
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", str(ROOT / "configs/mmpo.yaml"), "--config", "said.yaml", "--print_config"])
        assert ended.value.code in (0, None), text
        mapping = values.get("data", {}).get("mapping")
        assert mapping is None or load_mapping(mapping) is None or mapping["base"] == "shp"


def test_the_offset_and_the_term_of_the_page_about_reward_models_can_be_pasted(tmp_path: Path):
    page = (ROOT / "docs/reward_models.md").read_text(encoding="utf-8")
    (tmp_path / "said.yaml").write_text(blocks("docs/reward_models.md", "yaml")[0])
    (options,) = re.findall(r"^As options: `(.+?)`", page, re.MULTILINE)
    base = ["--config", str(ROOT / "configs/reward/bradley_terry.yaml")]
    for given in (["--config", str(tmp_path / "said.yaml")], shlex.split(options)):
        objective = resolve([*base, *given]).model.objective
        assert objective.init_args.offset.init_args.column == "margin"
        terms = objective.init_args.terms
        assert given[0] != "--config" or terms[0].init_args.coefficient == 0.01


def test_the_page_about_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "FOLDER").symlink_to(policy_folder)
    write_pairs(tmp_path / "pairs.jsonl", 46)
    names: dict[str, Any] = {}
    for text in blocks("docs/python.md", "python"):
        exec(compile(text, "docs/python.md", "exec"), names)
    for folder in ("runs/first/hf", "runs/second/hf", "exported", "runs/own/hf"):
        assert (tmp_path / folder / "model.safetensors").exists()
    assert "MMPO" in repr(names["run"].module.objective) and "DPO" in repr(names["again"].module.objective)
    assert names["second"].global_step == 2 * names["first"].global_step > 0


def test_the_commands_of_the_page_about_evaluations_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy_folder: Path, chat_model: Path, server: Server
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").symlink_to(policy_folder)
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=1)
    model.save_pretrained(tmp_path / "REWARD")
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path / "REWARD")
    make_policy(tmp_path / "runs" / "first" / "hf", seed=1)
    rows = write_pairs(tmp_path / "pairs.jsonl", 12).read_text().splitlines()
    bench = [{**json.loads(row), "subset": "math-prm", "id": k} for k, row in enumerate(rows)]
    (tmp_path / "reward_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench))
    annotations = [
        {"index": k, "preference": 1 + k % 3 / 2, "output_1": "a" * (9 + k), "output_2": "b" * (30 - k * k % 17)}
        for k in range(30)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    for k, name in enumerate(("mine", "baseline")):
        (tmp_path / name).mkdir()
        judged = [{"prompt": f"p {n}", "response": f"r {k} {n}", "score": (n + 2 * k) % 3} for n in range(9)]
        (tmp_path / name / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
        texts = [{"prompt": f"p {n // 2}", "response": "good " * (1 + n % (3 + k)) + name} for n in range(18)]
        (tmp_path / name / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "CHAT").symlink_to(chat_model)
    question = {"question_id": 81, "category": "math", "turns": ["a", "b"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(question))
    (tmp_path / "gpt-4.jsonl").write_text(json.dumps({"question_id": 81, "choices": [{"turns": ["c", "d"]}]}))
    server.reply = lambda path, body: chat(f"[[{'AB'[len(server.asked) % 2]}]] [[{1 + len(server.asked) % 9}]]")
    first, second = (block.splitlines() for block in blocks("docs/evaluating.md", "bash"))
    assert (len(first), len(second)) == (5, 4)
    for command in (*first, *second):
        arguments = shlex.split(command.replace("http://localhost:8000/v1", server.url))[3:]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *(["--max_new_tokens", "5"] if "mt_bench" in command else [])])
        assert ended.value.code in (0, None), command
    assert {path.parent.name for path in tmp_path.glob("evaluated/*/report.html")} == {
        "pairs",
        "policy",
        "reward_bench",
        "win_rate",
        "responses",
        "compared",
        "mt_bench",
    }


def test_the_readme_lists_the_commands_of_the_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```\n{lines()}\n```" in text, "README.md: run `make docs`"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_files_named_on_a_page_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    files = re.findall(r"(?<![\w/.-])(?:[\w.-]+/)+[\w-]+\.py\b|\bconfigs/[\w/.-]+\.yaml\b", text)
    missing = [file for file in files if not (ROOT / file).exists() and "margin_dpo" not in file]
    assert not missing, f"{page} names files that do not exist (paths begin at the repository's root): {missing}"
