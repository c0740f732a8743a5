"""`generate` on the device against a bare loop over transformers' `generate` with batches of its best size."""

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_generate import bare_loop, write_responses
from bench_gpu_device import Device
from bench_work import Work

from lit_pref.data.sources.row import Row
from lit_pref.generating.local_model import LocalModel
from lit_pref.generating.prompts import Prompt, PromptFile
from lit_pref.models.sampling import Sampling
from lit_pref.models.spec import ModelSpec


def generating(work: Work, folder: Path, device: Device) -> dict[str, Any]:
    """Sample one response for each prompt of 32 to 256 tokens, in bf16, both loops in turns."""
    number, new_tokens, sizes, rounds = (128, 64, (32, 128), 2) if device.is_gpu else (4, 4, (2, 4), 1)
    rng = random.Random(0)
    lengths = [rng.randint(32, 256) if device.is_gpu else rng.randint(3, 8) for _ in range(number)]
    texts = ["".join(f" w{rng.randrange(3, work.vocabulary)}" for _ in range(length)) for length in lengths]
    engine = LocalModel(
        ModelSpec(path=str(folder / "policy"), dtype="bfloat16"),
        Sampling(1.0),
        0,
        new_tokens,
        device=device.torch.type,
        batch_tokens=2**17,
    )
    prompts = [Prompt(text, f"id{k}", Row("prompts.jsonl", k + 1, {})) for k, text in enumerate(texts)]
    engine.usable(prompts, PromptFile("prompts.jsonl"))
    engine.load()
    loops: dict[str, Callable[[int], Any]] = {
        "lit_pref": lambda k: write_responses(engine, prompts, folder / f"out{k}", new_tokens)
    }
    for size in sizes:
        bare = bare_loop(engine, texts, size, new_tokens, 1.0)
        loops[f"transformers, batches of {size}"] = lambda k, bare=bare: bare()
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for k in range(rounds + 1):
        for name, loop in loops.items():
            device.synchronize()
            start = time.perf_counter()
            loop(k)
            device.synchronize()
            seconds[name].append(time.perf_counter() - start)
    tokens = number * new_tokens
    return {"numbers": {f"{name}, tokens/s": tokens / statistics.median(own[1:]) for name, own in seconds.items()}}
