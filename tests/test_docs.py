"""What the pages say is run: README's commands, CONTRIBUTING's three steps, the generated page."""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_policy, run_command, write_pairs

from lit_pref.__main__ import main
from lit_pref.data.formats.load import load_mapping


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
    assert "MarginTarget" in (tmp_path / "runs" / "three" / "config.yaml").read_text()


def test_the_two_commands_to_start_with_are_the_ones_that_ci_and_the_quickstart_test_run():
    first, second = (block.strip() for block in blocks("README.md", "bash")[:2])
    venv = "python3 -m venv .venv && .venv/bin/pip install -e "
    assert first == venv + ". && .venv/bin/python -m lit_pref fit --config configs/quickstart.yaml"
    assert second == venv + '".[test]" && .venv/bin/python -m pytest -q'
    assert (ROOT / ".ci" / "run").read_text().endswith('.venv/bin/python" -m pytest -q\n')


def test_an_objective_is_added_in_the_three_steps_of_contributing(tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "lit_pref", copy / "lit_pref")
    shutil.copytree(ROOT / "tests" / "objectives", copy / "tests" / "objectives")
    shutil.copy(ROOT / "tests" / "conftest.py", copy / "tests")
    shutil.copy(ROOT / "pyproject.toml", copy)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"\n`(\S+\.(?:py|yaml))`\n\n```\w+\n(.*?)```", page, flags=re.DOTALL)
    assert [name for name, _ in steps] == [
        "lit_pref/objectives/odpo.py",
        "tests/objectives/test_odpo.py",
        "configs/odpo.yaml",
    ]
    for name, text in steps:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    # Its own test, and what every objective must fulfil.
    tests = ["tests/objectives/test_odpo.py", "tests/objectives/test_objective_contract.py"]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (
        "ODPO"
        in subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--collect-only", tests[1]], cwd=copy, capture_output=True, text=True
        ).stdout
    )
    options = [
        "--data.train",
        "x",
        "--model.policy.path",
        "y",
        "--model.objective.reference",
        "Harmonic",
        "--print_config",
    ]
    printed = run_command("fit", "--config", "configs/odpo.yaml", *options, cwd=copy)
    assert "class_path: lit_pref.objectives.ODPO" in printed.stdout, printed.stderr
    assert "Harmonic" in printed.stdout


OWN = '''
from lit_pref.objectives.base import Objective
from lit_pref.scores import ObjectiveOutput


class Gap(Objective):
    """The negative gap of log-probs, without a reference."""

    faithfulness = "derived"
    min_references = 0
    max_references = 0

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, policy, references, batch):
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


@pytest.mark.parametrize("generator", ["write_methods.py", "write_formats.py"])
def test_generated_pages_are_up_to_date(generator: str):
    done = subprocess.run([sys.executable, f"tools/{generator}", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_the_page_of_data_says_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said = blocks("docs/data.md", "yaml")
    assert len(said) == 8
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


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_files_named_on_a_page_exist(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target
    for target in re.findall(r"`((?:lit_pref|configs|tools|tests)/[\w/.-]+\.(?:py|yaml))`", text):
        assert (ROOT / target).exists() or "odpo" in target, target
