"""A study file is read whole, and each mistake is one sentence with file, line, key and nearest guess."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_pref.errors import UsageError
from lit_pref.studies.cells import Cell, baseline_of, cells_of, refuse_unknown
from lit_pref.studies.reading import read_study
from lit_pref.studies.study import Measure, Study
from lit_pref.studies.trial import Outcome

RANGES = {"model.objective.beta": {"low": 0.05, "high": 1, "log": True}}


def test_a_study_is_read(study: Study):
    assert (study.name, study.seeds, study.base) == ("study", (0, 1, 2, 3), ("base.yaml",))
    assert [axis.name for axis in study.axes] == ["target", "beta"]
    assert study.primary == Measure("score") and study.also == (Measure("other"),)
    assert study.compare.against == {"target": "hard"} and study.retries == 2


def test_a_file_of_another_name_has_a_folder_beside_it(write_study: Callable[..., Path]):
    file = write_study().rename("mine.yaml")
    assert read_study(file).folder == Path("mine")


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"qestion": "Why?"}, "unknown key 'qestion'; known: .*; did you mean question"),
    ({"hypothesis": None}, "hypothesis: missing: one sentence, written before the trials"),
    ({"base": "bas.yaml"}, r"line 3: base: config file bas.yaml does not exist; did you mean base.yaml\?"),
    ({"base": "beside.yaml"}, r"beside.yaml is not in this directory, .*: write study/beside.yaml"),
    ({"axes": {}}, r"axes: expected `setting: \[values\]`"),
    ({"axes": None}, "either `axes`, whose cells are all trained, or a `search`"),
    ({"axes": {"model.objective.beta": [0.1]}}, "line 5: axes: model.objective.beta: an axis needs at least two"),
    ({"axes": {"a.b": [{"c": 1}, 2]}}, "a.b: expected a list of scalars or a mapping `name: value`"),
    ({"axes": {"a.b": {"x=y": 1, "z": 2}}}, "'x=y' names a folder"),
    ({"seeds": [0, 0]}, "names a seed twice"),
    ({"seeds": 3}, r"seeds: expected a list of whole numbers, such as \[0, 1, 2, 3, 4\], got 3"),
    ({"skip": ["target=soft"]}, "skip: target has no value 'soft'; it has hard, margin"),
    ({"skip": ["targt=hard"]}, r"'targt=hard' is not AXIS=VALUE .* target, beta; did you mean target\?"),
    (
        {"measure": {"primary": "x"}},
        r"primary: expected a metric and whether .*\{metric: val/accuracy, goal: max\}, got 'x'",
    ),
    ({"measure": {"primary": {"metric": "x", "goal": "up"}}}, "expected one of max, min, got 'up'"),
    ({"measure": {"primary": {"metric": "x", "goal": "max", "att": 1}}}, "unknown key 'att'; known: metric, at, goal"),
    ({"measure": {"primary": {"metric": "x", "goal": "max"}, "also": ["x"]}}, "x is named twice"),
    ({"measure": {"primary": {"metric": "val/loss", "goal": "min"}}}, "val/loss has another meaning at each value of"),
    ({"measure": {"primary": {"metric": "train/loss", "goal": "min"}}}, "model.objective.target, so that cells cannot"),
    ({"compare": {"against": "target"}}, "'target' is not AXIS=VALUE"),
    ({"compare": {"against": "target=hard", "within": []}}, "within: 'beta' is missing"),
    ({"rungs": {"strategy": "ful"}}, r"expected one of full, one_rung, halving, got 'ful'; did you mean full\?"),
    ({"rungs": {"strategy": "one_rung"}}, "at: one_rung needs the share of the run"),
    ({"rungs": {"strategy": "one_rung", "at": 1.5}}, "rungs: expected a number from 0.001 to 0.999, got 1.5"),
    ({"rungs": {"strategy": "halving", "at": 0.4}}, "'at' does not belong to halving, which takes from, eta"),
    ({"rungs": {"at": 0.4}, "measure": {"primary": {"metric": "x", "at": 0.2, "goal": "max"}}}, "leave its `at` out"),
    ({"measure": {"primary": {"metric": "x", "at": 1.5, "goal": "max"}}}, "expected a number from 0.001 to 0.999"),
    ({"measure": {"primary": {"metric": "x", "at": "lst", "goal": "max"}}}, "one of last, best, got 'lst'"),
    ({"axes": {"m": {"a": {"x.y": 1, "z": 2}, "b": {"x.y": 2}}}}, "line 8: axes: m: z is not a whole setting"),
    ({"engine": {"retris": 1}}, r"unknown key 'retris'; known: storage, retries; did you mean retries\?"),
    ({"engine": {"storage": "sqlite:///x.db"}}, "SQLite files break when several machines share them"),
    ({"axes": None, "search": {"ranges": {}}}, "ranges: expected `setting: "),
    ({"axes": None, "search": {"ranges": {"a.b": {"low": 2, "high": 1}}}}, "expected a number of at least 2, got 1"),
    ({"axes": None, "search": {"ranges": RANGES}}, "best cells are compared with the base run: write `against: base`"),
    ({"axes": None, "search": {"ranges": RANGES}, "rungs": {"at": 0.4}}, "a search trains every trial to its end"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[said[:30] for _, said in MISTAKES])
def test_a_mistake_is_one_sentence(write_study: Callable[..., Path], changes: dict[str, Any], said: str):
    file = write_study(**changes)
    file.with_name("beside.yaml").touch()
    with pytest.raises(UsageError, match=said) as refused:
        read_study(file)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_search_is_read(write_study: Callable[..., Path]):
    search = {"ranges": {**RANGES, "model.objective": ["DPO", "MMPO"]}, "trials": 8, "best": 2}
    study = read_study(write_study(axes=None, search=search, compare={"against": "base"}))
    assert study.search is not None and not study.axes
    assert [(one.name, one.low, one.log) for one in study.search.ranges] == [
        ("beta", 0.05, True),
        ("objective", None, False),
    ]


def test_what_is_trained_decides_the_key_and_what_is_said_does_not(write_study: Callable[..., Path]):
    key = read_study(write_study()).key
    assert read_study(write_study(question="Why?", engine={"retries": 0})).key == key
    assert read_study(write_study(seeds=[0, 1])).key != key
    Path("base.yaml").write_text("model: {objective: MMPO}\n")
    assert read_study(write_study()).key != key


def test_a_value_replaces_its_whole_node(study: Study):
    base = {"model": {"objective": {"class_path": "DPO", "init_args": {"beta": 0.2, "target": {"class_path": "Old"}}}}}
    found = {cell.name: cell.config(base)["model"]["objective"]["init_args"] for cell in cells_of(study)}
    assert list(found) == [f"target={t},beta={b}" for t in ("hard", "margin") for b in ("0.1", "0.3")]
    assert found["target=hard,beta=0.3"] == {"beta": 0.3, "target": "Hard"}
    assert found["target=margin,beta=0.1"]["target"] == {"class_path": "MarginTarget", "init_args": {"gamma": 0.8}}
    assert base["model"]["objective"]["init_args"]["beta"] == 0.2, "the base is not changed"


def test_an_argument_is_set_after_its_class(write_study: Callable[..., Path]):
    axes = {"model.objective.beta": [0.1, 0.3], "model.objective": {"dpo": "DPO", "sft": {"class_path": "SFT"}}}
    study = read_study(write_study(axes=axes, compare=None))
    base = {"model": {"objective": {"class_path": "MMPO", "init_args": {"gamma": 1.0}}}}
    assert cells_of(study)[0].config(base)["model"]["objective"] == {"class_path": "DPO", "init_args": {"beta": 0.1}}


def test_skipped_cells_are_left_out_and_numbers_are_compared_as_numbers(write_study: Callable[..., Path]):
    study = read_study(write_study(skip=["target=hard and beta=0.10"]))
    assert next(cell.name for cell in cells_of(study)) == "target=hard,beta=0.3"
    with pytest.raises(UsageError, match="leaves no cell"):
        cells_of(read_study(write_study(skip=["target=hard", "target=margin"])))


def test_a_cell_is_compared_with_the_baseline_of_its_other_axes(study: Study):
    assert baseline_of(study, {"target": "margin", "beta": "0.3"}) == {"target": "hard", "beta": "0.3"}
    assert baseline_of(study, {"target": "hard", "beta": "0.3"}) is None


def test_an_unknown_setting_is_answered_with_the_nearest():
    base = {"model": {"objective": {"class_path": "DPO", "init_args": {"beta": 0.1, "target": None}}}}
    with pytest.raises(UsageError, match=r"no setting model.objective.bta; did you mean model.objective.beta\?"):
        refuse_unknown(base, "model.objective.bta")
    for path in ("beta", "model.objective.init_args.beta"):
        with pytest.raises(UsageError, match=rf"{path}: .*; did you mean model\.objective\.beta\?"):
            refuse_unknown(base, path)
    with pytest.raises(UsageError, match=r"model\.objective\.beta is no mapping with 'low'"):
        Cell({"low": "1"}, {"model.objective.beta.low": 1}).config(base)


def test_an_axis_of_several_settings_sets_them_together(write_study: Callable[..., Path]):
    methods = {"plain": {"model.objective": "DPO"}, "soft": {"model.objective": "MMPO", "data.mapping": {"clip": 6}}}
    axes = {"method": methods, "trainer.max_epochs": [1, 2]}
    study = read_study(write_study(axes=axes, compare={"against": "method=plain"}))
    assert [axis.name for axis in study.axes] == ["method", "max_epochs"]
    assert study.axes[0].paths == ["model.objective", "data.mapping"]
    cells = {cell.name: cell.values for cell in cells_of(study)}
    assert cells["method=soft,max_epochs=2"] == {**methods["soft"], "trainer.max_epochs": 2}
    assert cells["method=plain,max_epochs=1"] == {"model.objective": "DPO", "trainer.max_epochs": 1}
    base = {"model": {"objective": "SFT"}, "data": {"mapping": None}, "trainer": {"max_epochs": 3}}
    config = cells_of(study)[3].config(base)
    assert config["model"]["objective"] == "MMPO" and config["data"]["mapping"] == {"clip": 6}


def test_an_axis_whose_values_are_mappings_of_one_node_is_that_node(write_study: Callable[..., Path]):
    study = read_study(write_study(axes={"testbed": {"a": {"tau": 1.0}, "b": {"tau": 2.0}}}, compare=None))
    assert study.axes[0].paths == ["testbed"] and cells_of(study)[1].values == {"testbed": {"tau": 2.0}}


def test_one_metric_is_measured_at_several_places(write_study: Callable[..., Path]):
    also = [{"metric": "x", "at": "best"}, {"metric": "x", "at": 0.25}]
    study = read_study(write_study(measure={"primary": {"metric": "x", "goal": "max"}, "also": also}))
    assert [measure.name for measure in study.measures] == ["x", "x@best", "x@0.25"]
    curve = [(0, 9.0), (4, 1.0), (8, 5.0), (12, 3.0), (16, 2.0)]
    outcome = Outcome({}, 0, "finished", 16, 16, 1.0, "", curves={"x": curve})
    assert [outcome.value(measure) for measure in study.measures] == [2.0, 5.0, 1.0]
    assert outcome.value(Measure("x", 0.6)) == 5.0  # the last validation at or before step 10
    assert outcome.value(Measure("x", 0.1)) is None  # none yet: the value before training is not taken
