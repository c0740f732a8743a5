"""The statistics and findings of `check`, compared with values computed by hand."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from lit_pref.check import counts, statistics
from lit_pref.check.data_findings import overlap, split_findings
from lit_pref.check.rendering import examples, render
from lit_pref.check.report import Finding, Report
from lit_pref.check.statistics import Shortcut, shortcuts
from lit_pref.check.strength_findings import Strength, strength_of, target_findings
from lit_pref.check.terminal import plain_line
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.parts.link import Hinge, MarginLink
from lit_pref.objectives.parts.target import Target
from lit_pref.objectives.parts.tokens import Mean
from lit_pref.pages.html import percent
from lit_pref.pairs import PreferencePair, TruncatedText

BEGIN, END = 1, 2
ENDS = {END: "<end>"}


@dataclass
class Pairs:
    """Prepared pairs, as far as `check` needs them, from ids, margins and a few further columns."""

    ids: list[tuple[list[int], list[int], list[int] | None]]
    margins: list[float]
    further: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, k: int) -> PreferencePair:
        text = TruncatedText(*(str(part) for part in self.ids[k]), True, True)
        return PreferencePair(str(k), *self.ids[k], self.margins[k], None, {}, None, text)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([[len(part or ()) for part in ids] for ids in self.ids]).reshape(-1, 3)

    def column(self, name: str) -> np.ndarray:
        number = len(self)
        known = {
            "id": np.array([str(k) for k in range(number)], object),
            "prompt_id": np.array([str(prompt) for prompt, _, _ in self.ids], object),
            "prompt_group": np.array([str(prompt) for prompt, _, _ in self.ids], object),
            "margin": np.array(self.margins, float),
            "probability": np.full(number, np.nan),
            "tie": np.array(self.margins, float) == 0,
            "chosen_first": np.full(number, np.nan),
            "chosen_source": np.full(number, None, object),
            "rejected_source": np.full(number, None, object),
            "special_texts": np.zeros(number, int),
        }
        return np.asarray(self.further.get(name, known.get(name, np.zeros(number, bool))))


def pair(prompt: int, chosen: int, rejected: int, word: int = 7) -> tuple[list[int], list[int], list[int]]:
    """Token ids of a pair; the responses have the given lengths, including the eos token."""
    return [BEGIN, 100 + prompt], [word] * (chosen - 1) + [END], [word + 1] * (rejected - 1) + [END]


def found(findings: list[Finding], topic: str, **numbers: Any) -> Finding:
    """The only finding of a topic with these numbers."""
    matching = [f for f in findings if f.topic == topic and all(f.numbers[k] == v for k, v in numbers.items())]
    assert len(matching) == 1, [f.says for f in findings if f.topic == topic]
    return matching[0]


# Margins


def test_a_pile_at_the_largest_margin_is_a_bound_though_no_mapping_clipped():
    values = np.array([6.0] * 75 + [k / 5 for k in range(25)])
    of = statistics.margins(values, np.zeros(100, bool))
    assert of is not None
    assert (of.at_maximum, of.zero, of.distinct, of.clipped) == (75, 1, 26, 0)
    assert of.pile == 0.75 and of.is_clip
    finding = found(
        split_findings("train", Pairs([pair(k, 3, 2) for k in range(100)], list(values)), 1, {2: "e"}), "clip"
    )
    assert finding.severity == "warning" and "75.0 % of the margins equal the largest, 6" in finding.says
    assert "they were clipped in the source" in finding.says


def test_the_mappings_own_clip_is_named_as_that():
    values = [6.0] * 75 + [k / 5 for k in range(25)]
    clipped = np.array([True] * 75 + [False] * 25)
    pairs = Pairs([pair(k, 3, 2) for k in range(100)], values, {"clipped": clipped})
    finding = found(split_findings("train", pairs, BEGIN, ENDS), "clip")
    assert finding.numbers["clipped"] == 0.75 and "the mapping's clip" in finding.says


def test_many_pairs_at_the_top_of_a_rating_scale_are_no_bound():
    of = statistics.margins(np.array([1.0, 2.0, 3.0, 4.0] * 50), np.zeros(200, bool))
    assert of is not None and of.pile == 0.25 and not of.is_clip and of.whole


def test_a_smooth_scale_has_no_bound():
    of = statistics.margins(np.linspace(0.1, 5, 400), np.zeros(400, bool))
    assert of is not None and of.at_maximum == 1 and not of.is_clip


def test_the_gamma_that_is_suggested_makes_the_median_pair_three_quarters():
    pairs = Pairs([pair(k, 3, 2) for k in range(5)], [0.5, 1.0, 2.0, 3.0, 9.0])
    gamma = found(split_findings("train", pairs, BEGIN, ENDS), "margins").numbers["gamma_for_three_quarters"]
    assert 1 / (1 + math.exp(-gamma * 2.0)) == pytest.approx(0.75)


def test_pairs_without_any_strength_are_noted():
    pairs = Pairs([pair(k, 3, 2) for k in range(5)], [math.nan] * 5)
    finding = found(split_findings("train", pairs, BEGIN, ENDS), "margins")
    assert finding.severity == "note" and "neither margin nor probability" in finding.says


# The target and what it asks for


def test_targets_saturate_where_fp32_has_no_number_below_one():
    # 1 - sigmoid(x) = exp(-x) / (1 + exp(-x)) is lost where it is below half the spacing of fp32 below 1, 2**-25.
    edge = 25 * math.log(2)
    values = np.array([0.0, 0.9 * edge, 1.1 * edge, 2 * edge]) / 2.2
    of = statistics.demand(2.2, 0.01, values, np.array([[5, 100, 300]] * 4))
    assert of.saturated == 0.5
    assert of.mean_target == pytest.approx((0.5 + 1 / (1 + math.exp(-0.9 * edge)) + 1 + 1) / 4, abs=1e-7)


def test_gamma_over_beta_is_what_is_asked_for_in_nats_and_per_token():
    # gamma 2.2, beta 0.01: 220 nats at a margin of one; the median of all responses has 200 tokens.
    of = statistics.demand(
        2.2, 0.01, np.array([0.5, 1.5, 2.0]), np.array([[5, 100, 200], [5, 200, 300], [5, 100, 300]])
    )
    assert of.nats == pytest.approx({"margin 1": 220.0, "median margin": 330.0, "largest margin": 440.0})
    assert of.response == 200 and of.per_token["median margin"] == pytest.approx(1.65)


def test_mean_log_probs_are_asked_for_per_token():
    of = statistics.demand(2.0, 0.5, np.array([1.0]), np.array([[5, 10, 10]]), mean_scores=True)
    assert of.per_token["margin 1"] == pytest.approx(4.0) and of.nats["margin 1"] == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("beta", "gamma", "severity"), [(0.01, 2.2, "warning"), (0.1, 1.1, "ok"), (0.1, 4.0, "note"), (0.1, math.inf, "ok")]
)
def test_what_is_asked_for_gets_a_verdict(beta: float, gamma: float, severity: str):
    pairs = Pairs([pair(k, 301, 300) for k in range(9)], [1.0] * 9)
    finding = found(target_findings("train", pairs, Strength(gamma, beta, False)), "demand")
    assert finding.severity == severity
    if gamma == 2.2:
        assert "gamma 2.2 with beta 0.01" in finding.says and "220 nats at a margin of one" in finding.says


def test_an_objective_says_how_it_reads_margins():
    assert strength_of(MMPO(beta=0.05, gamma=1.5)) == Strength(1.5, 0.05, False)
    assert strength_of(MMPO(beta=2.0, gamma=1.5, tokens=Mean())) == Strength(1.5, 2.0, True)
    assert strength_of(MMPO(gamma=1.5, link=Hinge())) == Strength(1.5, None, False), "its minimum is elsewhere"
    assert strength_of(DPO()) is None


class OwnTarget(Target):
    strength = 2.0

    def forward(self, policy, pairs):
        return torch.sigmoid(self.strength * pairs.margin)


class OwnLink(MarginLink):
    fits_target = True

    def loss(self, logits):
        return torch.nn.functional.softplus(-logits)


class OwnTokens(Mean):
    plain_mean = False


def test_parts_of_ones_own_say_by_flags_how_they_read_margins():
    assert strength_of(DPO(beta=0.2, target=OwnTarget(), link=OwnLink())) == Strength(2.0, 0.2, False)
    assert strength_of(DPO(beta=0.2, target=OwnTarget(), tokens=OwnTokens())) == Strength(2.0, None, False)


# Shortcuts


def test_the_longer_wins_is_counted_where_lengths_differ_and_no_tie_is():
    # Longer chosen 3 times, shorter once, once equal; the sixth is a tie in strength.
    lengths = [(5, 3), (6, 3), (9, 4), (3, 8), (4, 4), (9, 3)]
    pairs = Pairs([pair(k, *two) for k, two in enumerate(lengths)], [1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    (rule,) = shortcuts(pairs)
    assert rule == Shortcut("the longer response wins", 0.75, 4, 0.8, 0.8)


def test_of_two_opposite_rules_the_better_one_is_told():
    pairs = Pairs([pair(0, 3, 5), pair(1, 3, 5), pair(2, 5, 3), pair(3, 2, 9)], [1.0] * 4)
    (rule,) = shortcuts(pairs)
    assert rule.rule == "the shorter response wins" and rule.accuracy == 0.75


def test_the_first_in_the_source_and_the_most_frequent_writer():
    first = np.array([1.0, 1.0, 0.0, np.nan])
    writers = {"chosen_source": ["base", "base", "x", "base"], "rejected_source": ["x", "y", "base", "base"]}
    further = {"chosen_first": first, **{name: np.array(values, object) for name, values in writers.items()}}
    _, order, source = shortcuts(Pairs([pair(k, 3, 2) for k in range(4)], [1.0] * 4, further))
    assert (order.rule, order.accuracy, order.pairs) == ("the first in the source wins", pytest.approx(2 / 3), 3)
    # The fourth pair has base on both sides: the rule says nothing of it.
    assert (source.rule, source.accuracy, source.pairs) == ("a response of base wins", pytest.approx(2 / 3), 3)


@pytest.mark.parametrize(("number", "severity"), [(400, "warning"), (100, "ok")])
def test_a_shortcut_is_warned_of_where_there_are_pairs_enough(number: int, severity: str):
    ids = [pair(k, 5, 3) if k % 4 else pair(k, 3, 5) for k in range(number)]
    finding = found(split_findings("train", Pairs(ids, [1.0] * number), BEGIN, ENDS), "shortcut")
    assert finding.severity == severity and finding.numbers["accuracy"] == 0.75


# Prompts, repeated pairs, overlap


def test_repeated_and_contradicting_pairs_are_told_apart():
    a, b = pair(0, 4, 6), pair(1, 4, 6)
    swapped = (a[0], a[2], a[1])
    of = counts.repeated(Pairs([a, b, a, swapped, pair(0, 4, 6, word=20)], [1.0] * 5))
    assert of == counts.Repeated(same=1, swapped=1, complete=True)


def test_prompts_in_both_splits_are_a_warning_and_pairs_in_both_a_stop():
    train = Pairs([pair(0, 4, 6), pair(1, 4, 6)], [1.0] * 2)
    other = Pairs([pair(1, 5, 6), pair(2, 5, 6)], [1.0] * 2, {"id": np.array(["a", "b"], object)})
    (finding,) = overlap(train, other)
    assert finding.severity == "warning" and finding.numbers["shared"] == 1 and finding.numbers["share"] == 0.5
    (finding,) = overlap(train, train)
    assert finding.severity == "stop" and finding.numbers["same"] == 2
    apart = Pairs([pair(5, 5, 6)], [1.0])
    assert [f.severity for f in overlap(train, apart)] == ["ok"], "the same id with another prompt is another pair"


def test_pairs_in_both_splits_are_told_by_their_tokens_and_not_by_their_ids():
    train = Pairs([pair(0, 4, 6), pair(1, 4, 6)], [1.0] * 2)
    renamed = Pairs([pair(1, 4, 6), pair(2, 4, 6)], [1.0] * 2, {"id": np.array(["a", "b"], object)})
    (finding,) = overlap(train, renamed)
    assert finding.severity == "stop" and finding.numbers["shared"] == finding.numbers["same"] == 1
    # The same ids, prompts and lengths, and other words in them.
    others = Pairs([pair(0, 4, 6, word=20), pair(1, 4, 6, word=20)], [1.0] * 2)
    (finding,) = overlap(train, others)
    assert finding.severity == "warning" and (finding.numbers["shared"], finding.numbers["same"]) == (2, 0)


def test_no_pairs_to_train_on_stop_and_none_to_validate_do_not():
    assert [f.severity for f in split_findings("train", Pairs([], []), BEGIN, ENDS)] == ["stop"]
    assert [f.severity for f in split_findings("val", Pairs([], []), BEGIN, ENDS)] == ["note"]


# Tokens


def test_one_begin_token_and_an_end_to_every_response():
    of = counts.tokens(Pairs([pair(k, 4, 6) for k in range(6)], [1.0] * 6), BEGIN, {END})
    assert (of.begins_once, of.further_begins, of.ended, of.ends) == (1.0, 0, 1.0, {END: 1.0})


def test_the_end_tokens_are_named():
    turned = [(prompt, [*chosen[:-1], 99], rejected) for prompt, chosen, rejected in (pair(k, 4, 6) for k in range(4))]
    finding = found(split_findings("train", Pairs(turned, [1.0] * 4), BEGIN, {99: "<turn>", **ENDS}), "tokens")
    assert "100 % of the complete responses end with an end token: " in finding.says
    assert "<turn> (50.0 %)" in finding.says and "<end> (50.0 %)" in finding.says
    assert finding.numbers["ends"] == {"<turn>": 0.5, "<end>": 0.5}


def test_a_begin_token_before_every_turn_is_the_template_s_own():
    prompt, chosen, rejected = pair(0, 4, 6)
    turns = Pairs([([*prompt, BEGIN, 9, BEGIN], [*chosen[:-1], BEGIN, END], rejected)], [1.0])
    finding = found(split_findings("train", turns, BEGIN, ENDS), "tokens")
    assert finding.severity == "ok" and finding.numbers["further_begins"] == 0


def test_a_second_begin_token_or_a_missing_end_stops():
    prompt, chosen, rejected = pair(0, 4, 6)
    doubled = Pairs([([BEGIN, *prompt], chosen, rejected), pair(1, 4, 6)], [1.0] * 2)
    finding = found(split_findings("train", doubled, BEGIN, ENDS), "tokens")
    assert finding.severity == "stop" and finding.numbers["further_begins"] == 1
    opened = Pairs([(prompt, [BEGIN, *chosen], rejected), pair(1, 4, 6)], [1.0] * 2)
    assert found(split_findings("train", opened, BEGIN, ENDS), "tokens").severity == "stop"
    endless = Pairs([(prompt, chosen[:-1], rejected), pair(1, 4, 6)], [1.0] * 2)
    finding = found(split_findings("train", endless, BEGIN, ENDS), "tokens")
    assert finding.severity == "stop" and finding.numbers["ended"] == 0.75


def test_one_side_that_is_cut_more_often_is_warned_of():
    cut = {"chosen_cut": np.arange(100) < 9, "rejected_cut": np.arange(100) < 2}
    pairs = Pairs([pair(k, 4, 6) for k in range(100)], [1.0] * 100, cut)
    finding = found(split_findings("train", pairs, BEGIN, ENDS), "truncation")
    assert finding.severity == "warning" and finding.numbers["chosen_minus_rejected"] == pytest.approx(0.07)


class Tokenizer:
    """Every id is a letter."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join({BEGIN: "<s>", END: "</s>"}.get(i, chr(i)) for i in ids)


