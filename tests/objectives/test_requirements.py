import itertools

import pytest

from lit_pref.errors import UsageError
from lit_pref.objectives import DPO, SELM, SFT, EditWeighted, EpsilonStep, Fitted, Geometric, MarginTarget, Requirements
from lit_pref.objectives.parts.prompt_contrast import PromptCrop
from lit_pref.objectives.parts.tokens import edits
from lit_pref.scores import Kl, Tilt, TokenLogps


def other_edits(prompt, chosen, rejected):
    return [0.0] * len(chosen), [0.0] * len(rejected)


SOME = [
    Requirements(),
    Requirements(1, 1, statistics=frozenset({Kl()}), columns=frozenset({"margin"})),
    Requirements(2, None, frozenset({Tilt(0.1)}), frozenset({TokenLogps()}), token_functions={"edits": edits}),
    Requirements(0, 4, sides=("chosen", "rejected", "extra_response"), fit_inputs=frozenset({"margin"})),
    Requirements(max_references=0, token_columns=frozenset({"spans"})),
]


def test_together_two_ask_for_everything_that_either_asks_for():
    assert SOME[1] | SOME[2] == Requirements(
        min_references=2,
        max_references=1,  # they cannot agree: the range is empty, and `Pairwise` refuses
        statistics=frozenset({Kl(), Tilt(0.1)}),
        reference_statistics=frozenset({TokenLogps()}),
        columns=frozenset({"margin"}),
        token_functions={"edits": edits},
    )
    assert (SOME[2] | SOME[3]).sides == ("chosen", "rejected", "extra_response")
    assert ((SOME[2] | SOME[3]).min_references, (SOME[2] | SOME[3]).max_references) == (2, 4)


@pytest.mark.parametrize(("a", "b", "c"), list(itertools.product(SOME, repeat=3)))
def test_the_union_depends_on_neither_order_nor_grouping(a, b, c):
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a | a == a | Requirements() == a


def test_they_can_be_kept_in_a_set():
    assert len({*SOME, *SOME}) == len(SOME)


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(UsageError, match="different token columns with the name edits: rename one"):
        SOME[2] | Requirements(token_functions={"edits": other_edits})


def test_the_extra_response_is_that_of_one_objective():
    crop = PromptCrop(0.1, 0.2, seed=0)
    under = Requirements(sides=("chosen", "extra_response"), extra_function=crop)
    assert all(both.extra_function == crop for both in (under | SOME[1], SOME[1] | under, under | under))
    for other in (SOME[3], Requirements(sides=under.sides, extra_function=PromptCrop(0.1, 0.2, seed=1))):
        with pytest.raises(UsageError, match=r"two objectives read different extra responses .* one after the other"):
            other | under


def test_a_string_in_place_of_a_set_and_an_unknown_side_are_refused():
    with pytest.raises(TypeError, match="columns is a set of names, got the string 'margin'"):
        Requirements(columns="margin")
    assert Requirements(columns={"margin"}).columns == frozenset({"margin"})
    with pytest.raises(TypeError, match="sides are chosen, rejected, extra_response, got third"):
        Requirements(sides=("chosen", "third"))


def test_an_objective_requires_everything_that_its_parts_require():
    asked = DPO(
        temperature=EpsilonStep(0.1), target=MarginTarget(Fitted("votes")), reference=Geometric([1.0, 2.0])
    ).requirements
    assert asked == Requirements(
        min_references=2,
        max_references=2,
        statistics=frozenset({Tilt(0.1), Tilt(-0.1)}),
        columns=frozenset({"margin", "votes"}),
        fit_inputs=frozenset({"margin", "votes"}),
    )
    assert DPO(tokens=EditWeighted()).requirements.token_functions == {"edits": edits}
    assert SELM(reference=Geometric()).requirements == Requirements(1, sides=("chosen", "rejected", "extra_response"))
    assert SFT().requirements == Requirements(max_references=0, sides=("chosen",))


def test_requirements_are_computed_once():
    for objective in (DPO(), SELM(), SFT()):
        assert objective.requirements is objective.requirements
