"""The command `check`: its findings about the data of a run, and the files it writes."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jsonargparse._paths
import pytest
from conftest import ROOT, write_pairs

from lit_pref.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore")

MMPO = [
    "--config",
    str(ROOT / "configs" / "mmpo.yaml"),
    "--model.policy.path",
    "policy",
    "--trainer.accelerator",
    "cpu",
]
DPO = ["--config", str(ROOT / "configs" / "dpo.yaml"), *MMPO[2:]]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], policy_folder: Path):
    """Run `check` in a folder with a policy; return its exit code, stdout, stderr and JSON report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lit_pref"])
    (tmp_path / "policy").symlink_to(policy_folder)

    def run(*arguments: str | Path) -> tuple[int, str, str, dict[str, Any]]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, arguments), "--json", "out.json"])
        said = capfd.readouterr()
        report = json.loads(Path("out.json").read_text(), parse_constant=lambda name: pytest.fail(name))
        return int(ended.value.code or 0), said.out, said.err, report

    return run


def rows(path: Path, number: int, **changes: Any) -> list[dict[str, Any]]:
    """Pairs in which the longer response wins three times out of four, with margins from 0.1 on."""
    made = []
    for k in range(number):
        long, short = " oak elm owl cat dog", " tin"
        two = (long, short) if k % 4 else (short, long)
        made.append({"prompt": f"one {k} :", "chosen": f"{two[0]} {k}", "rejected": f"{two[1]} {k}"})
        made[-1] |= {"margin": 0.1 + k / 100, **changes}
    write(path, made)
    return made


