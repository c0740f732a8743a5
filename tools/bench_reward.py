"""Speed of scoring pairs by a reward model against padded batches of responses, as transformers reads them."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_work import SPECIAL
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_pref.judging.model_judge import ModelJudge, judge_spec
from lit_pref.models.reward import set_padding
from lit_pref.models.spec import ModelSpec

BATCH = 16
Scores = list[list[float]]  # of the two responses of each pair


def scoring(cell: Any, folder: Path) -> dict[str, Any]:
    """Measure the judge of `judge` and `evaluate` and two padded loops, in turns, from texts to scores, in CPU time.

    The loops read the responses in batches of 16, one in the order of the file and one sorted by length.
    """
    cell.work.write(folder)
    model_folder = reward_model(folder)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    judge = ModelJudge(judge_spec(model_folder))
    questions = [(pair["prompt"], [pair["chosen"], pair["rejected"]]) for pair in pairs]
    texts = [SPECIAL[1] + pair["prompt"] + pair[side] + SPECIAL[2] for pair in pairs for side in ("chosen", "rejected")]
    loops: dict[str, Callable[[], Scores]] = {
        "lit_pref": lambda: judge.scores(questions),
        "file_order": _padded(model_folder, texts, by_length=False),
        "sorted": _padded(model_folder, texts, by_length=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    scores: dict[str, Scores] = {}
    for _ in range(cell.timed):
        for name, loop in loops.items():
            start = time.process_time()
            scores[name] = loop()
            seconds[name].append(time.process_time() - start)
    difference = _largest_difference(scores)
    if not difference <= 1e-4:
        raise SystemExit(f"the loops give scores that differ by {difference}")
    numbers: dict[str, float] = {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    return {"numbers": {"pairs": float(len(pairs)), **numbers, "largest_difference": difference}}


def reward_model(folder: Path) -> Path:
    """Make the model in `policy/` a reward model with a random head, in `reward/`."""
    spec = ModelSpec(path=str(folder / "policy"), head="scalar", seed=0)
    model, tokenizer = spec.build(), spec.load_tokenizer()
    set_padding(model, tokenizer, {tokenizer.eos_token_id})
    model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder / "reward"


def _padded(folder: Path, texts: Sequence[str], by_length: bool) -> Callable[[], Scores]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def loop() -> Scores:
        ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        order = sorted(range(len(ids)), key=lambda k: len(ids[k])) if by_length else list(range(len(ids)))
        scores = [0.0] * len(ids)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = tokenizer.pad({"input_ids": [ids[k] for k in chosen]}, return_tensors="pt", padding_side="right")
            for k, score in zip(chosen, model(**batch, use_cache=False).logits.flatten().tolist(), strict=True):
                scores[k] = score
        return [scores[k : k + 2] for k in range(0, len(scores), 2)]

    return loop


def _largest_difference(scores: dict[str, Scores]) -> float:
    first, *others = (torch.tensor(values, dtype=torch.float64) for values in scores.values())
    assert first.std() > 0
    return max(float((first - other).abs().max()) for other in others)
