"""Several answers to one prompt: which rows belong together, and which pairs are made of them."""

import itertools

import pytest

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.formats.ranked_lists import LONGEST, PairsFromList
from lit_pref.data.sources.row import BadRow, LeftOut, Row
from lit_pref.errors import UserError

GOODNESS = [2.0, 5.0, 1.0, 5.0]
LIST = {"kind": "list", "prompt": "q", "responses": "a[].text", "score": {"path": "a[].s"}}


def read(*values, **mapping):
    """Pairs as (chosen, rejected, margin), and the rows that are none."""
    rows = [Row("some.jsonl", line, row) for line, row in enumerate(values, start=1)]
    canonical = list(Conversion(mapping_of(LIST | mapping, lambda: rows)).canonical_rows(rows))
    reader = RowReader()
    pairs = [reader.read(row) for row in canonical if isinstance(row, Row)]
    return [(p.chosen, p.rejected, p.margin) for p in pairs], [row for row in canonical if isinstance(row, BadRow)]


def answers(*scores, **more):
    return {"q": "2+2=", "a": [{"text": f"t{k}", "s": score} for k, score in enumerate(scores)], **more}


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("best_worst", [(1, 2)]),
        ("all", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        ("adjacent", [(1, 3), (0, 3), (0, 2)]),  # 1 and 3 are equal and keep their order: 1 > 3 > 0 > 2
    ],
)
def test_the_modes_make_the_pairs_that_they_say(mode, expected):
    assert PairsFromList(mode).pairs(GOODNESS, "prompt") == expected


def test_best_and_worst_of_equal_answers_are_two_different_ones():
    assert PairsFromList().pairs([1.0, 1.0, 1.0], "prompt") == [(0, 1)]


def test_lots_are_drawn_by_seed_and_prompt_and_by_nothing_else():
    everyone = set(itertools.combinations(range(6), 2))
    goodness = [float(k) for k in range(6)]
    drawn = {
        (seed, prompt): tuple(PairsFromList("random", 4, seed).pairs(goodness, prompt))
        for seed in range(3)
        for prompt in ("p", "q")
    }
    assert all(len(pairs) == 4 and set(pairs) <= everyone for pairs in drawn.values())
    assert len(set(drawn.values())) > 3
    # The four pairs with the smallest sha256 of '[0, "p"][i, j]'.
    assert PairsFromList("random", 4, 0).pairs(goodness, "p") == [(0, 2), (0, 5), (1, 3), (2, 3)]
    assert len(PairsFromList("random").pairs(goodness, "p")) == 1


def test_a_cap_keeps_that_many_pairs_of_a_prompt():
    assert len(PairsFromList("all", 4).pairs(GOODNESS, "prompt")) == 4
    assert set(PairsFromList("all", 4).pairs(GOODNESS, "prompt")) < set(PairsFromList("all").pairs(GOODNESS, "prompt"))
    assert len(PairsFromList("all", 9).pairs(GOODNESS, "prompt")) == 6


def test_a_list_in_a_row_becomes_its_pairs_with_the_better_answer_chosen():
    pairs, bad = read(answers(2, 5, 1), pairs_from_list={"mode": "all"})
    assert pairs == [("t1", "t0", 3.0), ("t0", "t2", 1.0), ("t1", "t2", 4.0)] and not bad


def test_ranks_count_from_the_best():
    pairs, _ = read(answers(2, 1, 3), margin={"transform": "rank_gap"})
    assert pairs == [("t1", "t2", 2.0)]


def test_an_answer_without_a_score_is_left_out_and_the_others_are_paired():
    pairs, bad = read(answers(2, None, 1), answers(None, 3), answers("7", 3, 4))
    assert pairs == [("t0", "t2", 1.0), ("t2", "t1", 1.0)]
    assert [type(row) for row in bad] == [LeftOut, LeftOut, LeftOut, BadRow]
    assert [row.kind for row in bad] == [
        "a[].s is null, so that this answer cannot be ranked",
        "a[].s is null, so that this answer cannot be ranked",
        "a[].text has fewer than two answers with a score",
        "a[].s is not a finite number",
    ]
    assert str(bad[0]).startswith("some.jsonl, line 1: a[1].s is null")


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"q": "x", "a": "none", "s": 1}, "a.. is not a list|a\\[\\].text is not a list"),
        ({"q": "x", "a": None}, "a\\[\\].text is not a list; give one entry for each answer"),
    ],
)
def test_a_row_without_a_list_is_refused(values, sentence):
    _, bad = read(answers(1, 2), values)
    assert len(bad) == 1
    with pytest.raises(BadRow, match=sentence):
        raise bad[0]


def test_lists_of_another_length_or_too_long_are_refused():
    flat = {"responses": "t[]", "score": {"path": "s[]"}}
    good = {"q": "x", "t": ["a", "b"], "s": [1, 2]}
    long = {"q": "x", "t": ["a"] * (LONGEST + 1), "s": [1] * (LONGEST + 1)}
    pairs, bad = read(good, {"q": "x", "t": ["a", "b"], "s": [1]}, long, **flat)
    assert pairs == [("b", "a", 1.0)]
    assert [str(row).partition(", or has")[0] for row in bad] == [
        "some.jsonl, line 2: s[] does not have one entry per answer",
        "some.jsonl, line 3: s[] does not have one entry per answer",
    ]


