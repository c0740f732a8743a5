"""A callback that logs the gold reward of the policy's responses after each validation, for runs in the testbed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pref.data.prepared.splits import sources_of
from lit_pref.errors import UsageError
from lit_pref.metrics.meaning import Meaning
from lit_pref.testbed.samples import GoldEvaluation, compare, evaluate
from lit_pref.testbed.world import Prompt

GOLD: dict[str, Meaning] = {
    "testbed/gold_sampled": Meaning(
        "mean gold reward, 0 to 10, of responses sampled at temperature 1 to the testbed's held-out prompts", "gold"
    ),
    "testbed/gold_greedy": Meaning("the same of greedy responses", "gold"),
    "testbed/win_rate": Meaning(
        "share of these prompts on which the sampled response has more gold reward than that of the initial policy; a "
        "tie counts ½",
        "1",
    ),
    "testbed/kl": Meaning("mean of log π(y) - log π_initial(y) over the sampled responses y", "nats"),
}
"""Numbers that `GoldReward` logs."""


class GoldReward(Callback):
    """Logs the gold reward of the policy's responses to the testbed's held-out prompts after each validation.

    Prompts and sampling seed are the same at every step and in every run, so that runs can be compared prompt by
    prompt. Training draws the same numbers with and without it.

    Args:
        prompts: A file with the testbed's held-out prompts; null is prompts.jsonl beside the training pairs.
        seed: Seed of the samples.

    Raises:
        UsageError: the run does not train a policy in the testbed, or shards it by FSDP2.
    """

    def __init__(self, prompts: str | None = None, seed: int = 0) -> None:
        self.prompts = prompts
        self.seed = seed
        self._held_out: list[Prompt] = []
        self._initial: Any = None
        self._before: GoldEvaluation | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        if isinstance(trainer.strategy, ModelParallelStrategy) or module.spec.head != "lm":
            raise UsageError(
                "GoldReward needs a policy whose weights are whole on each device: leave it out of the "
                "trainer.callbacks of a reward model, and of a run that FSDP2 shards"
            )
        self._held_out = self._read(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.log_metrics(self.measure(pl_module), step=trainer.global_step)

    def measure(self, module: Any) -> dict[str, float]:
        """Return the numbers of `GOLD` of a module's policy."""
        tokenizer, model = module.spec.load_tokenizer(), module.scorer.model
        if self._initial is None:
            self._initial = module.spec.build().to(next(model.parameters()).device).eval()
            self._before = evaluate(self._initial, tokenizer, self._held_out, self.seed)
        now = evaluate(model, tokenizer, self._held_out, self.seed)
        assert self._before is not None
        wins = compare(now, self._before).win_rate.mean
        ratios = [_log_probs(of, tokenizer, now) for of in (model, self._initial)]
        kl = float((ratios[0] - ratios[1]).mean())
        return dict(zip(GOLD, (now.g1, now.g0, wins, kl), strict=True))

    def _read(self, trainer: Trainer) -> list[Prompt]:
        train = trainer.datamodule.train  # type: ignore[attr-defined]
        file = Path(self.prompts or Path(sources_of(train, "data.train")[0].path).parent / "prompts.jsonl")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            return [Prompt.parse(json.loads(line)["prompt"]) for line in lines]
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"GoldReward: {file} has no prompts of the testbed ({error}): train in the testbed (`testbed: {{}}` "
                "and no data.train), or leave the callback out of trainer.callbacks"
            ) from error


@torch.no_grad()
def _log_probs(model: Any, tokenizer: Any, written: GoldEvaluation) -> torch.Tensor:
    """Return (prompts,) log-probs of the sampled responses, in nats, in float64."""
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    prompts = [[bos, *tokenizer(p.text, add_special_tokens=False)["input_ids"]] for p in written.prompts]
    words = {word for response in written.sampled for word in response}
    ids_of = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in words}
    responses = [[number for word in response for number in ids_of[word]] for response in written.sampled]
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    device, longest = next(model.parameters()).device, max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
    counted = torch.tensor([_mask(len(p), len(r), longest) for p, r in zip(prompts, responses, strict=True)])
    training = model.training
    model.eval()
    try:
        # Padding on the right is never attended to by what comes before it.
        logits = model(input_ids=ids).logits[:, :-1].float()
    finally:
        model.train(training)
    chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).double().cpu()
    return (chosen * counted[:, 1:]).sum(1)


def _mask(prompt: int, response: int, longest: int) -> Sequence[float]:
    return [0.0] * prompt + [1.0] * response + [0.0] * (longest - prompt - response)
