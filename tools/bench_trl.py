"""TRL's side of the benchmark: its own `DPOTrainer.train`, on ids instead of texts."""

import functools
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import datasets
import torch
import trl.trainer.dpo_trainer
import trl.trainer.utils
from bench_steps import Loop
from bench_work import ADAMW, BETA, CLIP, LOG_EVERY, Pair, Work, loader_workers, longest_row, one_pass_in_order
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

SORTED = 50
datasets.disable_progress_bars()
_thread = threading.local()


def _use_triton(device: torch.device) -> bool:
    """Stands in TRL's head for the question whether Triton is there, which on CUDA and here decides one thing only:
    whether response positions alone are projected. The tiles themselves stay those for a CPU."""
    return getattr(_thread, "compact", False)


@dataclass(frozen=True)
class Trl:
    """TRL's trainer.

    As installed it projects every position, prompts and padding too, where there is no Triton. `compact` projects the
    responses alone, as it does with Triton: the honest rival on a CPU. `metrics` are entropy, mean logit and top-1 of
    every token in every step.

    `grouped` reads batches of similar lengths, those of `grouped_pairs`, of which `skipped` are not counted.
    """

    compact: bool = True
    stored: bool = True
    metrics: bool = True
    checkpointing: bool = False
    device: Literal["cpu", "gpu"] = "cpu"
    bf16: bool = False
    attention: str = "sdpa"
    liger: bool = False
    grouped: bool = False
    skipped: int = 0
    compiled: str | None = None  # the backend of torch.compile

    def train(self, work: Work, folder: Path, loop: Loop) -> None:
        trl.trainer.utils._use_triton = _use_triton
        _thread.compact = self.compact
        model = AutoModelForCausalLM.from_pretrained(
            folder / "policy", dtype=torch.float32, attn_implementation=self.attention
        )
        peft, adapters = None, {}
        if work.lora:
            adapters = torch.load(work.write_adapters(folder))
            settings = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
            peft = LoraConfig(**settings, task_type="CAUSAL_LM")
        with self._head():
            trainer = _Tokenized(
                model=model,
                processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
                train_dataset=self._dataset(work),
                args=DPOConfig(**self._arguments(work, folder)),
                peft_config=peft,
            )
        if work.lora:  # the adapters that lit_pref begins with
            assert not trainer.model.load_state_dict(adapters, strict=False).unexpected_keys
        trainer.add_callback(EndOfStep(trainer, loop))
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def _dataset(self, work: Work) -> datasets.Dataset:
        pairs = grouped_pairs(work, self.skipped) if self.grouped else work.in_order()
        return datasets.Dataset.from_list([{f"{name}_ids": ids for name, ids in p.items()} for p in pairs])

    def _arguments(self, work: Work, folder: Path) -> dict[str, Any]:
        own: dict[str, Any] = {"beta": BETA, "precompute_ref_log_probs": self.stored, "use_liger_kernel": self.liger}
        if self.compiled is not None:
            own |= {"torch_compile": True, "torch_compile_backend": self.compiled}
        return arguments(work, folder, self.device, self.bf16, self.checkpointing) | own

    @contextmanager
    def _head(self) -> Iterator[None]:
        if self.metrics:
            yield
            return
        with mock.patch.object(trl.trainer.dpo_trainer, "add_fused_lm_head", _log_probs_only):
            yield


def grouped_pairs(work: Work, skipped: int = 0) -> list[Pair]:
    """Return pairs in batches of similar lengths, as transformers' `group_by_length` makes them for a column `length`.

    It sorts 50 batches at a time, more than a benchmark has. So every batch after the first `skipped` is taken from 50
    sorted ones, evenly, and they follow one another in random order.
    """
    pool = sorted(replace(work, windows=SORTED).draw(), key=longest_row)
    batches = [pool[start : start + work.pairs] for start in range(0, len(pool), work.pairs)]
    counted = work.windows - skipped
    chosen = [batches[int((k + 0.5) * SORTED / counted) % SORTED] for k in range(counted)]
    random.Random(work.seed).shuffle(chosen)
    return [pair for batch in (chosen * 2)[-work.windows :] for pair in batch]


def arguments(work: Work, folder: Path, device: str, bf16: bool, checkpointing: bool = False) -> dict[str, Any]:
    """Return the arguments of every trainer of TRL: those that all contenders share, for one pass over the pairs."""
    return one_pass_in_order(work.pairs, ADAMW) | {
        "output_dir": str(folder / "trl"),
        "max_length": None,
        "optim": "adamw_torch_fused",
        "max_grad_norm": CLIP,
        "gradient_checkpointing": checkpointing,
        "bf16": bf16,
        "use_cpu": device == "cpu",
        "dataloader_num_workers": loader_workers(device),
        "logging_steps": LOG_EVERY,
    }


def _log_probs_only(model: Any, outputs: tuple[str, ...] = ()) -> None:
    """TRL's head without the metrics of tokens; the trainer, which averages them, is given zeros."""
    trl.trainer.utils.add_fused_lm_head(model)
    forward = model.forward

    @functools.wraps(forward)
    def with_zeros(*arguments: Any, **options: Any) -> Any:
        output = forward(*arguments, **options)
        if options.get("fused_lm_head"):
            output.entropy = output.mean_logits = torch.zeros_like(output.log_probs, requires_grad=False)
            output.is_top1 = torch.zeros_like(output.label_mask)
        return output

    model.forward = with_zeros


class OnIds:
    """Mixin for trainers of TRL: trains on token ids instead of texts, and keeps the last loss."""

    loss: Tensor

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        loss = super().compute_loss(*arguments, **options)  # type: ignore[misc]
        self.loss = loss.detach()
        return loss


class _Tokenized(OnIds, DPOTrainer):
    pass


class EndOfStep(TrainerCallback):
    """Tells the loop that a step has ended, with the trainer's `loss`."""

    def __init__(self, trainer: Any, loop: Loop) -> None:
        self.trainer, self.loop = trainer, loop

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.loop.end_step(self.trainer.model, self.trainer.loss)
