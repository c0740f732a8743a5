"""How a mapping is written, found, overridden and refused; what its rows carry, and what it says of itself."""

import pytest

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.describe import describe
from lit_pref.data.formats.load import load_mapping, mapping_of
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.prepared.pair_rules import filtered_out
from lit_pref.data.prepared.preparation_report import example_of
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UsageError, UserError

AB = {"kind": "ab", "prompt": "q", "a": "x", "b": "y", "score": {"a": "sx", "b": "sy"}}
LIST = {"kind": "list", "prompt": "q", "responses": "r[]", "score": {"path": "s[]"}}
VALUES = {"q": "2+2=", "x": "4", "y": "5", "sx": 1, "sy": 3, "mx": "m1", "my": "m2", "tokens_x": 7, "tokens_y": 9}
OWN = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}


def rows_of(*values):
    return [Row("some.jsonl", line, row) for line, row in enumerate(values, start=1)]


def canonical(values, given=None):
    rows = rows_of(values)
    (found,) = Conversion(mapping_of(given, lambda: rows)).canonical_rows(rows)
    return found


def pair(values, given=None, **options):
    found = canonical(values, given)
    if isinstance(found, BadRow):
        raise found
    return RowReader(**options).read(found)


def test_rows_in_this_projects_own_fields_stay_the_very_same_rows():
    messages = [{"role": "user", "content": "hi"}]
    for values in (
        OWN | {"margin": 1.5, "id": "a", "anything": [1]},
        OWN | {"chosen": None},
        OWN | {"prompt": 5},
        {"prompt": "2+2=", "chosen": "4"},
        {"prompt": messages, "chosen": [{"role": "assistant", "content": "4"}], "rejected": "5"},
    ):
        rows = rows_of(values)
        for given in (None, "pairs", {"margin": {"normalise": "zscore"}}, {"filters": {"min_margin": 1}}):
            assert next(Conversion(mapping_of(given, lambda rows=rows: rows)).canonical_rows(rows)) is rows[0]


def test_own_rows_that_repeat_their_prompt_within_the_responses_are_taken_apart():
    dialogues = {
        s: [{"role": "user", "content": "hi"}, {"role": "assistant", "content": s}] for s in ("chosen", "rejected")
    }
    read = pair({"prompt": "hi", **dialogues, "p_chosen": 0.25, "id": 3})
    assert read.prompt == [{"role": "user", "content": "hi"}]
    assert (read.chosen, read.rejected, read.probability, read.id, read.swapped) == (
        "rejected",
        "chosen",
        0.75,
        "3",
        True,
    )


def test_a_mapping_may_be_a_name_a_file_or_its_content(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# two texts\nkind: ab\nprompt: q\na: x\nb: y\nscore: {a: sx, b: sy}\nmargin: {clip: 1}\n")
    for given in (str(path), AB | {"margin": {"clip": 1}}):
        read = pair(VALUES, given)
        assert (read.prompt, read.chosen, read.margin, read.clipped) == ("2+2=", "5", 1.0, True)
    assert load_mapping(str(path)).name == "mine"
    assert load_mapping("shp").name == "shp"
    assert load_mapping(None) is None and load_mapping({"margin": {"clip": 6}}) is None


def test_parts_of_a_shipped_or_recognised_mapping_can_be_overridden():
    shp = {"history": "h", "human_ref_A": "x", "human_ref_B": "y", "score_A": 12, "score_B": 40, "labels": 0}
    assert pair(shp, {"margin": {"transform": "diff"}}).margin == 28.0
    assert pair(shp, {"base": "shp", "margin": {"transform": "diff", "scale": 0.5}}).margin == 14.0
    assert pair(shp, {"base": "shp", "margin": {"scale": 2.0}}).margin == pytest.approx(2 * 1.2039728043259361)
    assert load_mapping({"base": "shp", "filters": {"max_pairs_per_prompt": 5}}).filters.max_pairs_per_prompt == 5


@pytest.mark.parametrize(
    "strength, margin, expected",
    [
        ({"margin": -9.0}, {"clip": 6}, 6.0),
        ({"margin": 1.5, "score_chosen": 4, "score_rejected": 1}, {"scale": 2}, 3.0),
        ({"margin": 1.5, "score_chosen": 4, "score_rejected": 1}, {"transform": "diff"}, 3.0),
        ({"score_chosen": 8, "score_rejected": 2}, {"transform": "log_ratio"}, 1.3862943611198906),  # log 4
        ({"probability": 0.75}, {"transform": "probability"}, 1.0986122886681098),  # log 3
        ({"p_chosen": 0.2}, {"transform": "probability"}, 1.3862943611198906),
        ({}, {"transform": "const", "scale": 0.5}, 0.5),
        ({"margin": 7}, {"transform": "const"}, 1.0),
        ({"score_chosen": 8, "score_rejected": 2}, {"transform": "const"}, 1.0),
        ({"p_chosen": 0.9}, {"transform": "const"}, 1.0),
    ],
)
def test_a_margin_can_be_made_of_this_projects_own_columns(strength, margin, expected):
    assert pair(OWN | strength, {"margin": margin}).margin == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "strength", [{"margin": -7}, {"score_chosen": 1, "score_rejected": 2}, {"probability": 0.1}, {"p_chosen": 0.1}]
)
@pytest.mark.parametrize(
    "given", [{"margin": {"transform": "const"}}, {"base": "pairs", "margin": {"transform": "const"}}]
)
def test_a_constant_margin_still_turns_the_pair_as_its_strength_says(strength, given):
    read = pair(OWN | strength, given)
    assert (read.chosen, read.margin, read.swapped) == ("5", 1.0, True)


