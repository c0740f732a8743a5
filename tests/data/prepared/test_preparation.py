"""From file to prepared pairs: what is written is what the rows say, once, and nothing stale is read."""

import json
import pickle

import numpy as np
import pytest

import lit_pref.data.prepared.preparation as preparation_module
import lit_pref.data.prepared.tokenized_pairs as tokenized_pairs
from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.prepared.arrow import CHUNK, PairWriter
from lit_pref.data.prepared.pair_rules import in_validation
from lit_pref.data.prepared.pair_view import PreparedPairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.splits import digest_of_split, training_texts
from lit_pref.data.sources.row import Row
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UserError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))


def rows(number, **more):
    return [{"prompt": f"p{k}", "chosen": f"c{k}", "rejected": f"rr{k}", "margin": k, **more} for k in range(number)]


def prepared(tokenizer, path, split="train", max_length=64, **options):
    folder = Preparation(**options).prepare(Source(str(path)), Tokenization(tokenizer, max_length))
    return PreparedPairs(folder, split)


def ids(text):
    from tokenizers import pre_tokenizers

    return [3 + sorted(pre_tokenizers.ByteLevel.alphabet()).index(character) for character in text]


def test_what_is_read_is_what_the_rows_say(tokenizer, written):
    pairs = prepared(tokenizer, written(rows(3, weight=0.5, source="x")), columns=("weight",), group_column="source")
    assert len(pairs) == 3
    pair = pairs[1]
    assert (pair.prompt, pair.chosen, pair.rejected) == ([0, *ids("p1")], [*ids("c1"), 1], [*ids("rr1"), 1])
    assert (pair.margin, pair.probability, dict(pair.columns), pair.group) == (1.0, None, {"weight": 0.5}, "x")
    assert (pair.text.prompt, pair.text.chosen, pair.text.rejected) == ("p1", "c1", "rr1")
    assert (pair.text.chosen_complete, pair.text.rejected_complete) == (True, True)


def test_pairs_over_several_chunks_are_found_by_index(tokenizer, written):
    number = 2 * CHUNK + 3
    pairs = prepared(tokenizer, written(rows(number)))
    assert len(pairs) == number
    for k in (0, CHUNK - 1, CHUNK, 2 * CHUNK, number - 1):
        assert pairs[k].margin == k
    assert [pairs[k].margin for k in (-1, -5, -number)] == [number - 1, number - 5, 0]
    assert [pair.margin for pair in pairs[CHUNK - 1 : CHUNK + 1]] == [CHUNK - 1, CHUNK]
    with pytest.raises(IndexError):
        pairs[number]


def test_lengths_are_those_of_the_pairs(tokenizer, written):
    # One token a byte, one for the begin and one for each end.
    some = [
        {"prompt": "p" * (k % 7 + 1), "chosen": "c" * (k % 5 + 1), "rejected": "r" * (k % 3 + 1)}
        for k in range(CHUNK + 2)
    ]
    both = prepared(tokenizer, written(some)).lengths
    assert both.shape == (CHUNK + 2, 3) and both.dtype == np.int32
    assert both.tolist() == [[k % 7 + 2, k % 5 + 2, k % 3 + 2] for k in range(CHUNK + 2)]
    one = prepared(tokenizer, written(some), one_sided=True).lengths
    assert one.tolist() == [[k % 7 + 2, k % 5 + 2, 0] for k in range(CHUNK + 2)]


def test_message_lists_and_missing_sides_survive(tokenizer, written):
    chat = [{"prompt": [{"role": "user", "content": "hi"}], "chosen": "yes"}]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    try:
        pair = prepared(tokenizer, written(chat), one_sided=True)[0]
    finally:
        tokenizer.chat_template = None
    assert pair.rejected is None
    assert pair.text.rejected is None
    assert pair.text.prompt == [{"role": "user", "content": "hi"}]


def test_a_worker_process_opens_the_file_itself(tokenizer, written):
    pairs = prepared(tokenizer, written(rows(5)))
    state = pickle.dumps(pairs)
    assert len(state) < 1000
    assert pickle.loads(state)[3] == pairs[3]


def test_ids_are_stable_under_new_rows_new_lengths_and_other_files(tokenizer, written):
    few = prepared(tokenizer, written(rows(5)))
    many = prepared(tokenizer, written([{**rows(1)[0], "prompt": "new"}, *rows(5)], "more.jsonl"), max_length=5)
    assert many.ids[1:] == few.ids
    assert len(set(many.ids)) == 6
    assert all(len(id) == 16 for id in few.ids)
    assert few.ids == [pair.id for pair in few]


