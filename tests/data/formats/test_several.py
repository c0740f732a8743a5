"""Several annotators' columns, and every chosen with every rejected response of a row."""

import math

import pytest

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.describe import describe
from lit_pref.data.formats.known import recognise
from lit_pref.data.formats.load import load_mapping, mapping_of
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UsageError

AB = {"kind": "ab", "prompt": "q", "a": "x", "b": "y"}
VOTES = {"column": ["v1", "v2", "v3"], "a": 1, "b": 2, "tie": 0}


def rows(values, mapping, file="some.jsonl"):
    row = Row(file, 3, {"q": "2+2=", "x": "4", "y": "5"} | values)
    first = Row(file, 1, row.values | ({"v": [1]} if "v" in values else {}))
    return list(Conversion(mapping_of(mapping, lambda: [first])).canonical_rows([row]))


def pair(values, file="some.jsonl", **mapping):
    (found,) = rows(values, AB | mapping, file)
    if isinstance(found, BadRow):
        raise found
    return RowReader().read(found)


def voted(*votes):
    return {f"v{k}": vote for k, vote in enumerate(votes, start=1)}


@pytest.mark.parametrize(
    "votes, chosen, p", [((1, 1, 2), "4", 1.0), ((2, 2, 0), "5", 1.0), ((0, 0, 1), "4", 0.5), ((0, 1, 2), "4", 0.5)]
)
def test_the_majority_of_annotators_is_the_label(votes, chosen, p):
    found = pair(voted(*votes), label=VOTES)
    assert (found.chosen, found.probability, found.margin) == (chosen, p, None)
    listed = pair({"votes": list(votes)}, label=VOTES | {"column": "votes[]"})
    assert (listed.chosen, listed.probability) == (chosen, p)
    table = pair({name: str(vote) for name, vote in voted(*votes).items()}, "some.csv", label=VOTES)
    assert (table.chosen, table.probability) == (chosen, p)


@pytest.mark.parametrize(
    "votes, chosen, share", [((1, 1, 2), "4", 2 / 3), ((2, 2, 0), "5", 2.5 / 3), ((0, 1, 2), "4", 0.5)]
)
def test_the_share_of_votes_is_the_probability_and_gives_the_margin(votes, chosen, share):
    label = VOTES | {"votes": "share"}
    plain = pair(voted(*votes), label=label)
    assert (plain.chosen, plain.margin) == (chosen, None) and plain.probability == pytest.approx(share, abs=1e-15)
    gap = pair(voted(*votes), label=label, margin={"transform": "votes"})
    assert gap.chosen == chosen and gap.margin == pytest.approx(2 * share - 1, abs=1e-15)
    odds = pair(voted(*votes), label=label, margin={"transform": "probability", "clip": 9})
    assert odds.margin == pytest.approx(math.log(share / (1 - share)), abs=1e-14)


def test_smoothing_makes_a_unanimous_vote_less_than_certain():
    label = VOTES | {"votes": "share", "smoothing": 0.5}
    found = pair(voted(2, 2, 2), label=label, margin={"transform": "probability"})
    assert (found.chosen, found.probability) == ("5", 0.875) and found.margin == pytest.approx(math.log(7))
    with pytest.raises(BadRow, match="v1 and v2 and v3 is certain, and its log-odds are infinite; set the mapping's"):
        pair(voted(2, 2, 2), label=label | {"smoothing": 0.0}, margin={"transform": "probability"})


def test_votes_beside_scores_tell_whether_they_disagree():
    scores = {"sx": 1, "sy": 2}
    found = pair(voted(1, 1, 2) | scores, score={"a": "sx", "b": "sy"}, label=VOTES)
    assert (found.chosen, found.disagrees) == ("5", True)


