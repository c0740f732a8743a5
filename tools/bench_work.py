"""The benchmark's work: models, and token ids that are drawn first so that both sides read the same ones.

Lengths are the evenly spaced quantiles of a case's distribution, shuffled, so that a few windows of pairs stand for it.
"""

import json
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from transformers import AutoTokenizer

from lit_pref.data.batching.sampling import epoch_order
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.models.word_tokenizer import save_word_tokenizer

BETA, CLIP, LOG_EVERY = 0.1, 1.0, 10
ADAMW: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
PAD, BEGIN, END = 0, 1, 2
SPECIAL = ("<pad>", "<bos>", "<eos>")
Pair = dict[str, list[int]]  # `prompt`, `chosen`, `rejected`: ids
Law = Callable[[float], float]  # quantile -> tokens


def one_pass_in_order(pairs: int, adamw: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a TRL configuration: batches of so many pairs in their order, AdamW, nothing saved or shown."""
    return {
        "per_device_train_batch_size": pairs,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": adamw["lr"],
        "adam_beta1": adamw["betas"][0],
        "adam_beta2": adamw["betas"][1],
        "adam_epsilon": adamw["eps"],
        "weight_decay": adamw["weight_decay"],
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def around(centre: float, share: float) -> Law:
    """Uniform on centre ± share · centre."""
    return lambda quantile: centre * (1 + share * (2 * quantile - 1))


def lognormal(median: float, sigma: float, most: int) -> Law:
    """Log-normal, cut at `most`, as data are by a maximal length."""
    return lambda quantile: min(most, median * math.exp(sigma * NormalDist().inv_cdf(quantile)))


def deciles(*tokens: int) -> Law:
    """Linear between the deciles of a measured distribution, the least and the most included."""
    return lambda quantile: float(np.interp(quantile, np.linspace(0, 1, len(tokens)), tokens))


CASES = {
    "a": (around(512, 0.12), around(128, 0.25)),
    "b": (around(128, 0.25), around(256, 0.25)),
    "c": (lognormal(180, 0.9, 1024), lognormal(150, 0.8, 512)),
    "16k": (around(15_360, 0.05), around(1024, 0.25)),
    "2k": (around(1024, 0.01), around(512, 0.01)),
    "4k": (around(2048, 0.01), around(1024, 0.01)),
    "8k": (around(4096, 0.01), around(2048, 0.01)),
    "feedback": (lognormal(140, 0.8, 1024), lognormal(260, 0.7, 1024)),
    "hh": (
        deciles(13, 19, 25, 43, 71, 97, 122, 151, 189, 270, 835),
        deciles(2, 9, 13, 18, 24, 30, 40, 52, 68, 101, 556),
    ),
    "judged": (around(768, 1 / 3), around(175, 0.43)),
    "short": (around(9, 0), around(11, 0.4)),
    "smoke": (around(24, 0.12), around(8, 0.25)),
}
"""Tokens of prompts and of responses, begin and end tokens among them.

`16k` are conversations of many turns, at least 16,000 tokens a pair; `2k` to `8k` are pairs of that many tokens,
`feedback` resembles UltraFeedback, `hh` are 3000 dialogues of Anthropic's harmless-base in SmolLM2's tokens, `judged`
are pairs to score, prompts of 512 to 1024 tokens and responses of 100 to 250, `short` are the testbed's.
"""


def _llama(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, tied: bool = False) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {"model_type": "llama", **sizes, **heads_of, "max_position_embeddings": 8192, "tie_word_embeddings": tied}


def _qwen(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """A Llama with a Qwen2.5's shape, grouped heads, biases and tied embeddings.

    For a Qwen2 transformers would take the words' tokenizer for Qwen's own.
    """
    rope = {"rope_type": "default", "rope_theta": 1e6}
    further = {"attention_bias": True, "max_position_embeddings": 32768, "rope_parameters": rope}
    return _llama(hidden, mlp, layers, heads, kv_heads, tied=True) | further


MODELS = {
    "s": _llama(256, 1024, 6, 8, 4),
    "m": _llama(512, 1408, 12, 8, 4),
    "narrow": _llama(288, 768, 15, 9, 3, tied=True),  # SmolLM2-135M at half its width and depth
    "0.5B": _qwen(896, 4864, 24, 14, 2),  # the shape of Qwen2.5-0.5B
    "1.5B": _qwen(1536, 8960, 28, 12, 2),  # Qwen2.5-1.5B
    "testbed": _llama(64, 192, 2, 4, 4),
    "smoke": _llama(32, 64, 2, 4, 2),
    "smoke-qwen": _qwen(32, 64, 2, 4, 2),
}


@dataclass(frozen=True)
class Work:
    """The work of every contender of a cell: `windows` optimizer steps of `pairs` pairs each."""

    case: str
    model: str
    vocabulary: int
    pairs: int
    windows: int = 1
    lora: bool = False
    seed: int = 0

    @property
    def adapters(self) -> Lora | None:
        return Lora(r=8, alpha=16.0) if self.lora else None

    def draw(self) -> list[Pair]:
        """The pairs, in the order of the file that lit_pref reads."""
        rng = np.random.default_rng(self.seed)
        number = self.pairs * self.windows
        quantiles = (np.arange(number) + 0.5) / number

        def tokens(law: Law) -> list[list[int]]:
            lengths = [max(2, round(law(quantile))) for quantile in rng.permutation(quantiles)]
            return [rng.integers(len(SPECIAL), self.vocabulary, length - 1).tolist() for length in lengths]

        prompt, response = CASES[self.case]
        columns = zip(tokens(prompt), tokens(response), tokens(response), strict=True)
        return [{"prompt": [BEGIN, *p], "chosen": [*c, END], "rejected": [*r, END]} for p, c, r in columns]

    def in_order(self, epochs: int = 1) -> list[Pair]:
        """The pairs in the order in which lit_pref trains on them: `pairs` after `pairs` they are its windows."""
        drawn = self.draw()
        return [drawn[k] for epoch in range(epochs) for k in epoch_order(len(drawn), self.seed, epoch)]

    def policy(self, folder: Path) -> ModelSpec:
        return ModelSpec(path=str(folder / "policy"), lora=self.adapters)

    def write_adapters(self, folder: Path) -> Path:
        """`adapters.pt`, the adapters that lit_pref begins with, for other contenders; unless it is there.

        Building a model turns cuDNN's attention off in the process, which the other contenders' users have on.
        """
        file = folder / "adapters.pt"
        if not file.exists():
            cudnn = torch.backends.cuda.cudnn_sdp_enabled()
            weights = self.policy(folder).build().state_dict()
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            torch.save({name: weight for name, weight in weights.items() if "lora_" in name}, file)
        return file

    @property
    def words(self) -> list[str]:
        """The vocabulary, one word an id."""
        return [*SPECIAL, *(f"w{k}" for k in range(len(SPECIAL), self.vocabulary))]

    def write(self, folder: Path, references: int = 0) -> None:
        """`policy/` and further `reference-1/`, ...: random weights and a tokenizer, one word an id; `pairs.jsonl`."""
        save_word_tokenizer(folder / "tokenizer", self.words, *SPECIAL)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        for seed, name in enumerate(["policy", *(f"reference-{k}" for k in range(1, references))]):
            model: Any = ModelSpec(config=MODELS[self.model], tokenizer=str(folder / "tokenizer"), seed=seed).build()
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        self.write_pairs(folder)

    def write_pairs(self, folder: Path) -> None:
        """`pairs.jsonl`, the pairs as texts."""
        words = self.words
        with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
            for pair in self.draw():
                texts = {"prompt": pair["prompt"][1:], "chosen": pair["chosen"][:-1], "rejected": pair["rejected"][:-1]}
                row = {name: "".join(f" {words[k]}" for k in ids) for name, ids in texts.items()}
                file.write(json.dumps(row) + "\n")

    def tokens(self) -> dict[str, int]:
        """Tokens of all windows: rows padded to a window's longest, rows unpadded, prompts read once."""
        pairs = self.in_order()
        padded = separate = shared = 0
        for start in range(0, len(pairs), self.pairs):
            window = pairs[start : start + self.pairs]
            rows = [len(pair["prompt"]) + len(pair[side]) for pair in window for side in ("chosen", "rejected")]
            padded += max(rows) * len(rows)
            separate += sum(rows)
            shared += sum(rows) - sum(len(pair["prompt"]) for pair in window)
        return {"padded": padded, "separate": separate, "shared": shared}


def longest_row(pair: Pair) -> int:
    """Return the tokens of the prompt with the longer response."""
    return len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"]))


def loader_workers(device: str) -> int:
    """Return the number of processes that prepare batches, the same for every contender."""
    return 4 if device == "gpu" else 0


def bare_trainer(folder: Path, **settings: Any) -> Trainer:
    """Return a Trainer of one device that trains for an epoch, without logger, checkpoints, display or own sampler."""
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    bare |= {"devices": 1, "max_epochs": 1, "gradient_clip_val": CLIP, "use_distributed_sampler": False}
    return Trainer(default_root_dir=str(folder), **bare | settings)


def quiet() -> None:
    """Nothing but results on the terminal."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)


def gradient_bytes(model: torch.nn.Module) -> int:
    """Return the memory of the gradients that a loop still holds."""
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