def test_a_margin_of_nothing_is_refused():
    with pytest.raises(
        UserError, match=r"^some.jsonl has no column from which the mapping's margin \(clip\) could be computed"
    ):
        canonical(OWN, {"margin": {"clip": 6}})


def test_own_strength_beside_an_overridden_margin_keeps_its_probability():
    read = pair(OWN | {"margin": -9.0, "p_chosen": 0.25}, {"margin": {"clip": 6}})
    assert (read.margin, read.probability, read.chosen, read.swapped, read.clipped) == (6.0, 0.75, "5", True, True)


def test_columns_sources_ids_spans_and_a_third_text_turn_with_the_texts():
    given = AB | {
        "id": "q",
        "source": {"a": "mx", "b": "my"},
        "columns": {"tokens": {"a": "tokens_x", "b": "tokens_y"}, "depth": "deep.er"},
        "spans": {"edits": {"a": "ex", "b": "ey"}},
        "extra_response": "z",
    }
    values = VALUES | {"deep": {"er": 0.5}, "ex": [[0, 1, 2.5]], "ey": [], "z": "6"}
    read = pair(
        values,
        given,
        columns=("tokens_chosen", "depth"),
        on_swap={"depth": "keep"},
        required=frozenset({"extra_response"}),
        token_columns=("edits",),
    )
    assert (read.chosen, read.extra_response, read.id, read.sources) == ("5", "6", "2+2=", ("m2", "m1"))
    assert read.columns == {"tokens_chosen": 9.0, "depth": 0.5}
    assert read.spans == {"edits": ([], [(0, 1, 2.5)])}


def dialogue(*contents):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]


DIALOGUES = {"chosen": dialogue("2+2=", "4"), "rejected": dialogue("2+2=", "5")}


@pytest.mark.parametrize("kind", ["source", "model"])
def test_dialogues_keep_who_wrote_them(kind):
    values = DIALOGUES | {f"chosen_{kind}": "m1", f"rejected_{kind}": "m2", "margin": -1}
    for given in (None, "implicit", {"base": "implicit", "signed": {"column": "margin", "positive_means": "chosen"}}):
        assert pair(values, given).sources == ("m2", "m1")
    assert pair(VALUES | {"chosen_source": "m1", "rejected_source": "m2"}, AB).sources == (None, None)


@pytest.mark.parametrize("extra_response", ["6", dialogue("2+2=", "6")])
@pytest.mark.parametrize("prompt", [{}, {"prompt": "2+2="}])
def test_a_third_text_beside_dialogues_is_read_as_they_are(extra_response, prompt):
    read = pair(DIALOGUES | prompt | {"extra_response": extra_response}, required=frozenset({"extra_response"}))
    assert (read.prompt, read.chosen, read.extra_response) == (dialogue("2+2=", "4")[:1], "4", "6")


