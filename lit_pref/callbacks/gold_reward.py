"""Callbacks that log the gold reward after each validation, for runs in the testbed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pref.data.batching.collation import collate
from lit_pref.data.prepared.splits import sources_of
from lit_pref.errors import UsageError
from lit_pref.metrics.meaning import Meaning
from lit_pref.metrics.pair_metrics import accuracy
from lit_pref.models.spec import ModelSpec
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.testbed.samples import GoldEvaluation, compare, evaluate, write_responses
from lit_pref.testbed.world import EOS, Prompt, gold_reward, split_words

Item = TypeVar("Item")
AT_ONCE = 512
"""Responses that are scored in one forward pass."""

WordPair = tuple[Prompt, list[str], list[str]]
"""A prompt with the words of its chosen and of its rejected response."""

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
    "testbed/accuracy": Meaning(
        "share of the testbed's held-out pairs whose chosen response has the larger log π(y) - log π_initial(y), "
        "summed over its tokens, whatever the objective's own rewards are; a tie counts ½",
        "1",
    ),
}
"""Numbers that `GoldReward` logs."""

BEST: dict[str, Meaning] = {
    "testbed/gold_best": Meaning(
        "mean gold reward of the response that the reward model scores highest among several (8) of the initial "
        "policy to each of the testbed's held-out prompts",
        "gold",
    )
}
"""Numbers that `GoldOfBest` logs."""


class GoldReward(Callback):
    """Logs the gold reward of the policy's responses to the testbed's held-out prompts after each validation.

    Prompts and sampling seed are the same at every step and in every run, so that runs can be compared prompt by
    prompt. KL and accuracy are against the initial policy for every objective, whether it has other references or none.
    Training draws the same numbers with and without it.

    Args:
        prompts: A file with the testbed's held-out prompts; null is prompts.jsonl beside the training pairs.
        pairs: A file with the testbed's held-out pairs; null is val.jsonl beside the training pairs.
        seed: Seed of the samples.

    Raises:
        UsageError: the run does not train a policy in the testbed, or shards it by FSDP2.
    """

    numbers = GOLD

    def __init__(self, prompts: str | None = None, pairs: str | None = None, seed: int = 0) -> None:
        self.prompts, self.pairs = prompts, pairs
        self.seed = seed
        self._held_out: list[Prompt] = []
        self._pairs: list[WordPair] = []
        self._initial: Any = None
        self._before: GoldEvaluation | None = None
        self._gaps_before = torch.empty(0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        if isinstance(trainer.strategy, ModelParallelStrategy) or module.spec.head != "lm":
            raise UsageError(
                "GoldReward needs a policy whose weights are whole on each device: leave it out of the "
                "trainer.callbacks of a reward model, and of a run that FSDP2 shards"
            )
        self._held_out = held_out_prompts(trainer, self.prompts, "GoldReward")
        self._pairs = held_out_pairs(trainer, self.pairs, "GoldReward")

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
            self._gaps_before = _gaps(self._initial, tokenizer, self._pairs)
        now = evaluate(model, tokenizer, self._held_out, self.seed)
        assert self._before is not None
        wins = compare(now, self._before).win_rate.mean
        ratios = [_log_probs(of, tokenizer, now.prompts, now.sampled) for of in (model, self._initial)]
        kl = float((ratios[0] - ratios[1]).mean())
        correct = float(accuracy(_gaps(model, tokenizer, self._pairs) - self._gaps_before).mean())
        return dict(zip(GOLD, (now.g1, now.g0, wins, kl, correct), strict=True))


class GoldOfBest(Callback):
    """Logs the gold reward of the responses that a reward model prefers after each validation (best of n).

    The responses are those of the policy that the reward model was initialised from, sampled once at temperature 1. The
    prompts and the seed are the same in every run, so that reward models can be compared response by response.

    Args:
        samples: Responses per prompt, at least 2.
        prompts: A file with the testbed's held-out prompts; null is prompts.jsonl beside the training pairs.
        seed: Seed of the samples.

    Raises:
        UsageError: the run does not train a reward model in the testbed, or shards it by FSDP2.
    """

    numbers = BEST

    def __init__(self, samples: int = 8, prompts: str | None = None, seed: int = 0) -> None:
        if samples < 2:
            raise UsageError(f"GoldOfBest: samples must be at least 2, got {samples}")
        self.samples, self.prompts, self.seed = samples, prompts, seed
        self._pairs: list[PreferencePair] = []
        self._gold = torch.empty(0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        if isinstance(trainer.strategy, ModelParallelStrategy) or module.spec.head != "scalar":
            raise UsageError(
                "GoldOfBest needs a reward model whose weights are whole on each device: leave it out of the "
                "trainer.callbacks of a policy, and of a run that FSDP2 shards"
            )
        held_out = held_out_prompts(trainer, self.prompts, "GoldOfBest")
        policy, tokenizer = ModelSpec(path=module.spec.path), module.spec.load_tokenizer()
        asked = [prompt for prompt in held_out for _ in range(self.samples)]
        written = write_responses(policy.build().eval(), tokenizer, asked, 1.0, self.seed)
        gold = [gold_reward(prompt, words) for prompt, words in zip(asked, written, strict=True)]
        self._gold = torch.tensor(gold).view(len(held_out), self.samples)
        ids = [_ids(tokenizer, prompt, words) for prompt, words in zip(asked, written, strict=True)]
        self._pairs = [
            PreferencePair(
                str(k), prompt, response, None, None, None, {}, None, TruncatedText("", "", None, True, True)
            )
            for k, (prompt, response) in enumerate(ids)
        ]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(self.measure(pl_module), step=trainer.global_step)

    @torch.no_grad()
    def measure(self, module: Any) -> dict[str, float]:
        """Return the numbers of `BEST` of a module's reward model."""
        pad = module.spec.load_tokenizer().pad_token_id
        scores = [
            module.scorer(collate(self._pairs[k : k + AT_ONCE], pad, layout="padded").to(module.device)).chosen.scores
            for k in range(0, len(self._pairs), AT_ONCE)
        ]
        best = torch.cat(scores).cpu().view_as(self._gold).argmax(1, keepdim=True)
        return dict(zip(BEST, [float(self._gold.gather(1, best).mean())], strict=True))