def test_a_bad_answer_costs_its_own_pairs_only_and_is_named_with_its_place():
    rows = [Row("some.jsonl", 1, {"q": "x", "a": [{"text": t, "s": k} for k, t in enumerate(["a", None, "c"])]})]
    mapping = mapping_of(LIST | {"pairs_from_list": {"mode": "all"}}, lambda: rows)
    reader, kept, refused = RowReader(), [], []
    for row in Conversion(mapping).canonical_rows(rows):
        try:
            kept.append(reader.read(row).chosen)
        except BadRow as bad:
            refused.append(bad)
    assert kept == ["c"]
    assert [str(bad).partition(";")[0] for bad in refused] == ["some.jsonl, line 1: a[1].text is missing or null"] * 2
    assert {bad.kind for bad in refused} == {"a[].text is missing or null"}


GROUP = {"group": "q", "responses": "t", "score": {"path": "s"}}


def test_consecutive_rows_of_a_prompt_are_one_list():
    rows = [{"q": q, "t": t, "s": s} for q, t, s in [("a", "a1", 1), ("a", "a2", 2), ("a", "a3", 0), ("b", "b1", 1)]]
    pairs, bad = read(*rows, **GROUP)
    assert pairs == [("a2", "a3", 2.0)]
    assert [row.kind for row in bad] == ["t has fewer than two answers with a score"]


def test_rows_of_a_list_with_another_prompt_or_system_text_than_the_first_are_refused_and_the_others_paired():
    lines = [("a", "", "a1", 1), ("b", "", "b1", 9), ("a", "", "a2", 2), ("a", "rude", "a3", 9)]
    rows = [{"g": 7, "q": q, "sys": system, "t": t, "s": s} for q, system, t, s in lines]
    pairs, bad = read(*rows, **GROUP | {"group": "g", "system": "sys"})
    assert pairs == [("a2", "a1", 1.0)]
    assert [(row.row_place, row.kind) for row in bad] == [
        ("some.jsonl, line 2", "q differs within a list"),
        ("some.jsonl, line 4", "sys differs within a list"),
    ]
    assert "from that of some.jsonl, line 1; give the rows of one list one prompt and system text" in str(bad[0])


def test_rows_without_a_group_are_refused_and_divide_no_list():
    rows = [{"g": g, "q": "a", "t": t, "s": s} for g, t, s in [(None, "x", 1), (1, "a1", 1), (None, "y", 9)]]
    pairs, bad = read(
        *rows, {"q": "a", "t": "z", "s": 9}, {"g": 1, "q": "a", "t": "a2", "s": 2}, **GROUP | {"group": "g"}
    )
    assert pairs == [("a2", "a1", 1.0)]
    assert [(row.row_place[-1], row.kind) for row in bad] == [(k, "g is missing or null") for k in "134"]


def test_a_prompt_that_comes_again_later_is_refused_with_both_places():
    rows = [{"q": q, "t": q, "s": 1} for q in ("a", "b", "a")]
    with pytest.raises(
        UserError, match=r"^some.jsonl, line 3: its `q` is also that of some.jsonl, line 1, .* sort the rows"
    ):
        read(*rows, **GROUP)


def test_a_prompt_with_no_end_of_answers_is_refused_before_they_fill_the_memory():
    taken = []

    def rows():
        for line in itertools.count(1):
            taken.append(line)
            yield Row("some.jsonl", line, {"q": "a", "t": "x", "s": 1})

    first = [Row("some.jsonl", 1, {"q": "a", "t": "x", "s": 1})]
    with pytest.raises(UserError, match=f"more than {LONGEST} rows from here on have the same `q`"):
        list(Conversion(mapping_of(LIST | GROUP, lambda: first)).canonical_rows(rows()))
    assert len(taken) == LONGEST + 1


def test_long_answers_to_one_prompt_are_refused_before_they_fill_the_memory():
    rows = [Row("some.jsonl", line, {"q": "a", "t": "x" * 2**25, "s": 1}) for line in (1, 2, 3)]
    with pytest.raises(UserError, match="line 1: more than 64 Mi characters of rows from here on have the same `q`"):
        list(Conversion(mapping_of(LIST | GROUP, lambda: rows[:1])).canonical_rows(iter(rows)))


def test_columns_sources_and_ids_of_answers_go_with_them():
    values = answers(2, 5, id=7, other="kept", judge="j")
    for k, entry in enumerate(values["a"]):
        entry |= {"model": f"m{k}", "length": 10 * k}
    rows = [Row("some.jsonl", 1, values)]
    mapping = mapping_of(
        LIST | {"id": "id", "source": {"path": "a[].model"}, "columns": {"length": "a[].length", "by": "judge"}},
        lambda: rows,
    )
    (canonical,) = Conversion(mapping).canonical_rows(rows)
    assert [canonical.values[name] for name in ("id", "other", "by")] == ["7/0-1", "kept", "j"]
    pair = RowReader(columns=("length_chosen", "length_rejected")).read(canonical)
    assert (pair.sources, pair.columns) == (("m1", "m0"), {"length_chosen": 10.0, "length_rejected": 0.0})


def test_columns_of_grouped_rows_are_those_of_each_answer_and_plain_only_where_they_agree():
    rows = [Row("some.jsonl", k, {"q": "a", "t": f"t{k}", "s": k, "lang": "en", "words": k}) for k in (1, 2)]
    (canonical,) = Conversion(mapping_of(LIST | GROUP, lambda: rows)).canonical_rows(rows)
    assert canonical.values["lang"] == "en" and "words" not in canonical.values
    pair = RowReader(columns=("words_chosen",), group_column="lang").read(canonical)
    assert (pair.chosen, pair.columns, pair.group) == ("t2", {"words_chosen": 2.0}, "en")
