"""What holds for every row: orientation, transforms, texts byte for byte, and pairs of lists."""

import contextlib
import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.known import recognise, shipped
from lit_pref.data.formats.load import mapping_of
from lit_pref.data.formats.ranked_lists import PairsFromList
from lit_pref.data.prepared.pair_rules import filtered_out
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UserError

quick = settings(max_examples=60, deadline=None)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
positive = st.floats(1e-30, 1e30)
huge = st.sampled_from([3.4028234663852886e38, -3.5e38, 1e39, -1e300])  # about the largest that a batch can hold
transforms = st.sampled_from(["diff", "log_ratio", "rank_gap", "const"])
MESSAGE_KEYS = ["role", "content", "from", "value", "type", "text", "answer", "rank", "response", "overall_score"]
AB = {"kind": "ab", "prompt": "q", "a": "x", "b": "y", "score": {"a": "sx", "b": "sy"}}
LIST = {"kind": "list", "prompt": "q", "responses": "r[]", "score": {"path": "s[]"}}


def rows(values, given):
    found = [Row("some.jsonl", 1, values)]
    return list(Conversion(mapping_of(given, lambda: found)).canonical_rows(found))


def pair(values, given):
    (row,) = rows(values, given)
    return RowReader().read(row)


@quick
@given(transforms, texts, st.lists(texts, min_size=2, max_size=2, unique=True), positive, positive)
def test_a_pair_is_the_same_in_either_order_of_its_source(transform, prompt, two, sx, sy):
    mapping = AB | {"margin": {"transform": transform, "scale": 0.5, "clip": 5.0}}
    one = pair({"q": prompt, "x": two[0], "y": two[1], "sx": sx, "sy": sy}, mapping)
    other = pair({"q": prompt, "x": two[1], "y": two[0], "sx": sy, "sy": sx}, mapping)
    assert one.margin == other.margin and 0 <= one.margin <= 5.0 and one.clipped == other.clipped
    assert math.copysign(1, one.margin) == 1
    if not one.tie:
        assert (one.chosen, one.rejected) == (other.chosen, other.rejected)
        assert one.chosen_first is not other.chosen_first
        better = sx < sy if transform == "rank_gap" else sx > sy
        assert one.chosen == (two[0] if better else two[1])


@quick
@given(transforms, positive, positive, st.floats(0.01, 100))
def test_a_margin_turns_its_sign_with_the_scores_and_grows_with_the_scale(transform, sx, sy, scale):
    def margin(x, y, scale=1.0):
        given = AB | {"margin": {"transform": transform, "scale": scale}}
        return rows({"q": "q", "x": "a", "y": "b", "sx": x, "sy": y}, given)[0].values["margin"]

    assert margin(sx, sy) == -margin(sy, sx)
    assert math.isclose(margin(sx, sy, scale), scale * margin(sx, sy), rel_tol=1e-12)


@quick
@given(st.floats(1e-9, 1 - 1e-9), st.floats(0.1, 50))
def test_log_odds_give_back_their_probability_unless_they_are_cut(p, clip):
    given = {"kind": "ab", "prompt": "q", "a": "x", "b": "y", "probability": {"column": "p", "of": "b"}}
    given["margin"] = {"transform": "probability", "clip": clip}
    (row,) = rows({"q": "q", "x": "a", "y": "b", "p": p}, given)
    margin = row.values["margin"]
    assert row.clipped == (abs(margin) == clip)
    assert row.clipped or math.isclose(1 / (1 + math.exp(margin)), p, rel_tol=1e-6)
    assert margin == 0 or (margin > 0) == (p < 0.5)


