"""TRL's side of the benchmark: its own `DPOTrainer.train`, on ids instead of texts."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import datasets
import torch
import trl.trainer.dpo_trainer
import trl.trainer.utils
from bench_steps import Loop
from bench_work import ADAMW, BETA, CLIP, LOG_EVERY, Work
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

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
    """

    compact: bool = True
    stored: bool = True
    metrics: bool = True
    checkpointing: bool = False
    device: Literal["cpu", "gpu"] = "cpu"

    def train(self, work: Work, folder: Path, loop: Loop) -> None:
        trl.trainer.utils._use_triton = _use_triton
        _thread.compact = self.compact
        model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        peft = None
        if work.lora:
            settings = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
            peft = LoraConfig(**settings, task_type="CAUSAL_LM")
        with self._head():
            trainer = _Tokenized(
                model=model,
                processing_class=AutoTokenizer.from_pretrained(folder / "policy"),
                train_dataset=datasets.Dataset.from_list(
                    [{f"{name}_ids": ids for name, ids in pair.items()} for pair in work.in_order()]
                ),
                args=self._arguments(work, folder),
                peft_config=peft,
            )
        if work.lora:  # the adapters that lit_pref begins with
            adapters = {n: w for n, w in work.policy(folder).build().state_dict().items() if "lora_" in n}
            assert not trainer.model.load_state_dict(adapters, strict=False).unexpected_keys
        trainer.add_callback(_EndOfStep(trainer, loop))
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def _arguments(self, work: Work, folder: Path) -> DPOConfig:
        return DPOConfig(
            output_dir=str(folder / "trl"),
            beta=BETA,
            per_device_train_batch_size=work.pairs,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            max_length=None,
            precompute_ref_log_probs=self.stored,
            optim="adamw_torch_fused",
            learning_rate=ADAMW["lr"],
            adam_beta1=ADAMW["betas"][0],
            adam_beta2=ADAMW["betas"][1],
            adam_epsilon=ADAMW["eps"],
            weight_decay=ADAMW["weight_decay"],
            lr_scheduler_type="constant",
            max_grad_norm=CLIP,
            gradient_checkpointing=self.checkpointing,
            bf16=self.device == "gpu",
            use_cpu=self.device == "cpu",
            logging_steps=LOG_EVERY,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )

    @contextmanager
    def _head(self) -> Iterator[None]:
        if self.metrics:
            yield
            return
        with mock.patch.object(trl.trainer.dpo_trainer, "add_fused_lm_head", _log_probs_only):
            yield


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


class _Tokenized(DPOTrainer):
    """TRL's trainer on ids instead of texts, which keeps the loss that it found last."""

    loss: Tensor

    def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
        return dataset

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        loss = super().compute_loss(*arguments, **options)
        self.loss = loss.detach()
        return loss


class _EndOfStep(TrainerCallback):
    def __init__(self, trainer: _Tokenized, loop: Loop) -> None:
        self.trainer, self.loop = trainer, loop

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.loop.end_step(self.trainer.model, self.trainer.loss.item())