def test_exact_duplicates_get_ordinals_and_swapped_ones_are_duplicates(tokenizer, written):
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1}
    swapped = {"prompt": "p", "chosen": "b", "rejected": "a", "margin": -1}
    first, second, extra_response = prepared(tokenizer, written([row, row, swapped])).ids
    assert (second, extra_response) == (f"{first}-1", f"{first}-2")


def test_ids_of_the_rows_are_used_and_must_be_unique(tokenizer, written):
    own = [{**row, "id": f"row-{k}"} for k, row in enumerate(rows(3))]
    assert prepared(tokenizer, written(own)).ids == ["row-0", "row-1", "row-2"]
    with pytest.raises(UserError, match=r"line 4: line 2 has the id 'row-1' too; make ids unique or remove"):
        prepared(tokenizer, written([*own, own[1]]))


def test_the_split_is_by_prompt_stable_and_about_as_large_as_asked(tokenizer, written):
    # Each prompt three times: all rows of a prompt are on one side.
    many = [{**row, "chosen": f"c{copy}"} for row in rows(400) for copy in range(3)]
    path = written(many)
    train, val = (prepared(tokenizer, path, split, val_fraction=0.25) for split in ("train", "validation"))
    prompts = [{pair.text.prompt for pair in pairs} for pairs in (train, val)]
    assert not prompts[0] & prompts[1]
    assert len(train) + len(val) == 1200
    assert 70 <= len(prompts[1]) <= 130  # 100 expected, standard deviation 8.7
    grown = prepared(
        tokenizer, written([*many, {**rows(1)[0], "prompt": "new"}], "g.jsonl"), "validation", val_fraction=0.25
    )
    assert {pair.text.prompt for pair in grown} - {"new"} == prompts[1]
    other = prepared(tokenizer, path, "validation", val_fraction=0.25, split_seed=1)
    assert {pair.text.prompt for pair in other} != prompts[1]


def test_a_larger_share_holds_out_the_same_prompts_and_more():
    held = [{k for k in range(500) if in_validation(k, share, 3)} for share in (0.0, 0.1, 0.3, 1.0)]
    assert held[0] == set()
    assert held[1] < held[2] < held[3] == set(range(500))


def test_preparation_happens_once_and_again_when_anything_changes(tokenizer, written, monkeypatch):
    path = written(rows(4))
    built = []
    original = Preparation._build
    monkeypatch.setattr(Preparation, "_build", lambda self, *a: (built.append(1), original(self, *a)))
    prepared(tokenizer, path)
    prepared(tokenizer, written(rows(4)))
    assert len(built) == 1
    changes = [
        {"max_length": 50},
        {"val_fraction": 0.5},
        {"val_fraction": 0.5, "split_seed": 1},
        {"columns": ("margin",)},
        {"columns": ("margin",), "on_swap": {"margin": "keep"}},
        {"one_sided": True},
        {"ties": "drop"},
        {"required": frozenset({"margin"})},
        {"mapping": {"kind": "pair", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}},
    ]
    for change in changes:
        prepared(tokenizer, path, **change)
    prepared(tokenizer, path, bad_rows="lenient", max_refused=0.5)  # judges what is prepared
    written(rows(5))
    prepared(tokenizer, path)
    monkeypatch.setattr(preparation_module, "FORMAT", "another")
    prepared(tokenizer, path)
    assert len(built) == 1 + len(changes) + 2


def test_a_preparation_that_fails_leaves_nothing_behind(tokenizer, written):
    path = written([*rows(3), {"prompt": "p", "chosen": "", "rejected": "x", "margin": 1}])
    for _ in range(2):
        with pytest.raises(UserError, match="line 4: chosen is empty"):
            prepared(tokenizer, path)
    assert len(prepared(tokenizer, written(rows(3)))) == 3


def test_the_fingerprint_is_that_of_the_pairs(tokenizer, written):
    path = written(rows(6))
    first = prepared(tokenizer, path).fingerprint
    assert prepared(tokenizer, path, bad_rows="lenient").fingerprint == first  # nothing was left out
    assert prepared(tokenizer, written(rows(7), "b.jsonl")).fingerprint != first
    assert prepared(tokenizer, path, max_length=4).fingerprint != first
    changed = [{**row, "margin": row["margin"] + 1e-9} for row in rows(6)]
    assert prepared(tokenizer, written(changed, "c.jsonl")).fingerprint != first


def test_a_file_that_moves_is_prepared_again_and_holds_the_same_pairs(tokenizer, written):
    here, there = prepared(tokenizer, written(rows(3))), prepared(tokenizer, written(rows(3), "moved.jsonl"))
    assert here.fingerprint == there.fingerprint
    assert here[1].place.endswith("pairs.jsonl, line 2") and there[1].place.endswith("moved.jsonl, line 2")


