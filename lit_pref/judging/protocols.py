"""Benchmarks of judges by name: where their items come from, and their numbers from the scores of the responses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from lit_pref.judging import reward_bench, reward_bench2, rm_bench
from lit_pref.judging.benchmark_items import BenchmarkItem, Scores, prompts_of
from lit_pref.judging.comparison import Comparison, Interval, PromptBootstrap, Statistic, compare

PREFERENCE_TEST_SETS = "allenai/preference-test-sets"


@dataclass(frozen=True)
class BenchmarkNumbers:
    """The numbers of a judge in a benchmark by name, the score first.

    `statistic` is the score as a function of the items' weights, and `resampled` what items are resampled by. `missing`
    names the parts that the items lack.
    """

    numbers: dict[str, Interval]
    statistic: Statistic = field(repr=False)
    resampled: list[str] = field(repr=False)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of judges.

    `single_scores` says that responses are compared by a score of each alone, which a preference embedding lacks.
    """

    title: str
    hub: str
    read: Callable[[str], list[BenchmarkItem]]
    evaluate: Callable[[Sequence[BenchmarkItem], Scores], BenchmarkNumbers]
    single_scores: bool


def with_prior_sets(source: str, prior_sets: Mapping[str, str]) -> list[BenchmarkItem]:
    """Return the items of RewardBench and of prior sets.

    Args:
        source: of RewardBench.
        prior_sets: name of a preference test set -> its source.
    """
    parts = [reward_bench.read_reward_bench(path, name) for name, path in prior_sets.items()]
    return list(chain(reward_bench.read_reward_bench(source), *parts))


def prior_sets_of_hub() -> dict[str, str]:
    """Return the sources of the four prior sets that count."""
    return {name: f"{PREFERENCE_TEST_SETS}:{name}" for name in reward_bench.PRIOR_SETS}


def difference(a: BenchmarkNumbers, b: BenchmarkNumbers, title: str, names: tuple[str, str]) -> Comparison:
    """Return the paired difference of two judges in the score of a benchmark, on the same items."""
    return compare(a.statistic, b.statistic, PromptBootstrap(a.resampled), f"{title} score", names)


def _reward_bench(items: Sequence[BenchmarkItem], scores: Scores) -> BenchmarkNumbers:
    found = reward_bench.reward_bench(items, scores)
    numbers = {"score": found.score, **found.sections, **found.subsets}
    return BenchmarkNumbers(numbers, found.statistic, prompts_of(items), found.missing)


def _reward_bench2(items: Sequence[BenchmarkItem], scores: Scores) -> BenchmarkNumbers:
    found = reward_bench2.reward_bench2(items, scores)
    numbers = {"score": found.score, **found.subsets}
    return BenchmarkNumbers(numbers, found.statistic, reward_bench2.resampled(items), found.missing)


def _rm_bench(items: Sequence[BenchmarkItem], scores: Scores) -> BenchmarkNumbers:
    found = rm_bench.rm_bench(items, scores)
    cells = {f"{domain}, {level}": value for (domain, level), value in found.cells.items()}
    numbers = {"score": found.score, **found.domains, **found.levels, **cells}
    return BenchmarkNumbers(numbers, found.statistic, prompts_of(items), found.missing)


BENCHMARKS = {
    "reward_bench": Benchmark(
        "RewardBench", reward_bench.HUB, reward_bench.read_reward_bench, _reward_bench, single_scores=False
    ),
    "reward_bench2": Benchmark(
        "RewardBench 2", reward_bench2.HUB, reward_bench2.read_reward_bench2, _reward_bench2, single_scores=True
    ),
    "rm_bench": Benchmark("RM-Bench", rm_bench.HUB, rm_bench.read_rm_bench, _rm_bench, single_scores=True),
}