def held_out_prompts(trainer: Trainer, file: str | None, asked_by: str) -> list[Prompt]:
    """Return the testbed's held-out prompts.

    Args:
        trainer: of the run.
        file: the file; None is prompts.jsonl beside the training pairs.
        asked_by: the callback, for the message.

    Raises:
        UsageError: the file has none.
    """
    path = _testbed_file(trainer, file, "prompts.jsonl")
    return _read(path, lambda row: Prompt.parse(row["prompt"]), f"{asked_by}: {path} has no prompts")


def held_out_pairs(trainer: Trainer, file: str | None, asked_by: str) -> list[WordPair]:
    """Return the testbed's held-out pairs, from val.jsonl if `file` is None; otherwise as `held_out_prompts`."""
    path = _testbed_file(trainer, file, "val.jsonl")

    def pair(row: dict[str, str]) -> WordPair:
        chosen, rejected = ([*split_words(row[side]), EOS] for side in ("chosen", "rejected"))
        return Prompt.parse(row["prompt"]), chosen, rejected

    return _read(path, pair, f"{asked_by}: {path} has no pairs")


def _testbed_file(trainer: Trainer, file: str | None, name: str) -> Path:
    train = trainer.datamodule.train  # type: ignore[attr-defined]
    return Path(file or Path(sources_of(train, "data.train")[0].path).parent / name)


def _read(path: Path, parse: Callable[[dict[str, str]], Item], problem: str) -> list[Item]:
    """Return each line of a file of the testbed, parsed; the message of an error begins with `problem`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [parse(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{problem} of the testbed ({error}): train in the testbed (`testbed: {{}}` "
            "and no data.train), or leave the callback out of trainer.callbacks"
        ) from error


def _ids(tokenizer: Any, prompt: Prompt, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids of a prompt, which begins with bos, and of a response."""
    response = [number for word in words for number in tokenizer(word, add_special_tokens=False)["input_ids"]]
    return [tokenizer.bos_token_id, *tokenizer(prompt.text, add_special_tokens=False)["input_ids"]], response


def _gaps(model: Any, tokenizer: Any, pairs: Sequence[WordPair]) -> torch.Tensor:
    """Return (pairs,) log-probs of the chosen responses less those of the rejected ones, in nats, in float64."""
    prompts, chosen, rejected = zip(*pairs, strict=True)
    return _log_probs(model, tokenizer, prompts, chosen) - _log_probs(model, tokenizer, prompts, rejected)


@torch.no_grad()
def _log_probs(model: Any, tokenizer: Any, asked: Sequence[Prompt], written: Sequence[Sequence[str]]) -> torch.Tensor:
    """Return (prompts,) log-probs of one response to each prompt, in nats, in float64."""
    pad = tokenizer.pad_token_id
    pairs = [_ids(tokenizer, prompt, words) for prompt, words in zip(asked, written, strict=True)]
    prompts, responses = zip(*pairs, strict=True)
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