def test_the_corpus_key_follows_the_training_split(written):
    def key(path, val_fraction=0.0, split_seed=0):
        return digest_of_split([Source(str(path))], Preparation(val_fraction=val_fraction, split_seed=split_seed))

    path = written(rows(4))
    keys = {key(path), key(path), key(path, 0.1), key(path, 0.1, 1), key(written(rows(5), "o.jsonl"))}
    assert len(keys) == 4


BAD = [
    {"prompt": "p", "chosen": "", "rejected": "x", "margin": 1},
    {"prompt": "p", "chosen": "x", "rejected": "x", "margin": 1},
    {"prompt": "q", "chosen": "", "rejected": "x", "margin": 1},
]


def test_lenient_counts_by_reason_and_stops_when_too_many_go(tokenizer, written):
    path = written([*rows(7), *BAD])
    pairs = prepared(tokenizer, path, bad_rows="lenient", max_refused=0.3)
    assert len(pairs) == 7
    assert pairs.report.rows == 10
    assert pairs.report.refused == {"chosen is empty": 2, "chosen and rejected are the same text": 1}
    with pytest.raises(
        UserError, match=r"3 of 10 rows cannot be used \(chosen is empty: 2, .*: 1\), more than"
    ) as caught:
        prepared(tokenizer, path, bad_rows="lenient", max_refused=0.29)
    assert "(the first: " in str(caught.value)
    assert "line 8: chosen is empty)" in str(caught.value)


def test_what_was_prepared_leniently_is_refused_by_a_strict_run_with_the_same_sentence(tokenizer, written):
    path = written([*rows(7), *BAD])
    with pytest.raises(UserError) as at_once:
        prepared(tokenizer, path)
    prepared(tokenizer, path, bad_rows="lenient", max_refused=0.3)
    with pytest.raises(UserError) as later:
        prepared(tokenizer, path)
    assert str(at_once.value) == str(later.value) and "line 8: chosen is empty" in str(later.value)


def test_ties_are_kept_or_dropped_and_counted(tokenizer, written):
    path = written(rows(3))  # the first margin is 0
    assert [pair.margin for pair in prepared(tokenizer, path)] == [0, 1, 2]
    dropped = prepared(tokenizer, path, ties="drop")
    assert [pair.margin for pair in dropped] == [1, 2]
    assert (dropped.report.ties, dropped.report.ties_dropped, dropped.report.pairs) == (1, 1, 2)


def test_a_file_without_pairs_is_refused(tokenizer, written):
    path = written([])
    path.write_text("\n\n")
    with pytest.raises(UserError, match=r"contains no pairs to train on \(0 rows\)"):
        prepared(tokenizer, path)
    with pytest.raises(UserError, match=r"contains no pairs to train on \(3 rows; ties dropped: 3\)"):
        prepared(tokenizer, written([{**row, "margin": 0} for row in rows(3)]), ties="drop")


def test_the_report_counts_what_was_done(tokenizer, written):
    data = [
        {"prompt": "ab", "chosen": "cdefgh", "rejected": "i", "margin": 1, "score_chosen": 3, "score_rejected": 1},
        {"prompt": "ab", "chosen": "c", "rejected": "de", "margin": -3, "score_chosen": 1, "score_rejected": 4},
    ]
    report = prepared(tokenizer, written(data), max_length=7).report
    assert (report.rows, report.pairs, report.swapped, report.disagreeing) == (2, 2, 1, 1)
    kind = "the margin is not the difference of the scores"
    assert report.contradictions == {kind: 1} and report.contradictions_first[kind].endswith(
        ", line 1: margin 1 against 3 - 1 = 2; clipped in the source?"
    )
    assert (report.chosen_cut, report.rejected_cut, report.prompts_cut) == (1, 0, 0)
    # Tokens with end tokens: chosen 4 (cut) and 3 ("de"), rejected 2 ("i") and 2 ("c"); prompts 3 with the begin token.
    spreads = [report.prompt_tokens, report.chosen_tokens, report.rejected_tokens]
    assert [(s.minimum, s.mean, s.maximum) for s in spreads] == [(3, 3, 3), (3, 3.5, 4), (2, 2, 2)]
    assert report.longest == 7
    assert report.share("chosen_longer") == 1.0
    assert report.margin.mean == 2.0
    # Linear interpolation between 1 and 3.
    assert report.margin_quantiles == pytest.approx({"0.05": 1.1, "0.25": 1.5, "0.5": 2.0, "0.75": 2.5, "0.95": 2.9})
    assert str(report).splitlines() == [
        "2 rows, 2 pairs of 1 prompts; refused: none; swapped 1, ties 0 (dropped 0), strengths that disagree 1",
        "mean tokens: prompts 3, chosen 3.5, rejected 2 (longest pair 7, chosen longer 100.0%); "
        "cut: prompts 0.0%, chosen 50.0%, rejected 0.0%; token across the prompt end 0.0%",
        "margin: mean 2; quantiles 5% 1.1, 25% 1.5, 50% 2, 75% 2.5, 95% 2.9",
    ]


