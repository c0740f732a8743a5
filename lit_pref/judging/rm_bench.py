"""RM-Bench: three correct against three incorrect responses of different style, in four domains."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lit_pref.errors import UserError
from lit_pref.judging.benchmark_items import BenchmarkItem, Scores, check_scores, prompts_of, read_items
from lit_pref.judging.comparison import Array, Interval, PromptBootstrap, Statistic, mean_of

HUB = "THU-KEG/RM-Bench:train"
DOMAINS = ("chat", "math", "code", "safety")
LEVELS = ("hard", "normal", "easy")
STYLES = ("concise", "detailed", "detailed with markdown")


@dataclass(frozen=True)
class RMBench:
    """The result of RM-Bench, in shares.

    `matrix[i][j]` is the share of items in which the correct response of style i scores above the incorrect one of
    style j (`STYLES`), over all items. `cells` has the accuracy of each level in each domain.
    """

    matrix: tuple[tuple[float, ...], ...]
    cells: dict[tuple[str, str], Interval]
    domains: dict[str, Interval]
    levels: dict[str, Interval]
    score: Interval
    items: int
    statistic: Statistic = field(repr=False)
    missing: tuple[str, ...] = ()


def read_rm_bench(source: str = HUB) -> list[BenchmarkItem]:
    """Read items in RM-Bench's layout: `id`, `prompt`, `domain`, and three texts each in `chosen` and `rejected`.

    The texts are in the order of `STYLES`. A domain is its first word: `safety-refuse` and `safety-response` are
    `safety`.

    Raises:
        UserError: a row lacks a column, has an unknown domain, or other than three and three responses.
    """
    items = read_items(source, ["prompt", "chosen", "rejected", "domain"], "domain")
    for item in items:
        if len(item.responses) != 6 or item.correct != 3:
            raise UserError(f"{item.place}: RM-Bench needs three chosen and three rejected responses.")
        if not item.subset.startswith(DOMAINS):
            raise UserError(f"{item.place}: unknown domain {item.subset!r}; known are {', '.join(DOMAINS)}.")
    return items


def rm_bench(items: Sequence[BenchmarkItem], scores: Scores) -> RMBench:
    """Return the result of a judge's scores.

    With m_ij = mean over the items of a domain of [score of chosen i > score of rejected j], the levels of the domain
    are hard = mean of m_ij with i < j (the incorrect response looks better), normal = mean of m_ii, easy = mean of m_ij
    with i > j. A domain is the mean of its levels, a level and the score are means over the domains.

    **Source** github.com/THU-KEG/RM-Bench: README.md and scripts/utils.py (`compute_accuracy`), in which domains
    are told apart by how their name begins; Liu et al., ICLR 2025, arXiv 2410.16184.

    Args:
        items: from `read_rm_bench`.
        scores: for each item the six scores of its responses.
    """
    check_scores(items, scores)
    table = np.asarray(scores, dtype=np.float64).reshape(len(items), 2, 3)
    right = (table[:, 0, :, None] > table[:, 1, None, :]).astype(np.float64)
    upper = np.triu(np.ones((3, 3), dtype=bool), 1)
    levels = np.stack([right[:, upper].mean(1), right[:, np.eye(3, dtype=bool)].mean(1), right[:, upper.T].mean(1)], 1)
    domains = [name for name in DOMAINS if any(item.subset.startswith(name) for item in items)]
    inside = np.array([[item.subset.startswith(name) for name in domains] for item in items])
    of_cells = mean_of(np.where(inside[:, :, None], levels[:, None, :], np.nan).reshape(len(items), -1))

    def all_numbers(drawn: Array) -> Array:
        cells = of_cells(drawn).reshape(len(drawn), len(domains), 3)
        parts = [cells.reshape(len(drawn), -1), cells.mean(2), cells.mean(1), cells.mean((1, 2))[:, None]]
        return np.concatenate(parts, axis=1)

    found = iter(PromptBootstrap(prompts_of(items)).intervals(all_numbers))
    return RMBench(
        tuple(tuple(row) for row in right.mean(0).tolist()),
        {(domain, level): next(found) for domain in domains for level in LEVELS},
        {domain: next(found) for domain in domains},
        {level: next(found) for level in LEVELS},
        next(found),
        len(items),
        lambda drawn: all_numbers(drawn)[:, -1],
        tuple(name for name in DOMAINS if name not in domains),
    )
