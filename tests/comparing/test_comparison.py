"""The comparison of runs: settings, numbers against plain numpy, what cannot be compared, and texts."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from comparing_runs import DPO, records, write_run
from conftest import write_pairs

from lit_pref.comparing.comparison import RunComparison, compare_runs
from lit_pref.comparing.measures import Measure
from lit_pref.comparing.pair_texts import read_texts
from lit_pref.comparing.run_record import RunRecord, read_runs
from lit_pref.comparing.settings import setting_differences
from lit_pref.judging.comparison import sign_test
from lit_pref.metrics.records import read_parquet


def compared(*folders: Path, **options: Any) -> RunComparison:
    return compare_runs(read_runs([str(folder) for folder in folders], **options))


def measure(comparison: RunComparison, name: str, k: int = 1) -> Measure:
    (metric,) = (metric for metric in comparison.metrics if metric.name == name)
    of = metric.runs[k]
    assert of is not None
    return of


def test_values_differences_and_intervals_are_those_of_plain_numpy(tmp_path: Path):
    a, b = records(seed=1), records(seed=2, skill=0.9)
    of = compared(write_run(tmp_path / "a", a), write_run(tmp_path / "b", b))
    z = [np.array(own["z"]) for own in (a, b)]
    values = {
        "rewards/accuracies": [(own > 0).astype(float) for own in z],
        "calibration/log_loss": [np.log1p(np.exp(-own)) for own in z],
        "calibration/brier": [(1 / (1 + np.exp(-own)) - 1) ** 2 for own in z],
        "rewards/margins": z,
    }
    # Every prompt has three pairs, so a mean over resampled prompts is the mean of the prompts' means.
    drawn = np.random.default_rng(0).integers(20, size=(2000, 20))
    t = 2.093024054408263  # of 19 degrees of freedom
    tail = math.erfc(math.sqrt(20 / 19) * t / math.sqrt(2)) / 2
    for name, (first, second) in values.items():
        found = measure(of, name)
        assert measure(of, name, 0).value.value == pytest.approx(first.mean())
        assert found.value.value == pytest.approx(second.mean())
        by_prompt = (second - first).reshape(3, 20).mean(axis=0)
        ends = np.quantile(by_prompt[drawn].mean(axis=1), [tail, 1 - tail])
        assert found.difference == pytest.approx((by_prompt.mean(), *ends))
        assert found.signs is not None
        assert (found.signs.above, found.signs.below) == ((by_prompt > 1e-12).sum(), (by_prompt < -1e-12).sum())
    assert of.sentences[1].startswith("b is better than a: log-loss") and len(of.sentences) == 2
    assert "By prompts, b is better in" in of.sentences[0]


def test_the_sign_test_counts_prompts_and_is_exact():
    assert sign_test([1.0] * 9 + [-1.0], [str(k) for k in range(10)]).p == pytest.approx(2 * 11 / 1024)
    assert sign_test([1.0] * 10, ["one"] * 10) == sign_test([1.0], ["one"])
    assert sign_test([1.0, -1.0, math.nan], ["a", "a", "b"]).p == 1
    assert sign_test([1.0] * 520 + [-1.0] * 480, range(1000)).p == pytest.approx(0.2174, abs=1e-3)


def test_a_sign_test_that_the_mean_does_not_confirm_is_explained(tmp_path: Path):
    a = records(seed=1)
    better = [*([0.05] * 48), *([-0.2] * 12)]
    b = a | {"z": [z + change for z, change in zip(a["z"], better, strict=True)], "prompt": a["id"]}
    of = compared(write_run(tmp_path / "a", a | {"prompt": a["id"]}), write_run(tmp_path / "b", b))
    (sentence,) = (sentence for sentence in of.sentences if "log-loss" in sentence)
    assert measure(of, "calibration/log_loss").signs == sign_test([-1.0] * 48 + [1.0] * 12, range(60))
    assert "do not differ clearly" in sentence and "many small differences stand against few large ones" in sentence


def test_a_loss_is_not_compared_across_objectives_and_a_reward_only_under_one_beta_and_reference(tmp_path: Path):
    base = write_run(tmp_path / "base", records(seed=1))
    others = {
        "mmpo": {"objective": DPO.replace("DPO(", "MMPO(gamma=0.8, ").replace("Hard()", "MarginTarget(gamma=0.8)")},
        "beta": {"objective": DPO.replace("0.1", "0.5")},
        "reference": {"reference": "b"},
        "mrpo": {"objective": "MRPO(beta=0.1, eta=0.1, temperature=Constant(), tokens=Sum(), score=Identity())"},
    }
    folders = [write_run(tmp_path / name, records(seed=2), **options) for name, options in others.items()]
    of = compared(base, *folders)
    reasons = {
        name: {m.name: m.runs[k].incomparable for m in of.metrics if m.runs[k] is not None}
        for k, name in enumerate(of.names)
    }
    for name in others:
        assert reasons[name]["rewards/accuracies"] == reasons[name]["calibration/log_loss"] == ""
        assert reasons[name]["loss"] == ("another reference" if name == "reference" else "another objective")
    z = {name: reasons[name]["rewards/margins"] for name in others}
    assert z == {
        "mmpo": "",
        "beta": "beta 0.5 against 0.1",
        "reference": "another reference",
        "mrpo": "another objective",
    }
    assert reasons["reference"]["chosen_fell"] == "another reference" and reasons["beta"]["chosen_fell"] == ""
    assert "Not comparable between mmpo and base: loss (another objective)." in of.notes
    assert any("log-loss and Brier score" in note for note in of.notes)


def test_a_beta_that_moved_apart_other_tokens_and_reward_models_are_told_apart(tmp_path: Path):
    base = write_run(tmp_path / "base", records(seed=1))
    moved = records(seed=2) | {"beta": [0.2] * 60}
    longer = records(seed=2) | {"chosen_length": [9] * 60}
    judge = {name: column for name, column in records(seed=2).items() if "logp" not in name and "change" not in name}
    folders = [
        write_run(tmp_path / name, own) for name, own in (("moved", moved), ("longer", longer), ("judge", judge))
    ]
    of = compared(base, *folders)
    assert measure(of, "rewards/margins", 1).incomparable == "beta 0.2 against 0.1"
    assert measure(of, "logps/chosen", 1).difference is not None
    assert measure(of, "logps/chosen", 2).incomparable == "other tokens (tokenizer or truncation)"
    assert measure(of, "rewards/margins", 3).incomparable == "a reward model against a policy"
    assert measure(of, "rewards/accuracies", 3).difference is not None
    (logps,) = (metric for metric in of.metrics if metric.name == "logps/chosen")
    assert logps.runs[3] is None
    fixed = write_run(tmp_path / "fixed", records(seed=3), objective=DPO.replace("DPO(beta=0.1, ", "Fixed("))
    assert measure(compared(base, fixed), "rewards/margins").difference is not None
    assert measure(compared(folders[0], fixed), "rewards/margins").incomparable == "beta 0.1 against 0.2"


def test_only_settings_that_differ_are_listed_by_the_names_of_their_options(tmp_path: Path):
    config: dict[str, Any] = {
        "seed_everything": 0,
        "run_dir": "x",
        "model": {
            "objective": {"class_path": "lit_pref.DPO", "init_args": {"beta": 0.1, "target": None}},
            "references": [{"class_path": "lit_pref.Pretrained", "init_args": {"path": "r"}}],
        },
    }
    other = yaml.safe_load(yaml.safe_dump(config))
    other["run_dir"] = "y"
    other["model"]["objective"] = {"class_path": "lit_pref.MMPO", "init_args": {"beta": 0.1, "gamma": 0.8}}
    other["model"]["references"][0]["init_args"]["path"] = "s"
    first = write_run(tmp_path / "a", records(), config, layout="padded")
    second = write_run(tmp_path / "b", records(), other, layout="prefix_shared")
    found = setting_differences(read_runs([str(first), str(second)]))
    assert {entry.name: entry.values for entry in found} == {
        "model.objective": ("DPO", "MMPO"),
        "model.objective.gamma": ("-", "0.8"),
        "model.references.0.path": ("r", "s"),
        "layout": ("padded", "prefix_shared"),
    }
    assert [entry.name for entry in found if entry.recorded] == ["layout"]


def test_a_resumed_run_is_compared_by_the_settings_that_it_ended_with(tmp_path: Path):
    first = write_run(tmp_path / "a", records(), {"data": {"workers": 0}})
    second = write_run(tmp_path / "b", records(seed=2), {"data": {"workers": 0}})
    (second / "config-1.yaml").write_text(yaml.safe_dump({"data": {"workers": 2}}))
    change = "from step 5 with model.optimizer.lr 0.1 instead of 0.2"
    manifest = json.loads((second / "manifest.json").read_text()) | {"config": "config-1.yaml", "resumed": [change]}
    (second / "manifest-1.json").write_text(json.dumps(manifest))
    of = compared(first, second)
    assert [(entry.name, entry.values) for entry in of.settings] == [("data.workers", ("0", "2"))]
    assert f"b was resumed {change}." in of.notes


def test_runs_with_other_pairs_are_compared_on_those_that_all_of_them_have(tmp_path: Path):
    a, b = records(seed=1), records(seed=2)
    b = {name: column[10:] for name, column in b.items()}
    a["id"][20], b["id"][10] = "mine", "mine"  # an id of the data, of another prompt in b
    b["prompt"][10] = "another"
    a["id"][21], b["id"][11] = "ours", "ours"
    of = compared(write_run(tmp_path / "a", a), write_run(tmp_path / "b", b))
    assert len(of.pairs.ids) == 49 and "ours" in of.pairs.ids and "mine" not in of.pairs.ids
    assert any("(a 60, b 50): compared are the 49" in note for note in of.notes)
    assert any("1 pairs have one id and different prompts, such as 'mine'" in note for note in of.notes)
    kept = [name in of.pairs.ids for name in a["id"]]
    expected = np.mean([value > 0 for value, keep in zip(a["z"], kept, strict=True) if keep])
    assert measure(of, "rewards/accuracies", 0).value.value == pytest.approx(expected)


def test_runs_that_read_only_chosen_responses_are_compared_by_their_log_probs(tmp_path: Path):
    names = ("id", "loss", "chosen_logp", "chosen_length", "chosen_reward", "prompt")
    own = [{name: records(seed=k)[name] for name in names} for k in (1, 2)]
    of = compared(*(write_run(tmp_path / f"sft{k}", one) for k, one in enumerate(own)))
    assert of.calibrations == [None, None] and of.sentences == []
    difference = np.array(own[1]["chosen_logp"]) - np.array(own[0]["chosen_logp"])
    assert measure(of, "logps/chosen").difference[0] == pytest.approx(difference.mean())
    assert of.differing[0].spread == pytest.approx(np.abs(difference).max())


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path):
    bad = records(seed=2)
    bad["z"][3] = math.inf
    of = compared(write_run(tmp_path / "a", records(seed=1)), write_run(tmp_path / "b", bad))
    assert any("b has values that are NaN or infinite for 1 pairs" in note for note in of.notes)
    kept = [value > 0 for k, value in enumerate(bad["z"]) if k != 3]
    assert measure(of, "rewards/accuracies").value.value == pytest.approx(np.mean(kept))


def test_the_pairs_that_differ_most_are_read_with_file_and_line(trained: Path):
    runs = read_runs([str(trained / name) for name in ("dpo", "mmpo")])
    of = compare_runs(runs, shown=4)
    rows = [json.loads(line) for line in (trained / "pairs.jsonl").read_text().splitlines()]
    both = [dict(zip(run.records["id"], run.records["z"], strict=True)) for run in runs]
    losses = {name: [np.log1p(np.exp(-own[name])) for own in both] for name in both[0]}
    ranked = sorted(losses, key=lambda name: -abs(losses[name][0] - losses[name][1]))
    assert [pair.id for pair in of.differing] == ranked[:4]
    for pair in of.differing:
        assert pair.text is not None
        line = int(pair.place.rpartition(" ")[2])
        assert (pair.text.prompt, pair.text.chosen) == (rows[line - 1]["prompt"], rows[line - 1]["chosen"])
        assert pair.margin == pytest.approx(rows[line - 1]["margin"])
    places = dict(zip(runs[0].records["id"], runs[0].records["place"], strict=True))
    assert [places[pair.id] for pair in of.differing] == [pair.place for pair in of.differing]
    assert compare_runs(runs, shown=0).differing == []


def test_texts_are_found_in_mixtures_and_missed_aloud_where_a_file_changed(tmp_path: Path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        write_pairs(tmp_path / f"{name}.jsonl", 6, seed=seed)
    sources = [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two", "three")]
    run = RunRecord("a", tmp_path, {"data": {"train": "x", "val": sources}}, {}, "val", {}, 0)
    ids = read_texts_ids(tmp_path / "one.jsonl")
    run.__dict__["records"] = {"id": ids, "rejected_length": ids}
    found, words = read_texts(run, [ids[0], f"{ids[0]}-again1"])
    assert words == "" and [text.place for text in found.values()] == [
        f"{tmp_path}/{name}.jsonl, line 1" for name in ("one", "two")
    ]
    write_pairs(tmp_path / "one.jsonl", 6, seed=3)
    (tmp_path / "two.jsonl").unlink()
    found, words = read_texts(run, ids[:2])
    assert found == {} and "texts of 2 of these pairs are not found" in words and "two.jsonl" in words


def read_texts_ids(file: Path) -> list[str]:
    from lit_pref.data.prepared.preparation import Preparation
    from lit_pref.data.sources.source import Source

    return [pair.id for pair in Preparation().checked_pairs(Source(str(file)))]


def test_two_trained_runs_differ_in_their_objective_and_have_curves(trained: Path):
    of = compared(trained / "dpo", trained / "mmpo")
    assert {entry.name for entry in of.settings} >= {"model.objective", "model.objective.gamma"}
    assert not [entry for entry in of.settings if entry.name.startswith(("data", "trainer", "validation"))]
    for name in ("dpo", "mmpo"):
        curves = {curve.metric: curve for curve in of.curves if curve.run == name}
        assert curves["rewards/accuracies"].steps == (0, 2) and curves["train/loss"].steps == (1, 2)
        z = read_parquet(trained / name / "records" / "val-step=00000002.parquet")["z"]
        assert curves["rewards/margins"].values[-1] == pytest.approx(np.mean(z))
    assert measure(of, "loss").incomparable == "another objective"
    assert measure(of, "rewards/margins").difference is not None
    assert of.to_json()["metrics"]["rewards/accuracies"]["runs"]["mmpo"]["value"][0] is not None
