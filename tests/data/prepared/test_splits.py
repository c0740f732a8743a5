"""Several sources make one training and one validation split: shares, scales, names, ids."""

import json
import pickle

import numpy as np
import pytest

from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.splits import open_splits, sources_of, training_texts
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))


def rows(number, letter="a", **more):
    return [
        {"prompt": f"{letter}{k}", "chosen": f"c{k}", "rejected": f"r{k}", "margin": k + 1, **more}
        for k in range(number)
    ]


@pytest.fixture
def opened(tokenizer):
    def open_(train, val=None, **options):
        sources = sources_of(train, "data.train")
        held_out = None if val is None else sources_of(val, "data.val")
        return open_splits(sources, held_out, Preparation(**options), Tokenization(tokenizer, 64))

    return open_


def source(path, **options):
    return Source(str(path), **options)


def scaled(factor):
    return {"margin": {"scale": factor}}


def normalised(how):
    return {"margin": {"normalise": how}}


def test_one_source_is_its_prepared_split(opened, written):
    train, val = opened(str(written(rows(20))), val_fraction=0.3)
    assert len(train) + len(val) == 20
    assert train.fingerprint == train.parts[0].pairs.fingerprint
    assert [pair.group for pair in train] == [None] * len(train)
    assert train.ids == [pair.id for pair in train] == train.parts[0].pairs.ids


def test_a_mixture_has_every_pair_once_in_the_order_of_its_sources(opened, written):
    a, b = written(rows(5), "a.jsonl"), written(rows(3, "b"), "b.jsonl")
    train, _ = opened([str(a), source(b, name="second")])
    assert [pair.text.prompt for pair in train] == ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2"]
    assert [pair.group for pair in train] == ["a"] * 5 + ["second"] * 3 == train.column("group").tolist()
    assert [pair.place.rpartition(",")[2] for pair in train[4:6]] == [" line 5", " line 1"]
    assert train[-1] == train[7] and train[2:4] == [train[2], train[3]]
    with pytest.raises(IndexError):
        train[8]


def test_lengths_and_columns_are_those_of_the_pairs(opened, written):
    a, b = written(rows(5, weight=2), "a.jsonl"), written(rows(30, "bb", weight=0.5), "b.jsonl")
    train, _ = opened([source(a), source(b, count=7)], columns=("weight",))
    assert train.lengths.tolist() == [[len(p.prompt), len(p.chosen), len(p.rejected)] for p in train]
    assert train.longest == max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in train)
    for name, value in {"margin": "margin", "prompt_id": "prompt_id", "id": "id", "place": "place"}.items():
        assert train.column(name).tolist() == [getattr(pair, value) for pair in train]
    assert train.column("weight").tolist() == [2.0] * 5 + [0.5] * 7
    assert np.isnan(train.column("probability")).all()


def test_weights_take_as_many_pairs_as_their_shares_allow(opened, written):
    a, b = written(rows(40), "a.jsonl"), written(rows(30, "b"), "b.jsonl")
    # 3 to 1: all 30 of b would want 10 of a; 3 times a's would want 120: b is used up first.
    train, _ = opened([source(a, weight=1), source(b, weight=3)])
    assert [len(part.indices) for part in train.parts] == [10, 30]
    assert len(set(train.ids)) == 40
    again, _ = opened([source(a, weight=1), source(b, weight=3)])
    assert again.fingerprint == train.fingerprint
    other, _ = opened([source(a, weight=1), source(b, weight=3)], split_seed=1)
    assert set(other.ids) != set(train.ids)


def test_which_pairs_are_taken_hardly_changes_when_the_source_grows(opened, written):
    few, _ = opened(source(written(rows(40), "a.jsonl"), count=20))
    more, _ = opened(source(written([*rows(40), *rows(4, "n")], "a.jsonl"), count=20))
    assert len(set(few.ids) & set(more.ids)) >= 16


def test_shares_are_of_the_training_split_alone(opened, written):
    a, b = written(rows(60), "a.jsonl"), written(rows(60, "b"), "b.jsonl")
    everything = opened([source(a), source(b)], val_fraction=0.3)
    some = opened([source(a, count=5), source(b, count=7)], val_fraction=0.3)
    assert len(some.train) == 12
    assert some.val.ids == everything.val.ids


def test_a_pair_in_two_sources_has_two_ids(opened, written):
    a, b = written(rows(3), "a.jsonl"), written(rows(4), "b.jsonl")
    train, _ = opened([str(a), str(b)])
    first = train.ids[:3]
    assert train.ids[3:6] == [f"{id}-again1" for id in first]
    assert train[4].id == train.ids[4] and train[4].prompt_id == train[1].prompt_id
    chosen = train.subset(np.array([4, 6]))
    assert chosen.ids == [train.ids[4], train.ids[6]] == [pair.id for pair in chosen]