@quick
@given(texts, st.lists(texts, min_size=2, max_size=2, unique=True))
def test_texts_pass_byte_for_byte_in_every_form(prompt, two):
    user = {"role": "user", "content": prompt}
    said = [{"role": "assistant", "content": text} for text in two]
    parts = [
        [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in (user, s)] for s in said
    ]
    for values, layout in (
        ({"prompt": prompt, "chosen": two[0], "rejected": two[1]}, "pairs"),
        ({"prompt": [user], "chosen": [said[0]], "rejected": [said[1]]}, "pairs"),
        ({"prompt": prompt, "chosen": [user, said[0]], "rejected": [user, said[1]]}, "pairs"),
        ({"chosen": [user, said[0]], "rejected": [user, said[1]]}, "implicit"),
        ({"chosen": parts[0], "rejected": parts[1]}, "implicit"),
        (
            {
                "conversations": [{"from": "human", "value": prompt}],
                "chosen": {"from": "gpt", "value": two[0]},
                "rejected": {"from": "gpt", "value": two[1]},
            },
            "sharegpt",
        ),
        (
            {"history": prompt, "human_ref_A": two[0], "human_ref_B": two[1], "score_A": 2, "score_B": 1, "labels": 1},
            "shp",
        ),
    ):
        read = pair(values, layout)
        assert (read.chosen, read.rejected) == tuple(two)
        assert (read.prompt if isinstance(read.prompt, str) else read.prompt[0]["content"]) == prompt


@quick
@given(st.lists(st.integers(0, 4), min_size=2, max_size=7), st.integers(1, 25), st.integers(0, 3))
def test_pairs_of_lists_are_as_many_as_they_must_be_and_within_all(goodness, cap, seed):
    number = len(goodness)
    every = PairsFromList("all").pairs(goodness, "q")
    assert every == list(itertools.combinations(range(number), 2))
    (extreme,) = PairsFromList("best_worst").pairs(goodness, "q")
    assert extreme in every
    assert abs(goodness[extreme[0]] - goodness[extreme[1]]) == max(goodness) - min(goodness)
    adjacent = PairsFromList("adjacent").pairs(goodness, "q")
    assert len(set(adjacent)) == number - 1 and set(adjacent) <= set(every)
    assert sum(abs(goodness[i] - goodness[j]) for i, j in adjacent) == max(goodness) - min(goodness)
    for mode in ("all", "adjacent", "random"):
        kept = PairsFromList(mode, cap, seed).pairs(goodness, "q")
        assert len(kept) == min(cap, number - 1 if mode == "adjacent" else len(every))
        assert set(kept) <= set(every) and kept == PairsFromList(mode, cap, seed).pairs(goodness, "q")


@quick
@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_all_pairs_of_a_list_are_every_two_answers_less_the_ties_that_are_dropped(scores):
    values = {"q": "q", "r": [f"t{k}" for k in range(len(scores))], "s": scores}
    given = LIST | {"pairs_from_list": {"mode": "all"}, "filters": {"drop_ties": True}}
    found = [Row("some.jsonl", 1, values)]
    mapping = mapping_of(given, lambda: found)
    reader = RowReader()
    pairs = [(reader.read(row), row) for row in Conversion(mapping).canonical_rows(found)]
    kept = [p for p, row in pairs if filtered_out(mapping.filters, p, row) is None]
    number = len(scores)
    ties = sum(x == y for x, y in itertools.combinations(scores, 2))
    assert len(kept) == number * (number - 1) // 2 - ties
    assert all(scores[int(p.chosen[1:])] - scores[int(p.rejected[1:])] == p.margin > 0 for p in kept)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | huge
    | st.text(max_size=5)
    | st.just("\n\nHuman: a\n\nAssistant: b"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MESSAGE_KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_value_of_a_row_ends_in_another_error_than_a_sentence(data):
    layout = shipped()[data.draw(st.sampled_from(sorted(shipped().keys() - {"unpaired"})))]
    columns = sorted({ValuePath(path).column for path in layout.mapping.paths.values()} | {"margin", "id", "p_chosen"})
    values = [data.draw(st.dictionaries(st.sampled_from(columns), junk)) for _ in range(3)]
    found = [Row("some.jsonl", line, row) for line, row in enumerate(values, start=1)]
    reader = RowReader()
    with contextlib.suppress(UserError):
        recognise(found)
    try:
        for row in Conversion(layout.mapping).canonical_rows(found):
            if isinstance(row, BadRow):
                continue
            try:
                pair = reader.read(row)
            except BadRow:
                continue
            assert isinstance(pair.chosen, str) and isinstance(pair.rejected, str)
            assert pair.margin is None or 0 <= torch.tensor(pair.margin, dtype=torch.float32) < math.inf
    except UserError as error:
        assert len(str(error)) < 1500
