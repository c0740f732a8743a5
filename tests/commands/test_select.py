"""The command `select`: `fit` reads its file, the report counts correctly, and a run selects the same pairs."""

import itertools
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT
from conftest import write_pairs as write_rows

from lit_pref.__main__ import main
from lit_pref.commands.written_pairs import write_pairs
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.data.selection.criteria import AlignmentPotential, ExplicitMargin, ImplicitMargin, Random
from lit_pref.data.selection.selection import Selection
from lit_pref.errors import UserError
from lit_pref.run.config import RunParser

pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = 40


def rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def select(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy_folder: Path):
    """Run a command in a folder with a policy and pairs, some too long; return exit code, printed lines and error."""
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
    small = ["--run_dir", "run", "--data.global_batch", "4", "--print_summary", "false"]
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
    assert any(line.startswith("selected pairs  best.jsonl") for line in said)


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


def command_of(said: list[str]) -> tuple[list[str], str]:
    """The options of the printed command, and the notes on it."""
    at = said.index("Next: train on them")
    words = shlex.split(said[at + 1])
    assert words[1:4] == ["-m", "lit_pref", "fit"]
    short = ["--run_dir", "next", "--trainer.max_steps", "1", "--print_summary", "false"]
    return [*words[4:], *short], " ".join(said[at + 2 :])


PLAIN = RUN[: RUN.index("--data.columns")]
HALF = ["--data.selection", "Random", "--data.selection.keep", "0.5"]


@pytest.fixture
def mixture(tmp_path: Path, select) -> list[str]:
    """Options for two sources with spans, only one of which has probabilities."""
    sources = []
    for name in ("one", "two"):
        sources.append({"path": f"{name}.jsonl"})
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for k, row in enumerate(rows(tmp_path / "pairs.jsonl")):
                row |= {"prompt": f"{name} {k}\n", "edit_chosen": [[0, 3, 0.5]], "edit_rejected": []}
                row |= {"edit_rejected": [[1, 4, 1.0]], "margin": row["margin"] * (1 if name == "one" else 10)}
                if name == "two":
                    del row["p_chosen"]
                file.write(json.dumps(row) + "\n")
    return [*PLAIN, "--data.train", json.dumps(sources), "--data.token_columns", "[edit]", *HALF]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_strength_that_only_some_sources_have_is_not_written_and_spans_are_read_again(
    select, mixture: list[str], tmp_path: Path, ending: str
):
    code, said, sentence = select(*mixture, "--out", f"best.{ending}")
    assert (code, sentence) == (0, "")
    best = rows(tmp_path / f"best.{ending}")
    assert not any("probability" in row for row in best) and all("margin" in row for row in best)
    assert {row["source"] for row in best} == {"one", "two"}
    options, notes = command_of(said)
    assert options[options.index("--data.group_column") + 1] == "source" and "constants" not in notes
    code, said, sentence = select(*options, command="fit")
    assert (code, sentence) == (0, "") and any(f"{len(best)} rows, {len(best)} pairs" in line for line in said)


def test_a_mixture_with_a_file_to_validate_on_is_not_split_by_a_column_that_it_lacks(
    select, mixture: list[str], tmp_path: Path
):
    rows = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    others = "".join(json.dumps({**row, "prompt": f"other {row['prompt']}"}) + "\n" for row in rows)
    (tmp_path / "val.jsonl").write_text(others)
    code, said, _ = select(*mixture, "--data.val", "val.jsonl", "--out", "best.jsonl")
    options, notes = command_of(said)
    assert code == 0 and "--data.group_column" not in options
    assert "--data.group_column source gives metrics for each, if data.val has this column too" in notes
    assert select(*options, command="fit")[::2] == (0, "")