def test_a_report_says_nothing_of_what_is_not_there(tokenizer, written):
    data = [{"prompt": "ab", "chosen": "cd"}, {"prompt": "ab", "chosen": ""}]
    options = {"one_sided": True, "bad_rows": "lenient", "max_refused": 0.5}
    assert str(prepared(tokenizer, written(data), **options).report).splitlines() == [
        "2 rows, 1 pairs of 1 prompts; refused: chosen is empty: 1",
        "mean tokens: prompts 3, chosen 3 (longest pair 6); cut: prompts 0.0%, chosen 0.0%; "
        "token across the prompt end 0.0%",
    ]
    empty = prepared(tokenizer, written(data), "validation", **options).report
    assert str(empty).startswith("0 rows, 0 pairs of 0 prompts; refused: none") and "\n" not in str(empty)


def test_a_report_survives_its_file(tokenizer, written):
    from lit_pref.data.prepared.preparation_report import PreparationReport

    report = prepared(tokenizer, written([*rows(7), *BAD]), bad_rows="lenient", max_refused=0.5).report
    assert PreparationReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_texts_for_a_tokenizer_are_those_of_strings_and_messages(written):
    chat = {"prompt": [{"role": "user", "content": "hi"}], "chosen": "a", "rejected": "b", "margin": 1}
    texts = training_texts([Source(str(written([chat, *rows(1)])))], Preparation())
    assert list(texts) == ["hi", "a", "b", "p0", "c0", "rr0"]


def test_numbers_of_the_row_travel_along(tmp_path, tokenizer):
    row = Row("pairs.jsonl", 1, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": -2, "w": 3, "kind": "x"})
    text = RowReader(columns=("w",), group_column="kind", on_swap={"w": "keep"}).read(row)
    writer = PairWriter(tmp_path, "train", ["w"])
    writer.add(CheckedPair(row, text, "7", "train"), Tokenization(tokenizer, 10).tokenize(row, text))
    writer.close()
    (pair,) = PreparedPairs(tmp_path, "train")
    assert (pair.id, pair.margin, pair.columns, pair.group, pair.probability) == ("7", 2.0, {"w": 3.0}, "x", None)
    assert pair.text.chosen == "c"
    assert (pair.prompt_id, pair.place) == (text.prompt_id, "pairs.jsonl, line 1")


@pytest.mark.parametrize("harm", ["flip", "cut", "missing", "report"])
def test_damaged_prepared_data_are_prepared_again_with_a_sentence(tokenizer, written, harm, capsys):
    source = written(rows(20))
    before = [pair.margin for pair in prepared(tokenizer, source)]
    folder = prepared(tokenizer, source).folder
    file = folder / ("train.json" if harm == "report" else "train.arrow")
    content = bytearray(file.read_bytes())
    if harm == "flip":  # the margin 7.0 becomes 1.8e+16
        place = content.index(np.float64(7).tobytes() + np.float64(8).tobytes())
        content[place + 6 : place + 8] = b"\x50\x43"
        file.write_bytes(content)
        assert PreparedPairs(folder, "train")[7].margin > 1e16
    elif harm == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:40])
    capsys.readouterr()
    assert [pair.margin for pair in prepared(tokenizer, source)] == before
    assert f"the cache {folder} is damaged ({file.name}" in capsys.readouterr().out


def test_long_rows_are_tokenized_in_smaller_chunks_with_the_same_tokens(tokenizer, written, monkeypatch):
    path = written([{"prompt": f"p{k}", "chosen": f"c{k}" * 50, "rejected": f"r{k}" * 50} for k in range(40)])
    whole = prepared(tokenizer, path, max_length=200)
    sizes = []
    tokenize_all = Tokenization.tokenize_all
    monkeypatch.setattr(
        Tokenization, "tokenize_all", lambda self, items: sizes.append(len(items)) or tokenize_all(self, items)
    )
    monkeypatch.setattr(tokenized_pairs, "CHUNK_TEXT", 1000)
    small = prepared(tokenizer, path, max_length=200, split_seed=1)  # another key of the cache
    assert max(sizes) <= 6 and sum(sizes) == 40
    assert [pair.chosen for pair in small] == [pair.chosen for pair in whole]
