"""Win rates and length-controlled win rates against the `alpaca-eval` package and independent fits."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_pref.errors import UserError
from lit_pref.judging.comparison import PromptBootstrap, mean_of
from lit_pref.judging.length_controlled import (
    PENALTIES,
    Difficulty,
    _Fit,
    length_controlled_win_rate,
    read_difficulty,
)
from lit_pref.judging.win_rate import Annotations, preferences_of_scores, read_annotations, win_rate

# Of version 0.6.6 of the package with scikit-learn 1.9.1, for the made annotations below, in percent.
PACKAGE = {
    "verbose": (57.833333333333336, 57.833333333333336, 47.73300182237091, 50.5043406918427),
    "short": (30.833333333333336, 30.833333333333336, 45.256425520964136, 44.569686391746764),
    "certain": (33.398594834001955, 24.0, 31.25102204341937, 31.691546543130052),
}


def made(kind: str) -> Annotations:
    """Annotations of one model: `verbose` gains by its length, `short` is better than it looks, `certain` is graded."""
    generator = np.random.default_rng(["verbose", "short", "certain"].index(kind))
    n = 300
    baseline = generator.integers(200, 3000, size=n).astype(float)
    own = baseline * np.exp({"verbose": 0.5, "short": -0.8, "certain": 0.0}[kind] + 0.5 * generator.normal(size=n))
    longer = np.tanh((own - baseline) / 1500)
    x = {"verbose": -0.3, "short": -0.2, "certain": -1.0}[kind] + 1.5 * longer + difficulties()[:n]
    p = 1 / (1 + np.exp(-x - 0.7 * generator.normal(size=n)))
    if kind != "certain":
        p = (p > generator.random(n)).astype(float)
        p[7] = 0.5
    return Annotations(tuple(range(n)), p, baseline, own.round())


def difficulties() -> np.ndarray:
    return np.random.default_rng(9).normal(size=300)


def write_difficulty(path: Path) -> Path:
    generator = np.random.default_rng(10)
    difficulty = difficulties()
    with open(path, "w", newline="") as file:
        names = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        writer = csv.writer(file)
        writer.writerow(names)
        for model, sign in (("gamed_verbose", -1), ("gamed_concise", 1)):
            for k in range(300):
                length = sign * 1.2 + 0.5 * generator.normal()
                p = 1 / (1 + math.exp(-(-0.8 * math.tanh(length) + 0.6 * difficulty[k] + generator.normal())))
                writer.writerow([model, k, repr(p), repr(length), repr(float(difficulty[k])), False])
    return path


def of_the_package(annotations: Annotations, difficulty: Path, name: str) -> dict[str, float]:
    """The numbers of the package's own function on the same rows."""
    import alpaca_eval.metrics.glm_winrate as package
    import pandas as pd

    rows = {
        "index": annotations.item,
        "preference": annotations.preference + 1,
        "output_1": ["x" * int(length) for length in annotations.baseline_length],
        "output_2": ["x" * int(length) for length in annotations.model_length],
        "generator_1": "baseline",
        "generator_2": "model",
    }
    package.hf_hub_download = lambda **_: str(difficulty)
    return package.get_length_controlled_winrate(pd.DataFrame(rows), glm_name=name, save_weights_dir=None)


@pytest.mark.parametrize("kind", ["verbose", "short", "certain"])
def test_rates_are_those_of_the_package(tmp_path: Path, kind: str):
    annotations = made(kind)
    difficulty = read_difficulty(write_difficulty(tmp_path / "df_gamed.csv"))
    found = win_rate(annotations.preference, annotations.prompts)
    plain, discrete, minimal, published = PACKAGE[kind]
    assert 100 * found.rate.value == pytest.approx(plain, abs=1e-9)
    assert 100 * found.discrete.value == pytest.approx(discrete, abs=1e-9)
    assert 100 * length_controlled_win_rate(annotations).rate.value == pytest.approx(minimal, abs=0.1)
    assert 100 * length_controlled_win_rate(annotations, difficulty).rate.value == pytest.approx(published, abs=0.1)
    assert abs(plain - minimal) > 1 and abs(minimal - published) > 0.3, "the three differ, so that each is tested"


@pytest.mark.parametrize("kind", ["verbose", "short", "certain"])
def test_the_written_rates_of_the_package_are_what_it_computes(tmp_path: Path, kind: str):
    pytest.importorskip("alpaca_eval", reason="the extra `alpaca` is not installed")
    annotations, path = made(kind), write_difficulty(tmp_path / "df_gamed.csv")
    minimal = of_the_package(annotations, path, "length_controlled_minimal")
    published = of_the_package(annotations, path, "length_controlled_v1")
    now = (minimal["win_rate"], minimal["discrete_win_rate"])
    now += (minimal["length_controlled_winrate"], published["length_controlled_winrate"])
    assert now == pytest.approx(PACKAGE[kind], abs=1e-6)


def test_the_fit_is_at_the_minimum():
    annotations = made("verbose")
    features = np.stack([annotations.model_length / 3000, difficulties(), np.ones(300)], axis=1)
    fit = _Fit(features, annotations.preference, np.linspace(0.1, 1, 300))
    generator = np.random.default_rng(0)
    for penalty in PENALTIES:
        w = fit.minimum(penalty)
        least = fit._objective(w, penalty)
        for scale in (1e-1, 1e-3, 1e-5):
            for _ in range(30):
                assert fit._objective(w + scale * generator.normal(size=3), penalty) >= least - 1e-9 * max(1, least)
        slope = -penalty * fit.gradient(w)  # in the subgradient of |w|_1
        assert np.allclose(slope[w != 0], np.sign(w[w != 0]), atol=1e-6 * max(1, penalty))
        assert (np.abs(slope[w == 0]) <= 1 + 1e-9).all()
    assert not fit.minimum(PENALTIES[0]).any(), "the strongest penalty leaves nothing"


