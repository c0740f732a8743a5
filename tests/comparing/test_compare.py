"""`python -m lit_pref compare`: its page, its files, its output, and what it refuses."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from comparing_runs import records, write_run
from conftest import ROOT, write_pairs
from filelock import FileLock

from lit_pref.__main__ import main
from lit_pref.commands.compare import compare
from lit_pref.comparing.run_record import read_runs
from lit_pref.errors import UsageError, UserError


class Page(HTMLParser):
    """The tables, headings and links of a page, and whether its elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.images: list[str] = []
        self.data = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        elif "h2" in self.open:
            self.headings[-1] += data
        elif "script" in self.open:
            self.data += data


def test_the_page_the_json_and_the_terminal_say_the_same(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    html, numbers = tmp_path / "compare.html", tmp_path / "compare.json"
    compare(str(trained / "dpo"), str(trained / "mmpo"), html=html, json=numbers, pairs=4)
    said, found = capsys.readouterr().out, json.loads(numbers.read_text())
    text = html.read_text()
    page = Page(text)
    assert json.loads(page.data) == found
    assert all(image.startswith("data:image/svg") for image in page.images) and 'src="http' not in text
    accuracy = found["metrics"]["rewards/accuracies"]["runs"]
    shown = {name: f"{of['value'][0]:.4g}" for name, of in accuracy.items()}
    of_page = [row for row in page.rows if row and row[0].startswith("rewards/accuracies")]
    assert len(of_page) == 1 and of_page[0][2].startswith(shown["dpo"]) and shown["mmpo"] in said
    assert ["model.objective", "DPO", "MMPO"] in page.rows
    assert page.headings == [
        *("Notes", "Runs", "Settings that differ", "Held-out metrics", "Calibration", "Curves"),
        "The 4 pairs on which the runs differ most",
    ]
    assert len(page.images) >= 2 + 1 + 4 + 3, "reliability, margins, held-out curves, training curves"
    for pair in found["differing_pairs"]:
        assert pair["place"] in text and re.fullmatch(r".*pairs\.jsonl, line \d+", pair["place"])
    for sentence in found["sentences"]:
        assert sentence in said
    assert "not comparable: another objective" in text and f"Next: look at {html}" in said


def test_texts_of_the_data_cannot_end_the_page(tmp_path: Path):
    name = "</script><b>"
    html = tmp_path / "page.html"
    first, second = records(seed=1), records(seed=2)
    first["place"] = second["place"] = [name] * 60
    compare(str(write_run(tmp_path / "a", first)), str(write_run(tmp_path / "b", second)), html=html)
    page = Page(html.read_text())
    assert name not in html.read_text() and json.loads(page.data)["differing_pairs"][0]["place"] == name


def test_many_runs_are_compared_with_a_named_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    of = [records(seed=k, skill=k / 4) for k in range(4)]
    folders = [write_run(tmp_path / name / "run", own) for name, own in zip("abcd", of, strict=True)]
    html, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    options = ["--baseline", "c/run", "--html", str(html), "--json", str(numbers), "--pairs", "0"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, folders), *options])
    assert ended.value.code == 0
    found = json.loads(numbers.read_text())
    assert [run["name"] for run in found["runs"]] == ["c/run", "a/run", "b/run", "d/run"] and len(
        found["sentences"]
    ) == 6
    z = found["metrics"]["rewards/margins"]["runs"]
    assert z["a/run"]["difference"][0] == pytest.approx(z["a/run"]["value"][0] - z["c/run"]["value"][0])
    assert z["c/run"]["difference"] is None and any("14%" in note for note in found["notes"])
    said = capsys.readouterr().out
    assert "a/run, b/run, d/run against c/run" in said and "calibration/brier" in said and "logps/chosen" not in said
    assert [row for row in Page(html.read_text()).rows if row and row[0].startswith("logps/chosen")]


def test_the_commands_of_its_page_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, target in (("first", "mmpo"), ("dpo", "dpo"), ("long", "mmpo")):
        shutil.copytree(trained / target, tmp_path / "runs" / name)
    text = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("python -m lit_pref ")]
    assert len(commands) == 5
    write_pairs(tmp_path / "FILE.jsonl", 9, seed=5)
    for command in (line.replace("FILE", "FILE.jsonl") for line in commands):
        with pytest.raises(SystemExit) as ended:
            main(command.split()[3:])
        assert ended.value.code == 0, command
    assert (tmp_path / "compare.html").exists() and (tmp_path / "compare.json").exists()
    both = read_runs(["runs/first", "runs/dpo"], "validate")
    assert [len(run.records["id"]) for run in both] == [9, 9]
    assert both[0].records["place"][0].startswith("FILE.jsonl, line ")


