"""Draws 600 pairs with short responses from a file of pairs with margins: `choose.py PAIRS.jsonl.gz OUT.jsonl`."""

import gzip
import json
import random
import sys

PAIRS, LONGEST = 600, 500  # pairs, characters of a response

with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
short = [row for row in rows if max(len(row["chosen"]), len(row["rejected"])) < LONGEST and row["margin"] > 0]
names = ("prompt", "chosen", "rejected", "margin")
with open(sys.argv[2], "w", encoding="utf-8") as out:
    for row in random.Random(0).sample(short, PAIRS):
        out.write(json.dumps({name: row[name] for name in names}) + "\n")
print(f"{PAIRS} of {len(short)} pairs with responses below {LONGEST} characters, of {len(rows)}")