@pytest.mark.parametrize("published", [False, True])
def test_the_interval_of_the_rate_is_that_of_a_fit_at_every_resample(tmp_path: Path, published: bool):
    annotations = made("short")
    difficulty = read_difficulty(write_difficulty(tmp_path / "df_gamed.csv")) if published else None
    found = length_controlled_win_rate(annotations, difficulty)
    length = annotations.baseline_length - annotations.model_length
    columns = [np.tanh(length / length.std(ddof=1)), np.ones(300)]
    gamed = np.zeros((0, 2))
    label, weight = annotations.preference, np.zeros(0)
    if difficulty is not None:
        columns.insert(1, difficulties())
        gamed = np.stack([np.tanh(difficulty.length), difficulty.difficulty, np.zeros(600)], axis=1)
        label, weight = np.concatenate([difficulty.preference, label]), np.full(600, 0.1)
    features = np.stack(columns, axis=1)

    def refitted(drawn: np.ndarray) -> np.ndarray:
        rates = []
        for row in drawn:
            fit = _Fit(np.concatenate([gamed, features]), label, np.concatenate([weight, row]))
            w = fit.minimum(found.penalty)
            w[0] = 0
            rates.append(np.average(1 / (1 + np.exp(-features @ w)), weights=row))
        return np.array(rates)

    again = PromptBootstrap(annotations.prompts, resamples=400).interval(refitted)
    assert found.rate.value == pytest.approx(again.value, abs=1e-6)
    assert found.rate.high - found.rate.low == pytest.approx(again.high - again.low, rel=0.15)
    assert found.rate.low == pytest.approx(again.low, abs=0.01)


def test_a_win_rate_counts_ties_as_half_a_win():
    scores = preferences_of_scores([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 5.0, -1.0])
    found = win_rate([*scores, math.nan], list("abcde"))
    assert (found.wins, found.ties, found.losses, found.left_out) == (2, 1, 1, 1)
    assert found.rate.value == 2.5 / 4
    graded = win_rate([0.9, 0.6, 0.2], list("abc"))
    assert graded.rate.value == pytest.approx(1.7 / 3) and graded.discrete.value == pytest.approx(2 / 3)
    assert graded.rate == PromptBootstrap(list("abc")).interval(mean_of([0.9, 0.6, 0.2]))
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        win_rate([1.2], ["a"])
    with pytest.raises(UserError, match="No comparison has a preference"):
        win_rate([math.nan], ["a"])


def annotated(**changes: Any) -> dict[str, Any]:
    return {"output_1": "four", "output_2": "twelve chars", "preference": 2, "generator_2": "mine"} | changes


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_annotations_are_read_from_alpacaevals_layout(tmp_path: Path):
    rows = [annotated(), annotated(preference=0), annotated(preference=None), annotated(preference=1.25)]
    found = read_annotations(write(tmp_path / "annotations.json", rows))
    assert found.item == (0, 1, 2, 3) and np.array_equal(found.preference, [1, 0.5, math.nan, 0.25], equal_nan=True)
    assert found.baseline_length.tolist() == [4.0] * 4 and found.model_length.tolist() == [12.0] * 4
    rate = length_controlled_win_rate(found).rate.value
    assert 0.4 < rate < 0.8, "the one without a preference is predicted"
    numbers = [
        {"model": name, "item": k, "length_baseline": 7, "length_model": 9, "preference": 1.0}
        for name in ("a", "b")
        for k in (5, 3)
    ]
    path = write(tmp_path / "lengths.jsonl", numbers)
    assert read_annotations(path, "b").item == (5, 3) and read_annotations(path, "b").model_length.tolist() == [
        9.0,
        9.0,
    ]
    with pytest.raises(UserError, match="annotations of a, b; name one"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preference": 2.5}, "preference is 2.5"),
        ({"preference": "B"}, "preference is 'B'"),
        ({"output_2": None}, "neither the texts"),
        ({"index": -1}, "number of the instruction is -1"),
    ],
)
def test_faulty_annotations_are_named_by_file_and_line(tmp_path: Path, changes: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says) as caught:
        read_annotations(write(tmp_path / "annotations.jsonl", [annotated(), annotated(**changes)]))
    assert "annotations.jsonl, line 2" in str(caught.value)


def test_faulty_difficulty_files_are_named(tmp_path: Path):
    path = tmp_path / "df_gamed.csv"
    with pytest.raises(UserError, match="cannot be read"):
        read_difficulty(path)
    path.write_text("index,instruction_difficulty\n0,1.0\n")
    with pytest.raises(UserError, match="line 2: a number is missing in one of the columns index, instruction_diff"):
        read_difficulty(path)
    path.write_text("")
    with pytest.raises(UserError, match="has no rows"):
        read_difficulty(path)
    few = Difficulty({0: 0.0}, np.zeros(1), np.zeros(1), np.full(1, 0.5))
    with pytest.raises(UserError, match=r"no instruction 1 \(299 are missing\)"):
        length_controlled_win_rate(made("short"), few)


def test_annotations_without_any_preference_have_no_rate():
    with pytest.raises(ValueError, match="no annotation has a preference"):
        length_controlled_win_rate(Annotations((0, 1), np.full(2, np.nan), np.ones(2), np.ones(2)))


def test_answers_of_equal_length_leave_the_win_rate_alone():
    p = made("certain").preference
    same = Annotations(tuple(range(300)), p, np.full(300, 50.0), np.full(300, 60.0))
    assert length_controlled_win_rate(same).rate.value == pytest.approx(p.mean(), abs=0.005)