def test_texts_and_messages_do_not_go_into_one_parquet_file(select, tmp_path: Path, policy_folder: Path):
    (tmp_path / "policy").unlink()
    shutil.copytree(policy_folder, tmp_path / "policy")
    (tmp_path / "policy" / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    written = rows(tmp_path / "pairs.jsonl")
    for row in written:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    (tmp_path / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    mixed = [*PLAIN, "--data.train", "[pairs.jsonl, messages.jsonl]", *HALF]
    code, said, sentence = select(*mixed, "--out", "best.parquet")
    assert code == 1 and "some prompts are texts and others lists of messages" in sentence and ".jsonl" in sentence
    assert not list(tmp_path.glob("best*"))
    code, said, _ = select(*mixed, "--out", "best.jsonl")
    assert code == 0 and select(*command_of(said)[0], command="fit")[::2] == (0, "")
    # In one source too, where the first pair does not show it.
    some = [(k, {"id": str(k), "prompt": "p" if k else [{"role": "user", "content": "p"}]}) for k in range(2)]
    with pytest.raises(UserError, match="some prompts are texts and others lists of messages"):
        write_pairs(tmp_path / "two.parquet", iter(some), ["0", "1"], 0)


@pytest.mark.parametrize("val", [[], ["--data.val", "val.jsonl"]])
def test_margins_are_written_before_they_are_normalised_and_normalised_once(select, tmp_path: Path, val: list[str]):
    write_rows(tmp_path / "val.jsonl", 10, seed=9)
    mapping = ["--data.mapping", "{margin: {normalise: zscore, scale: 2, clip: 60}}", *val]
    train = {"path": "pairs.jsonl", "name": "old", "count": 30 if val else 12}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"data": {"train": train}}))
    run = [*PLAIN[:4], "--config", "data.yaml", *PLAIN[6:]]
    code, said, _ = select(*run, *mapping, *HALF, "--out", "best.jsonl")
    assert code == 0
    source = {frozenset((row["chosen"], row["rejected"])): row["margin"] for row in rows(tmp_path / "pairs.jsonl")}
    best = rows(tmp_path / "best.jsonl")
    for row in best:
        assert row["margin"] == min(60, 2 * abs(source[frozenset((row["chosen"], row["rejected"]))]))
    options, notes = command_of(said)
    assert "this command fits the normalisation to the selected pairs" in notes
    assert ("the file contains training prompts only" in notes) == (not val)
    code, _, sentence = select(*options, command="fit")
    assert (code, sentence) == (0, "")
    (checkpoint,) = [path for path in (tmp_path / "next").rglob("*.ckpt") if "last" not in path.name][:1]
    (state,) = torch.load(checkpoint, weights_only=True)["PreferenceDataModule"]["normalisers"].values()
    assert state["scale"] == pytest.approx(math.sqrt(np.mean([row["margin"] ** 2 for row in best])))
    # What a mapping says of the sources is still how data.val is read.
    config = yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())["data"]
    assert config["mapping"]["margin"]["scale"] == 2 and config["train"]["mapping"]["base"] == "pairs"


def test_margins_of_a_mixture_that_are_normalised_apart_are_not_called_the_same(select, mixture: list[str]):
    mapping = ["--data.mapping", "{margin: {normalise: minmax}}"]
    code, said, _ = select(*mixture, *mapping, "--out", "best.jsonl")
    options, notes = command_of(said)
    assert code == 0 and "before this run normalised each source by its own constants" in notes
    assert '"mapping": "pairs"' in options[options.index("--data.selection") - 1]


def test_validation_without_a_checkpoint_says_to_which_pairs_gamma_was_fitted(select):
    gamma = ["--model.objective", "MMPO", "--model.objective.gamma", "Fitted", "--run_dir", "validated"]
    code, said, _ = select(*PLAIN, *gamma, *HALF, command="validate")
    (line,) = [line for line in said if line.startswith("fitted ")]
    assert code == 0 and line.endswith("of all training pairs, because data.selection is applied in `fit` only")


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
        ([], 2, "missing: --out"),
        (["--out"], 2, "--out needs a value"),
        (["--out", "best.csv"], 2, "not 'best.csv'"),
        (["--out", "pairs.jsonl"], 2, "pairs.jsonl exists already, and select overwrites no file"),
        (["--out", "best.jsonl"], 2, "this configuration does not say how to choose pairs"),
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
    assert code == 0 and said[0].startswith("usage: python -m lit_pref select [--config FILE] --out OUT")


def parsed(*arguments: str | Path) -> Selection | None:
    """The object that the command line's parser builds for `--data.selection`."""
    parser = RunParser()
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