def test_a_third_value_that_nobody_needs_costs_no_pair():
    for value in (None, 7, "", {"a": 1}):
        assert pair(DIALOGUES | {"extra_response": value}).chosen == "4"
        with pytest.raises(BadRow, match="line 1: extra_response is"):
            pair(DIALOGUES | {"extra_response": value}, required=frozenset({"extra_response"}))


def test_a_sources_own_columns_stay_under_their_names_but_never_pass_for_strength():
    found = canonical(VALUES | {"margin": 99, "p_chosen": 0.1, "lang": "en", "rejected": "?", "id": "?"}, AB)
    assert found.values["lang"] == "en" and found.values["sx"] == 1
    assert (found.values["margin"], found.values["rejected"]) == (-2.0, "5")
    assert "p_chosen" not in found.values and "id" not in found.values


def test_a_plain_column_of_a_pair_that_turns_must_be_explained():
    with pytest.raises(UserError, match="no rule for the column `sx`"):
        pair(VALUES, AB, columns=("sx",))


def test_refusals_name_the_sources_own_fields():
    with pytest.raises(BadRow, match=r"^some.jsonl, line 1: x is missing or null; give it a text") as caught:
        pair(VALUES | {"x": None}, AB)
    assert caught.value.kind == "x is missing or null"
    with pytest.raises(BadRow, match="q content is empty"):
        pair(VALUES | {"q": [{"role": "user", "content": " "}]}, AB)


def test_filters_say_why_a_pair_is_left_out_and_leave_out_nothing_themselves():
    given = AB | {"filters": {"min_margin": 2, "min_score_ratio": 2, "drop_ties": True}}
    rows = rows_of(*(VALUES | {"sx": x, "sy": y} for x, y in [(3, 3), (3, 4), (10, 8), (2, 6), (6, 2), (-1, 9)]))
    mapping = mapping_of(given, lambda: rows)
    reader = RowReader()
    canonical = list(Conversion(mapping).canonical_rows(rows))
    reasons = [filtered_out(mapping.filters, reader.read(row), row) for row in canonical]
    assert reasons == ["tie", "margin below 2", "score ratio below 2", None, None, "score ratio below 2"]
    own = rows_of(OWN)[0]
    for filters, reason in (
        ({"min_margin": 1}, "no margin"),
        ({"min_score_ratio": 2}, "no scores for a ratio"),
    ):
        assert (
            filtered_out(mapping_of({"filters": filters}, lambda: [own]).filters, RowReader().read(own), own) == reason
        )


def test_one_sided_rows_may_lack_the_rejected_text():
    good = {"kind": "none", "prompt": "q", "chosen": "good"}
    for given, other in ((good, {}), (good | {"rejected": "bad"}, {"bad": "5"})):
        rows = rows_of({"q": "2+2=", "good": "4"}, {"q": "2+2=", "good": "4"} | other)
        canonical = list(Conversion(mapping_of(given, lambda rows=rows: rows)).canonical_rows(rows))
        assert "rejected" not in canonical[0].values and canonical[0].values["chosen"] == "4"
        assert ("rejected" in canonical[1].values) == bool(other)
        assert RowReader(one_sided=True).read(canonical[0]).chosen == "4"


SECOND = "The mapping in data.mapping"


