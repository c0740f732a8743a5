"""The report on the preparation of a source: counts and shares to look at before training."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.formats.describe import strength_in_words
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.sources.row import Row
from lit_pref.data.sources.unread import may_matter
from lit_pref.data.tokenizing.tokenization import TokenizedPair
from lit_pref.errors import printable

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Spread:
    """Count, sum, minimum and maximum of a number."""

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

    - `rows`: canonical rows (a list of four responses may give six). Of these, `refused` are faulty (`refused_first`
      has the first of each kind), `left_out` do not pass the mapping's filters, and `capped` exceed its number of pairs
      per prompt.
    - `lists`: lists of responses that were kept whole; the pairs are then single responses.
    - `repeated`: pairs that occur more than once in the source; they are kept.
    - `format`: how the source was read; `example`: a description of its first pair.
    - `swapped`: chosen and rejected were swapped; `ties`: both responses are equally strong.
    - `disagreeing`: the margin is not the difference of the scores, or a probability or label prefers the other text
      or only one of them is a tie; `contradictions` counts them by kind, and `contradictions_first` has the place and
      the numbers of the first of each kind; `clipped`: the margin was cut to the mapping's bound.
    - `merged`: a token spans the prompt end; `plain`: the prompt is not a message list; `joined`: a plain prompt
      without a space before the response; `unasked`: the assistant's turn does not begin with the chat template's
      generation prompt; `special_texts`: a text contains the name of a special token.
    - `unread`: rows by the name of a column, or pairs by the name of a message's key, that nothing reads;
      `unread_texts`: those of them that may be a part of the conversation.
    - `lost`: pairs by the text that the chat template leaves out or rewrites; `lost_first` is the first one's place.
    - Lengths are in tokens, after truncation; `longest` is the longest prompt with one of its responses.
    """

    format: str = ""
    example: str = ""
    rows: int = 0
    pairs: int = 0
    prompts: int = 0
    lists: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refused_first: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    capped: int = 0
    repeated: int = 0
    clipped: int = 0
    special_texts: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    unread_texts: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    lost_first: str = ""
    plain: int = 0
    joined: int = 0
    unasked: int = 0
    swapped: int = 0
    ties: int = 0
    ties_dropped: int = 0
    disagreeing: int = 0
    contradictions: Counter[str] = field(default_factory=Counter)
    contradictions_first: dict[str, str] = field(default_factory=dict)
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

    def count(self, text: TextPair, tokenized: TokenizedPair, place: str) -> None:
        """Count one pair that is kept, read at `place`."""
        self.pairs += 1
        self.swapped += text.swapped
        self.disagreeing += text.disagrees
        if text.disagreement is not None:
            kind, numbers = text.disagreement
            self.contradictions[kind] += 1
            self.contradictions_first.setdefault(kind, f"{place}: {numbers}")
        self.clipped += text.clipped
        self.special_texts += tokenized.special_texts > 0
        self.unasked += tokenized.unasked
        self.unread.update(map(printable, tokenized.unread))
        self.unread_texts.update(_of_note(text, tokenized.unread))
        self.lost.update(tokenized.lost)
        if isinstance(text.prompt, str):
            self.plain += 1
            self.joined += not (text.prompt[-1].isspace() or text.chosen[0].isspace())
        self.prompts_cut += tokenized.prompt_cut
        self.chosen_cut += tokenized.chosen_cut
        self.rejected_cut += tokenized.rejected_cut
        self.merged += tokenized.merged
        self.prompt_tokens.add(len(tokenized.prompt))
        self.chosen_tokens.add(len(tokenized.chosen))
        if tokenized.rejected is not None:
            self.rejected_tokens.add(len(tokenized.rejected))
            self.chosen_longer += len(tokenized.chosen) > len(tokenized.rejected)
        response = max(len(tokenized.chosen), len(tokenized.rejected or ()), len(tokenized.extra_response or ()))
        self.longest = max(self.longest, len(tokenized.prompt) + response)

    def set_margins(self, margins: Any) -> None:
        """Set mean and quantiles of the margins."""
        values = np.asarray(margins, dtype=np.float64)
        if len(values):
            self.margin = Spread(len(values), float(values.sum()), float(values.min()), float(values.max()))
            self.margin_quantiles = {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES}

    def share(self, name: str) -> float:
        """Return a count of pairs as a share of all pairs of the split; 0 if there are none."""
        return float(getattr(self, name)) / self.pairs if self.pairs else 0.0

    def to_json(self) -> dict[str, Any]:
        return {f.name: vars(v) if isinstance(v := getattr(self, f.name), Spread) else v for f in fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PreparationReport":
        spreads = ("prompt_tokens", "chosen_tokens", "rejected_tokens", "margin")
        parts: dict[str, Any] = {n: Spread(**value) if n in spreads else value for n, value in values.items()}
        counted = ("refused", "left_out", "unread", "unread_texts", "lost", "contradictions")
        counters = {name: Counter(values.get(name, ())) for name in counted}  # older reports lack some
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
                f"cut: {cut}; token across the prompt end {self.share('merged'):.1%}"
            )
        if self.margin.count and not self.one_sided:
            quantiles = ", ".join(f"{float(q):.0%} {value:.4g}" for q, value in self.margin_quantiles.items())
            clipped = f"; cut to the bound {self.share('clipped'):.1%}" if self.clipped else ""
            lines.append(f"margin: mean {self.margin.mean:.4g}; quantiles {quantiles}{clipped}")
        return "\n".join(lines)

    @property
    def one_sided(self) -> bool:
        """Whether the pairs have no rejected response, as for SFT."""
        return self.pairs > 0 and not self.rejected_tokens.count

    def _counts(self) -> str:
        refused = ", ".join(f"{kind}: {count}" for kind, count in self.refused.most_common()) or "none"
        left_out = {**self.left_out, "beyond the pairs per prompt": self.capped}
        skipped = ", ".join(f"{kind}: {count}" for kind, count in left_out.items() if count)
        kept = f"{self.pairs} responses in {self.lists} lists" if self.lists else f"{self.pairs} pairs"
        parts = [f"{self.rows} rows, {kept} of {self.prompts} prompts; refused: {refused}"]
        parts += [f"left out: {skipped}"] if skipped else []
        if self.one_sided or not self.rows:
            return "; ".join(
                [*parts, *([f"chosen by strength among two texts {self.swapped}"] if self.swapped else [])]
            )
        parts.append(
            f"swapped {self.swapped}, ties {self.ties} (dropped {self.ties_dropped}), strengths that disagree "
            f"{self.disagreeing}"
        )
        parts += [f"repeated pairs {self.repeated}"] if self.repeated else []
        parts += [f"names of special tokens in {self.special_texts}"] if self.special_texts else []
        return "; ".join(parts)


