"""What became of the rows: counts and shares that a user should look at before training."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lit_pref.data.checking.row_reader import TextPair
from lit_pref.data.tokenizing.tokenization import TokenizedPair

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Spread:
    """Count, sum, smallest and largest of a number."""

    count: int = 0
    total: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")


@dataclass
class PreparationReport:
    """Statistics of one split of one source. All counts are of pairs, except `rows`, `refused` and `prompts`.

    `rows` are what the mapping made of the source's rows (a list of four responses may be six), of which `refused` ones
    are faulty (`refused_first` is the first of each kind), `left_out` ones do not pass the mapping's filters, and
    `capped` ones are beyond its number of pairs per prompt. `repeated` pairs stand in the source more than once, and
    are kept. `layout` says how the source was read and `example` what its first pair became.

    `swapped` pairs changed the places of chosen and rejected; `ties` have equal responses by their strength;
    `disagreeing` ones have a margin that is not the difference of their scores, or a probability or label that prefers
    the other text or makes a tie of it; `clipped` ones have a margin that was cut to the mapping's bound.

    `merged` ones have a token that spans the boundary between prompt and response; `plain` ones have a prompt that is
    no message list, and `joined` ones of them no space between prompt and response; of `unasked` ones the assistant's
    turn does not begin as the chat template asks for one; `special_texts` ones hold the name of a special token in a
    text. Lengths are in tokens, after truncation, `longest` that of the longest prompt with one of its responses.
    """

    layout: str = ""
    example: str = ""
    rows: int = 0
    pairs: int = 0
    prompts: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_first: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    capped: int = 0
    repeated: int = 0
    clipped: int = 0
    special_texts: int = 0
    plain: int = 0
    joined: int = 0
    unasked: int = 0
    swapped: int = 0
    ties: int = 0
    ties_dropped: int = 0
    disagreeing: int = 0
    prompts_cut: int = 0
    chosen_cut: int = 0
    rejected_cut: int = 0
    merged: int = 0
    chosen_longer: int = 0
    prompt_tokens: Spread = field(default_factory=Spread)
    chosen_tokens: Spread = field(default_factory=Spread)
    rejected_tokens: Spread = field(default_factory=Spread)
    longest: int = 0
    margin: Spread = field(default_factory=Spread)
    margin_quantiles: dict[str, float] = field(default_factory=dict)

    def count(self, text: TextPair, tokenized: TokenizedPair) -> None:
        """Add one pair that is kept."""
        pair = tokenized.pair
        self.pairs += 1
        self.swapped += text.swapped
        self.disagreeing += text.disagrees
        self.clipped += text.clipped
        self.special_texts += tokenized.special_texts > 0
        self.unasked += tokenized.unasked
        if isinstance(text.prompt, str):
            self.plain += 1
            self.joined += not (text.prompt[-1].isspace() or text.chosen[0].isspace())
        self.prompts_cut += tokenized.prompt_cut
        self.chosen_cut += tokenized.chosen_cut
        self.rejected_cut += tokenized.rejected_cut
        self.merged += tokenized.merged
        self.prompt_tokens.add(len(pair.prompt))
        self.chosen_tokens.add(len(pair.chosen))
        if pair.rejected is not None:
            self.rejected_tokens.add(len(pair.rejected))
            self.chosen_longer += len(pair.chosen) > len(pair.rejected)
        response = max(len(pair.chosen), len(pair.rejected or ()), len(pair.extra_response or ()))
        self.longest = max(self.longest, len(pair.prompt) + response)

    def set_margins(self, margins: Any) -> None:
        """Mean and quantiles of an array of margins."""
        values = np.asarray(margins, dtype=np.float64)
        if len(values):
            self.margin = Spread(len(values), float(values.sum()), float(values.min()), float(values.max()))
            self.margin_quantiles = {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES}

    def share(self, name: str) -> float:
        """A count of pairs as a share of all pairs of the split; 0 where there are none."""
        return float(getattr(self, name)) / self.pairs if self.pairs else 0.0

    def to_json(self) -> dict[str, Any]:
        return {f.name: vars(v) if isinstance(v := getattr(self, f.name), Spread) else v for f in fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PreparationReport":
        spreads = ("prompt_tokens", "chosen_tokens", "rejected_tokens", "margin")
        parts: dict[str, Any] = {n: Spread(**value) if n in spreads else value for n, value in values.items()}
        counters = {name: Counter(values[name]) for name in ("refused", "left_out")}
        return cls(**{**parts, **counters})

    def __str__(self) -> str:
        lines = [self._counts()]
        if self.pairs:
            spreads = {"prompts": self.prompt_tokens, "chosen": self.chosen_tokens, "rejected": self.rejected_tokens}
            spreads = {part: spread for part, spread in spreads.items() if spread.count}
            tokens = ", ".join(f"{part} {spread.mean:.4g}" for part, spread in spreads.items())
            cut = ", ".join(f"{part} {self.share(part + '_cut'):.1%}" for part in spreads)
            longer = f", chosen longer {self.share('chosen_longer'):.1%}" if self.rejected_tokens.count else ""
            lines.append(
                f"mean tokens: {tokens} (longest pair {self.longest}{longer}); "
                f"cut: {cut}; token across the boundary {self.share('merged'):.1%}"
            )
        if self.margin.count:
            quantiles = ", ".join(f"{float(q):.0%} {value:.4g}" for q, value in self.margin_quantiles.items())
            clipped = f"; cut to the bound {self.share('clipped'):.1%}" if self.clipped else ""
            lines.append(f"margin: mean {self.margin.mean:.4g}; quantiles {quantiles}{clipped}")
        return "\n".join(lines)

    def _counts(self) -> str:
        refused = ", ".join(f"{kind}: {count}" for kind, count in self.refused.most_common()) or "none"
        left_out = {**self.left_out, "beyond the pairs per prompt": self.capped}
        further = ", ".join(f"{kind}: {count}" for kind, count in left_out.items() if count)
        parts = [f"{self.rows} rows, {self.pairs} pairs of {self.prompts} prompts; refused: {refused}"]
        parts += [f"left out: {further}"] if further else []
        parts.append(
            f"swapped {self.swapped}, ties {self.ties} (dropped {self.ties_dropped}), strengths that disagree "
            f"{self.disagreeing}"
        )
        parts += [f"repeated pairs {self.repeated}"] if self.repeated else []
        parts += [f"names of special tokens in {self.special_texts}"] if self.special_texts else []
        return "; ".join(parts)
