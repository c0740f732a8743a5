"""Splits a file of pairs by prompt: a tenth held out, the rest as one file and as two halves."""

import gzip
import hashlib
import json
import sys
from pathlib import Path


def main(source: str, out: str) -> None:
    """Write train.jsonl, heldout.jsonl, half_a.jsonl and half_b.jsonl into `out`."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: (folder / f"{name}.jsonl").open("w") for name in ("train", "heldout", "half_a", "half_b")}
    with gzip.open(source, "rt") if source.endswith(".gz") else open(source) as lines:
        for line in lines:
            row = json.loads(line)
            kept = {key: row[key] for key in ("prompt", "chosen", "rejected", "margin")}
            kept["chosen_characters"] = len(row["chosen"])
            kept["rejected_characters"] = len(row["rejected"])
            place = int(hashlib.sha256(row["prompt"].encode()).hexdigest(), 16) % 20
            names = ["heldout"] if place < 2 else ["train", "half_a" if place % 2 else "half_b"]
            for name in names:
                files[name].write(json.dumps(kept) + "\n")
    for file in files.values():
        file.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
