"""Win rates of one model against another from preferences of a judge, also of annotations in AlpacaEval's layout."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lit_pref.data.sources.reading import read_source
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError
from lit_pref.judging.comparison import Array, Interval, PromptBootstrap, mean_of
from lit_pref.judging.texts import Answered


@dataclass(frozen=True)
class WinRate:
    """How often A wins against B, with a tie as half a win, and how many comparisons it rests on.

    `rate` is the mean preference for A, in [0, 1]; `discrete` counts a preference above 1/2 as a win and one below as a
    loss. `left_out` is the number of comparisons without a preference.
    """

    rate: Interval
    discrete: Interval
    wins: int
    ties: int
    losses: int
    left_out: int = 0


def win_rate(preference: ArrayLike, prompts: Sequence[str]) -> WinRate:
    """Return the win rate of A against B, with intervals over prompts.

    win rate = mean of the probabilities that A is better.

    **Source** The same as AlpacaEval's `win_rate` and `discrete_win_rate` in percent: github.com/tatsu-lab/alpaca_eval,
    src/alpaca_eval/metrics/winrate.py and helpers.py.

    >>> win_rate([1.0, 0.5, 0.0, 0.9], ["a", "b", "c", "d"]).rate.value
    0.6

    Args:
        preference: (n,) in [0, 1], the probability or share of votes that A is better: 1 A wins, 1/2 tie; NaN for a
            comparison in which the judge gave no readable answer, which is left out and counted.
        prompts: (n,) the prompt of each comparison.

    Raises:
        UserError: there is no preference at all.
        ValueError: a preference is outside [0, 1].
    """
    p = np.asarray(preference, dtype=np.float64)
    known = ~np.isnan(p)
    if not known.any():
        raise UserError("No comparison has a preference (all are null), so there is no win rate.")
    if not ((p[known] >= 0) & (p[known] <= 1)).all():
        raise ValueError("preferences must be in [0, 1]")
    discrete = np.where(known, (1 + np.sign(p - 0.5)) / 2, np.nan)
    rate, rounded = PromptBootstrap(prompts).intervals(mean_of(np.stack([p, discrete], axis=1)))
    wins, ties, losses = (int((discrete == value).sum()) for value in (1, 0.5, 0))
    return WinRate(rate, rounded, wins, ties, losses, int((~known).sum()))


def preferences_of_scores(a: ArrayLike, b: ArrayLike) -> Array:
    """Return, for each prompt, 1 if A's response has the higher score, 1/2 for equal scores, else 0.

    >>> preferences_of_scores([2.0, 1.0, 0.0], [1.0, 1.0, 1.0])
    array([1. , 0.5, 0. ])
    """
    return (1 + np.sign(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))) / 2


@dataclass(frozen=True)
class Annotations:
    """Comparisons of a model (A) with a baseline in AlpacaEval's layout, one entry per instruction.

    `item` is the number of the instruction in AlpacaEval, `preference` in [0, 1] is that for the model, NaN where there
    is none. Lengths are in characters. `rows` are those of the file.
    """

    item: tuple[int, ...]
    preference: Array
    baseline_length: Array
    model_length: Array
    rows: tuple[Row, ...] = ()

    @property
    def prompts(self) -> list[str]:
        """The names of the prompts, by which comparisons are resampled: `judge` numbers them, or else one each."""
        numbers = [row.values.get("prompt_number") for row in self.rows] or [None] * len(self.item)
        return [str(item if own is None else f"prompt {own}") for item, own in zip(self.item, numbers, strict=True)]


def read_annotations(source: str, model: str | None = None) -> Annotations:
    """Read annotations in AlpacaEval's layout (`annotations.json`), or with lengths instead of texts.

    `preference` is in [1, 2], 2 if the model (`output_2`) is better; 1.5 or 0 is a tie, and null is no preference.
    Texts are `output_1` (baseline) and `output_2`, or their lengths in characters `length_baseline` and
    `length_model`. The number of the instruction is `index` or `item`, or else the position in the file.

    Args:
        source: a file of these rows.
        model: the rows of which model to read, by the column `generator_2` or `model`; None: the file has one model.

    Raises:
        UserError: a row cannot be read, the file has several models and none is named, or an instruction occurs twice.
    """
    rows: list[Row] = []
    models: dict[str, None] = {}
    for row in read_source(Source(source)):
        if isinstance(row, BadRow):
            raise row
        name = str(row.values.get("generator_2", row.values.get("model", "")))
        models[name] = None
        if model in (None, name):
            rows.append(row)
    if not rows or (model is None and len(models) > 1):
        raise UserError(f"{source} has annotations of {', '.join(models) or 'no model'}; name one of them.")
    numbers = [(_item(row, place), _preference(row), *_lengths(row)) for place, row in enumerate(rows)]
    item, preference, baseline, own = zip(*numbers, strict=True)
    if len(set(item)) < len(item):
        twice = next(number for number in item if item.count(number) > 1)
        raise UserError(f"{source} has instruction {twice} twice; annotations of one model have each once.")
    return Annotations(tuple(item), np.array(preference), np.array(baseline), np.array(own), tuple(rows))


def judged_against(a: Sequence[Answered], b: Sequence[Answered]) -> tuple[Annotations, list[Answered], list[Answered]]:
    """Compare judged responses of a model (A) with those of a baseline (B) to the same prompts, by their scores.

    The preference of a prompt is the mean over all pairs of a response of A and one of B with scores, NaN if there is
    no such pair; lengths are means.

    Args:
        a: judged responses, by prompt.
        b: those of the baseline.

    Returns:
        The comparisons as annotations, and the responses of A and of B to the prompts that both answer, in A's order.

    Raises:
        UserError: no prompt is answered by both.
    """
    of_b = {json.dumps(answered.prompt, sort_keys=True): answered for answered in b}
    keys = [json.dumps(answered.prompt, sort_keys=True) for answered in a]
    first = [answered for answered, key in zip(a, keys, strict=True) if key in of_b]
    second = [of_b[key] for key in keys if key in of_b]
    if not first:
        raise UserError("The two files answer no prompt in common; compare responses to the same prompts.")
    preference = [_mean_preference(one.scores, other.scores) for one, other in zip(first, second, strict=True)]
    own, baseline = (np.array([_mean_length(answered) for answered in side]) for side in (first, second))
    rows = tuple(answered.rows[0] for answered in first)
    return Annotations(tuple(range(len(first))), np.array(preference), baseline, own, rows), first, second


def _mean_preference(a: Sequence[float], b: Sequence[float]) -> float:
    every = preferences_of_scores(np.array(a)[:, None], np.array(b)[None, :])
    known = every[~np.isnan(every)]
    return float(known.mean()) if len(known) else math.nan


def _mean_length(answered: Answered) -> float:
    lengths = [len(text if isinstance(text, str) else str(text[-1]["content"])) for text in answered.responses]
    return sum(lengths) / len(lengths)


def _item(row: Row, place: int) -> int:
    value = row.values.get("index", row.values.get("item", place))
    if not str(value).isdecimal():
        raise UserError(f"{row.place}: the number of the instruction is {value!r}; it must be an integer from 0.")
    return int(value)


def _preference(row: Row) -> float:
    value = row.values.get("preference")
    try:
        number = math.nan if value is None else float(value)
    except (TypeError, ValueError):
        number = math.inf
    number = 1.5 if number == 0 else number
    if not (math.isnan(number) or 1 <= number <= 2):
        raise UserError(f"{row.place}: preference is {value!r}; AlpacaEval's are in [1, 2], and 0 or 1.5 for a tie.")
    return number - 1


def _lengths(row: Row) -> tuple[float, float]:
    texts = [row.values.get(name) for name in ("output_1", "output_2")]
    if all(isinstance(text, str) for text in texts):
        return float(len(texts[0] or "")), float(len(texts[1] or ""))
    try:
        return float(row.values["length_baseline"]), float(row.values["length_model"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{row.place} has neither the texts output_1 and output_2 nor the numbers length_baseline and length_model."
        ) from error
