"""Rules on which parts can be combined. They read flags and requirements only, so a user's own part obeys them."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from lit_pref.objectives.parts.link import Link
from lit_pref.objectives.parts.offset import Offset
from lit_pref.objectives.parts.part import Part
from lit_pref.objectives.parts.reference import ReferenceMix
from lit_pref.objectives.parts.score import Score
from lit_pref.objectives.parts.target import Target
from lit_pref.objectives.parts.temperature import Temperature
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.parts.tokens import TokenSum


def beta_objections(beta: float, temperature: Temperature, link: Link) -> Iterator[str]:
    """Objections to a beta out of bounds, or to a beta that varies under a link that needs a constant one."""
    if not (math.isfinite(beta) and beta > 0):
        yield f"beta must be a positive, finite number, got {beta}."
    if not (temperature.minimum or 0) <= beta <= (math.inf if temperature.maximum is None else temperature.maximum):
        name = type(temperature).__name__
        yield f"beta {beta} lies outside {name}'s minimum and maximum: change beta or the bounds of {temperature}."
    if link.constant_beta_only and not temperature.constant:
        yield link.constant_beta_only


def reference_objections(parts: Sequence[Part], reference: ReferenceMix, score: Score) -> Iterator[str]:
    """Objections to different numbers of references, or to a score with or without a reference that cannot be."""
    for part, limit in itertools.product(parts, parts):
        least, most = part.requirements.min_references, limit.requirements.max_references
        if most is not None and least > most:
            names = type(part).__name__, type(limit).__name__
            yield (
                f"{names[0]} needs {'a reference' if least == 1 else f'{least} references'} and {names[1]} takes "
                f"{most or 'none'}: choose another part than {names[0]} or than {names[1]}."
            )
    if reference.requirements.max_references == 0 and score.needs_ratio:
        yield (
            f"{type(score).__name__} is a function of the ratio to a reference and {type(reference).__name__} has "
            "none: choose another reference, or `score: Identity`."
        )
    if reference.requirements.max_references != 0 and score.means_only:
        yield score.means_only


def score_objections(parts: Sequence[Part], tokens: TokenSum, score: Score, temperature: Temperature) -> Iterator[str]:
    """Objections to parts that lack what they need: the sum or the mean over tokens, or the reverse KL divergence."""
    if not tokens.plain_sum:
        yield from (part.sums_only for part in parts if part.sums_only)
    if score.means_only and not tokens.plain_mean:
        yield score.means_only
    if temperature.reverse_kl_only and not score.reverse_kl:
        yield temperature.reverse_kl_only


def target_objections(target: Target, link: Link, score: Score) -> Iterator[str]:
    """Objections to a target that the score or the link cannot use."""
    if not (score.symmetric or target.hard):
        yield (
            f"{type(score).__name__} treats chosen and rejected differently, so that l(-x) is not the loss of the "
            "swapped pair, which a target other than 1 needs: choose `target: Hard`, or another score."
        )
    if link.soft_targets_only and (target.hard or not target.proper):
        yield link.soft_targets_only
    if link.hard_targets_only and not target.hard:
        yield link.hard_targets_only


def extra_response_objections(parts: Sequence[Part]) -> Iterator[str]:
    """Objections to parts that read different extra responses."""
    readers = [part for part in parts if "extra_response" in part.requirements.sides]
    for other in readers[1:]:
        if other.requirements.extra_function != readers[0].requirements.extra_function:
            yield (
                f"{type(readers[0]).__name__} and {type(other).__name__} read different extra responses (that of each "
                "record, or one that is computed), and a pair has one: choose one of them."
            )


def margin_warnings(target: Target, offset: Offset) -> Iterator[str]:
    """Warnings about a margin that is used twice."""
    if all("margin" in part.requirements.columns for part in (target, offset)):
        yield (
            f"the margin is used twice, in {type(target).__name__} and in {type(offset).__name__}, "
            "and the data cannot tell the two strengths apart."
        )


def term_warnings(terms: Iterable[Term], target: Target) -> Iterator[str]:
    """Warnings about terms that prefer the chosen response at full strength, although the target is not 1."""
    if not target.hard:
        yield from (term.hard_targets for term in terms if term.hard_targets)