def write(path: Path, content: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def find(report: dict[str, Any], topic: str, split: str = "train", **numbers: Any) -> dict[str, Any]:
    named = [f for f in report["findings"] if f["topic"] == topic and f["split"] == split]
    named = [f for f in named if all(f["numbers"][name] == value for name, value in numbers.items())]
    assert len(named) == 1, [f["says"] for f in report["findings"]]
    return named[0]


def test_clean_data_pass_and_leave_nothing_behind(check, tmp_path: Path):
    write_pairs(tmp_path / "pairs.jsonl", 60)
    code, said, error, report = check(*MMPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0.3")
    assert code == 0 and not error and report["verdict"] in ("ok", "note", "warning")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "pairs.jsonl", "policy"]
    train, val = (find(report, "prompts", split)["numbers"]["pairs"] for split in ("train", "val"))
    assert train + val == 60 and find(report, "overlap", "")["numbers"]["shared"] == 0
    assert len(said.splitlines()) <= 60
    assert report["counts"] == {s: sum(f["severity"] == s for f in report["findings"]) for s in report["counts"]}


def test_shares_are_what_the_file_holds(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 400)
    for row in made[:100]:
        row["margin"] = 9.0
    for row in made[100:110]:
        row["margin"] = 0.0
    for row in made[110:130]:
        row["margin"] *= -1
    write(tmp_path / "pairs.jsonl", made)
    options = ["--data.val_fraction", "0", "--model.objective.gamma", "2.2", "--model.objective.beta", "0.01"]
    code, said, _, report = check(*MMPO, "--data.train", "pairs.jsonl", *options)
    assert code == 0
    margin = [abs(row["margin"]) for row in made]
    assert find(report, "clip")["numbers"]["at_largest"] == 0.25 and find(report, "clip")["severity"] == "warning"
    assert find(report, "ties")["numbers"]["ties"] == 10 and find(report, "swapped")["numbers"]["swapped"] == 20
    # Of the pairs without a tie: those that exchanged their texts exchanged the winner too.
    right = sum((k % 4 != 0) != (row["margin"] < 0) for k, row in enumerate(made) if row["margin"] != 0)
    shortcut = find(report, "shortcut")
    assert shortcut["numbers"]["accuracy"] == pytest.approx(right / 390) and shortcut["severity"] == "warning"
    assert shortcut["numbers"]["pairs"] == 390 and shortcut["numbers"]["ties"] == 10
    # fp32 has no number between 1 - 2**-24 and 1; half-way is sigmoid(25 ln 2).
    saturated = sum(2.2 * m > 25 * math.log(2) for m in margin) / 400
    target = find(report, "target")["numbers"]
    assert target["saturated"] == pytest.approx(saturated) and saturated == 0.25
    assert target["mean_target"] == pytest.approx(sum(1 / (1 + math.exp(-2.2 * m)) for m in margin) / 400, abs=1e-6)
    assert find(report, "demand")["numbers"]["nats"]["margin 1"] == pytest.approx(220)
    assert "220 nats at a margin of one" in said


def test_a_gamma_that_is_fitted_is_fitted_before_it_is_judged(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 60)
    fitted = ["--model.objective.gamma", "Fitted", "--model.objective.gamma.mean_probability", "0.8"]
    _, _, _, report = check(*MMPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0", *fitted)
    target = find(report, "target")["numbers"]
    # Fitted so that the mean of sigmoid(gamma m) is 0.8.
    mean = sum(1 / (1 + math.exp(-target["gamma"] * row["margin"])) for row in made) / 60
    assert mean == pytest.approx(0.8, abs=1e-6) and target["mean_target"] == pytest.approx(0.8, abs=1e-6)
    assert find(report, "demand")["numbers"]["nats"]["margin 1"] == pytest.approx(target["gamma"] / 0.1)


def test_a_selection_that_asks_no_model_is_made_before_numbers_are_told(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 60)
    fitted = ["--model.objective.gamma", "Fitted", "--model.objective.gamma.mean_probability", "0.8"]
    explicit = ["--data.val_fraction", "0", "--data.selection", "ExplicitMargin", "--data.selection.keep", "0.25"]
    _, _, _, report = check(*MMPO, "--data.train", "pairs.jsonl", *fitted, *explicit)
    gamma = find(report, "target")["numbers"]["gamma"]
    # Of the fifteen largest margins, which are the last rows.
    mean = sum(1 / (1 + math.exp(-gamma * row["margin"])) for row in made[-15:]) / 15
    assert mean == pytest.approx(0.8, abs=1e-6) and find(report, "prompts")["numbers"]["pairs"] == 15
    selection = find(report, "selection")
    assert selection["severity"] == "ok" and selection["numbers"] == {"pairs": 15, "of": 60}


def test_a_selection_that_asks_a_model_is_told_of_where_there_is_none(check, tmp_path: Path):
    rows(tmp_path / "pairs.jsonl", 60)
    options = ["--data.val_fraction", "0", "--data.selection", "AlignmentPotential", "--data.selection.keep", "0.25"]
    _, said, _, report = check(*MMPO, "--data.train", "pairs.jsonl", *options)
    selection = find(report, "selection")
    assert selection["severity"] == "warning" and selection["numbers"] == {"pairs": 60, "of": 60}
    assert (
        "numbers are of the 60 pairs before AlignmentPotential selects some, which needs the models; --model runs it"
        in said
    )


def test_how_rows_were_read_is_told_beside_how_the_run_reads_them(check, tmp_path: Path):
    write_pairs(tmp_path / "pairs.jsonl", 20)
    _, said, _, _ = check(*DPO, "--data.train", "pairs.jsonl", "--data.max_refused", "0.2")
    assert "check reads with data.bad_rows lenient and data.max_refused 1" in said
    assert "the run itself uses strict and 0.2" in said


def test_margins_that_were_cut_to_a_bound_disagree_with_their_scores_for_that_reason(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 60)
    for k, row in enumerate(made):
        row |= {"score_chosen": 1 + k / 5, "score_rejected": 1.0, "margin": min(k / 5, 6.0)}
    write(tmp_path / "pairs.jsonl", made)
    options = ["--data.train", "pairs.jsonl", "--data.val_fraction", "0"]
    _, _, _, report = check(*DPO, *options)
    found = find(report, "disagreeing")
    assert found["severity"] == "note" and found["numbers"]["disagreeing"] == 29 and found["numbers"]["bound"] == 6
    assert "all with the margin 6" in found["says"]
    made[3]["margin"] = 2.5
    write(tmp_path / "pairs.jsonl", made)
    _, _, _, report = check(*DPO, *options)
    found = find(report, "disagreeing")
    assert found["severity"] == "warning" and found["numbers"]["disagreeing"] == 30
    assert found["numbers"]["bound"] is None and "not the difference of the scores" in found["says"]


def test_all_faults_are_met_in_one_go_though_the_run_is_strict(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 40)
    made[3]["chosen"], made[7]["margin"], made[9]["rejected"] = None, float("nan"), made[9]["chosen"]
    write(tmp_path / "pairs.jsonl", made)
    code, _, error, report = check(*DPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0")
    found = find(report, "rows")
    assert code == 1 and found["severity"] == "stop" and "stop" in error
    assert sum(found["numbers"]["refused"].values()) == 3 and len(found["numbers"]["refused"]) == 3
    assert found["numbers"]["rows"] == 40 and found["numbers"]["pairs"] == 37
    assert "line 4" in found["says"], "the first of them is named"


def test_lenient_runs_are_held_to_their_own_bound(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 40)
    made[3]["chosen"] = None
    write(tmp_path / "pairs.jsonl", made)
    lenient = [*DPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0", "--data.bad_rows", "lenient"]
    code, _, _, report = check(*lenient, "--data.max_refused", "0.01")
    assert code == 1 and find(report, "rows")["severity"] == "stop"
    code, _, _, report = check(*lenient, "--data.max_refused", "0.05")
    assert code == 0 and find(report, "rows")["severity"] == "warning"


def test_prompts_of_a_validation_file_that_are_trained_on_are_found(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 20)
    others = [{**row, "chosen": " big", "rejected": " old"} for row in made[:5]]
    write(tmp_path / "val.jsonl", [*others, *({**row, "prompt": f"new {k}"} for k, row in enumerate(others))])
    code, _, _, report = check(*DPO, "--data.train", "pairs.jsonl", "--data.val", "val.jsonl")
    overlap = find(report, "overlap", "")
    assert code == 0 and overlap["severity"] == "warning"
    assert overlap["numbers"] == {"shared": 5, "same": 0, "pairs": 10, "share": 0.5}
    # Numbers that both files give to their rows say nothing.
    write(tmp_path / "pairs.jsonl", [{**row, "id": k} for k, row in enumerate(made)])
    write(tmp_path / "val.jsonl", [{**row, "id": k} for k, row in enumerate(others)])
    code, _, _, report = check(*DPO, "--data.train", "pairs.jsonl", "--data.val", "val.jsonl")
    assert code == 0 and find(report, "overlap", "")["numbers"]["same"] == 0
    write(tmp_path / "val.jsonl", [{**row, "id": f"v{k}"} for k, row in enumerate([*others, made[7]])])
    code, _, _, report = check(*DPO, "--data.train", "pairs.jsonl", "--data.val", "val.jsonl")
    assert code == 1 and find(report, "overlap", "")["numbers"]["same"] == 1


def test_what_a_run_is_refused_for_is_told_beside_what_is_known_of_the_data(check, tmp_path: Path):
    rows(tmp_path / "pairs.jsonl", 20, prompt="one " * 150)
    code, _, _, report = check(*DPO, "--data.train", "pairs.jsonl", "--data.max_length", "512")
    refused = find(report, "refused", "")
    assert code == 1 and refused["severity"] == "stop" and "reads at most 128" in refused["says"]
    assert find(report, "prompts")["numbers"]["prompts"] == 1, "the data are looked at all the same"


def test_where_no_row_can_be_used_the_reasons_are_told(check, tmp_path: Path):
    rows(tmp_path / "pairs.jsonl", 5, chosen=None)
    code, _, _, report = check(*DPO, "--data.train", "pairs.jsonl")
    assert code == 1 and re.search(r"no pairs .*5 rows; chosen .*: 5", find(report, "refused", "")["says"])


def test_a_file_that_cannot_be_read_is_a_report_too(check, tmp_path: Path):
    code, _, _, report = check(*DPO, "--data.train", "nowhere.jsonl")
    assert code == 1 and [f["topic"] for f in report["findings"]] == ["refused"]
    assert "nowhere.jsonl" in report["findings"][0]["says"]


def test_the_page_needs_nothing_beside_it_and_holds_every_number(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 60)
    made[0]["chosen"] = " <script>alert('x')</script> tin"
    write(tmp_path / "pairs.jsonl", made)
    code, said, _, report = check(*MMPO, "--data.train", "pairs.jsonl", "--html", "sub/page.html")
    page = (tmp_path / "sub" / "page.html").read_text()
    assert code == 0 and "sub/page.html" in said
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']{0,30})", page)
    assert links and all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert "@import" not in page and "<link" not in page and "<script>alert" not in page
    shown = page.partition('<script type="application/json"')[0]
    for finding in report["findings"]:
        for value in leaves(finding["numbers"]):
            if isinstance(value, int | float):
                text = str(value) if isinstance(value, int) else f"{value:.4g}"
                assert ("yes" if value else "no") in shown if isinstance(value, bool) else f">{text}<" in shown
    embedded = page.partition('id="report">')[2].partition("</script>")[0]
    assert json.loads(embedded) == report


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for entry in value.values() for leaf in leaves(entry)]
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]


def test_a_file_of_pairs_is_not_read_as_a_configuration(check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = jsonargparse._paths.Path.read_text
    named: list[str] = []

    def noted(self: Any, *args: Any, **kwargs: Any) -> str:
        named.append(str(self))
        return read(self, *args, **kwargs)

    monkeypatch.setattr(jsonargparse._paths.Path, "read_text", noted)
    rows(tmp_path / "pairs.jsonl", 12)
    check(*DPO, "--data.train", "pairs.jsonl")
    assert named and all(name.endswith(".yaml") for name in named), named


def test_help_and_a_file_that_is_not_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["check", "--help"])
    assert ended.value.code == 0 and "--html HTML" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["check", "--config", "a.yaml", "--html"])
    assert ended.value.code == 2 and "--html needs a value" in capsys.readouterr().err


def test_what_the_objective_lacks_keeps_nobody_from_looking_at_the_data(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 12)
    write(tmp_path / "pairs.jsonl", [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in made])
    code, _, _, report = check(*MMPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0")
    refused = next(f for f in report["findings"] if f["topic"] == "refused")
    assert code == 1 and "needs the strength of each preference" in refused["says"]
    assert find(report, "rows")["numbers"]["pairs"] == 12 and report["pairs"]


def test_a_template_that_asks_otherwise_than_it_writes_stops_and_plain_prompts_beside_one_warn(check, tmp_path: Path):
    folder = tmp_path / "chat"
    folder.mkdir()
    for file in (tmp_path / "policy").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(turns + "{% if add_generation_prompt %}[helper]{% endif %}")
    made = rows(tmp_path / "pairs.jsonl", 12)
    options = ["--model.policy.path", "chat", "--data.train", "pairs.jsonl", "--data.val_fraction", "0"]
    code, _, _, report = check(*DPO, *options)
    assert (
        code == 0 and find(report, "plain")["severity"] == "warning" and find(report, "plain")["numbers"]["plain"] == 12
    )
    write(tmp_path / "pairs.jsonl", [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in made])
    code, _, _, report = check(*DPO, *options)
    assert code == 1 and find(report, "template")["numbers"]["unasked"] == 12


def test_normalised_margins_are_said_to_be(check, tmp_path: Path):
    rows(tmp_path / "pairs.jsonl", 12)
    scaled = ["--data.mapping", "{margin: {normalise: minmax}}"]
    _, _, _, report = check(*DPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0", *scaled)
    assert find(report, "normalised")["numbers"]["scale"] == pytest.approx(0.21)
    assert find(report, "margins")["numbers"]["spread"]["max"] == pytest.approx(1.0)


def test_escape_sequences_of_data_do_not_reach_the_terminal(check, tmp_path: Path):
    made = rows(tmp_path / "pairs.jsonl", 30)
    for row in made:
        row["prompt"] = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e" + row["prompt"]
    write(tmp_path / "pairs\x1b[2J.jsonl", made)
    _, said, error, _ = check(*MMPO, "--data.train", "pairs\x1b[2J.jsonl", "--data.val_fraction", "0.3")
    assert "␛]0;owned␇␛[2J\\x9b31m\\u202e" in said and "pairs␛[2J.jsonl" in said
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said + error)


def test_contradicting_strengths_are_counted_by_kind_and_a_used_run_folder_is_no_news(
    check, tmp_path: Path, recwarn: Any
):
    made = rows(tmp_path / "pairs.jsonl", 24)
    for row in made:
        row.update(score_chosen=row["margin"], score_rejected=0)
    for row in made[:3]:
        row.update(margin=2, score_chosen=9, score_rejected=2)
    made[5]["probability"] = 0.2
    for row in made:
        row.setdefault("probability", 0.9)
    write(tmp_path / "pairs.jsonl", made)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step=00000001.ckpt").write_text("")
    *_, report = check(*MMPO, "--data.train", "pairs.jsonl", "--data.val_fraction", "0", "--run_dir", "run")
    says = find(report, "disagreeing")["says"]
    assert "the margin is not the difference of the scores in 3 (first: " in says
    assert "pairs.jsonl, line 1: margin 2 against 9 - 2 = 7; clipped in the source?)" in says
    assert "prefer different responses in 1 (first: " in says and "line 6: probability 0.2, margin 0.15)" in says
    assert not [warning for warning in recwarn if "is not empty" in str(warning.message)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("--trainer.strategy=fsdp", "trainer.strategy fsdp (FSDP1) is not supported; use FSDP2"),
        ("--trainer.strategy=FSDPStrategy --trainer.strategy.cpu_offload=true", "trainer.strategy fsdp (FSDP1) is not"),
        ("--trainer.strategy=fsdp2 --trainer.strategy.replicas=2", "FSDP2: replicas is 2, which does not divide the 1"),
        (
            "--trainer.strategy=fsdp2 --trainer.strategy.parameters=float32 --model.policy.dtype=bfloat16",
            "FSDP2: parameters is float32, and the weights are kept in bfloat16 ",
        ),
    ],
)
def test_settings_of_devices_that_a_run_refuses_are_named_and_no_model_is_built(
    check, tmp_path: Path, settings: str, words: str
):
    rows(tmp_path / "pairs.jsonl", 12)
    code, said, _, report = check(*DPO, "--data.train=pairs.jsonl", "--model", *settings.split())
    (stop,) = [f for f in report["findings"] if f["severity"] == "stop"]
    assert code == 1 and stop["says"].startswith(f"the run would stop with this error: {words}")
    assert "the models were not checked" in said and "building the models" not in said
    assert {"lengths", "models"} <= {f["topic"] for f in report["findings"]}
