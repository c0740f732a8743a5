"""Cost of preparing pairs, against the tokenizer's own batch encoding of the same texts, on one core.

    python tools/bench_preparation.py --pairs PAIRS.jsonl --tokenizer FOLDER [--rows 20000] [--rounds 3]

The two sides take turns, chunk by chunk of the file, in one process: the whole road from bytes to Arrow (reading,
mapping, checking, tokenising, writing), and `tokenizer(texts)` of prompt + chosen and prompt + rejected alone. Then the
prepared pairs are opened again as a second start does. CPU seconds of the process, so that other work on the machine
counts little.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")

from transformers import AutoTokenizer

from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.splits import open_splits
from lit_pref.data.sources.reading import read_rows
from lit_pref.data.sources.row import Row
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=5)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIT_PREF_CACHE"] = f"{folder}/cache"
        parts = cut(Path(arguments.pairs), Path(folder), arguments.rows, arguments.parts)
        ratios = [round_of(parts, tokenizer, k) for k in range(arguments.rounds)]
        print(f"preparation / encoding: {statistics.median(ratios):.3f} (median of {len(ratios)} rounds: {ratios})")
        started = time.process_time()
        splits = open_splits(sources(parts), None, Preparation(), tokenization(tokenizer, arguments.rounds - 1))
        splits.train.lengths, splits.train[0], splits.train.fingerprint
        print(f"opened again: {time.process_time() - started:.3f} s for {len(splits.train)} pairs")


def cut(path: Path, folder: Path, rows: int, parts: int) -> list[Path]:
    """The first `rows` lines of a JSONL file as `parts` files."""
    import gzip

    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        lines = [line for line, _ in zip(file, range(rows), strict=False)]
    files = [folder / f"part{k}.jsonl" for k in range(parts)]
    for k, file in enumerate(files):
        file.write_bytes(b"".join(lines[k::parts]))
    return files


def tokenization(tokenizer: object, k: int) -> Tokenization:
    return Tokenization(tokenizer, max_length=100_000 + k)  # type: ignore[arg-type]  another k is prepared anew


def sources(parts: list[Path]) -> list[Source]:
    return [Source(str(path), name=path.stem) for path in parts]


def round_of(parts: list[Path], tokenizer: object, k: int) -> float:
    ours = theirs = 0.0
    tokens = 0
    of_round = tokenization(tokenizer, k)
    for source in sources(parts):
        texts = [text for row in read_rows(source.path) if isinstance(row, Row) for text in whole(row)]
        started = time.process_time()
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        theirs += time.process_time() - started
        tokens += sum(map(len, encoded))
        del encoded, texts  # a garbage collection walks through them
        started = time.process_time()
        Preparation().prepare(source, of_round)
        ours += time.process_time() - started
    print(f"round {k}: encoding {theirs:.2f} s ({tokens / theirs / 1e6:.2f} M tokens/s), preparation {ours:.2f} s")
    return round(ours / theirs, 3)


def whole(row: Row) -> list[str]:
    return [row.values["prompt"] + row.values[side] for side in ("chosen", "rejected")]


if __name__ == "__main__":
    main()