@pytest.mark.parametrize(
    "given, sentence",
    [
        ("shpp", "data.mapping is 'shpp', which is not a mapping; did you mean shp"),
        ("unpaired", "data.mapping is unpaired, which cannot be trained on: KTO-style"),
        ({"base": "shpp"}, f"{SECOND}: `base` is 'shpp', which is not a mapping; did you mean shp"),
        (AB | {"promt": "q"}, f"{SECOND}: `promt` is not a key of a mapping; did you mean `prompt`."),
        (AB | {"margin": {"clipp": 6}}, f"{SECOND}: `margin.clipp` is not a key of a mapping; did you mean `clip`."),
        ({"margin": {"transform": "log"}}, f"{SECOND}: `margin.transform` is 'log'; it must be one of diff, log_ratio"),
        (AB | {"kind": "abc"}, "`kind` is 'abc'; it must be one of pair, ab, ab_signed, list, none"),
        (AB | {"margin": {"clip": "6"}}, "`margin.clip` is '6'; it must be a number"),
        (AB | {"margin": {"clip": True}}, "`margin.clip` is True; it must be a number"),
        (AB | {"margin": 6}, "`margin` is 6; it must be a mapping; it takes "),
        ({"probability": "share"}, r"it must be a mapping \(probability: {column: share}\); it takes column"),
        (AB | {"margin": {"clip": 0}}, "`margin.clip` is 0; it must be above 0"),
        (AB | {"margin": {"scale": -1}}, "`margin.scale` is -1; it must be above 0, because other keys say which"),
        (AB | {"label": {"column": "l", "a": [[1]], "b": 2}}, "`label` takes a word or a number for each side"),
        (AB | {"label": {"column": "l", "a": 1, "b": [2, 1]}}, "`label` gives one value two meanings"),
        (AB | {"group": "q"}, "`tree` and `group` are for kind list"),
        (AB | {"name": "mine"}, "`name` is not a key of a mapping"),
        (
            AB | {"signed": {"column": "s", "positive_means": "a"}},
            "`score` and `signed` both define the margin; give one",
        ),
        (LIST | {"label": {"column": "l", "a": 1, "b": 2}}, "kind list takes its strength from `score` alone"),
        (AB | {"prompt": 5}, "`prompt` is 5; it must be a word"),
        (AB | {"prompt": "q[].x"}, r"`prompt` is q\[\].x, which leads to many values; it must lead to one"),
        (AB | {"prompt": "q..x"}, "`prompt`: 'q..x' is not a path into a row"),
        (AB | {"prompt_repeated": "yes"}, "`prompt_repeated` is 'yes'; it must be true or false"),
        (AB | {"b": None}, "kind ab needs `b`, the path to it in a row"),
        (AB | {"score": None}, "kind ab needs `score`, `label` or `probability`"),
        (AB | {"score": {"chosen": "sx", "rejected": "sy"}}, "`score` needs `a` and `b`"),
        (AB | {"kind": "ab_signed"}, "kind ab_signed needs `signed`"),
        (AB | {"signed": {"column": "s"}}, "`signed` needs `positive_means` too; it takes column, positive_means"),
        (
            AB | {"score": None, "signed": {"column": "s", "positive_means": "chosen"}},
            "`signed.positive_means` must be one of a, b",
        ),
        (AB | {"probability": {"column": "p"}}, "`probability.of` must name the text whose probability it is, a or b"),
        (AB | {"probability": {"column": "p", "of": "chosen"}}, "`probability.of` must be one of a, b"),
        (AB | {"probability": {"column": "p", "of": "a", "range": [2, 1]}}, "`probability.range` must be two numbers"),
        (AB | {"margin": {"transform": "probability"}}, "`margin.transform: probability` needs `probability`"),
        (AB | {"margin": {"transform": "signed"}}, "`margin.transform: signed` needs `signed`"),
        (AB | {"columns": {"n": {"a": "x"}}}, "`columns.n` needs `a` and `b`"),
        (AB | {"source": {"chosen": "x", "rejected": "y"}}, "`source` needs `a` and `b`"),
        ({"kind": "list", "prompt": "q", "responses": "r[]"}, "kind list needs `score.path`"),
        (LIST | {"responses": "r"}, "`responses` is r; it must lead to many"),
        (
            LIST | {"score": {"path": "s[]", "order": "asc"}, "margin": {"transform": "log_ratio"}},
            "log_ratio` needs scores where the larger one is better",
        ),
        (
            LIST | {"score": {"path": "s[]", "order": "desc"}, "margin": {"transform": "rank_gap"}},
            "rank_gap` needs ranks where the smaller one is better",
        ),
        ({"kind": "none", "chosen": "c", "rejected": "r", "score": {"chosen": "s"}}, "kind none has no strength"),
        (AB | {"pairs_from_list": {"max_pairs_per_prompt": 0}}, "from_list.max_pairs_per_prompt` is 0; it must be 1"),
    ],
)
def test_a_faulty_mapping_is_refused_by_its_key(given, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        load_mapping(given)
    assert str(caught.value).count("; ") <= 2 and "\n" not in str(caught.value)


def test_a_mapping_file_that_cannot_be_read_is_refused_by_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    with pytest.raises(UsageError, match=r"There is no mapping file .*mine.yaml; (did you mean|give the path)"):
        load_mapping(str(path))
    path.write_text("kind: [pair")
    with pytest.raises(UsageError, match=r"mine.yaml cannot be read \(while parsing"):
        load_mapping(str(path))
    path.write_text("- kind")
    with pytest.raises(UsageError, match=r"mine.yaml is not a YAML mapping"):
        load_mapping(str(path))
    path.write_text("kind: ab\nprompt: q\na: x\nbb: y\n")
    with pytest.raises(UsageError, match=r"^The mapping .*mine.yaml: `bb` is not a key of a mapping; did you mean `b`"):
        load_mapping(str(path))


@pytest.mark.parametrize(
    "given, sentence",
    [
        (AB | {"a": "xx"}, "given: `a` is xx, which none of the first 1 rows of some.jsonl has; did you mean x"),
        (AB | {"score": {"a": "score", "b": "sy"}}, "`score.a` is score, which none of .* the columns are q, x, y"),
        (AB | {"extra_response": "z"}, "`extra_response` is z, which none of"),
        ("shp", "The mapping shp: `prompt` is history, which none of the first 1 rows of some.jsonl has"),
    ],
)
def test_a_path_that_no_row_has_is_refused_before_anything_is_read(given, sentence):
    with pytest.raises(UserError, match=sentence):
        mapping_of(given, lambda: rows_of(VALUES))


def test_the_fingerprint_is_of_what_decides_the_rows_and_of_nothing_else():
    base = load_mapping(AB).fingerprint()
    assert load_mapping(AB | {"note": "a remark"}).fingerprint() == base
    changes = [
        {"margin": {"clip": 6}},
        {"margin": {"normalise": "zscore"}},
        {"filters": {"min_margin": 1}},
        {"a": "y", "b": "x"},
        {"format": "messages"},
        {"extra_response": "z"},
        {"label": {"column": "l", "a": 1, "b": 2}},
        {"columns": {"n": "n"}},
    ]
    assert len({base, *(load_mapping(AB | change).fingerprint() for change in changes)}) == len(changes) + 1


def test_a_mapping_says_where_texts_and_strength_come_from():
    mapping = load_mapping(AB | {"margin": {"transform": "log_ratio", "clip": 6, "scale": 2}})
    assert describe(mapping) == (
        "format given: texts x and y, prompt q, margin log_ratio of sx and sy, times 2, cut to 6"
    )
    assert describe(load_mapping("nectar")).endswith("(column names from memory, not checked against the dataset)")
    assert isinstance(mapping, RowMapping) and mapping.normalise == "none"


def test_one_pair_in_words_says_which_text_is_chosen_and_by_what():
    rows = rows_of(VALUES | {"x": "four " * 30})
    mapping = mapping_of(AB, lambda: rows)
    (row,) = Conversion(mapping).canonical_rows(rows)
    words = example_of(mapping, RowReader().read(row), row)
    assert words == (
        'some.jsonl, line 1: to "2+2=", y "5" is preferred '
        'to x "four four four four four four four four four four four fo..."'
        ", margin 2 (margin diff of sx and sy)"
    )
    (own,) = rows_of(OWN | {"p_chosen": 0.25})
    assert example_of(mapping_of("pairs", lambda: [own]), RowReader().read(own), own) == (
        'some.jsonl, line 1: to "2+2=", rejected "5" is preferred to chosen "4", no margin, probability 0.75'
    )


def test_the_old_key_of_the_extra_response_gets_the_new_one():
    with pytest.raises(UsageError, match="`third` is not a key of a mapping; it is now called `extra_response`"):
        load_mapping(AB | {"third": "z"})
