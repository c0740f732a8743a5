"""Cost of preparing pairs, against the tokenizer's own batch encoding of the same texts, on one core.

    python tools/bench_preparation.py --pairs PAIRS.jsonl --tokenizer FOLDER [--rows 20000] [--rounds 3]

The two sides take turns, chunk by chunk (256 pairs), within one preparation, so that a machine which becomes slower
slows both: the whole road from bytes to Arrow (reading, mapping, checking, tokenizing, writing), and `tokenizer(texts)`
of prompt + chosen and prompt + rejected alone, by a tokenizer of its own and without garbage collection too. Then the
prepared pairs are opened again as a second start does. CPU seconds of the process, so that other work on the machine
counts little.
"""

import argparse
import gzip
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")

from transformers import AutoTokenizer

from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.splits import open_splits
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization, TokenizedPair


class Alternating(Tokenization):
    """A tokenization before each chunk of which the other side encodes the same texts.

    Args:
        tokenizer: the tokenizer of the preparation.
        other: an equal tokenizer of the other side, so that neither finds what the other has cached.
        max_length: another one is prepared anew.
    """

    def __init__(self, tokenizer: Any, other: Any, max_length: int) -> None:
        super().__init__(tokenizer, max_length)
        self._other = other
        self.seconds, self.tokens = 0.0, 0

    def tokenize_all(self, items: Sequence[tuple[Row, TextPair]]) -> list[TokenizedPair | BadRow]:
        texts = [f"{text.prompt}{response}" for _, text in items for response in (text.chosen, text.rejected)]
        started = time.process_time()
        encoded = self._other(texts, add_special_tokens=False)["input_ids"]
        self.seconds += time.process_time() - started
        self.tokens += sum(map(len, encoded))
        return super().tokenize_all(items)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    ours, other = (AutoTokenizer.from_pretrained(arguments.tokenizer) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIT_PREF_CACHE"] = f"{folder}/cache"
        source = Source(str(first_lines(Path(arguments.pairs), Path(folder), arguments.rows)))
        ratios = [round_of(source, Alternating(ours, other, 100_000 + k), k) for k in range(arguments.rounds)]
        print(f"preparation / encoding: {statistics.median(ratios):.3f} (median of {len(ratios)} rounds: {ratios})")
        started = time.process_time()
        splits = open_splits([source], None, Preparation(), Alternating(ours, other, 100_000))
        splits.train.lengths, splits.train[0], splits.train.fingerprint
        print(f"opened again: {time.process_time() - started:.3f} s for {len(splits.train)} pairs")


def first_lines(path: Path, folder: Path, rows: int) -> Path:
    """Write the first `rows` lines of a JSONL file into a folder."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = [line for line, _ in zip(file, range(rows), strict=False)]
    (folder / "pairs.jsonl").write_bytes(b"".join(lines))
    return folder / "pairs.jsonl"


def round_of(source: Source, tokenization: Alternating, k: int) -> float:
    started = time.process_time()
    Preparation().prepare(source, tokenization)
    theirs = tokenization.seconds
    ours = time.process_time() - started - theirs
    speed = tokenization.tokens / theirs / 1e6
    print(f"round {k}: encoding {theirs:.2f} s ({speed:.2f} M tokens/s), preparation {ours:.2f} s")
    return round(ours / theirs, 3)


if __name__ == "__main__":
    main()
