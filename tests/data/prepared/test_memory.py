"""Long texts are prepared in bounded memory, and garbage collection is as before afterwards."""

import gc
import json
import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_pref.data.prepared.garbage import collecting, collection_paused
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.models.beginnings import Beginnings
from lit_pref.models.encoding import Encoding

PREPARE = """
import resource, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10

tokenization = Tokenization(PreTrainedTokenizerFast.from_pretrained(sys.argv[1]), 64)
Preparation().prepare(Source(sys.argv[2]), tokenization)
before = peak()
Preparation().prepare(Source(sys.argv[3]), tokenization)
print(peak() - before)
"""


def test_texts_of_megabytes_take_little_more_memory_than_themselves(tmp_path, policy_folder, cache):
    def written(name, repeats, rows):
        lines = [
            {"prompt": f"red {k} :", "chosen": " oak elm" * repeats, "rejected": " tin owl" * repeats}
            for k in range(rows)
        ]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    command = [sys.executable, "-c", PREPARE, str(policy_folder), written("short.jsonl", 2, 4)]
    command.append(written("long.jsonl", 250_000, 6))  # 2 MB each side, whose tokens take 40 times as much
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.split()[-1]) < 80


def test_prepared_pairs_are_the_same_without_any_shortcut(tmp_path, monkeypatch):
    rng, words = random.Random(0), ["red", "oak", "elm's", "12", "é", "😀", "\n", "</s>"]

    def said(length):
        return " ".join(rng.choices(words, weights=[9, 9, 9, 3, 3, 1, 1, 0.005], k=length))

    rows = [
        {"prompt": said(5), "chosen": f" {said(rng.choice([5, 3000]))}", "rejected": f" {said(9)} {k}"}
        for k in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([row["chosen"] for row in rows], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")

    def prepared(folder):
        monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / folder))
        return Preparation().prepare(Source(str(tmp_path / "pairs.jsonl")), Tokenization(tokenizer, 64))

    short, cut = prepared("short"), []
    whole = Beginnings._cut
    monkeypatch.setattr(
        Beginnings, "_cut", lambda self, text, needed: cut.append(whole(self, text, needed) != text) or text
    )
    monkeypatch.setattr(
        Encoding,
        "_encode_fast",
        lambda self, texts, plain: self.tokenizer(texts, add_special_tokens=False, split_special_tokens=plain)[
            "input_ids"
        ],
    )
    for file in ("train.arrow", "train.json"):
        assert (prepared("whole") / file).read_bytes() == (short / file).read_bytes()
    assert 5 < sum(cut) < 35


def test_collection_is_off_meanwhile_and_as_before_afterwards():
    assert gc.isenabled() and gc.get_freeze_count() == 0
    with pytest.raises(ZeroDivisionError), collection_paused():
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled() and gc.get_freeze_count() > 0
        raise ZeroDivisionError
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_garbage_is_collected_every_few_chunks(monkeypatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    assert list(collecting(range(40))) == list(range(40)) and len(collected) == 2