def test_a_rendered_pair_marks_what_is_trained_on_and_hides_the_middle():
    ids = [BEGIN, *map(ord, "a" * 40 + "Q:")], [*map(ord, " Yes" + "b" * 60), END], [ord(" "), ord("N")]
    (rendered,) = [render(p, Tokenizer(), {END}) for p in examples(Pairs([ids], [1.0]))]
    # 43 prompt tokens: the first eight, 11 hidden, the last 24. A response of 64: one, 48, 7 hidden, 8, and the end.
    line = plain_line(rendered.chosen)
    assert line == "<s>aaaaaaa[11 tokens]" + "a" * 22 + "Q:« ¦Yes" + "b" * 45 + "[7 tokens]" + "b" * 8 + "</s>»"
    assert plain_line(rendered.rejected).endswith("Q:« ¦N»"), "without an end where it was cut"
    assert [kind for kind, _ in rendered.chosen][-1] == "end"


# The report


def test_the_worst_finding_is_the_verdict_and_numbers_are_finite():
    report = Report("x", [Finding("a", "ok", "a"), Finding("b", "stop", "b", numbers={"m": {"n": math.inf}})])
    assert report.verdict == "stop" and report.counts == {"stop": 1, "warning": 0, "note": 0, "ok": 1}
    assert report.to_json()["findings"][1]["numbers"] == {"m": {"n": None}}


def test_a_share_that_is_nearly_everything_is_not_rounded_to_it():
    assert percent(0.9996) == "99.96 %" and percent(1 - 1e-9) != "100 %"
