"""`python -m lit_pref select`: its file is read as it is, the report counts right, and a run chooses alike."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT

from lit_pref.__main__ import main
from lit_pref.commands.select import write_pairs
from lit_pref.data.criteria import AlignmentPotential, ExplicitMargin, ImplicitMargin, Random
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection import Selection
from lit_pref.parser import Parser

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = 40


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def select(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy_folder: Path):
    """Runs a command beside a policy and pairs longer than it reads; gives exit code, lines and sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    (tmp_path / "policy").symlink_to(policy_folder)
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for k in range(PAIRS):
            long = " and so on" * (10 * (k % 3))
            row: dict[str, Any] = {"prompt": f"which one, {k // 4}? “tin”\n"}
            row |= {"chosen": f" good {k} é{long}", "rejected": f" bad {k}{long} or not"}
            # Every fifth prefers its second text: there the texts change places.
            sign = -1 if k % 5 == 0 else 1
            row |= {"margin": sign * (0.25 + (7 * k) % PAIRS), "p_chosen": 0.5 + sign * 0.01 * (k % 40 + 1)}
            row |= {"length_chosen": len(row["chosen"]), "length_rejected": len(row["rejected"]), "kind": f"k{k % 2}"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def run(*arguments: str, command: str = "select") -> tuple[int, list[str], str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([command, *map(str, arguments)])
        said = capfd.readouterr()
        sentences = [line for line in said.err.splitlines() if line.startswith("lit_pref: ")]
        return int(ended.value.code or 0), said.out.splitlines(), " ".join(sentences)

    return run


RUN = ["--config", str(ROOT / "configs" / "dpo.yaml"), "--model.policy.path", "policy", "--data.train", "pairs.jsonl"]
RUN += ["--trainer.accelerator", "cpu", "--data.val_fraction", "0.2", "--data.max_length", "60"]
RUN += ["--data.columns", "[length_chosen, length_rejected]", "--data.group_column", "kind"]
BEST = ["--data.selection", "AlignmentPotential", "--data.selection.keep", "0.4"]


def test_what_is_written_is_whole_and_read_again_as_it_is(select, tmp_path: Path):
    code, said, sentence = select(*RUN, *BEST, "--out", "best.jsonl")
    assert (code, sentence) == (0, "")
    best = rows(tmp_path / "best.jsonl")
    (kept, of) = re.search(r"kept (\d+) of (\d+) pairs", "\n".join(said)).groups()
    assert len(best) == int(kept) == int(0.4 * int(of)) and int(of) < PAIRS
    sources = {frozenset((row["chosen"], row["rejected"])): row for row in rows(tmp_path / "pairs.jsonl")}
    for row in best:
        source = sources[frozenset((row["chosen"], row["rejected"]))]
        swapped = source["margin"] < 0
        assert row["prompt"] == source["prompt"] and row["chosen"] == source["rejected" if swapped else "chosen"]
        assert row["margin"] == abs(source["margin"]) and row["kind"] == source["kind"]
        p = source["p_chosen"]
        assert row["probability"] == (1 - p if swapped else p)
        assert row["length_chosen"] == len(row["chosen"]) and row["length_rejected"] == len(row["rejected"])
    assert any(sources[frozenset((row["chosen"], row["rejected"]))]["margin"] < 0 for row in best)
    scores = [row["selection_score"] for row in best]
    assert scores != sorted(scores) and scores != sorted(scores)[::-1]
    # Once more, all that is in the file: the same pairs with the same names, now as Parquet.
    again = [*RUN, "--data.train", "best.jsonl", "--data.val_fraction", "0", "--data.selection", "Random"]
    code, *_ = select(*again, "--data.selection.keep", "1.0", "--out", "again.parquet")
    assert code == 0
    read = {row["id"]: row for row in rows(tmp_path / "again.parquet")}
    assert read.keys() == {row["id"] for row in best}
    for row in best:
        copied = read[row["id"]]
        assert {**copied, "selection_score": 0.0} == {**row, "selection_score": 0.0}
    code, said, _ = select(*again, "--data.train", "again.parquet", "--run_dir", "run", command="fit")
    assert code == 0 and any(f"{kept} pairs" in line for line in said)


def test_a_run_trains_on_what_the_command_writes(select, tmp_path: Path):
    select(*RUN, *BEST, "--out", "best.parquet")
    small = ["--run_dir", "run", "--data.global_batch", "4", "--closing_words", "false"]
    code, said, _ = select(*RUN, *BEST, *small, command="fit")
    assert code == 0 and not any("missing" in line for line in said if line.startswith("selection (policy)"))
    (line,) = [line.removeprefix("selection   ") for line in said if line.startswith("selection   Alignment")]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["selection"] == line
    assert f"kept {len(rows(tmp_path / 'best.parquet'))} of" in line
    report = json.loads((tmp_path / "best.report.json").read_text())
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["selection"]
    assert saved["class_path"].endswith("AlignmentPotential") and saved["init_args"]["keep"] == 0.4
    assert report["selection"] in line


def test_the_report_counts_what_is_kept(select, tmp_path: Path):
    options = ["--data.selection", "ExplicitMargin", "--data.selection.count", "8", "--data.val_fraction", "0"]
    code, said, _ = select(*RUN, *options, "--out", "best.jsonl")
    assert code == 0
    report = json.loads((tmp_path / "best.report.json").read_text())
    source = rows(tmp_path / "pairs.jsonl")
    best = sorted(source, key=lambda row: abs(row["margin"]))[-8:]
    margins = report["kinds"]["margin"]
    assert margins["kept"] == np.mean([abs(row["margin"]) for row in best])
    assert margins["all"] == np.mean([abs(row["margin"]) for row in source])
    assert margins["all"] * 40 == pytest.approx(margins["kept"] * 8 + margins["left_out"] * 32)
    assert report["kept"] == 8 and report["pairs"] == 40 and report["score"]["lowest kept"] == abs(best[0]["margin"])
    assert report["prompts"] == {"all": 10, "kept": len({row["prompt"] for row in best})}
    assert report["group"]["k0"]["kept"] == sum(row["kind"] == "k0" for row in best)
    assert report["group"]["k0"]["all"] == 20
    # It asks no policy, so of other choices only chance can be told.
    ((name, overlap),) = report["overlap"].items()
    shared = overlap["shared"]
    assert name == "chance (expected 0.200)" and overlap["jaccard"] == pytest.approx(shared / (2 - shared))
    html = (tmp_path / "best.report.html").read_text()
    assert "data:image/png;base64," in html and "http" not in html and "kept 8 of 40 pairs" in html
    assert any(line.startswith("chosen pairs  best.jsonl") for line in said)


def test_other_choices_are_compared_with_this_one(select, tmp_path: Path):
    options = ["--data.selection.keep", "0.25", "--data.selection.per_prompt", "true"]
    code, *_ = select(*RUN, "--data.selection", "ImplicitMargin", *options, "--out", "b.jsonl")
    assert code == 0
    overlap = json.loads((tmp_path / "b.report.json").read_text())["overlap"]
    names = ["explicit margin", "implicit margin, wrongest", "predictive entropy", "predictive entropy per token"]
    assert [name for name in overlap if not name.startswith("chance")] == [*names, "alignment potential"]
    # One pair of four of every prompt, so the explicit margin's are the largest of each.
    best: dict[str, Any] = {}
    for row in rows(tmp_path / "pairs.jsonl"):
        best[row["prompt"]] = max(best.get(row["prompt"], 0.0), abs(row["margin"]))
    chosen = rows(tmp_path / "b.jsonl")
    assert len({row["prompt"] for row in chosen}) == len(chosen) < 10
    shared = sum(row["margin"] == best[row["prompt"]] for row in chosen) / len(chosen)
    assert overlap["explicit margin"]["shared"] == shared


def test_rows_are_shuffled_by_the_seed_and_the_ids_alone(tmp_path: Path):
    ids = [f"pair {k}" for k in range(50)]

    def written(name: str, order: list[int], seed: int) -> list[str]:
        prompt = [{"role": "system", "content": ""}, {"role": "user", "content": "p\n"}]
        spans = [[0, 3, 0.5], [3, 4, 1.0]]
        some = ((k, {"id": ids[k], "prompt": prompt, "margin": 0.1 * k, "edit_chosen": spans}) for k in order)
        write_pairs(tmp_path / name, some, ids, seed)
        assert all(row["prompt"] == prompt and row["edit_chosen"] == spans for row in rows(tmp_path / name))
        return [row["id"] for row in rows(tmp_path / name)]

    first = written("a.jsonl", list(range(50)), 0)
    assert sorted(first) == sorted(ids) and first != ids
    assert written("b.parquet", list(range(50))[::-1], 0) == first
    assert written("c.jsonl", list(range(50)), 1) != first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.parquet", "c.jsonl"]


def test_a_faulty_row_on_the_way_leaves_no_file(tmp_path: Path):
    def broken():
        yield 0, {"id": "a", "prompt": "p"}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_pairs(tmp_path / "a.jsonl", broken(), ["a", "b"], 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ([], 2, "select writes the chosen pairs into a new file: --out chosen.jsonl"),
        (["--out"], 2, "got 'nothing'"),
        (["--out", "best.csv"], 2, "got 'best.csv'"),
        (["--out", "pairs.jsonl"], 2, "pairs.jsonl is there already, and select replaces nothing"),
        (["--out", "best.jsonl"], 2, "this configuration has no data.selection"),
        (["--out=best.jsonl", "--data.selection", "Best"], 2, "data.selection: unknown class 'Best'; known: Alignment"),
        (["--out=b.jsonl", "--data.selection", "Random", "--data.selection.keep", "2"], 2, "keep is 2; it is a share"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_what_is_refused(select, options: list[str], code: int, sentence: str):
    ended, _, said = select(*RUN, *options)
    assert ended == code and sentence in said


def test_the_help_says_what_is_written(select):
    code, said, _ = select("--help")
    assert code == 0 and said[0].startswith("usage: python -m lit_pref select --config FILE --out CHOSEN")


def parsed(*arguments: str | Path) -> Selection | None:
    """What the command line's parser builds of `--data.selection`."""
    parser = Parser()
    parser.add_lightning_class_args(PreferenceDataModule, "data")
    parser.add_argument("--config", action="config")
    return parser.instantiate(parser.parse_args([str(argument) for argument in arguments])).data.selection


SWITCHED: list[Selection] = [
    AlignmentPotential(weight=2.5, reference=True, signed=True, keep=0.3, which="bottom", per_prompt=True),
    ExplicitMargin(signed=True, count=7),
    ImplicitMargin(reference="folder", which="top", threshold=0.5),
    Random(seed=3, keep=0.9),
]


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(SWITCHED, 2)), ids=lambda s: type(s).__name__)
def test_a_later_selection_keeps_no_argument_of_the_old_one(old: Selection, new: Selection, tmp_path: Path):
    given = {name: value for name, value in vars(old).items() if value is not None and name != "unit"}
    spec = {"class_path": type(old).__name__, "init_args": given}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"data": {"selection": spec}}))
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({"data": {"selection": type(new).__name__}}))
    first = ["--config", tmp_path / "first.yaml"]
    assert repr(parsed(*first)) == repr(old)
    for switch in (["--config", tmp_path / "second.yaml"], ["--data.selection", type(new).__name__]):
        assert repr(parsed(*first, *switch)) == repr(type(new)())


def test_a_selection_is_taken_away_and_its_arguments_are_set():
    some = ["--data.selection", "ImplicitMargin", "--data.selection.reference", "runs/sft/hf"]
    assert repr(parsed(*some)) == repr(ImplicitMargin(reference="runs/sft/hf"))
    assert repr(parsed(*some, "--data.selection.reference", "true")) == repr(ImplicitMargin(reference=True))
    assert parsed(*some, "--data.selection", "null") is None
    assert parsed() is None
