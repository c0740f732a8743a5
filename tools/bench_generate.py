"""Speed of `generate` against a bare loop over transformers' `generate` at the batch size that is best for it."""

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
TEMPERATURE = 1.0


def generating(cell: Any, folder: Path) -> dict[str, Any]:
    """Measure both loops on the same prompts, of 10 to 100 words in random order, in turns and in CPU time.

    The bare loop takes the prompts in their order, pads each batch on the left, samples, and decodes. Ours also
    computes log-probs and writes the file of responses.
    """
    small = cell.timed == 1
    number, new_tokens = (8, 4) if small else (64, 32)
    model_folder, texts = _model(folder, number)
    engine = LocalModel(ModelSpec(path=str(model_folder)), Sampling(TEMPERATURE), 0, new_tokens, batch_tokens=2**15)
    prompts = [Prompt(text, f"id{k}", Row("prompts.jsonl", k + 1, {})) for k, text in enumerate(texts)]
    engine.usable(prompts, PromptFile("prompts.jsonl"))
    engine.load()
    bare = {size: _bare(engine, texts, size, new_tokens) for size in BATCHES if size <= max(8, number)}
    first = {size: _cpu_seconds(loop) for size, loop in bare.items()}
    best = min(first, key=first.__getitem__)
    ours, rival = [], []
    for k in range(cell.timed + 1):
        ours.append(_cpu_seconds(lambda k=k: _ours(engine, prompts, folder / f"out{k}", new_tokens)))
        rival.append(_cpu_seconds(bare[best]))
    numbers = {"lit_pref_s": statistics.median(ours[1:]), "bare_s": statistics.median(rival[1:])}
    numbers |= {"best_batch": float(best), **{f"bare_{size}_s": seconds for size, seconds in first.items()}}
    return {"numbers": numbers}


def _model(folder: Path, number: int) -> tuple[Path, list[str]]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(10, 100))) for _ in range(number)]
    # The vocabulary is that of a real model, although these texts use a small part of it.
    spec = ModelSpec(config=SHAPE, vocabulary=32_000)
    tokenizer = spec.load_tokenizer(Corpus("bench_generate", lambda: texts))
    tokenizer.add_tokens([f"<unused{k}>" for k in range(32_000 - len(tokenizer))])
    path = folder / "model"
    spec.build().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, texts


def _ours(engine: LocalModel, prompts: list[Prompt], out: Path, new_tokens: int) -> None:
    out.mkdir()
    blocks = Blocks(out, prompts, samples=1, size=64)
    generate_missing(engine, blocks, 0, Progress(len(prompts), 0, new_tokens))
    finish(blocks)


def _bare(engine: LocalModel, texts: list[str], size: int, new_tokens: int) -> Callable[[], None]:
    model, tokenizer = engine.model, engine.tokenizer
    tokenizer.padding_side = "left"

    def loop() -> None:
        torch.manual_seed(0)
        for start in range(0, len(texts), size):
            batch = tokenizer(texts[start : start + size], return_tensors="pt", padding=True)
            with torch.no_grad():
                output = model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    max_new_tokens=new_tokens,
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_k=0,
                    pad_token_id=tokenizer.pad_token_id,
                )
            tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    return loop


def _cpu_seconds(loop: Callable[[], None]) -> float:
    start = time.process_time()
    loop()
    return time.process_time() - start