def test_each_source_has_its_own_scale_and_normaliser(opened, written):
    a, b = written(rows(4), "a.jsonl"), written(rows(4, "b"), "b.jsonl")
    train, _ = opened([source(a, mapping=scaled(10)), source(b, mapping=normalised("minmax"))])
    assert [pair.margin for pair in train] == [10, 20, 30, 40, 0.25, 0.5, 0.75, 1]
    assert train.column("margin").tolist() == [pair.margin for pair in train]


def test_normalisers_are_fitted_on_the_training_split_and_used_for_both(opened, written):
    path = written([{**row, "margin": 10 if k < 30 else 1000} for k, row in enumerate(rows(60))])
    train, val = opened(str(path), mapping=normalised("minmax"), val_fraction=0.3)
    raw, raw_val = opened(str(path), val_fraction=0.3)
    scale = raw.column("margin").max()
    assert train.column("margin") == pytest.approx(raw.column("margin") / scale)
    assert val.column("margin") == pytest.approx(raw_val.column("margin") / scale)


def test_pairs_of_a_validation_file_take_the_training_constants(opened, written):
    train_file, val_file = written(rows(4), "a.jsonl"), written(rows(8, "v"), "v.jsonl")
    _, val = opened(str(train_file), str(val_file), mapping=normalised("minmax"))
    assert [pair.margin for pair in val] == [(k + 1) / 4 for k in range(8)]


def test_shares_of_validation_files_are_taken_too(opened, written):
    _, val = opened(str(written(rows(4), "a.jsonl")), [source(written(rows(40, "v"), "v.jsonl"), count=3)])
    assert len(val) == 3


def test_of_two_scales_a_validation_file_says_whose_it_takes(opened, written):
    a, b, v = (written(rows(n, name), f"{name}.jsonl") for n, name in ((4, "a"), (5, "b"), (3, "v")))
    options = {"mapping": normalised("minmax")}
    with pytest.raises(UserError, match=r"'v' are to be .* none has this name; give it the `name` of one of a, b"):
        opened([str(a), str(b)], str(v), **options)
    _, val = opened([str(a), str(b)], source(v, name="b"), **options)
    assert [pair.margin for pair in val] == [0.2, 0.4, 0.6]


def test_other_constants_can_be_put_in_place(opened, written):
    train, val = opened(str(written(rows(4))), mapping=normalised("minmax"), val_fraction=0.4)
    constants = {name: type(n)(scale=100.0) for name, n in train.normalisers.items()}
    raw = val.column("margin") * train.normalisers["pairs"].scale
    assert val.with_normalisers(constants).column("margin") == pytest.approx(raw / 100)
    assert val.with_normalisers({}).fingerprint == val.fingerprint != val.with_normalisers(constants).fingerprint


def test_a_subset_is_those_pairs_and_has_another_fingerprint(opened, written):
    a, b = written(rows(5), "a.jsonl"), written(rows(3, "b"), "b.jsonl")
    train, _ = opened([str(a), str(b)])
    some = train.subset(np.array([1, 4, 5, 7]))
    assert list(some) == [train[k] for k in (1, 4, 5, 7)]
    assert some.ids == [train.ids[k] for k in (1, 4, 5, 7)]
    assert some.lengths.tolist() == train.lengths[[1, 4, 5, 7]].tolist()
    assert len({some.fingerprint, train.fingerprint, train.subset(np.array([1, 4, 5, 6])).fingerprint}) == 3


def test_a_strength_that_only_some_sources_have_is_read_of_none(opened, written):
    with_margin, without = rows(3), [{**row, "margin": 0} for row in rows(3, "b")]
    for row in without:
        del row["margin"]
    paths = [str(written(with_margin, "a.jsonl")), str(written(without, "b.jsonl"))]
    train, _ = opened(paths)
    assert train.unshared == ["margin"]
    assert [pair.margin for pair in train] == [None] * 6 and np.isnan(train.column("margin")).all()
    assert opened(paths[:1]).train.unshared == []
    with pytest.raises(UserError, match="the objective needs the strength of each preference"):
        opened(paths, required=frozenset({"margin"}))


def test_a_worker_process_opens_the_files_itself(opened, written):
    train, _ = opened([str(written(rows(500), "a.jsonl")), str(written(rows(500, "b"), "b.jsonl"))])
    state = pickle.dumps(train)
    assert len(state) < 30_000
    assert pickle.loads(state)[700] == train[700]


