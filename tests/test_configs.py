"""Every shipped configuration is parsed, built, printed and built again; every class switch drops the old arguments."""

import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from lit_pref.cli import PreferenceCLI
from lit_pref.objectives.base import Objective
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.pairwise import PARTS, Pairwise
from lit_pref.objectives.parts.part import Part
from lit_pref.objectives.sft import SFT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DATA = ["--data.train", "pairs.jsonl", "--model.policy.path", "policy"]


class Parsed(PreferenceCLI):
    """Parses and builds model and data as `fit` does, and stops before there is a Trainer."""

    def __init__(self, *arguments: str | Path) -> None:
        super().__init__([str(a) for a in ("fit", *arguments)])

    def before_instantiate_classes(self) -> None:
        self.printed = self._parser("fit").dump(self.config["fit"], skip_unset=False)

    def instantiate_classes(self) -> None:
        built = self.parser.instantiate(self.config)
        self.model = built["fit"].model

    def _set_seed(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["lit_pref"])


def objective_after(*arguments: str | Path) -> str:
    return repr(Parsed(*arguments, *DATA).model.objective)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_shipped_config_builds_the_same_objective_from_its_printed_form(config: Path, tmp_path: Path):
    first = Parsed("--config", config, *DATA)
    (tmp_path / "printed.yaml").write_text(first.printed)
    second = Parsed("--config", tmp_path / "printed.yaml")
    assert repr(second.model.objective) == repr(first.model.objective)
    assert second.printed == first.printed


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_a_shipped_config_builds_what_it_says(config: Path):
    written = yaml.safe_load(config.read_text())["model"]["objective"]
    objective: Any = Parsed("--config", config, *DATA).model.objective
    assert type(objective).__name__ == written["class_path"]
    for name, value in written.get("init_args", {}).items():
        if isinstance(value, dict):
            part = getattr(objective, name)
            assert type(part).__name__ == value["class_path"]
            assert {k: getattr(part, k) for k in value["init_args"]} == value["init_args"]
        else:
            assert f"{name}={value}" in repr(objective)


METHODS = [DPO, MMPO, MRPO, EpsilonDPO, SFT]
UNUSUAL = {
    "beta": 0.07,
    "gamma": 0.7,
    "eta": 0.7,
    "adaptive": False,
    "arwc_swap": True,
    "epsilon": 0.07,
    "first_order": True,
}


def unusual(method: type[Objective]) -> dict[str, Any]:
    names = inspect.signature(method.__init__).parameters
    return {name: value for name, value in UNUSUAL.items() if name in names}


@pytest.mark.parametrize(("old", "new"), itertools.permutations(METHODS, 2), ids=lambda c: c.__name__)
def test_a_later_class_keeps_no_argument_of_the_old_one(old: type[Objective], new: type[Objective], tmp_path: Path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump({"model": {"objective": {"class_path": old.__name__, "init_args": unusual(old)}}}))
    second.write_text(yaml.safe_dump({"model": {"objective": new.__name__}}))
    assert not unusual(old) or objective_after("--config", first) != repr(old()), "it must differ from the defaults"
    assert objective_after("--config", first, "--config", second) == repr(new())
    assert objective_after("--config", first, "--model.objective", new.__name__) == repr(new())


def part_members() -> list[tuple[str, type[Part], type[Part]]]:
    hints = {name: p.annotation for name, p in inspect.signature(Pairwise.__init__).parameters.items()}
    switches = []
    for part in PARTS:
        base = next(t for t in hints[part].__args__ if t is not type(None))
        members = [c for c in base.__subclasses__() if not inspect.isabstract(c)]
        members += [c for b in base.__subclasses__() for c in b.__subclasses__() if not inspect.isabstract(c)]
        switches += [(part, old, new) for old in members for new in members if old is not new]
    return switches


def test_a_later_part_keeps_no_argument_of_the_old_one(tmp_path: Path):
    file, tried = tmp_path / "first.yaml", 0
    for part, old, new in part_members():
        shared = set(inspect.signature(old.__init__).parameters) & set(inspect.signature(new.__init__).parameters)
        values = {name: 0.07 for name in shared - {"self", "args", "kwargs", "column", "weights"}}
        if not values or "column" in inspect.signature(new.__init__).parameters:
            continue
        spec = {"class_path": old.__name__, "init_args": values}
        file.write_text(yaml.safe_dump({"model": {"objective": {"class_path": "DPO", "init_args": {part: spec}}}}))
        switched = objective_after("--config", file, f"--model.objective.{part}", new.__name__)
        assert f"{part}={new()!r}" in switched, (part, old, new)
        tried += 1
    assert tried >= 2


def test_options_of_the_new_class_and_its_open_parts_are_kept():
    config = ROOT / "configs" / "mmpo.yaml"
    line = ["--model.objective", "DPO", "--model.objective.beta", "0.7", "--model.objective.target", "Smoothed"]
    assert objective_after("--config", config, *line) == repr(DPO(beta=0.7, target=_smoothed()))


def test_three_papers_compose_from_the_command_line_as_from_the_file():
    line = ["--model.objective", "MMPO", "--model.objective.gamma", "1.1", "--model.objective.reference", "Harmonic"]
    line += ["--model.objective.reference.eta", "0.1", "--model.objective.temperature", "EpsilonStep"]
    line += ["--model.objective.temperature.epsilon", "0.01"]
    from_line = objective_after("--config", ROOT / "configs" / "dpo.yaml", *line)
    from_file = objective_after("--config", ROOT / "configs" / "three_papers.yaml")
    assert from_line.replace("MMPO(", "DPO(") == from_file


def test_another_optimiser_keeps_nothing_of_the_first():
    optimizer = Parsed("--config", ROOT / "configs" / "dpo.yaml", *DATA, "--model.optimizer", "SGD").model.optimizer
    group = optimizer([__import__("torch").nn.Parameter(__import__("torch").zeros(1))]).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-3, 0, 0)


def _smoothed() -> Any:
    from lit_pref.objectives.parts.target import Smoothed

    return Smoothed()
