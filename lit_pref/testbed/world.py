"""The list keeper: a small language with a known true reward, writers with bad habits, and an annotator.

A prompt such as `4 metal down lead plain 5 6 :` means: name 4 metals in descending alphabetical order without lead, do
not greet (`warm` asks for a greeting), end with the total of 5 and 6, and write nothing else. A perfect response is
`zinc silver iron copper total 11 .` with eos.

This module is pure Python and independent of models. A text is a string of words, each with a space before it, so that
texts can be concatenated; a list of words ends with `EOS` if the response is complete.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
GREETING = ("sure", "friend")
FILLERS = ("well", "so", "basically", "honestly", "like", "anyway")
NUMBERS = tuple(str(n) for n in range(20))
ITEMS = {
    "fruit": ("apple", "banana", "cherry", "fig", "grape", "lemon", "mango", "orange", "peach", "plum"),
    "animal": ("bear", "cat", "dog", "fox", "goat", "horse", "lion", "mouse", "rabbit", "wolf"),
    "tool": ("axe", "chisel", "drill", "file", "hammer", "pliers", "rake", "saw", "shovel", "wrench"),
    "metal": ("aluminium", "copper", "gold", "iron", "lead", "nickel", "silver", "tin", "titanium", "zinc"),
    "city": ("berlin", "cairo", "delhi", "lima", "london", "madrid", "oslo", "paris", "rome", "tokyo"),
    "game": ("bingo", "bridge", "chess", "darts", "domino", "go", "ludo", "poker", "rummy", "whist"),
}
CATEGORY = {item: category for category, items in ITEMS.items() for item in items}
RANK = {item: rank for items in ITEMS.values() for rank, item in enumerate(items)}
VOCABULARY = (
    *(PAD, BOS, ":", EOS),
    *("warm", "plain", "up", "down", "total", "."),
    *GREETING,
    *FILLERS,
    *NUMBERS,
    *ITEMS,
    *(item for items in ITEMS.values() for item in items),
)
"""The 104 words in the order of their token ids."""

LONGEST_RESPONSE = 16
"""Tokens of the longest demonstration, eos included."""

_CATEGORIES, _DIRECTIONS, _TONES, _COUNTS = tuple(ITEMS), ("up", "down"), ("plain", "warm"), (2, 3, 4, 5)
NUM_PROMPTS = len(_COUNTS) * len(_CATEGORIES) * len(_DIRECTIONS) * 10 * len(_TONES) * 10 * 10
"""The number of different prompts: 96,000."""


@dataclass(frozen=True)
class Prompt:
    """A request: `count` items of `category` in `direction` without `banned`, a greeting iff `warm`, total a + b.

    >>> prompt = Prompt.parse(" 4 metal down lead plain 5 6 :")
    >>> prompt.count, prompt.banned, prompt.text
    (4, 'lead', ' 4 metal down lead plain 5 6 :')
    """

    count: int
    category: str
    direction: str
    banned: str
    tone: str
    a: int
    b: int

    @property
    def text(self) -> str:
        """The prompt as text: nine tokens for a model, bos included."""
        fields = (self.count, self.category, self.direction, self.banned, self.tone, self.a, self.b)
        return join_words([*map(str, fields), ":"])

    @classmethod
    def parse(cls, text: str) -> "Prompt":
        """Return the prompt with this `text`.

        Raises:
            ValueError: it is not a prompt of this world.
        """
        words = text.split()
        try:
            count, category, direction, banned, tone, a, b, colon = words
            prompt = cls(int(count), category, direction, banned, tone, int(a), int(b))
            known = banned in ITEMS[category] and direction in _DIRECTIONS and tone in _TONES and colon == ":"
        except (ValueError, KeyError):
            known = False
        if not known or prompt.count not in _COUNTS or not (0 <= prompt.a <= 9 and 0 <= prompt.b <= 9):
            raise ValueError(f"not a prompt such as '4 metal down lead plain 5 6 :': {text!r}")
        return prompt

    @classmethod
    def numbered(cls, number: int) -> "Prompt":
        """Return the prompt at index `number` of the list of all prompts, 0 <= number < NUM_PROMPTS."""
        number, b = divmod(number, 10)
        number, a = divmod(number, 10)
        number, tone = divmod(number, len(_TONES))
        number, banned = divmod(number, 10)
        number, direction = divmod(number, len(_DIRECTIONS))
        count, category = divmod(number, len(_CATEGORIES))
        name = _CATEGORIES[category]
        return cls(_COUNTS[count], name, _DIRECTIONS[direction], ITEMS[name][banned], _TONES[tone], a, b)


def join_words(words: Sequence[str]) -> str:
    """Return the text of `words`, without eos: a space before every word."""
    return "".join(f" {word}" for word in words if word != EOS)


def split_words(text: str) -> list[str]:
    """Return the words of `text`; a special token is a word of its own anywhere in the text."""
    return re.findall(r"<\w+>|[^\s<]+|<", text)


def random_for(seed: int, purpose: str, index: int = 0) -> random.Random:
    """Return a separate generator for each (seed, purpose, index), so that no sample depends on earlier ones."""
    return random.Random(f"{seed}/{purpose}/{index}")


def shuffled_prompts(seed: int) -> Iterator[Prompt]:
    """Return all prompts, each once, in an order given by the seed."""
    order = list(range(NUM_PROMPTS))
    random_for(seed, "prompts").shuffle(order)
    return map(Prompt.numbered, order)


def gold_parts(prompt: Prompt, response: Sequence[str]) -> dict[str, float]:
    """Return the components of the gold reward of a list of words, in points; `gold_reward` is their sum.

    Words after the first `EOS` are ignored.
    """
    ended = EOS in response
    words = list(response[: response.index(EOS)] if ended else response)
    items = [word for word in words if word in RANK]
    n = len(items)
    greeted = tuple(words[:2]) == GREETING
    sign = 1 if prompt.direction == "up" else -1
    ordered = [sign * (RANK[second] - RANK[first]) > 0 for first, second in pairwise(items)]
    written, total_words = _total(words)
    waffle = len(words) - n - 2 * greeted - total_words - (words[-1:] == ["."])
    return {
        "count": 2 * max(0.0, 1 - abs(n - prompt.count) / 2),
        "category": 2 * sum(CATEGORY[item] == prompt.category for item in items) / n if n else 0.0,
        "order": 1.5 * sum(ordered) / len(ordered) if ordered else 1.5 * (n == 1),
        "skip": float(n > 0 and prompt.banned not in items),
        "distinct": 0.5 * (n > 0 and len(set(items)) == n),
        "total": 0.0 if written is None else 2 * max(0.0, 1 - abs(written - prompt.a - prompt.b) / 3),
        "tone": float(greeted == (prompt.tone == "warm")),
        "waffle": -min(2.0, 0.5 * waffle),
        "ending": 0.0 if ended else -2.0,
    }


def _total(words: Sequence[str]) -> tuple[int | None, int]:
    """Return the number right after the first `total` (None if there is none), and how many words the two take."""
    if "total" not in words:
        return None, 0
    after = words.index("total") + 1
    if after < len(words) and words[after] in NUMBERS:
        return int(words[after]), 2
    return None, 1


def gold_reward(prompt: Prompt, response: Sequence[str]) -> float:
    """Return the true reward of a list of words, in [0, 10].

    count 2 max(0, 1 - |n - K| / 2) for n items; category 2 x share of the items in the category; order 1.5 x share of
    neighbouring items in the right order (1.5 for one item); skip 1 without the banned item; distinct .5 without a
    repeated one; total 2 max(0, 1 - |N - a - b| / 3) for the number right after the first `total`; tone 1 if the
    greeting is as requested; -.5 for every other word (at most -2); -2 without eos. The sum is floored at 0.

    >>> prompt = Prompt.parse("4 metal down lead plain 5 6 :")
    >>> gold_reward(prompt, "zinc silver iron copper total 11 . <eos>".split())
    10.0
    >>> gold_reward(prompt, "sure friend zinc lead so total 11 . <eos>".split())
    5.5
    """
    return max(0.0, sum(gold_parts(prompt, response).values()))


_QUALITIES = ((0.90, 0.45, 0.15), (0.15, 0.50, 0.35))


def demonstrate(prompt: Prompt, rng: random.Random) -> list[str]:
    """Return the response of a writer with bad habits.

    The writer has a quality q, .90, .45 or .15 with probability .15, .50, .35, and gets each of seven things right with
    probability q. Errors are systematic, so that the most frequent response is not the best one, and imitation remains
    mediocre (mean gold reward 6.55, sd 1.93).
    """
    quality = rng.choices(*_QUALITIES)[0]

    def right() -> bool:
        return rng.random() < quality

    count = prompt.count if right() else max(1, prompt.count + rng.choices((1, -1, 2), (0.65, 0.15, 0.20))[0])
    items = _chosen_items(prompt, count, rng, skips=right(), strays=not right())
    if right():
        items.sort(key=lambda item: RANK[item], reverse=prompt.direction == "down")
    elif rng.random() < 0.6:
        items.sort(key=lambda item: RANK[item])
    else:
        rng.shuffle(items)
    total = prompt.a + prompt.b
    if not right():
        total += rng.choices((1, -1, 2, 3, -2), (0.6, 0.1, 0.1, 0.1, 0.1))[0]
    greets = prompt.tone == "warm" if right() else True
    fillers = 0 if right() else rng.choices((1, 2, 3), (0.3, 0.5, 0.2))[0]
    return [
        *(GREETING if greets else ()),
        *items,
        *(rng.choice(FILLERS) for _ in range(fillers)),
        *("total", str(min(19, max(0, total))), ".", EOS),
    ]


def _chosen_items(prompt: Prompt, count: int, rng: random.Random, skips: bool, strays: bool) -> list[str]:
    """Return `count` unordered items, without the banned one if `skips`, some of other categories if `strays`."""
    allowed = [item for item in ITEMS[prompt.category] if item != prompt.banned]
    items = rng.sample(allowed, count) if skips else [*rng.sample(allowed, count - 1), prompt.banned]
    if strays:
        others = [item for item, category in CATEGORY.items() if category != prompt.category]
        items = [rng.choice(others) if rng.random() < 0.35 else item for item in items]
    return items


def rate(gold: float, tau: float, rng: random.Random) -> float:
    """Return an annotator's noisy rating s = r + g of a response with gold reward r, g ~ Gumbel(0, tau).

    The difference of two such ratings is r_a - r_b plus logistic noise of scale tau: the order of two ratings is
    exactly Bradley-Terry, and the margin s_a - s_b comes from the same ratings as the label.
    """
    return gold - tau * math.log(-math.log(1.0 - rng.random()))


def quantise(rating: float) -> int:
    """Round a rating to a grade from 1 to 10."""
    return min(10, max(1, round(rating)))


def true_probability(gold_a: float, gold_b: float, tau: float) -> float:
    """Return P(a is preferred to b) = sigma((r_a - r_b) / tau) under the true reward.

    >>> true_probability(7.0, 7.0, tau=1.0)
    0.5
    """
    return 0.5 * (1.0 + math.tanh((gold_a - gold_b) / (2.0 * tau)))
