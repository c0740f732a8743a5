"""Responses of a policy in the testbed's world: their gold reward, and pairs ordered by the annotator."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from lit_pref.models.generation import generate
from lit_pref.testbed.world import (
    EOS,
    LONGEST_RESPONSE,
    Prompt,
    gold_reward,
    join_words,
    quantise,
    rate,
    split_words,
    true_probability,
)


def write_responses(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    temperature: float | None,
    seed: int,
    max_new_tokens: int = LONGEST_RESPONSE,
) -> list[list[str]]:
    """Generate one response per prompt as a list of words; the last one is `EOS` if the response is complete.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer; `max_new_tokens` counts its tokens.
        prompts: prompts of the world.
        temperature: > 0, or None for greedy decoding.
        seed: seed of the samples.
        max_new_tokens: maximum length of a response, eos included.
    """
    texts = [prompt.text for prompt in prompts]
    responses = []
    for ids in generate(model, tokenizer, texts, max_new_tokens, temperature, seed):
        complete = ids[-1:] == [tokenizer.eos_token_id]
        words = split_words(tokenizer.decode(ids[:-1] if complete else ids))
        responses.append([*words, EOS] if complete else words)
    return responses


@dataclass(frozen=True)
class GoldEvaluation:
    """Greedy and sampled (temperature 1) responses of a policy to the same prompts, and their gold rewards."""

    prompts: list[Prompt]
    greedy: list[list[str]]
    sampled: list[list[str]]

    @cached_property
    def greedy_gold(self) -> list[float]:
        """The gold reward of each greedy response."""
        return [gold_reward(*pair) for pair in zip(self.prompts, self.greedy, strict=True)]

    @cached_property
    def sampled_gold(self) -> list[float]:
        """The gold reward of each sampled response."""
        return [gold_reward(*pair) for pair in zip(self.prompts, self.sampled, strict=True)]

    @property
    def g0(self) -> float:
        """Mean gold reward of the greedy responses, in [0, 10]."""
        return statistics.fmean(self.greedy_gold)

    @property
    def g1(self) -> float:
        """Mean gold reward of the responses sampled at temperature 1, in [0, 10]."""
        return statistics.fmean(self.sampled_gold)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    seed: int = 0,
    max_new_tokens: int = LONGEST_RESPONSE,
) -> GoldEvaluation:
    """Generate greedy and sampled responses to `prompts`; use the same `seed` for policies that are compared."""
    greedy = write_responses(model, tokenizer, prompts, None, seed, max_new_tokens)
    sampled = write_responses(model, tokenizer, prompts, 1.0, seed, max_new_tokens)
    return GoldEvaluation(list(prompts), greedy, sampled)


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its 95 % interval, 1.96 standard errors.

    >>> interval = Interval.of([1.0, 2.0, 3.0, 4.0])
    >>> interval.mean, round(interval.half_width, 3)
    (2.5, 1.265)
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval of the mean of two or more independent values."""
        return cls(statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Comparison:
    """The difference between two policies: mean paired differences of the gold reward, and the win rate.

    `g0` compares greedy responses, `g1` sampled ones. `win_rate` is the share of prompts on which the first policy's
    sampled response has the higher gold reward; a tie counts one half.
    """

    g0: Interval
    g1: Interval
    win_rate: Interval


def compare(after: GoldEvaluation, before: GoldEvaluation) -> Comparison:
    """Compare two evaluations prompt by prompt; the intervals are over prompts."""
    if after.prompts != before.prompts:
        raise ValueError("evaluations are compared prompt by prompt, and these two have different prompts")
    greedy = [a - b for a, b in zip(after.greedy_gold, before.greedy_gold, strict=True)]
    sampled = [a - b for a, b in zip(after.sampled_gold, before.sampled_gold, strict=True)]
    wins = [0.5 if difference == 0 else float(difference > 0) for difference in sampled]
    return Comparison(Interval.of(greedy), Interval.of(sampled), Interval.of(wins))


@dataclass(frozen=True)
class SampledPair:
    """Two responses to one prompt, in the order in which they were sampled."""

    prompt: Prompt
    first: list[str]
    second: list[str]

    def row(self, tau: float, quantised: bool, rng: random.Random) -> dict[str, str | float] | None:
        """Return the annotator's record of the pair for a preference file, or None if it is not usable.

        The response with the higher noisy rating is the chosen one, and `margin` is the difference of the ratings;
        `p_true` is the probability that the chosen one is preferred under the true reward. There is no record if the
        responses or their (quantised) ratings are equal, or if a response is empty, incomplete or contains a special
        token, which a text file cannot represent.
        """
        if self.first == self.second or not (_writable(self.first) and _writable(self.second)):
            return None
        responses = []
        for words in (self.first, self.second):
            gold = gold_reward(self.prompt, words)
            rating = rate(gold, tau, rng)
            responses.append((quantise(rating) if quantised else rating, gold, join_words(words)))
        rejected, chosen = sorted(responses)
        if chosen[0] == rejected[0]:
            return None
        return {
            "prompt": self.prompt.text,
            "chosen": chosen[2],
            "rejected": rejected[2],
            "margin": chosen[0] - rejected[0],
            "score_chosen": chosen[0],
            "score_rejected": rejected[0],
            "gold_chosen": chosen[1],
            "gold_rejected": rejected[1],
            "p_true": true_probability(chosen[1], rejected[1], tau),
        }


def _writable(words: list[str]) -> bool:
    return len(words) > 1 and words[-1] == EOS and not any(word.startswith("<") for word in words[:-1])


def sample_pairs(model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], seed: int) -> list[SampledPair]:
    """Sample two responses to each prompt, at temperature 1."""
    twice = [prompt for prompt in prompts for _ in range(2)]
    responses = write_responses(model, tokenizer, twice, 1.0, seed)
    return [SampledPair(*pair) for pair in zip(prompts, responses[::2], responses[1::2], strict=True)]
