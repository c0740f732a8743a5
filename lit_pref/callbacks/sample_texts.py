"""Logs responses of the policy to TensorBoard as text."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pref.errors import UsageError
from lit_pref.models.generation import generate


class SampleTexts(Callback):
    """Logs, after each validation, greedy responses to the first held-out prompts under `val/samples`.

    Args:
        prompts: The number of prompts.
        max_new_tokens: The most tokens of a response.

    Raises:
        UsageError: the strategy is FSDP2, where sharded weights are gathered for scoring only.
    """

    def __init__(self, prompts: int = 4, max_new_tokens: int = 64) -> None:
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise UsageError(
                "SampleTexts cannot write responses from weights that FSDP2 has sharded: leave it out of "
                "trainer.callbacks, and write them from the exported folder"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not trainer.is_global_zero or not boards:
            return
        text = self.page(trainer, pl_module)
        for board in boards:
            board.experiment.add_text("val/samples", text, trainer.global_step)

    def page(self, trainer: Trainer, module: Any) -> str:
        """Prompts and responses as Markdown."""
        pairs = trainer.datamodule.val_pairs[: self.prompts]  # type: ignore[attr-defined]
        tokenizer = module.spec.load_tokenizer()
        written = generate(module.scorer.model, tokenizer, [pair.prompt for pair in pairs], self.max_new_tokens)
        parts = []
        for pair, response in zip(pairs, written, strict=True):
            prompt, answer = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (pair.prompt, response))
            parts.append(f"**prompt**\n\n```\n{prompt}\n```\n\n**response**\n\n```\n{answer}\n```")
        return "\n\n---\n\n".join(parts)
