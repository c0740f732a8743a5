"""RewardBench, RewardBench 2 and RM-Bench give the numbers of independent calculations, from files of their layout."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.errors import UserError
from lit_pref.judging.benchmark_items import BenchmarkItem
from lit_pref.judging.comparison import PromptBootstrap, compare
from lit_pref.judging.reward_bench import _score, read_reward_bench, reward_bench
from lit_pref.judging.reward_bench2 import read_reward_bench2, reward_bench2
from lit_pref.judging.rm_bench import read_rm_bench, rm_bench

CHAT = {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40}
HARD = {"mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92}
HARD |= {"llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46}
SAFETY = {"refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250}
SAFETY |= {"xstest-should-respond": 154, "donotanswer": 136}
REASONING = {"math-prm": 447, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164}
REASONING |= {"hep-rust": 164}
PUBLISHED = {"Chat": CHAT, "Chat Hard": HARD, "Safety": SAFETY, "Reasoning": REASONING}
"""The numbers of pairs in the data set card of allenai/reward-bench (2985 in all)."""


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reward_bench_rows() -> list[dict[str, Any]]:
    rows = []
    for subsets in PUBLISHED.values():
        for subset, count in subsets.items():
            for _ in range(count):
                k = len(rows)
                row = {
                    "prompt": f"question {k}",
                    "chosen": f"good {k}",
                    "rejected": f"bad {k}",
                    "subset": subset,
                    "id": k,
                }
                rows.append(row | {"chosen_model": "a", "rejected_model": "b"})
    return rows


def scores_of(items: list[BenchmarkItem], seed: int = 0) -> list[list[float]]:
    """Scores rounded to integers, so that some are equal."""
    generator = np.random.default_rng(seed)
    return [
        [float(round(generator.normal(loc=0.8 * (k < item.correct)))) for k in range(len(item.responses))]
        for item in items
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_reward_bench_of_all_23_subsets_is_the_published_formula(tmp_path: Path, ending: str):
    rows = reward_bench_rows()
    assert len(rows) == 2985
    items = read_reward_bench(write(tmp_path / f"bench.{ending}", rows))
    assert [(item.prompt, item.responses, item.correct) for item in items[:1]] == [
        ("question 0", ("good 0", "bad 0"), 1)
    ]
    scores = scores_of(items)
    found = reward_bench(items, scores)
    accuracy, sections = {}, []
    for name, subsets in PUBLISHED.items():
        for subset in subsets:
            own = [a > b for row, (a, b) in zip(rows, scores, strict=True) if row["subset"] == subset]
            accuracy[subset] = sum(own) / len(own)
        if name == "Reasoning":  # code and mathematics count alike
            code = np.mean([accuracy[subset] for subset in subsets if subset.startswith("hep-")])
            sections.append((code + accuracy["math-prm"]) / 2)
        else:
            right = sum(accuracy[subset] * count for subset, count in subsets.items())
            sections.append(right / sum(subsets.values()))
        assert found.sections[name].value == pytest.approx(sections[-1], abs=1e-12)
    assert {name: interval.value for name, interval in found.subsets.items()} == pytest.approx(accuracy, abs=1e-12)
    assert len(found.subsets) == 23 and not found.missing and found.items == 2985
    assert found.score.value == pytest.approx(sum(sections) / 4, abs=1e-12)
    assert found.score.low < found.score.value < found.score.high
    assert any(a == b for a, b in scores), "ties are wrong, not half"


def test_the_prior_sets_have_half_the_weight_of_a_section(tmp_path: Path):
    items = read_reward_bench(write(tmp_path / "bench.jsonl", reward_bench_rows()))
    prior = []
    for size, name in ((30, "anthropic_helpful"), (10, "anthropic_hhh"), (20, "shp"), (8, "summarize")):
        rows = [{"prompt": f"{name} {k}", "chosen": "x", "rejected": "y"} for k in range(size)]
        prior += read_reward_bench(write(tmp_path / f"{name}.jsonl", rows), prior_set=name)
    both = items + prior
    scores = scores_of(both, seed=1)
    found, core = reward_bench(both, scores), reward_bench(items, scores[: len(items)])
    four = np.mean(
        [
            np.mean([a > b for item, (a, b) in zip(both, scores, strict=True) if item.subset == name])
            for name in ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
        ]
    )
    assert found.sections["Prior Sets"].value == pytest.approx(four)
    assert found.score.value == pytest.approx((4 * core.score.value + four / 2) / 4.5)


def test_the_averages_of_the_published_table_are_those_of_the_weights():
    """Averages of four models with prior sets (arXiv 2410.03145, table of RewardBench results), rounded to 0.1."""
    for average, *sections in (
        (59.4, 95.0, 45.6, 51.9, 49.6, 50.1),
        (62.3, 96.1, 45.1, 52.3, 59.8, 53.6),
        (73.0, 96.6, 59.9, 73.7, 69.0, 58.3),
        (75.6, 97.5, 62.9, 71.1, 75.0, 67.7),
    ):
        weights = dict.fromkeys(["Chat", "Chat Hard", "Safety", "Reasoning", "Prior Sets"], np.ones(1))
        assert _score(weights, np.array([sections]))[0] == pytest.approx(average, abs=0.1)


def test_a_part_of_reward_bench_says_what_is_missing(tmp_path: Path):
    rows = [row for row in reward_bench_rows() if row["subset"] in ("hep-go", "math-prm", "donotanswer")]
    found = reward_bench(items := read_reward_bench(write(tmp_path / "part.jsonl", rows)), scores_of(items))
    assert list(found.sections) == ["Safety", "Reasoning"] and len(found.missing) == 20 and "hep-js" in found.missing
    go, maths = found.subsets["hep-go"].value, found.subsets["math-prm"].value
    assert found.sections["Reasoning"].value == pytest.approx((164 * go + 984 * maths) / 1148)


def test_two_judges_are_compared_by_their_score(tmp_path: Path):
    items = read_reward_bench(write(tmp_path / "bench.jsonl", reward_bench_rows()))
    good, bad = [[1.0, 0.0]] * len(items), scores_of(items)
    bootstrap = PromptBootstrap([str(item.prompt) for item in items])
    found = compare(reward_bench(items, good).statistic, reward_bench(items, bad).statistic, bootstrap, "RewardBench")
    assert found.winner == "A" and found.a.value == 1.0
    assert found.b.value == pytest.approx(reward_bench(items, bad).score.value)


def rows_of_reward_bench2() -> list[dict[str, Any]]:
    generator = np.random.default_rng(4)
    rows: list[dict[str, Any]] = []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for k in range(int(generator.integers(5, 20))):
            rows.append(
                {
                    "id": str(k),
                    "prompt": f"{subset} {k}",
                    "subset": subset,
                    "chosen": ["right"],
                    "rejected": list("abc"),
                }
            )
    for k in range(12):
        right = [f"answer {j}" for j in range(int(generator.integers(2, 6)))]
        for kind, chosen in (("ref", right[:1]), ("tied", right)):
            row = {"id": f"{kind}:{k}", "prompt": f"{kind} {k}", "subset": "Ties", "chosen": chosen}
            rows.append(row | {"rejected": ["wrong"] * int(generator.integers(2, 5))})
    return rows


def ties_by_hand(items: list[BenchmarkItem], scores: list[list[float]]) -> float:
    """The official steps, one prompt at a time."""
    stats: dict[str, dict[str, tuple[bool, float, float]]] = {"ref": {}, "tied": {}}
    for item, own in zip(items, scores, strict=True):
        if item.subset == "Ties":
            _, kind, number = item.id.split(":")
            right, wrong = own[: item.correct], own[item.correct :]
            gap = min(right) - max(wrong)
            stats[kind][number] = (gap > 0, max(right) - min(right), gap)
    tied, ref = stats["tied"], stats["ref"]
    margin = [tied[n][2] > tied[n][1] for n in tied]
    hard = [min(tied[n][2], ref[n][2]) > tied[n][1] for n in tied]
    bonus = []
    for n in tied:
        gap, spread = min(tied[n][2], ref[n][2]), tied[n][1]
        ratio = gap / spread if spread else (math.nan if gap == 0 else math.copysign(math.inf, gap))
        bonus.append(0.0 if math.isnan(ratio) else math.tanh(ratio - 1))
    share = [np.mean([s[0] for s in kind.values()]) for kind in (tied, ref)]
    return float(0.3 * sum(share) + 0.2 * np.mean(margin) + 0.2 * np.mean(hard) + 0.01 * np.mean(bonus))


@pytest.mark.parametrize("rounded", [False, True])
def test_reward_bench_2_is_the_mean_of_six_subsets_with_the_official_ties(tmp_path: Path, rounded: bool):
    items = read_reward_bench2(write(tmp_path / "bench2.jsonl", rows_of_reward_bench2()))
    generator = np.random.default_rng(5)
    scores = [
        (generator.normal(size=len(item.responses)) + 3 * (np.arange(len(item.responses)) < item.correct)).tolist()
        for item in items
    ]
    if rounded:
        scores = [[float(round(score)) for score in own] for own in scores]
    found = reward_bench2(items, scores)
    expected = {"Ties": ties_by_hand(items, scores)}
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        own = [score for item, score in zip(items, scores, strict=True) if item.subset == subset]
        points = [1 / sum(s == max(score) for s in score) if score[0] == max(score) else 0 for score in own]
        expected[subset] = sum(points) / len(points)
    assert {name: interval.value for name, interval in found.subsets.items()} == pytest.approx(expected, abs=1e-12)
    assert found.score.value == pytest.approx(sum(expected.values()) / 6, abs=1e-12)
    assert not found.missing and set(found.ties) == {"tied", "ref", "margin", "margin_hard", "bonus"}
    assert 0 < found.ties["margin_hard"] <= found.ties["margin"] <= found.ties["tied"] < 1 or rounded
    assert found.score.low < found.score.value < found.score.high


def rows_of_rm_bench() -> list[dict[str, Any]]:
    sizes = {"chat": 8, "code": 11, "math": 9, "safety-refuse": 6, "safety-response": 4}
    return [
        {"id": k, "prompt": f"{domain} {k}", "chosen": list("abc"), "rejected": list("xyz"), "domain": domain}
        for domain, size in sizes.items()
        for k in range(size)
    ]


def test_rm_bench_is_the_official_matrix(tmp_path: Path):
    path = tmp_path / "total_dataset.json"
    path.write_text(json.dumps(rows_of_rm_bench()))
    items = read_rm_bench(str(path))
    scores = scores_of(items, seed=6)
    found = rm_bench(items, scores)
    levels: dict[str, list[float]] = {"hard": [], "normal": [], "easy": []}
    for domain in ("chat", "math", "code", "safety"):
        own = [score for item, score in zip(items, scores, strict=True) if item.subset.startswith(domain)]
        matrix = np.zeros((3, 3))
        for score in own:
            for i in range(3):
                for j in range(3):
                    matrix[i, j] += score[i] > score[3 + j]
        matrix /= len(own)
        levels["hard"].append((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3)
        levels["normal"].append(np.trace(matrix) / 3)
        levels["easy"].append((matrix[1, 0] + matrix[2, 0] + matrix[2, 1]) / 3)
        assert found.domains[domain].value == pytest.approx(np.mean([level[-1] for level in levels.values()]))
        assert found.cells[domain, "hard"].value == pytest.approx(levels["hard"][-1])
    for name, values in levels.items():
        assert found.levels[name].value == pytest.approx(np.mean(values), abs=1e-12)
    assert found.score.value == pytest.approx(np.mean([np.mean(values) for values in levels.values()]), abs=1e-12)
    assert found.matrix[0][2] == pytest.approx(np.mean([score[0] > score[5] for score in scores]))
    assert found.score.low < found.score.value < found.score.high


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r", "id": 1}
THREE = {"prompt": "p", "chosen": list("abc"), "rejected": list("xyz"), "id": 1}
BAD_ROWS: list[tuple[Callable[[str], Any], dict[str, Any], str]] = [
    (read_reward_bench, PAIR | {"subset": "hep-pyton"}, "did you mean hep-python"),
    (read_reward_bench, {"prompt": "p", "chosen": "c", "subset": "hep-go", "id": 1}, "line 1 has no rejected"),
    (read_reward_bench2, PAIR | {"chosen": [], "subset": "Math"}, "chosen must be"),
    (read_rm_bench, THREE | {"chosen": ["a"], "domain": "chat"}, "three chosen"),
    (read_rm_bench, THREE | {"domain": "art"}, "domain 'art'"),
]


@pytest.mark.parametrize(("read", "row", "says"), BAD_ROWS)
def test_a_row_of_another_layout_is_refused_by_file_and_line(tmp_path: Path, read: Any, row: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says) as caught:
        read(write(tmp_path / "bench.jsonl", [row]))
    assert "bench.jsonl" in str(caught.value)


def test_other_faults_are_refused(tmp_path: Path):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go", "id": 1}
    with pytest.raises(UserError, match=r"line 2 has the id 'hep-go:1' of .*line 1"):
        read_reward_bench(write(tmp_path / "twice.jsonl", [row, row]))
    items = read_reward_bench(write(tmp_path / "one.jsonl", [row]))
    with pytest.raises(UserError, match=r"line 1: .*scores \[nan, 0.0\].*not finite"):
        reward_bench(items, [[math.nan, 0.0]])
    with pytest.raises(ValueError, match="2 responses and 1 scores"):
        reward_bench(items, [[0.0]])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no items|empty"):
        read_reward_bench(str(tmp_path / "empty.jsonl"))
    tie = {"prompt": "p", "chosen": ["a", "b"], "rejected": ["r"], "subset": "Ties", "id": "7"}
    with pytest.raises(UserError, match="needs an id ref:NUMBER or tied:NUMBER"):
        reward_bench2(read_reward_bench2(write(tmp_path / "ties.jsonl", [tie])), [[1.0, 2.0, 0.0]])
