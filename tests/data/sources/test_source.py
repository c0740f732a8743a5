"""What a path means, which files belong to it, and a digest of content alone."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from jsonargparse import ArgumentParser

from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow
from lit_pref.data.sources.source import Source, check_source, source_digest
from lit_pref.errors import UsageError, UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Relative paths are those of an empty folder; the cache is empty too."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "work"


@pytest.fixture
def written(here):
    def write(name, *prompts):
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".csv"):
            path.write_text("prompt\n" + "".join(f"{prompt}\n" for prompt in prompts))
        else:
            path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        return path

    return write


def read(path, **options):
    return [(row.file, row.line, row.values["prompt"]) for row in read_source(Source(path, **options))]


def test_a_file_is_read_by_any_way_to_write_its_path(here, written, monkeypatch):
    written("pairs.jsonl", "a", "b")
    monkeypatch.setenv("HOME", str(here))
    for path, file in (
        ("pairs.jsonl", "pairs.jsonl"),
        ("./pairs.jsonl", "pairs.jsonl"),
        ("~/pairs.jsonl", f"{here}/pairs.jsonl"),
        (f"{here}/pairs.jsonl", f"{here}/pairs.jsonl"),
    ):
        assert read(path) == [(file, 1, "a"), (file, 2, "b")]


def test_a_folder_is_its_readable_files_in_the_order_of_their_names(written):
    written("data/b.jsonl", "b1", "b2")
    written("data/a.csv", "a1")
    written("data/c/d.jsonl", "not looked into")
    written("data/.hidden.jsonl", "hidden")
    written("data/README.md")
    expected = [("data/a.csv", 2, "a1"), ("data/b.jsonl", 1, "b1"), ("data/b.jsonl", 2, "b2")]
    assert read("data") == read("./data/") == expected
    inside = ("data/c/d.jsonl", 1, "not looked into")
    assert read("dat*") == expected  # a folder that a pattern matches is read too
    assert read("data/*") == [*expected, inside]
    assert read("data/[b-z]*") == [*expected[1:], inside]
    assert read("**/*.jsonl") == [*expected[1:], inside]


def test_a_file_whose_name_looks_like_a_pattern_or_a_dataset_is_read(written):
    written("a[1].jsonl", "x")
    written("owner/name:train", "no ending")
    written("owner/b:c.jsonl", "y")
    assert read("a[1].jsonl") == [("a[1].jsonl", 1, "x")]
    assert read("owner/b:c.jsonl") == [("owner/b:c.jsonl", 1, "y")]
    assert Source("owner/name:train").hub is None  # it exists
    with pytest.raises(UserError, match="owner/name:train has an unknown ending"):
        read("owner/name:train")


@pytest.mark.parametrize(
    "path, hub",
    [
        ("owner/name:train", ("owner/name", "train")),
        ("my-org/Some.data_2:train_prefs", ("my-org/Some.data_2", "train_prefs")),
        ("owner/name:train[:5%]", ("owner/name", "train[:5%]")),
        ("owner/name", None),
        ("name:train", None),
        ("owner/name:", None),
        ("a/b/c:train", None),
        ("./owner/name:train", None),
        ("/owner/name:train", None),
        ("~/name:train", None),
        ("owner/name:pairs.jsonl", None),
        ("owner/name:pairs.csv.gz", None),
    ],
)
def test_owner_name_colon_split_is_on_the_hub_and_all_else_is_a_path(path, hub):
    assert Source(path).hub == hub


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("data/pairs_trian.jsonl", r"no file data/pairs_trian.jsonl; did you mean data/pairs_train.jsonl\?$"),
        ("dta", r"There is no file or folder dta \(did you mean data\?\); a dataset .* is written owner/name:split\.$"),
        ("owner/name", r"no file or folder owner/name \(the folder .*/work contains no data file\); a dataset on the"),
        ("./pairs", r"There is no file or folder pairs \(the folder .*/work contains no data file\)\.$"),
        ("data/*.parquet", r"No file matches data/\*.parquet; the folder .*/data contains pairs_train.jsonl\.$"),
        (
            "notes",
            r"notes contains no file that ends in \.jsonl, .*; there are a.txt, b.json \(name a .json file itself",
        ),
        ("bare", "bare contains no file that ends in .*; there is no file at all"),
        ("~no-such-user/x", "There is no file or folder ~no-such-user/x"),
        ("x" * 300, "There is no file or folder xxx"),
        ("a\0b.jsonl", "There is no file a\0b.jsonl"),
    ],
)
def test_what_is_not_there_is_refused_early_with_what_is(here, written, path, sentence):
    written("data/pairs_train.jsonl", "a")
    written("notes/a.txt")
    written("notes/b.json")
    (here / "bare" / "sub").mkdir(parents=True)
    for use in (check_source, source_digest, lambda source: list(read_source(source))):
        with pytest.raises(UserError, match=sentence):
            use(Source(path))


def test_files_of_different_splits_are_not_read_together(written):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        written(f"data/{name}.jsonl", name)
    with pytest.raises(
        UserError, match=r"data contains test-0.*.jsonl and train-0.*.jsonl, which look like different spl"
    ):
        check_source(Source("data"))
    assert [prompt for *_, prompt in read("data/train*")] == ["train-00000-of-00002", "train-00001-of-00002"]
    written("more/pairs_validation.jsonl", "a")
    written("more/pairs_dev.jsonl", "b")  # another word for the same
    written("more/latest_retrained.jsonl", "c")  # no split's name
    assert [prompt for *_, prompt in read("more")] == ["c", "b", "a"]


def test_the_same_rows_in_two_forms_are_not_read_twice(written):
    written("data/a.jsonl", "x")
    written("data/a.csv", "x")
    with pytest.raises(UserError, match=r"data/a.csv and a.jsonl look like the same rows in two formats; remove"):
        check_source(Source("data"))


def test_a_bad_row_stands_where_the_row_would(written):
    written("data/a.jsonl", "a").write_text('{"prompt": "a"}\nx\n{"prompt": "b"}\n')
    written("data/b.jsonl", "c")
    rows = list(read_source(Source("data")))
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False, False]
    assert rows[1].row_place == "data/a.jsonl, line 2"


def test_the_digest_follows_content_and_order_and_not_names_or_times(here, written):
    written("one/a.jsonl", "a")
    written("one/b.jsonl", "b")
    written("two/x.jsonl", "a")
    os.utime(written("two/y.jsonl", "b"), (0, 0))
    written("turned/a.jsonl", "b")
    written("turned/b.jsonl", "a")
    written("joined/a.jsonl", "a", "b")
    first = source_digest(Source("one"))
    assert first == source_digest(Source("two")) == source_digest(Source("./one/*.jsonl", name="n", weight=2.0))
    assert len({first, *(source_digest(Source(path)) for path in ("turned", "joined", "one/a.jsonl"))}) == 4
    (here / "two" / "y.jsonl").write_text('{"prompt": "c"}\n')
    assert source_digest(Source("two")) != first
    # the same bytes are other rows under another ending
    for name in ("c.csv", "c.jsonl"):
        (here / name).write_text("{}\n{}\n")
    assert source_digest(Source("c.csv")) != source_digest(Source("c.jsonl"))


def test_a_second_start_hashes_no_large_file_again(here, written, monkeypatch):
    path = written("a.jsonl", *("x" * 1000 for _ in range(2000)))
    os.utime(path, (10**9, 10**9))
    from lit_pref import cache

    monkeypatch.setattr(cache.time, "time_ns", lambda: path.stat().st_ctime_ns + 10**12)  # not changed just now
    first = source_digest(Source("a.jsonl"))
    cache._digest.cache_clear()  # as a new process has it
    monkeypatch.setattr(hashlib, "file_digest", None)  # would raise
    assert source_digest(Source("a.jsonl")) == first


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"weight": 1.0, "count": 3}, "has a weight and a count"),
        ({"weight": 0.0}, "has the weight 0.0; it must be above 0"),
        ({"weight": float("nan")}, "has the weight nan"),
        ({"count": -1}, "has the count -1"),
        ({"subset": "one"}, "is a local path, and `subset` is for datasets on the hub; leave it out"),
        ({"revision": "main"}, "is a local path, and `revision` is for"),
    ],
)
def test_options_that_do_not_fit_are_refused(written, options, sentence):
    written("a.jsonl", "a")
    with pytest.raises(UsageError, match=sentence):
        check_source(Source("a.jsonl", **options))


def test_a_folder_here_that_is_written_as_a_dataset_is_refused(here):
    # `datasets` would read the folder without a word.
    (here / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match=r"owner/name exists here; for its files give ./owner/name or a pattern"):
        check_source(Source("owner/name:train"))


def test_a_file_that_may_not_be_read_is_a_sentence(written, monkeypatch):
    path = written("a.jsonl", "a")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr("pathlib.Path.open", denied)
    for use in (source_digest, lambda source: list(read_source(source))):
        with pytest.raises(
            UserError, match=r"a.jsonl cannot be read \(Permission denied\); check its permissions and the disk"
        ):
            use(Source("a.jsonl"))


def test_labels_are_names_of_files_folders_and_datasets(here):
    labels = [Source(path).label for path in ("data/a.b.jsonl.gz", "c.csv", "data/", ".", "owner/name:train")]
    assert labels == ["a.b", "c", "data", "work", "owner/name:train"]
    assert [Source(path).label for path in ("d/*.csv", "d/train-*", "d/a[0-9]b.csv")] == ["d", "train", "a"]
    assert Source("c.csv", name="mine").label == "mine"
    (here / "a[1].csv").write_text("a\n")
    assert Source("a[1].csv").label == "a[1]"


def test_no_large_library_is_imported_until_a_source_needs_it():
    code = "import sys, lit_pref.data.sources.source; print({'datasets', 'torch', 'lightning'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_source_is_built_from_plain_yaml_and_every_field_has_its_help():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=str | Source | list[str | Source])
    asked = [{"path": "a.jsonl", "mapping": {"base": "shp", "margin": {"clip": 6}}, "count": 5}, "b.jsonl"]
    built = parser.instantiate(parser.parse_object({"train": asked})).train
    assert built == [Source("a.jsonl", mapping={"base": "shp", "margin": {"clip": 6}}, count=5), "b.jsonl"]
    helped = ArgumentParser()
    helped.add_class_arguments(Source, "source")
    shown = " ".join(helped.format_help().split())
    assert "the configuration of a dataset on the hub that has several" in shown and "number of pairs taken" in shown