def test_a_prompt_is_one_prompt_however_it_is_written(opened, written, tokenizer):
    def chat(k, **more):
        return [{"role": "user", "content": f"a{k}", **more}]

    plain = rows(60)
    named = [{**row, "prompt": chat(k, id=k), "chosen": "other"} for k, row in enumerate(plain)]
    again = [{**row, "prompt": chat(k, time=2 * k)} for k, row in enumerate(plain)]
    paths = [written(some, f"{k}.jsonl") for k, some in enumerate((plain, [*named, *again]))]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    try:
        train, val = opened([str(path) for path in paths], val_fraction=0.4)
    finally:
        tokenizer.chat_template = None
    assert len(train) + len(val) == 180 and len(val) > 20
    prompts = [{str(pair.text.prompt).rpartition("'a")[2].rstrip("'}]") for pair in pairs} for pairs in (train, val)]
    ids = [set(pairs.column("prompt_id")) for pairs in (train, val)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 60, prompts


def test_the_tokenizer_reads_the_training_pairs_of_every_source(written):
    a, b = written(rows(30), "a.jsonl"), written(rows(30, "b"), "b.jsonl")
    preparation = Preparation(val_fraction=0.5)
    texts = set(training_texts(sources_of([str(a), str(b)], "data.train"), preparation))
    prompts = {text for text in texts if text[0] in "ab"}
    assert {"a", "b"} == {text[0] for text in prompts} and 15 <= len(prompts) <= 45


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "data.train is an empty list"),
        ([{"weight": 1.0}, {}], "only some sources have a `weight`"),
        ([{"weight": 1.0}, {"count": 3}], "only some sources have a `weight`"),
        ([{"weight": 0.0}, {"weight": 1.0}], "must be above 0"),
        ([{"name": "x"}, {"name": "x"}], "two sources are called 'x'"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(written, sources, message):
    paths = [written(rows(2), f"{k}.jsonl") for k in range(len(sources))]
    with pytest.raises(UsageError, match=message):
        sources_of([source(p, **options) for p, options in zip(paths, sources, strict=True)], "data.train")


def test_no_pair_is_taken_twice(opened, written):
    with pytest.raises(UserError, match="has 3 pairs and its `count` is 4; no pair is taken twice"):
        opened(source(written(rows(3)), count=4))


def test_a_cap_takes_the_same_pairs_of_a_prompt_from_every_order(opened, written):
    many = [{**row, "chosen": f"{row['chosen']} {k}"} for row in rows(6) for k in range(9)]
    capped = {"filters": {"max_pairs_per_prompt": 4, "seed": 3}}
    first, _ = opened(str(written(many, "a.jsonl")), mapping=capped)
    second, _ = opened(str(written(many[::-1], "b.jsonl")), mapping=capped)
    assert set(first.ids) == set(second.ids)
    prompts, counts = np.unique(first.column("prompt_id"), return_counts=True)
    assert (len(prompts), set(counts.tolist())) == (6, {4})
    assert next(iter(first.reports.values())).capped == 6 * 5
    other, _ = opened(str(written(many, "a.jsonl")), mapping={"filters": {"max_pairs_per_prompt": 4, "seed": 4}})
    assert set(other.ids) != set(first.ids)


def test_a_cap_counts_equal_pairs_too(opened, written):
    same = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}] * 5
    train, _ = opened(str(written([*same, *rows(3)])), mapping={"filters": {"max_pairs_per_prompt": 2}})
    counts = np.unique(train.column("prompt_id"), return_counts=True)[1]
    assert sorted(counts.tolist()) == [1, 1, 1, 2]


def test_a_mixture_of_which_one_source_is_held_out_whole_names_it(opened, written):
    a, b = written(rows(30), "a.jsonl"), written(rows(1, "b"), "b.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl: all pairs went to validation; lower data\.val_fraction"):
        opened([str(a), str(b)], val_fraction=0.9)


def test_a_renamed_file_is_named_by_its_new_name(opened, written, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    written(rows(3), "old.jsonl").rename(folder / "old.jsonl")
    assert "old.jsonl, line 2" in opened(str(folder)).train[1].place
    (folder / "old.jsonl").rename(folder / "new.jsonl")
    assert "new.jsonl, line 2" in opened(str(folder)).train[1].place


def test_what_filters_leave_out_is_counted_by_its_reason(opened, written):
    train, _ = opened(str(written(rows(6))), mapping={"filters": {"min_margin": 3.5}})
    report = next(iter(train.reports.values()))
    assert [pair.margin for pair in train] == [4, 5, 6]
    assert sum(report.left_out.values()) == 3 and report.rows == 6
    assert "left out: " in str(report)


def test_the_report_says_how_the_source_was_read_and_shows_a_pair(opened, written):
    report = opened(str(written(rows(2)))).train.reports["pairs"]
    assert report.format and "a0" in report.example and "c0" in report.example
    assert json.loads(json.dumps(report.to_json()))["format"] == report.format
