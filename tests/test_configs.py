"""Every shipped configuration is parsed, built, printed and built again; every class switch drops the old arguments."""

import inspect
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT

from lit_pref.describing import example, required_arguments, subclasses
from lit_pref.modules.schedules import Cosine, Flat, Linear, Schedule
from lit_pref.objectives.base import Objective
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.pairwise import PARTS, Pairwise
from lit_pref.objectives.parts.target import Smoothed
from lit_pref.objectives.parts.terms import Anchor
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.run.config import module_of, resolve, run_parser

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DATA = ["--data.train", "pairs.jsonl", "--model.policy.path", "policy"]


class Parsed:
    """The classes that `fit` builds, all but the Trainer."""

    def __init__(self, *arguments: str | Path) -> None:
        config = resolve([str(a) for a in arguments])
        parser = run_parser(module=module_of(config))
        self.printed = parser.dump(config, skip_unset=False)
        built = parser.instantiate(config)
        self.model, self.trainer = built.model, built.trainer


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
        given = objective.arguments[name]
        classes = value if isinstance(value, list) else [value]
        if all(isinstance(one, dict) and "class_path" in one for one in classes):
            for one, built in zip(classes, given if isinstance(value, list) else [given], strict=True):
                assert type(built).__name__ == one["class_path"]
                given_arguments = one.get("init_args", {})
                assert {k: built.arguments[k] for k in given_arguments} == given_arguments
        else:
            assert given == value and f"{name}={value!r}" in repr(objective)


def unusual_arguments(cls: type) -> dict[str, Any]:
    """A value that is not the default for every argument whose default is a number or a truth value."""
    found = {}
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        default = parameter.default
        if isinstance(default, bool):
            found[name] = not default
        elif isinstance(default, int | float):
            found[name] = default + 1 if isinstance(default, int) else 0.9 * default or 0.07
    return found


def referenced(objective: Objective) -> list[str]:
    """The option that names as many references as `objective` needs; none if the default, at most one, will do."""
    count = objective.requirements.min_references
    return ["--model.references", json.dumps(["InitialPolicy"] * count)] if count > 1 else []


def neighbours(classes: list[type]) -> list[tuple[type, type]]:
    """Every class with the one after it, so that each is left once and chosen once."""
    return [(old, new) for old, new in itertools.pairwise([*classes, classes[0]]) if old is not new]


