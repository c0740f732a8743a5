"""Draws 1,500 pairs with short responses and splits them by prompt: `choose.py PAIRS.jsonl.gz OUT`."""

import gzip
import json
import random
import sys
from pathlib import Path

PAIRS, LONGEST, HELD_OUT = 1500, 500, 0.2  # pairs, characters of a response, share of the prompts

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
short = [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) < LONGEST and row["margin"] > 0]
drawn = random.Random(0).sample(short, PAIRS)
prompts = sorted({row["prompt"] for row in drawn})
random.Random(1).shuffle(prompts)
held_out = set(prompts[: round(HELD_OUT * len(prompts))])
out = Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
for name, kept in (("train", False), ("held_out", True)):
    chosen = [row for row in drawn if (row["prompt"] in held_out) == kept]
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for row in chosen:
            file.write(json.dumps({key: row[key] for key in ("prompt", "chosen", "rejected", "margin")}) + "\n")
    print(f"{name}: {len(chosen)} pairs of {len({row['prompt'] for row in chosen})} prompts")