def test_numbers_of_several_annotators_are_averaged():
    score = {"a": ["a1", "a2"], "b": "bs[]", "range": [0, 5]}
    found = pair({"a1": 2, "a2": 3, "bs": [1, 5, 4.5]}, score=score)
    assert (found.chosen, found.margin) == ("5", 1.0)
    signed = {"kind": "ab_signed", "signed": {"column": "each[].score", "positive_means": "b", "range": [-3, 3]}}
    assert pair({"each": [{"score": -3}, {"score": 1}]}, **signed).margin == 1.0
    p = pair({"p1": 0.25, "p2": 0.5}, probability={"column": ["p1", "p2"], "of": "a"})
    assert (p.chosen, p.probability) == ("5", 0.625)


@pytest.mark.parametrize(
    "values, mapping, sentence",
    [
        (voted(1, 1, None), {"label": VOTES}, r"v3 is not one of the labels 1, 2, 0 \(None\); give its meaning"),
        (voted(1, 3, 1), {"label": VOTES}, r"v2 is not one of the labels 1, 2, 0 \(3\)"),
        ({"v": []}, {"label": VOTES | {"column": "v[]"}}, "v.. is not a list with values; give one for each annotator"),
        (
            voted(1, 2),
            {"label": {"column": ["v1", "v2"], "a": 1, "b": 2}},
            r"v1 and v2 has no majority \(1 for a, 1 for b\); give the mapping's label a value for `tie`, or set its",
        ),
        ({"s": 1, "r": [1, None]}, {"score": {"a": "r[]", "b": "s"}}, r"r\[1\] is not a finite number \(null\)"),
        (
            {"s": 1, "r": [1, -100]},
            {"score": {"a": "r[]", "b": "s", "range": [0, 5]}},
            r"r\[1\] is not between 0 and 5 \(-100\)",
        ),
        (
            {"p1": 0.5, "p2": 1.5},
            {"probability": {"column": ["p1", "p2"], "of": "a"}},
            r"p2 is not between 0 and 1 \(1.5\)",
        ),
    ],
)
def test_a_missing_or_odd_judgement_is_a_faulty_row_named_by_its_column(values, mapping, sentence):
    with pytest.raises(BadRow, match=f"^some.jsonl, line 3: {sentence}"):
        pair(values, **mapping)


@pytest.mark.parametrize(
    "mapping, sentence",
    [
        ({"label": {**VOTES, "column": "v", "votes": "share"}}, "`label.votes` and `label.smoothing` are for several"),
        (
            {"label": {**VOTES, "smoothing": 1}},
            "`label.smoothing` is 1; it must be 0 or more, and is for `votes: share`",
        ),
        ({"label": {**VOTES, "votes": "most"}}, "`label.votes` is 'most'; it must be one of majority, share"),
        ({"label": {**VOTES, "column": []}}, "`label.column` names no column"),
        ({"label": {**VOTES, "column": [3]}}, "`label.column` is 3; it must be a word"),
        (
            {"label": {**VOTES, "votes": "share"}, "probability": {"column": "p", "of": "a"}},
            "`probability` and `label.votes: share` both define the probability",
        ),
        ({"label": VOTES, "margin": {"transform": "votes"}}, "`margin.transform: votes` needs `label.votes: share`"),
        ({"score": {"a": [], "b": "s"}}, "`score.a` names no column"),
        (
            {"label": {**VOTES, "votes": "share"}, "score": {"a": "s", "b": "t"}, "margin": {"transform": "votes"}},
            "`margin.transform: votes` does not go with `score`",
        ),
    ],
)
def test_mappings_that_contradict_themselves_are_refused(mapping, sentence):
    with pytest.raises(UsageError, match=sentence):
        load_mapping(AB | mapping)


def test_the_first_lines_say_how_several_columns_are_read():
    share = load_mapping(AB | {"label": {**VOTES, "votes": "share"}, "margin": {"transform": "votes"}})
    assert describe(share).endswith("margin and probability the share of the votes v1 and v2 and v3 (1 is a, 2 is b)")
    scores = load_mapping(AB | {"score": {"a": ["a1", "a2"], "b": "b"}})
    assert describe(scores).endswith("margin diff of the mean of a1 and a2 and b")