def options(prefix: str, cls: type) -> list[str]:
    """The options that choose `cls`, with the arguments that it cannot do without."""
    values = required_arguments(cls).items()
    required = [
        (f"--{prefix}.{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in values
    ]
    return [f"--{prefix}", cls.__name__, *itertools.chain(*required)]


OF_REWARDS = [cls for cls in subclasses(Objective) if example(cls).reward_objectives()]
OF_POLICIES = [cls for cls in subclasses(Objective) if cls not in OF_REWARDS]


@pytest.mark.parametrize(
    ("old", "new"), [*neighbours(OF_POLICIES), *neighbours(OF_REWARDS)], ids=lambda cls: cls.__name__
)
def test_a_later_class_keeps_no_argument_of_the_old_one(old: type, new: type, tmp_path: Path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    for file, cls, values in ((first, old, unusual_arguments(old)), (second, new, {})):
        spec = {"class_path": cls.__name__, "init_args": required_arguments(cls) | values}
        file.write_text(yaml.safe_dump({"model": {"objective": spec}}))
    plain, expected = old(**required_arguments(old)), new(**required_arguments(new))
    head = ["--model.policy.head", "scalar"] if plain.reward_objectives() else []
    before = objective_after("--config", first, *head, *referenced(plain))
    assert not unusual_arguments(old) or before != repr(plain), "differs from the defaults"
    for switch in (["--config", second], options("model.objective", new)):
        assert objective_after("--config", first, *switch, *head, *referenced(expected)) == repr(expected)


def arguments_of(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}


def part_switches() -> list[tuple[str, str, type, type]]:
    """Switches from one class of a part to another with the same argument, which could survive: part and argument."""
    hints = {name: parameter.annotation for name, parameter in inspect.signature(Pairwise.__init__).parameters.items()}
    found = []
    for part in PARTS:
        classes = subclasses(next(base for base in hints[part].__args__ if base is not type(None)))
        for argument in sorted(set().union(*map(arguments_of, classes))):
            owners = [cls for cls in classes if argument in arguments_of(cls)]
            found += [(part, argument, old, new) for old, new in neighbours(owners)]
    return found


def test_there_are_switches_of_parts_that_share_an_argument():
    assert {(part, argument, old.__name__, new.__name__) for part, argument, old, new in part_switches()} >= {
        ("reference", "weights", "Geometric", "Harmonic"),
        ("target", "epsilon", "Unbiased", "Smoothed"),
        ("offset", "alpha", "MarginOffset", "LengthOffset"),
        ("offset", "scale", "ColumnOffset", "ColumnsOffset"),
    }


@pytest.mark.parametrize(
    ("part", "argument", "old", "new"), part_switches(), ids=lambda value: getattr(value, "__name__", value)
)
def test_a_later_part_keeps_no_argument_of_the_old_one(part: str, argument: str, old: type, new: type, tmp_path: Path):
    value = unusual_arguments(old).get(argument, [3.0])
    values = required_arguments(old) | ({} if argument in required_arguments(old) else {argument: value})
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    for file, cls, init_args in ((first, old, values), (second, new, required_arguments(new))):
        spec = {"class_path": cls.__name__, "init_args": init_args}
        file.write_text(yaml.safe_dump({"model": {"objective": {"class_path": "DPO", "init_args": {part: spec}}}}))
    before, after = old(**values), new(**required_arguments(new))
    assert f"{part}={before!r}" in objective_after("--config", first, *referenced(DPO(**{part: before})))
    for switch in (["--config", second], options(f"model.objective.{part}", new)):
        built = objective_after("--config", first, *switch, *referenced(DPO(**{part: after})))
        assert f"{part}={after!r}" in built


def test_a_later_list_of_terms_or_references_takes_the_place_of_the_old_one(tmp_path: Path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    for file, term, path, dtype in (
        (first, {"class_path": "ChosenNLL", "init_args": {"coefficient": 0.07}}, "a", {"dtype": "bfloat16"}),
        (second, "Anchor", "b", {}),
    ):
        references = [{"class_path": "Pretrained", "init_args": {"path": path, **dtype}}]
        references += ["InitialPolicy"] if file == first else []
        objective = {"class_path": "MRPO", "init_args": {"terms": [term]}}
        file.write_text(yaml.safe_dump({"model": {"objective": objective, "references": references}}))
    before = Parsed("--config", first, *DATA).model
    assert [type(r.reference) for r in before.references] == [Pretrained, InitialPolicy]
    assert "0.07" in repr(before.objective)
    after = Parsed("--config", first, "--config", second, *DATA).model
    assert [r.describe() for r in after.references] == ["b, float32"]
    assert list(after.objective.terms) and repr(after.objective) == repr(MRPO(terms=[Anchor()]))


@pytest.mark.parametrize(
    ("old", "new"), list(itertools.permutations([Cosine, Linear, Flat], 2)), ids=lambda c: c.__name__
)
def test_a_later_schedule_keeps_no_argument_of_the_old_one(old: type[Schedule], new: type[Schedule], tmp_path: Path):
    spec = {"class_path": old.__name__, "init_args": {"warmup": 7.0, "floor": 0.5}}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"model": {"objective": "DPO", "schedule": spec}}))
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"model": {"schedule": new.__name__}}))
    first = ["--config", tmp_path / "first.yaml", *DATA]
    assert repr(Parsed(*first).model.schedule) == repr(old(warmup=7.0, floor=0.5))
    for switch in (["--config", tmp_path / "second.yaml"], ["--model.schedule", new.__name__]):
        assert repr(Parsed(*first, *switch).model.schedule) == repr(new())


