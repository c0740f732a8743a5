"""Datasets by the library that reads the hub, here from a folder in the hub's layout: the same code, no network."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_pref.data.sources.hub import hub_digest, hub_rows
from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.source import Source, source_digest
from lit_pref.errors import UserError

CARD = """---
configs:
- config_name: one
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: two
  data_files: data/test-*
---
"""
ROWS = [{"prompt": f"p{k}", "chosen": [{"role": "assistant", "content": "ä"}], "margin": k / 2} for k in range(600)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for k in range(2):
        pq.write_table(pa.Table.from_pylist(ROWS[k * 300 :][:300]), folder / "data" / f"train-0000{k}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[:3]), folder / "data" / "test-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def no_network(tmp_path_factory, monkeypatch):
    import datasets

    kept = tmp_path_factory.getbasetemp() / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", kept)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_rows_are_numbered_through_all_files_of_a_split(repository):
    rows = list(hub_rows(repository, "train", "one"))
    assert [row.values for row in rows] == ROWS
    assert [row.line for row in rows] == list(range(1, 601))
    assert rows[599].file == f"{repository}:train"


def test_subsets_and_slices_are_respected(repository):
    assert [row.values["prompt"] for row in hub_rows(repository, "train", "two")] == ["p0", "p1", "p2"]
    assert [row.values["prompt"] for row in hub_rows(repository, "train[598:]", "one")] == ["p598", "p599"]


def test_the_digest_is_the_same_at_every_start_and_tells_splits_and_subsets_apart(repository):
    asked = [("train", "one"), ("test", "one"), ("train", "two"), ("train[:2]", "one")]
    digests = [hub_digest(repository, *what) for what in asked]
    assert len(set(digests)) == 4
    assert digests == [hub_digest(repository, *what) for what in asked]


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (("valid", "one"), r"has no split 'valid'; it has train, test\.$"),
        (("train", "three"), r"has no subset 'three'; it has one, two\.$"),
        (("train",), r"has several subsets; give one of one, two as `subset`\.$"),
        (("train[:", "one"), "cannot be read by the library datasets .ValueError: Unrecognized instruction format"),
        (("train", "one", "0" * 40), "the local copy of '.*' is of another commit than 000000"),
    ],
)
def test_what_a_dataset_has_not_is_refused_with_what_it_has(repository, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        list(hub_rows(repository, *asked))


def test_a_hub_that_cannot_be_reached_is_said_so():
    sentence = (
        r"'some-owner/some-name' is not in the local cache, and the .* hub cannot be reached \(HF_HUB_OFFLINE is set\)"
    )
    for use in (source_digest, lambda source: list(read_source(source))):
        with pytest.raises(UserError, match=sentence):
            use(Source("some-owner/some-name:train"))


def test_what_the_hub_answers_becomes_one_sentence(monkeypatch):
    import datasets

    def answer(error):
        def load(*_, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(UserError) as caught:
            list(hub_rows("owner/name", "train", revision="v9"))
        return str(caught.value)

    missing = datasets.exceptions.DatasetNotFoundError
    assert "There is no dataset 'owner/name' on the" in answer(missing("Dataset 'owner/name' doesn't exist on the Hub"))
    assert "is gated on the Hugging Face hub; accept" in answer(missing("Dataset 'owner/name' is a gated dataset"))
    assert "has no revision 'v9'" in answer(missing("Revision 'v9' doesn't exist for dataset 'owner/name' on the Hub."))
    broken = answer(datasets.exceptions.DatasetGenerationError("An error\n" + "x" * 1000))
    assert "cannot be read by the library datasets (DatasetGenerationError: An error); look at" in broken


def test_a_column_of_several_types_is_decoded_as_the_library_does_it(tmp_path):
    # It keeps such a column as JSON text, which must not be taken for the text of a response.
    lines = [{"a": "text", "b": [{"c": 1}]}, {"a": {"d": 1}, "b": [{"c": "x"}]}, {"a": 1.5, "b": None}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row.values for row in hub_rows(str(tmp_path), "train")] == lines


def test_damage_in_a_dataset_is_a_sentence(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="cannot be read by the library datasets"):
        list(hub_rows(str(tmp_path), "train"))
