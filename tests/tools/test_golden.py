"""The comparison of recordings reports whatever differs, and nothing of what depends on the machine's load."""

import copy
import doctest
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

sys.path.append(str(ROOT / "tools"))
import golden
import golden_cases
from golden import compare, digest_of_tensors, first_difference, main, records, renamed, results_of, table_numbers

RECORDED: dict[str, Any] = {
    "dpo/padded": {
        "logged": {"train/loss": [[1, 0.6931471824645996], [2, float("nan")]]},
        "weights": {"model.safetensors": "aa11"},
    },
    "check": {"check.json": {"findings": [], "counts": {"ok": 3}}},
}


@pytest.fixture
def changed() -> dict[str, Any]:
    return copy.deepcopy(RECORDED)


def verdicts(after: dict[str, Any]) -> dict[str, str]:
    rows, same = compare(RECORDED, after)
    assert same == all(verdict == "identical" for _, verdict in rows)
    return dict(rows)


def test_equal_recordings_are_identical_with_nan_in_them(changed: dict[str, Any]):
    assert set(verdicts(json.loads(json.dumps(changed))).values()) == {"identical"}


def test_the_last_digit_of_a_number_is_reported_with_its_place(changed: dict[str, Any]):
    changed["dpo/padded"]["logged"]["train/loss"][0][1] = 0.6931471824645997
    verdict = verdicts(changed)
    assert verdict["check"] == "identical"
    assert verdict["dpo/padded"] == (
        "different  logged > train/loss[0][1]: 0.6931471824645996 -> 0.6931471824645997  (1 of 5 values differ)"
    )


@pytest.mark.parametrize("other", [0.5, -0.0, None, 1])
def test_numbers_of_other_kinds_and_signs_differ(other: Any):
    assert first_difference({"a": 0.0}, {"a": other}) is not None


def test_a_changed_hash_is_reported(changed: dict[str, Any]):
    changed["dpo/padded"]["weights"]["model.safetensors"] = "aa12"
    assert "weights > model.safetensors: 'aa11' -> 'aa12'" in verdicts(changed)["dpo/padded"]


def test_what_is_only_in_one_recording_is_reported(changed: dict[str, Any]):
    del changed["check"]["check.json"]["findings"]
    changed["dpo/padded"]["logged"]["train/new"] = []
    changed["new"] = changed.pop("dpo/padded")
    verdict = verdicts(changed)
    assert verdict["dpo/padded"] == "missing in the second recording"
    assert verdict["new"] == "missing in the first recording"
    assert "check.json > findings: [] -> nothing" in verdict["check"]
    assert first_difference(RECORDED["dpo/padded"], changed["new"]) == (
        "logged > train/new: nothing -> []  (1 of 6 values differ)"
    )


def test_no_case_at_all_proves_nothing():
    assert compare({}, {}) == ([], False)


def test_the_command_prints_a_line_a_case_and_exits_with_one_where_any_differs(
    tmp_path: Path, changed: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    changed["check"]["check.json"]["counts"]["ok"] = 4
    for name, cases in (("a", RECORDED), ("b", changed)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"made": {"libraries": {}}, "cases": cases}))
    first, second = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["compare", first, first]) == 0
    assert capsys.readouterr().out.splitlines() == ["dpo/padded  identical", "check       identical"]
    assert main(["compare", first, second]) == 1
    assert "check       different  check.json > counts > ok: 3 -> 4" in capsys.readouterr().out
    assert main(["compare", first, second, "--only", "dpo/padded"]) == 0
    assert main(["compare", first, second, "--only", "dpo"]) == 1


def test_the_hash_of_weights_sees_names_and_bits_and_not_the_order_in_the_file(tmp_path: Path):
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.0])}

    def digest(tensors: dict[str, torch.Tensor], **metadata: str) -> str:
        save_file(tensors, tmp_path / "model.safetensors", metadata=metadata)
        return digest_of_tensors(tmp_path / "model.safetensors")

    expected = digest(weights)
    assert digest(weights, format="pt") == digest({"b": weights["b"], "a": weights["a"]}) == expected
    others = [{**weights, "b": torch.tensor([-0.0])}, {"a": weights["a"], "c": weights["b"]}]
    others.append({**weights, "a": weights["a"].double()})
    assert expected not in [digest(other) for other in others]


def test_the_hash_of_records_sees_every_row_and_not_their_order(tmp_path: Path):
    rows = [{"id": f"{k}", "loss": k / 3} for k in range(5)]

    def read(rows: list[dict[str, Any]]) -> dict[str, Any]:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "records.parquet")
        return records(tmp_path / "records.parquet")

    assert read(rows[::-1]) == read(rows) and read(rows)["first"] == rows[:3] and read(rows)["pairs"] == 5
    assert read([*rows[:4], {"id": "4", "loss": 4 / 3 + 1e-15}])["sha256"] != read(rows)["sha256"]


def test_what_is_renamed_keeps_its_name_in_recordings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(golden.RENAMED, "nll", "loss")
    monkeypatch.setitem(golden_cases.OPTIONS, "model.policy", "model.spec")
    monkeypatch.setitem(golden_cases.CLASSES, "SFT", "Imitation")
    assert renamed("train/nll") == "train/loss" and renamed("train/nllx") == "train/nllx"
    assert golden_cases.options({"model.policy.path": "x", "a": None}) == ["--model.spec.path=x", "--a=null"]
    assert golden_cases.part("SFT")["class_path"] == "Imitation"


def test_files_of_a_case_are_read_without_wording_paths_and_load(tmp_path: Path):
    place = tmp_path / "case"
    (place / "run" / "csv").mkdir(parents=True)
    (place / "run" / "csv" / "metrics.csv").write_text("step,train/loss,train/pairs_per_second,b\n1,0.1,7.0,\n")
    report = {"findings": [{"topic": "ties", "says": "a share of 0.25 is tied", "at": f"{tmp_path}/x"}]}
    (place / "check.json").write_text(json.dumps(report))
    (place / "selected.jsonl").write_text('{"prompt": "5 words", "score": 0.1}\n{"prompt": "b", "score": 2.0}\n')
    assert results_of(place) == {
        "logged in double precision": [{"step": "1", "train/loss": "0.1"}],
        "check.json": {"findings": [{"topic": "ties", "says": ["0.25"], "at": "FOLDER/x"}]},
        "selected.jsonl": [{"prompt": "5 words", "score": 0.1}, {"prompt": "b", "score": 2.0}],
    }


def test_numbers_of_a_printed_table_are_read_without_labels():
    text = "12 pairs\n┃   ┃ before ┃\n│ rate of 3 │ 0.50 │ +0.12 ± 0.03 │\n└───┘"
    assert table_numbers(text) == [["0.50", "+0.12", "0.03"]]


def test_the_tool_does_not_import_the_package():
    for file in ("golden.py", "golden_cases.py"):
        lines = (ROOT / "tools" / file).read_text().splitlines()
        assert not [line for line in lines if line.lstrip().startswith(("import lit_pref", "from lit_pref"))]


def test_the_examples_in_docstrings_hold():
    assert all(doctest.testmod(module).failed == 0 for module in (golden, golden_cases))