def _of_note(pair: TextPair, unread: Collection[str]) -> set[str]:
    """Return which of the unread keys of a pair's messages may be a part of the conversation."""
    messages = [*([] if isinstance(pair.prompt, str) else pair.prompt), *pair.further.values()]
    return {printable(key) for message in messages for key in unread if may_matter(key, message.get(key))}


def example_of(mapping: RowMapping, pair: TextPair, row: Row) -> str:
    """Describe one pair: its prompt, the chosen text, and the origin of its margin."""
    asked = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[-1]["content"]
    first, second = row.named("chosen"), row.named("rejected")
    if pair.rejected is None:
        text = f"{second}, which its strength prefers," if pair.swapped else first
        return f"{row.place}: to {_short(asked)}, {text} {_short(pair.chosen)}"
    if pair.rejected is not None and _response_text(row.values.get("chosen")) != pair.chosen:
        first, second = second, first
    origin = strength_in_words(mapping) if "margin" in row.names else "as in the row"
    if "margin" not in row.values and "score_chosen" in row.values:
        origin = "score_chosen - score_rejected"
    strength = "no margin" if pair.margin is None else f"margin {pair.margin:.4g} ({origin})"
    strength += "" if pair.probability is None else f", probability {pair.probability:.4g}"
    return (
        f"{row.place}: to {_short(asked)}, {first} {_short(pair.chosen)} is preferred to {second} "
        f"{_short(pair.rejected or '')}, {strength}"
    )


def _response_text(value: Any) -> Any:
    """Return the text of a response, which is a string or messages."""
    return value[-1].get("content") if isinstance(value, list) and value and isinstance(value[-1], dict) else value


def _short(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text[:200].split())
    return f'"{line}"' if len(line) <= 60 else f'"{line[:57]}..."'
