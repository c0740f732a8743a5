"""The evaluation of pairs: its numbers, its records, and its page."""

import base64
import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_pref.errors import UserError
from lit_pref.judging.comparison import Interval
from lit_pref.judging.pair_evaluation import JudgedPair, compare_judges, evaluate_pairs, losses, records_of
from lit_pref.judging.report import headline, page
from lit_pref.metrics.records import read_parquet, write_parquet


def judged(size: int = 120, scale: float = 1.0, seed: int = 0) -> list[JudgedPair]:
    """Pairs of a judge that is calibrated at scale 1, with labels that are shares of three votes, and margins."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=size)
    share = generator.binomial(3, 1 / (1 + np.exp(-z))) / 3
    return [
        JudgedPair(
            f"pair {k}",
            f"prompt {k // 2}",
            "chosen " * (1 + k % 7),
            "rejected " * (1 + k % 5),
            float(scale * z[k]),
            0.0,
            float(share[k]),
            margin=float(z[k] + generator.normal()),
            source="one" if k % 3 else "two",
            file="pairs.jsonl",
            line=k + 1,
        )
        for k in range(size)
    ]


def test_the_evaluation_has_every_pair_in_every_table():
    found = evaluate_pairs(judged(), votes=3)
    for table in (found.by_margin, found.by_source, found.by_length, found.reliability):
        assert sum(group.pairs for group in table) == 120
    assert [group.name for group in found.by_source] == ["one", "two"]
    assert len(found.by_margin) == 5 and len(found.reliability) == 10
    assert found.spearman is not None and found.spearman.low > 0.4
    assert found.kendall is not None and found.kendall.value < found.spearman.value
    weights = np.array([group.pairs for group in found.reliability])
    confidence = np.array([group.confidence for group in found.reliability])
    observed = np.array([group.accuracy.value for group in found.reliability])
    assert (weights * np.abs(confidence - observed)).sum() / 120 == pytest.approx(found.calibration.equal_mass.value)


def test_pairs_without_margins_or_with_one_source_have_no_such_table():
    pairs = [replace(pair, margin=None, source=None) for pair in judged(20)]
    found = evaluate_pairs(pairs)
    assert found.by_margin == found.by_source == [] and found.spearman is None and found.kendall is None
    assert "Accuracy by margin" not in page("t", found, pairs)


def test_the_loss_of_a_pair_is_its_divergence_from_the_label():
    pairs = judged(30)
    for pair, loss in zip(pairs, losses(pairs), strict=True):
        q, p = 1 / (1 + math.exp(-pair.z)), pair.label
        terms = [(p, q), (1 - p, 1 - q)]
        assert loss == pytest.approx(sum(a * math.log(a / b) for a, b in terms if a > 0), abs=1e-12)


def test_records_have_place_texts_and_loss_of_every_pair(tmp_path: Path):
    pairs = [replace(judged(3)[0], label=0.5), *judged(3)[1:]]
    write_parquet(records_of(pairs), tmp_path / "records.parquet")
    found = read_parquet(tmp_path / "records.parquet")
    assert (found["file"], found["line"]) == (["pairs.jsonl"] * 3, [1, 2, 3])
    assert found["chosen"][1] == "chosen chosen " and found["longer_by"][1] == len("chosen " * 2) - len("rejected " * 2)
    assert found["agreement"][0] is None and found["z"] == [pair.z for pair in pairs]
    assert found["excess_loss"] == pytest.approx(losses(pairs).tolist())


def test_the_page_is_self_contained_and_shows_the_worst_pairs_as_text():
    pairs = judged()
    pairs[17] = replace(pairs[17], chosen="<script>bad & </script>", chosen_score=-9.0, label=1.0)
    found = evaluate_pairs(pairs, votes=3)
    text = page(
        "mine on pairs.jsonl", found, pairs, {"RewardBench": {"Chat": Interval(0.9, 0.8, 0.95)}}, ["A is better."]
    )
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "http" not in re.sub(r'src="data:[^"]*"', "", text)
    assert len(re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)) == 4
    image = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert image is not None and b"<svg" in base64.b64decode(image[1])
    assert "&lt;script&gt;bad &amp; &lt;/script&gt;" in text and "<script>bad" not in text
    places = [int(line) for line in re.findall(r"<b>pairs.jsonl, line (\d+)</b>", text)]
    assert places == (np.argsort(-losses(pairs), kind="stable")[:20] + 1).tolist() and places[0] == 18
    assert "drawn on a scale from 0 to 1" in text and "left: 80.0%; width: 15.0%" in text
    assert "A is better." in text and "0.9 (0.8 to 0.95)" in text and html.escape(headline(found)) in text
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    numbers = json.loads(data[1])
    assert numbers["calibration"]["accuracy"] == pytest.approx(list(found.calibration.accuracy))
    assert numbers["benchmarks"] == {"RewardBench": {"Chat": [0.9, 0.8, 0.95]}}


@pytest.mark.parametrize(
    ("scale", "says"),
    [(6.0, "and overconfident: the fitted"), (0.1, "and underconfident"), (-1.0, ": no better than chance.")],
)
def test_the_headline_says_how_sure_the_judge_may_be(scale: float, says: str):
    assert says in headline(evaluate_pairs(judged(400, scale)))


def test_the_headline_claims_nothing_that_few_or_random_pairs_do_not_show():
    assert "too few prompts to judge the calibration" in headline(evaluate_pairs(judged(400)[:6]))
    sides = [replace(pair, chosen_score=1.0 if k < 32 else -1.0, label=1.0) for k, pair in enumerate(judged(60))]
    found = evaluate_pairs(sides)  # right in 32 of 60 pairs: nothing is shown
    assert found.calibration.temperature.high == math.inf and "is not shown" in headline(found)
    tied = [*judged(400), *(replace(pair, id=f"{pair.id}t", label=0.5) for pair in judged(400)[:8])]
    says = headline(evaluate_pairs(tied))
    assert "% of 400 pairs" in says and "(8 more have the label 1/2 and no right side)" in says


def test_two_judges_are_compared_on_the_pairs_that_both_have():
    good, sure = records_of(judged(300)), records_of(judged(300, scale=4.0)[20:])
    accuracy, loss = compare_judges(good, sure, ("calibrated", "too sure"))
    assert accuracy.difference == (0, 0, 0) and accuracy.winner is None, "the order of the scores is the same"
    assert loss.winner == "calibrated" and loss.sentence.startswith("calibrated is better than too sure: log-loss ")
    assert loss.a.value == pytest.approx(np.mean(good["loss"][20:])) and loss.prompts == 140
    with pytest.raises(UserError, match=r"pair 25 has the label 0.\d+ in one evaluation and 2.0 in the other"):
        compare_judges(good, sure | {"label": [*sure["label"][:5], 2.0, *sure["label"][6:]]})