BENCH = {"id": "q7", "prompt": "2+2=", "chosen": ["4", "four"], "rejected": ["5", "five", "six"], "domain": "math"}


def canonical(values, mapping=None):
    row = Row("some.jsonl", 3, values)
    return list(Conversion(mapping_of(mapping, lambda: [row])).canonical_rows([row]))


def test_every_chosen_is_paired_with_every_rejected_response():
    assert recognise([Row("some.jsonl", 1, BENCH)]).name == "rm_bench"
    found = canonical(BENCH)
    assert [(row.values["chosen"], row.values["rejected"]) for row in found] == [
        (c, r) for c in BENCH["chosen"] for r in BENCH["rejected"]
    ]
    places = ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    assert [row.values["combination"] for row in found] == places
    pairs = [RowReader(group_column="combination").read(row) for row in found]
    assert [p.id for p in pairs] == [f"q7/{place}" for place in places] and [p.group for p in pairs] == places
    assert len({p.prompt_id for p in pairs}) == 1 and all(row.values["domain"] == "math" for row in found)


def test_scores_and_sources_go_with_their_entries():
    mapping = {
        "kind": "pair",
        "prompt": "prompt",
        "chosen": "good[].text",
        "rejected": "rejected[]",
        "score": {"chosen": "good[].score", "rejected": ["r1[]", "r2[]"]},
        "source": {"chosen": "good[].by", "rejected": "who"},
    }
    good = [{"text": "4", "score": 3, "by": "m"}, {"text": "four", "score": 1, "by": "n"}]
    values = {"prompt": "2+2=", "good": good, "rejected": ["5", "six"], "r1": [2, 1], "r2": [1, 1], "who": "z"}
    pairs = [RowReader().read(row) for row in canonical(values, mapping)]
    assert [(p.chosen, p.rejected, p.margin, p.sources) for p in pairs] == [
        ("4", "5", 1.5, ("m", "z")),
        ("4", "six", 2.0, ("m", "z")),
        ("5", "four", 0.5, ("z", "n")),  # swapped by its scores
        ("four", "six", 0.0, ("n", "z")),
    ]


def test_one_chosen_text_is_paired_with_several_rejected_ones():
    mapping = {"kind": "pair", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected[]"}
    found = canonical(BENCH | {"chosen": "4"}, mapping)
    assert [(row.values["chosen"], row.values["rejected"], row.values["combination"]) for row in found] == [
        ("4", "5", "0"),
        ("4", "five", "1"),
        ("4", "six", "2"),
    ]


def test_faults_of_one_entry_are_named_and_leave_the_others():
    first, bad, *_ = canonical(BENCH | {"rejected": ["5", [{"role": "x", "content": "y"}]]}, "rm_bench")
    assert first.values["combination"] == "0-0"
    assert str(bad).startswith("some.jsonl, line 3: rejected[1] does not end with the assistant's turn")
    assert bad.kind == "rejected[] does not end with the assistant's turn"
    with pytest.raises(BadRow, match=r"line 3: rejected\[0\] is missing or null"):
        RowReader().read(canonical(BENCH | {"rejected": [None]}, "rm_bench")[0])
    for rejected in ([], None, "5"):
        (bad,) = canonical(BENCH | {"rejected": rejected}, "rm_bench")
        assert "rejected[] is not a list of responses; give one entry for each response" in str(bad)
    (bad,) = canonical(BENCH | {"chosen": ["4"] * 40, "rejected": ["5"] * 40})
    assert "chosen and rejected are more than can be paired (1600 pairs); give lists of at most 1000" in str(bad)


def test_a_list_of_texts_under_another_mapping_is_told_how_to_be_read():
    (bad,) = canonical(BENCH, "pairs")
    assert "chosen is a list of texts, not of messages; write `chosen[]` in the mapping to pair every chosen" in str(
        bad
    )