def test_runs_that_did_not_end_or_were_not_validated_at_their_end_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = write_run(tmp_path / "whole", records(seed=1))
    killed = write_run(tmp_path / "killed", records(seed=2), ended=False, step=0)
    late = write_run(tmp_path / "late", records(seed=3), step=20)
    (late / "checkpoints").mkdir()
    (late / "checkpoints" / "step=00000030.ckpt").touch()
    busy = write_run(tmp_path / "busy", records(seed=4))
    with FileLock(busy / ".lock"):
        compare(*map(str, (whole, killed, late, busy)))
    said = capsys.readouterr().out
    assert "killed did not end by itself (it has no hf/): its records are of step 0" in said
    assert "killed has records of step 0: its policy is the one before training" in said
    assert "late was validated last at step 20 and trained to step 30: for its end, validate --config" in said
    assert "busy is still training" in said and "note        whole" not in said
    assert "Their steps differ: whole 10, killed 0, late 20, busy 10." in said


def test_records_of_another_command_or_step_are_compared_by_name(tmp_path: Path):
    a, b = (write_run(tmp_path / name, records(seed=k)) for k, name in enumerate("ab"))
    for folder in (a, b):
        file = folder / "records" / "val-step=00000010.parquet"
        file.rename(file.with_name("validate-step=00000030.parquet"))
    both = [str(a), str(b)]
    with pytest.raises(UserError, match="has no val records, but those of validate: compare with --records validate"):
        read_runs(both)
    assert [run.step for run in read_runs(both, "validate")] == [30, 30]
    with pytest.raises(UserError, match="has no validate records of step 20; it has those of 30: leave out --step"):
        read_runs(both, "validate", step=20)


def test_what_is_no_run_or_cannot_be_compared_is_refused_with_a_remedy(tmp_path: Path):
    run = str(write_run(tmp_path / "runs" / "first", records()))
    refusals = {
        (run,): r"at least two run folders: compare runs/first runs/second",
        (run, run): "first is named twice",
        (run, str(tmp_path / "runs" / "frist")): "there is no run folder .*frist; did you mean first",
        (run, str(tmp_path / "runs")): "is not the folder of a run: .*; the runs in it: .*first",
        (
            run,
            str(write_run(tmp_path / "bare", None)),
        ): "bare has no records of held-out pairs .* write them by validate",
    }
    (tmp_path / "empty").mkdir()
    refusals[run, str(tmp_path / "empty")] = "neither config.yaml nor records; name a folder that `fit` wrote"
    for folders, words in refusals.items():
        with pytest.raises(UserError, match=words):
            compare(*folders)
    other = write_run(tmp_path / "other", records())
    with pytest.raises(UsageError, match="--baseline frst is none of the runs first, other; did you mean first"):
        compare(run, str(other), baseline="frst")
    with pytest.raises(UsageError, match=r"--html .*page.html cannot be written: there is no folder"):
        compare(run, str(other), html=tmp_path / "nowhere" / "page.html")
    (other / "records" / "val-step=00000010.parquet").write_text("cut")
    with pytest.raises(UserError, match=r"val-step=00000010.parquet cannot be read .* write them again: validate"):
        compare(run, str(other))


def test_runs_without_a_common_pair_are_refused_with_reason_and_remedy(tmp_path: Path):
    strange = records(seed=2)
    strange["id"] = [f"f{k:015x}" for k in range(60)]
    first, other = write_run(tmp_path / "first", records()), write_run(tmp_path / "other", strange)
    words = (
        r"first and other have no held-out pair in common \(60 pairs, .*\)\. To compare them, validate each on the same"
    )
    with pytest.raises(UserError, match=words):
        compare(str(first), str(other))
    half = {name: column[30:] for name, column in records(seed=3).items()}
    start = {name: column[:30] for name, column in records(seed=4).items()}
    parts = [write_run(tmp_path / name, own) for name, own in (("start", start), ("end", half))]
    with pytest.raises(UserError, match="the 3 runs have no held-out pair that all of them share"):
        compare(*map(str, (first, *parts)))
    renamed = records(seed=5)
    renamed["id"] = first_ids = [f"row {k}" for k in range(60)]
    named = {**records(), "id": first_ids}
    renamed["prompt"] = [f"other {prompt}" for prompt in renamed["prompt"]]
    both = [write_run(tmp_path / name, own) for name, own in (("named", named), ("renamed", renamed))]
    with pytest.raises(UserError, match="all 60 ids that the runs share have other prompts in renamed than in named"):
        compare(*map(str, both))
    chosen = {k: v for k, v in strange.items() if not k.startswith("rejected")}
    with pytest.raises(UserError, match="One of them reads only chosen responses"):
        compare(str(first), str(write_run(tmp_path / "sft", chosen)))
