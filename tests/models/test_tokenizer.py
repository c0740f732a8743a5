import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lit_pref.errors import UserError
from lit_pref.models.tokenizer import Corpus, train_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog", "the slow brown dog sleeps — früh, 你好 🙂"] * 20


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path))


def tokenizer(vocabulary=300):
    return AutoTokenizer.from_pretrained(train_tokenizer(Corpus("k", lambda: TEXTS), vocabulary))


def test_every_text_comes_back_whole_after_one_begin_token():
    made = tokenizer()
    assert (made.pad_token_id, made.bos_token_id, made.eos_token_id, len(made)) == (0, 1, 2, 300)
    for text in (" the dog", "nothing: \x00\n\tżółw 𝔘 🙂  of it was in the texts ", ""):
        ids = made(text).input_ids
        assert ids[0] == 1 and ids.count(1) == 1
        assert made.decode(ids, skip_special_tokens=True) == text
    assert len(made(" brown", add_special_tokens=False).input_ids) < len(" brown")


def test_it_is_trained_once_for_a_corpus_and_a_size():
    calls = []

    def texts():
        calls.append(1)
        return TEXTS

    first = train_tokenizer(Corpus("k", texts), 300)
    assert train_tokenizer(Corpus("k", texts), 300) == first
    assert len(calls) == 1
    assert len({first, train_tokenizer(Corpus("k", texts), 301), train_tokenizer(Corpus("other", texts), 300)}) == 3
    assert len(calls) == 3


def test_another_process_with_other_threads_makes_the_same_one(tmp_path):
    code = f"from lit_pref.models.tokenizer import *\nprint(train_tokenizer(Corpus('k', lambda: {TEXTS!r}), 300))"
    environment = os.environ | {"LIT_PREF_CACHE": str(tmp_path / "other"), "TOKENIZERS_PARALLELISM": "false"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    ours, theirs = (
        (Path(folder) / "tokenizer.json").read_bytes()
        for folder in (train_tokenizer(Corpus("k", lambda: TEXTS), 300), run.stdout.strip())
    )
    assert ours == theirs


def test_fewer_tokens_than_bytes_are_refused():
    assert len(tokenizer(259)) == 259
    with pytest.raises(UserError, match=r"policy\.vocabulary is 258, and it must be at least 259"):
        tokenizer(258)
