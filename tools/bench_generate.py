"""Speed of `generate` against a bare loop over transformers' `generate` at the batch size that is best for it."""

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lit_pref.data.sources.row import Row
from lit_pref.generating.blocks import Blocks
from lit_pref.generating.generate import finish, generate_missing
from lit_pref.generating.local_model import LocalModel
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt, PromptFile
from lit_pref.models.sampling import Sampling
from lit_pref.models.spec import Corpus, ModelSpec

BATCHES = (8, 16, 32, 64)
SHAPE = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6}
SHAPE |= {"num_attention_heads": 4, "max_position_embeddings": 1024}
WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as", "with", "they", "be"]


def generating(cell: Any, folder: Path, temperature: float) -> dict[str, Any]:
    """Measure both loops on the same prompts, of 10 to 100 words in random order, in turns and in CPU time.

    The bare loop sorts the prompts by length, pads each batch on the left, samples (greedily at temperature 0, when
    both loops must write the same texts), and decodes. Ours also computes log-probs and writes the file of responses.
    """
    small = cell.timed == 1
    number, new_tokens, vocabulary = (8, 4, 512) if small else (64, 32, 32_000)
    model_folder, texts = _model(folder, number, vocabulary)
    engine = LocalModel(ModelSpec(path=str(model_folder)), Sampling(temperature), 0, new_tokens, batch_tokens=2**15)
    prompts = [Prompt(text, f"id{k}", Row("prompts.jsonl", k + 1, {})) for k, text in enumerate(texts)]
    engine.usable(prompts, PromptFile("prompts.jsonl"))
    engine.load()
    bare = {size: bare_loop(engine, texts, size, new_tokens, temperature) for size in BATCHES if size <= max(8, number)}
    first = {size: _cpu_seconds(loop) for size, loop in bare.items()}
    best = min(first, key=first.__getitem__)
    ours, rival = [], []
    for k in range(cell.timed + 1):
        ours.append(_cpu_seconds(lambda k=k: write_responses(engine, prompts, folder / f"out{k}", new_tokens)))
        rival.append(_cpu_seconds(bare[best]))
    if temperature == 0 and bare[best]() != _written(folder / "out0"):
        raise SystemExit("the two loops write different texts")
    numbers = {"lit_pref_s": statistics.median(ours[1:]), "bare_s": statistics.median(rival[1:])}
    numbers |= {"best_batch": float(best), **{f"bare_{size}_s": seconds for size, seconds in first.items()}}
    return {"numbers": numbers}


def _model(folder: Path, number: int, vocabulary: int) -> tuple[Path, list[str]]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(10, 100))) for _ in range(number)]
    # The vocabulary is that of a real model, although these texts use a small part of it.
    spec = ModelSpec(config=SHAPE, vocabulary=vocabulary)
    tokenizer = spec.load_tokenizer(Corpus("bench_generate", lambda: texts))
    tokenizer.add_tokens([f"<unused{k}>" for k in range(vocabulary - len(tokenizer))])
    path = folder / "model"
    spec.build().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, texts


def write_responses(engine: LocalModel, prompts: list[Prompt], out: Path, new_tokens: int) -> None:
    """Generate as the command `generate` does, with the files that it writes into the new folder `out`."""
    out.mkdir()
    blocks = Blocks(out, prompts, samples=1, size=64)
    generate_missing(engine, blocks, 0, Progress(len(prompts), 0, new_tokens))
    finish(blocks)


def _written(out: Path) -> list[str]:
    file = out / "responses.jsonl"
    return [json.loads(line)["response"] for line in file.read_text(encoding="utf-8").splitlines()]


def bare_loop(
    engine: LocalModel, texts: list[str], size: int, new_tokens: int, temperature: float
) -> Callable[[], list[str]]:
    """Return a loop over transformers' `generate` in batches of `size` prompts of similar lengths."""
    model, tokenizer = engine.model, engine.tokenizer
    tokenizer.padding_side = "left"
    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}

    def loop() -> list[str]:
        torch.manual_seed(0)
        order = sorted(range(len(texts)), key=lambda k: len(tokenizer(texts[k])["input_ids"]))
        written = [""] * len(texts)
        for start in range(0, len(texts), size):
            chosen = order[start : start + size]
            batch = tokenizer([texts[k] for k in chosen], return_tensors="pt", padding=True).to(model.device)
            with torch.no_grad():
                output = model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=engine.ends,
                    **sampled,
                )
            own = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for k, text in zip(chosen, own, strict=True):
                written[k] = text
        return written

    return loop


def _cpu_seconds(loop: Callable[[], Any]) -> float:
    start = time.process_time()
    loop()
    return time.process_time() - start