def test_a_later_callback_keeps_no_argument_of_the_old_one(tmp_path: Path):
    old = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "mode": "max", "verbose": True}}
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(yaml.safe_dump({"model": {"objective": "DPO"}, "trainer": {"callbacks": [old]}}))
    second.write_text(yaml.safe_dump({"trainer": {"callbacks": ["ModelCheckpoint"]}}))
    (before,) = Parsed("--config", first, *DATA).trainer.callbacks
    assert (before.monitor, before.mode, before.verbose) == ("val/loss", "max", True)
    (after,) = Parsed("--config", first, "--config", second, *DATA).trainer.callbacks
    assert type(after).__name__ == "ModelCheckpoint"
    assert (after.monitor, after.mode, after.verbose) == (None, "min", False)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_command_in_a_configs_comment_builds_the_references_that_it_names(config: Path):
    (command,) = re.findall(r"python -m lit_pref fit (.+)", config.read_text())
    arguments = [word.replace("configs/", f"{ROOT}/configs/") for word in command.split()]
    assert arguments[:2] == ["--config", str(config)]
    built = Parsed(*arguments, *(DATA if config.name == "quickstart.yaml" else []))
    found = [reference.describe().partition(": ")[0] for reference in built.model.references]
    moving = "a reference moved by alpha 0.6 every 512 optimizer steps, at first "
    initial, off = "the policy as it is before its first step", "the policy with its adapters off"
    own = off if yaml.safe_load(config.read_text())["model"].get("policy", {}).get("lora") else initial
    own = moving + own if config.name == "trdpo.yaml" else own
    none = built.model.objective.requirements.max_references == 0
    assert found == ([] if none else [own]) + ["OTHER_FOLDER, float32"] * command.count("OTHER_FOLDER")


def test_the_path_of_the_last_reference_is_set_by_an_option_and_none_is_dropped():
    for name in ("mrpo", "three_papers"):
        config = ["--config", ROOT / "configs" / f"{name}.yaml", *DATA]
        references = Parsed(*config, "--model.references.path", "mine").model.references
        # Of three_papers the first is live, and so not within another.
        assert [type(getattr(r, "reference", r)) for r in references] == [InitialPolicy, Pretrained]
        assert references[1].describe() == "mine, float32"


def test_options_of_the_new_class_and_its_open_parts_are_kept():
    config = ROOT / "configs" / "mmpo.yaml"
    line = ["--model.objective", "DPO", "--model.objective.beta", "0.7", "--model.objective.target", "Smoothed"]
    assert objective_after("--config", config, *line) == repr(DPO(beta=0.7, target=Smoothed()))


def test_three_papers_compose_from_the_command_line_as_from_the_file():
    line = ["--model.objective", "MMPO", "--model.objective.gamma", "1.1", "--model.objective.reference", "Harmonic"]
    line += ["--model.objective.reference.eta", "0.1", "--model.objective.temperature", "EpsilonStep"]
    line += ["--model.objective.temperature.epsilon", "0.01"]
    from_line = objective_after("--config", ROOT / "configs" / "dpo.yaml", *line)
    from_file = objective_after("--config", ROOT / "configs" / "three_papers.yaml")
    assert from_line.replace("MMPO(beta=0.1, gamma=1.1, ", "DPO(beta=0.1, ") == from_file


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("AdamW", "SGD", {"lr": 1e-3, "momentum": 0, "weight_decay": 0}),
        ("SGD", "AdamW", {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.01}),
        ("AdamW", "RMSprop", {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0}),
    ],
)
def test_another_optimiser_keeps_nothing_of_the_first(old: str, new: str, expected: dict[str, Any], tmp_path: Path):
    spec = {"class_path": old, "init_args": {"lr": 0.7, "weight_decay": 0.3, "maximize": True}}
    spec["init_args"] |= {"eps": 0.5} if old == "AdamW" else {}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"model": {"objective": "DPO", "optimizer": spec}}))
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"model": {"optimizer": new}}))

    def group(*switch: str | Path) -> dict[str, Any]:
        optimizer = Parsed("--config", tmp_path / "first.yaml", *DATA, *switch).model.optimizer
        return optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]

    assert {"lr": 0.7, "weight_decay": 0.3, "maximize": True}.items() <= group().items()
    for switch in (["--config", tmp_path / "second.yaml"], ["--model.optimizer", new]):
        assert {**expected, "maximize": False}.items() <= group(*switch).items()
