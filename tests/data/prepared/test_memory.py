"""Long texts are prepared in bounded memory, and garbage collection is as before afterwards."""

import gc
import json
import subprocess
import sys

import pytest

from lit_pref.data.prepared.garbage import collecting, collection_paused

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
