"""The store on disk: what is written is read, what is damaged is not, blocks are shared and never depend on luck."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lit_pref.errors import UserError
from lit_pref.pairs import TruncatedText
from lit_pref.references.filling import StoreFiller, batches, load
from lit_pref.references.lookup import NO_RESPONSE, TABLE, NeededScores, text_keys
from lit_pref.references.store import KEY, ReferenceStore, Scores, StoreIdentity
from lit_pref.references.store_admin import in_use, kept, tidy

SUM = StoreIdentity("weights", "fp32", "sum", "a reference")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))


def opened(identity: StoreIdentity = SUM) -> ReferenceStore:
    store = ReferenceStore(identity)
    store.open()
    return store


def name(number: int) -> bytes:
    """A key; every fourth ends in a zero byte, which a C string would lose."""
    return number.to_bytes(8, "little") + b"response" if number % 4 else b"\1" + number.to_bytes(15, "little")


def scores_of(numbers: list[int], tokens: bool = False) -> Scores:
    """Response n scores -n / 8 over n % 3 + 1 tokens."""
    keys = np.array([name(n) for n in numbers], KEY)
    lengths = np.array([n % 3 + 1 for n in numbers], np.int32)
    logps = np.concatenate([np.full(n % 3 + 1, -n / 8 / (n % 3 + 1), np.float32) for n in numbers])
    return Scores(keys, np.array([-n / 8 for n in numbers]), lengths, logps if tokens else None)


def table_of(pairs: list[tuple[int, int | None]], tokens: list[int] | None = None) -> np.ndarray:
    rows = []
    for k, (chosen, rejected) in enumerate(pairs):
        sides = (name(chosen), NO_RESPONSE if rejected is None else name(rejected))
        rows.append((sides, sides, tokens[k] if tokens else 4))
    return np.array(rows, TABLE)


def loaded(store: ReferenceStore, pairs: list[tuple[int, int | None]]) -> NeededScores:
    needed = NeededScores(table_of(pairs))
    load(store, needed, set())
    return needed


@pytest.mark.parametrize("tokens", [False, True])
def test_what_was_written_is_read_from_as_many_files_as_there_are(tokens: bool):
    store = opened()
    store.write(scores_of([5, 4, 9], tokens))
    store.write(scores_of([7, 8], tokens))
    needed = loaded(store, [(8, 4), (9, 5), (7, None)])
    rows = needed.rows([name(8), name(4), name(5), name(7), name(9)])
    assert needed.scores[rows].tolist() == [-1.0, -0.5, -0.625, -0.875, -1.125]
    assert needed.lengths[rows].tolist() == [3, 2, 3, 2, 1]
    if tokens:
        assert [needed.token_logps(row).tolist() for row in rows[:2]] == [pytest.approx([-1 / 3] * 3), [-0.25, -0.25]]
    assert needed.missing == 0


def test_what_is_not_there_is_missing_and_what_is_not_wanted_is_not_found():
    store = opened()
    store.write(scores_of([1, 2, 3]))
    needed = loaded(store, [(1, 2), (2, 6), (5, 6)])
    assert needed.missing == 2
    lacking = needed.lacking(np.arange(3))
    assert sorted(map(tuple, needed.keys[needed.pairs[lacking]].tolist())) == sorted(
        [(name(2).rstrip(b"\0"), name(6)), (name(5), name(6))]
    )
    assert needed.rows([name(3), name(6)]).tolist() == [-1, -1]


def test_of_two_scores_of_one_response_the_first_stands_for_whoever_comes_later():
    store = opened()
    store.write(scores_of([1]))
    second = scores_of([1])
    store.write(second._replace(scores=second.scores + 1))
    assert loaded(store, [(1, None)]).scores.tolist() == [-1 / 8]


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied"])
def test_a_damaged_file_is_named_set_aside_and_counts_as_missing(harm: str):
    store = opened()
    path = store.folder / store.write(scores_of(list(range(1, 40))))
    content = path.read_bytes()
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-30], "changed": bytes(changed), "emptied": b""}[harm])
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged: its scores count as missing"):
        assert loaded(store, [(1, 2)]).missing == 2
    assert loaded(store, [(1, 2)]).missing == 2  # without a second warning
    assert store.parts() == [] and path.with_name(path.name + ".damaged").exists()
    tidy(store.folder)
    assert not path.with_name(path.name + ".damaged").exists()


def test_an_unfinished_file_is_ignored_and_removed_once_it_is_nobodys():
    store = opened()
    stray = store.folder / "abc.unfinished"
    stray.write_bytes(b"ARROW1")
    assert store.parts() == []
    tidy(store.folder)
    assert stray.exists()  # its writer may be at work
    os.utime(stray, (time.time() - 7200,) * 2)
    tidy(store.folder)
    assert not stray.exists()


def test_another_reference_numerics_or_aggregation_is_another_folder_and_another_description_is_not():
    others = [StoreIdentity("other", "fp32", "sum", ""), StoreIdentity("weights", "fp64", "sum", "")]
    others += [StoreIdentity("weights", "fp32", "tokens", "")]
    folders = {ReferenceStore(identity).folder for identity in [SUM, *others]}
    assert len(folders) == 4
    assert ReferenceStore(StoreIdentity("weights", "fp32", "sum", "moved elsewhere")).folder in folders


def test_a_claimed_block_is_nobody_elses_until_it_is_released():
    one, other = opened(), opened()
    lock = one.claim("block")
    assert lock is not None and other.claim("block") is None and other.claim("another") is not None
    assert in_use(one.folder)
    one.release(lock)
    assert other.claim("block") is not None


def test_what_is_in_the_store_is_listed_with_the_one_used_last_first():
    for number, identity in enumerate([SUM, StoreIdentity("other", "fp64", "tokens", "another")]):
        store = opened(identity)
        store.write(scores_of([1, 2, 3][: number + 1]))
        os.utime(store.folder / "about.json", (1000 + number,) * 2)
    assert [(one.about["description"], one.rows) for one in kept()] == [("another", 2), ("a reference", 1)]


def test_a_store_that_cannot_be_written_is_a_sentence(tmp_path: Path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(UserError, match=r"the reference store cannot be written .* LIT_PREF_CACHE"):
        opened()


def test_text_is_looked_up_by_all_that_decides_how_another_tokenizer_reads_it():
    texts = [TruncatedText(*fields) for fields in (("a", "b", "c", True, True), ("a", "b", "c", False, True))]
    texts += [TruncatedText(*fields) for fields in (("a", "b", "d", True, True), ("ab", "", "c", True, True))]
    keys = [key for text in texts for key in text_keys(text)]
    assert len(set(keys)) == 8 and {len(key) for key in keys} == {16}
    assert text_keys(TruncatedText("a", "b", None, True, True))[1] == NO_RESPONSE


# Blocks and batches


def test_blocks_hold_each_distinct_pair_once_the_longest_first_whatever_the_order_of_the_data():
    rng = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a, b in rng.integers(1, 400, (300, 2))]
    tokens = [chosen % 50 + rejected % 7 for chosen, rejected in pairs]
    needed = NeededScores(table_of(pairs + pairs[:30], tokens + tokens[:30]))
    blocks = needed.blocks()
    assert [len(block) for block in blocks] == [64] * (len(set(pairs)) // 64) + [len(set(pairs)) % 64]
    widths = np.concatenate([needed.tokens[block] for block in blocks])
    assert (np.diff(widths) <= 0).all()
    order = rng.permutation(300)
    again = NeededScores(table_of([pairs[k] for k in order], [tokens[k] for k in order]))
    assert [needed.name(block) for block in blocks] == [again.name(block) for block in again.blocks()]


def test_a_large_set_is_cut_into_five_hundred_blocks_or_so():
    needed = NeededScores(table_of([(k, 70_000 + k) for k in range(1, 66_000)]))
    sizes = [len(block) for block in needed.blocks()]
    assert sum(sizes) == 65_999 and set(sizes[:-1]) == {129} and len(sizes) <= 512


def test_a_micro_batch_holds_at_most_8192_tokens_with_padding_and_at_least_one_pair():
    tokens = np.array([9000, 4000, 4096, 64, *[64] * 80])
    cut = batches(np.arange(len(tokens)), tokens)
    assert [batch.tolist() for batch in cut[:3]] == [[0], [1], [2]]
    assert [len(batch) for batch in cut[3:]] == [64, 17]
    assert np.concatenate(cut).tolist() == list(range(len(tokens)))


# Filling the store, with a reference whose score of a response depends on the company it is read in


class Reader:
    """Scores a micro-batch; each call is kept, and the call `dies_at` never returns."""

    def __init__(self, needed: NeededScores, dies_at: int | None = None, sleep: float = 0.0) -> None:
        self.needed, self.dies_at, self.sleep = needed, dies_at, sleep
        self.calls: list[list[int]] = []

    def __call__(self, pairs: np.ndarray) -> Scores:
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(pairs.tolist())
        time.sleep(self.sleep)
        rows = self.needed.pairs[pairs].T.reshape(-1)
        company = float(len(pairs)) * 1e-6
        values = -rows.astype(float) - company
        return Scores(self.needed.keys[rows], values, np.ones(len(rows), np.int32), None)

    @property
    def pairs(self) -> list[int]:
        return [pair for call in self.calls for pair in call]


PAIRS: list[tuple[int, int | None]] = [(k, 1000 + k) for k in range(1, 251)]
TOKENS = [100 + k % 90 for k in range(250)]


def filling(store: ReferenceStore, said: list[str] | None = None, **options) -> tuple[StoreFiller, Reader]:
    needed = NeededScores(table_of(PAIRS, TOKENS))
    reader = Reader(needed, **options)
    return StoreFiller(store, needed, reader, "reference 0", (said if said is not None else []).append), reader


def test_an_interrupted_fill_resumes_with_its_last_block_and_ends_with_the_same_bits():
    whole, reader = filling(opened())
    assert whole.run() is True and sorted(reader.pairs) == list(range(250))
    other = opened(StoreIdentity("the same again", "fp32", "sum", ""))
    cut_off, before = filling(other, dies_at=len(reader.calls) // 2)
    with pytest.raises(KeyboardInterrupt):
        cut_off.run()
    kept_rows = sum(one.rows for one in kept() if one.folder == other.folder)
    assert 0 < kept_rows < 500 and kept_rows % 128 == 0  # whole blocks of 64 pairs
    rest, after = filling(other)
    rest.run()
    assert len(before.pairs) - 64 <= kept_rows // 2 <= len(before.pairs)
    assert sorted(after.pairs) == sorted(set(range(250)) - set(before.pairs[: kept_rows // 2]))
    first, second = (NeededScores(table_of(PAIRS, TOKENS)) for _ in range(2))
    load(whole.store, first, set())
    load(other, second, set())
    assert second.missing == 0 and np.array_equal(first.scores, second.scores)


def test_nothing_is_computed_where_nothing_is_missing_and_a_row_more_costs_a_row():
    store, said = opened(), []
    filling(store)[0].run()
    again, reader = filling(store, said)
    assert again.run() is False and reader.calls == [] and said == []
    needed = NeededScores(table_of([*PAIRS, (7000, 3)], [*TOKENS, 50]))
    more = Reader(needed)
    StoreFiller(store, needed, more, "reference 0", said.append).run()
    assert len(more.pairs) == 1  # whose second response is another pair's too
    assert said[0] == "reference 0: 1 of 501 scores are missing from the store and are computed first"


def test_those_who_fill_at_the_same_time_share_the_blocks():
    store, said = opened(), []
    fillings = [filling(opened(), said, sleep=0.02) for _ in range(3)]
    threads = [threading.Thread(target=one.run) for one, _ in fillings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = [reader.pairs for _, reader in fillings]
    assert sorted(pair for pairs in read for pair in pairs) == list(range(250))
    assert sum(bool(pairs) for pairs in read) >= 2
    assert all(one.needed.missing == 0 for one, _ in fillings)
    assert not list((store.folder / "locks").glob("*"))


def test_it_waits_for_a_block_that_another_process_holds_and_takes_it_over_where_that_one_dies():
    store, said = opened(), []
    late, reader = filling(opened(), said)
    (store.folder / "locks").mkdir()
    path = store.folder / "locks" / f"{late.needed.name(late.needed.blocks()[1])}.lock"
    program = f"import filelock, time; lock = filelock.FileLock({str(path)!r}); lock.acquire(); "
    program += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        threading.Timer(0.5, holder.kill).start()
        late.run()
    assert sorted(reader.pairs) == list(range(250))
    assert "reference 0: waiting for 1 block(s) that another process computes" in said


def test_it_says_how_much_is_missing_and_after_the_first_block_how_long_it_takes():
    said: list[str] = []
    filling(opened(), said)[0].run()
    assert said[0] == "reference 0: 500 of 500 scores are missing from the store and are computed first"
    share = 100 * sum(sorted(TOKENS)[-64:]) // sum(TOKENS)
    assert said[1].startswith(f"reference 0: {share} % done, about ")
    assert said[2].startswith("reference 0: all scores are stored, after ") and len(said) == 3


def test_a_score_that_is_not_finite_is_refused_and_not_kept():
    store = opened()
    broken, reader = filling(store)
    broken.score = lambda pairs: (part := reader(pairs))._replace(scores=np.where(part.scores < -300, np.nan, 0.0))
    with pytest.raises(UserError, match=r"reference 0 gives [0-9]+ of 128 responses a score that is not finite"):
        broken.run()
    assert store.parts() == []
