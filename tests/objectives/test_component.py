"""An objective prints its arguments as given, whatever it computes from them."""

import copy
import math
import pickle
import re

import pytest
import torch

from lit_pref import describing
from lit_pref.errors import UsageError
from lit_pref.objectives import (
    CDPO,
    DPO,
    MODPO,
    SFT,
    ChosenNLL,
    ColumnsOffset,
    EpsilonStep,
    MarginTarget,
    Pairwise,
    Requirements,
    SequentialSPO,
    Smoothed,
    Squared,
)
from lit_pref.objectives.base import Objective
from lit_pref.objectives.parts.terms import Term
from lit_pref.objectives.parts.weight import Weight


class PaperIPO(Pairwise):
    """The paper's own name for beta."""

    def __init__(self, tau: float = 0.1, **parts):
        super().__init__(beta=tau, link=Squared(), **parts)


class PaperMODPO(Pairwise):
    """beta, divided by the weight of the trained preference."""

    def __init__(self, rewards: dict[str, float], beta: float = 0.1, **parts):
        own = 1 - sum(rewards.values())
        super().__init__(beta=beta / own, offset=ColumnsOffset(rewards, scale=1 / own), **parts)


class Weighed(Pairwise):
    """An argument with the name of a part."""

    def __init__(self, beta: float = 0.1, weight: float = 0.5):
        super().__init__(beta=beta / weight)


class TwiceIPO(PaperIPO):
    """Two constructors deep."""

    def __init__(self, patience: int = 3, **parts):
        super().__init__(tau=0.05, **parts)


REST = (
    "reference=Single(), temperature=Constant(), target=Hard(), link=Logistic(), tokens=Sum(), score=Identity(), "
    "offset=NoOffset(), weight=NoWeight(), terms=[])"
)


def test_a_papers_own_name_for_beta_is_printed_in_place_of_beta():
    assert repr(PaperIPO(tau=0.2)) == f"PaperIPO(tau=0.2, {REST.replace('Logistic', 'Squared')}"
    assert repr(PaperIPO()) == repr(PaperIPO(tau=0.1))
    assert "beta" not in repr(PaperIPO(0.3, target=MarginTarget(2.0)))
    assert PaperIPO(tau=0.2).beta == 0.2


def test_a_beta_that_a_method_rescales_is_printed_as_given_and_logged_as_used(make):
    objective = PaperMODPO({"other": 0.5}, beta=0.1)
    assert repr(objective).startswith("PaperMODPO(beta=0.1, rewards={'other': 0.5}, reference=")
    assert objective.arguments["beta"] == 0.1 and objective.beta == 0.2
    # R_w - R_l = 1.4 - 1.0 = 0.4: x = (0.1 * 1.5 - 0.5 * 0.4) / 0.5 = -0.1
    output = make.g0(other_chosen=1.4, other_rejected=1.0).into(objective)
    assert output.logged["beta"].item() == 0.2
    assert output.losses.item() == pytest.approx(0.7443966600735709, abs=1e-14)


def test_an_argument_with_the_name_of_a_part_is_printed_as_given():
    objective = Weighed(0.1, 0.5)
    assert repr(objective) == f"Weighed(beta=0.1, {REST.replace('NoWeight()', '0.5')}"
    assert objective.beta == 0.2


def test_open_arguments_of_the_base_are_printed_and_computed_ones_are_not():
    assert repr(TwiceIPO(patience=4)) == f"TwiceIPO(patience=4, {REST.replace('Logistic', 'Squared')}"

    class Cautious(DPO):
        def __init__(self, patience: int = 3, **parts):
            super().__init__(**parts)

    assert repr(Cautious()).startswith("Cautious(beta=0.1, patience=3, reference=")
    assert repr(Cautious(beta=0.3)).startswith("Cautious(beta=0.3, patience=3, reference=")
    # A command line gives every argument, the defaults too.
    assert repr(Cautious(beta=0.1, reference=None, terms=None)) == repr(Cautious())


def test_a_part_that_keeps_no_attribute_prints_its_arguments():
    class Halved(Term):
        def __init__(self, strength: float = 1.0):
            super().__init__(coefficient=strength / 2)

        def forward(self, beta, rewards, policy, references, pairs):
            return rewards[0]

    assert repr(Halved(3.0)) == "Halved(strength=3.0)" and Halved(3.0).coefficient == 1.5
    assert repr(ChosenNLL(0.5)) == "ChosenNLL(coefficient=0.5)"
    assert repr(SFT()) == "SFT()"


def test_copies_keep_the_given_arguments():
    objective = PaperMODPO({"other": 0.5}, temperature=EpsilonStep(0.02))
    copied = copy.deepcopy(objective)
    assert repr(copied) == repr(objective)
    assert repr(pickle.loads(pickle.dumps(objective))) == repr(objective)
    assert list(copied.state_dict()) == ["temperature.scale"]
    assert {id(module) for module in copied.modules()}.isdisjoint(id(module) for module in objective.modules())


def test_a_wrong_argument_is_answered_as_python_answers_it():
    with pytest.raises(TypeError, match=r"PaperMODPO\.__init__\(\) missing 1 required positional argument: 'rewards'"):
        PaperMODPO()
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        Weighed(gama=1.0)
    with pytest.raises(UsageError, match="PaperIPO: tau must be a positive, finite number, got inf"):
        PaperIPO(tau=math.inf)


def test_a_refusal_names_the_class_and_the_argument_that_the_user_wrote():
    class Own(CDPO):
        def __init__(self, share=0.1, strength=1.0, **parts):
            super().__init__(epsilon=share, terms=[ChosenNLL(strength)], **parts)

    with pytest.raises(UsageError, match=r"^Own: share is the share of wrong labels .*, got -0\.5"):
        Own(share=-0.5)
    with pytest.raises(UsageError, match=r"^Own: strength must be finite and >= 0, got -2\.5"):
        Own(strength=-2.5)
    with pytest.raises(UsageError, match=r"^Smoothed: epsilon is the share of wrong labels .*, got -0\.5"):
        Own(target=Smoothed(-0.5))


def refusals(cls, name):
    """The messages for numbers of which at least one is out of range, unless the argument has no range."""
    for value in (-1.5, 1.5, math.inf, math.nan):
        try:
            cls(**{**describing.required_arguments(cls), name: value})
        except UsageError as error:
            yield str(error)


def test_a_number_out_of_range_is_refused_in_the_names_of_its_objective():
    refused = {
        (cls.__name__, argument.name): list(refusals(cls, argument.name))
        for cls in describing.subclasses(Objective)
        for argument in describing.arguments(cls)
        if isinstance(argument.default, int | float) and not isinstance(argument.default, bool)
    }
    for (owner, name), messages in refused.items():
        for message in messages:
            assert re.match(rf"{owner}: .*\b{name}\b", message), message
    assert len(refused) > 80
    unbounded = {("ConditionalContrast", "seed"), ("OmniDPO", "tau_ref"), ("OmniDPO", "tau_good")}
    assert {key for key, messages in refused.items() if not messages} == unbounded


def test_a_value_that_is_computed_from_arguments_is_refused_in_their_names():
    for multipliers in ([], [math.nan], [0.5, math.inf]):
        with pytest.raises(UsageError, match=r"^SequentialSPO: multipliers are finite numbers, one for each reference"):
            SequentialSPO(multipliers)
    with pytest.raises(UsageError, match=r"^MODPO: beta must be positive and finite, got -1\.5"):
        MODPO({"help": 0.5}, beta=-1.5)


def test_an_objective_and_a_part_of_ones_own_state_requirements_by_a_class_attribute(make):
    class Trust(Weight):
        requirements = Requirements(columns=frozenset({"trust"}))

        def forward(self, policy, pairs):
            return self.read("trust", policy, pairs)

    objective = DPO(weight=Trust())
    assert objective.requirements == Requirements(1, 1, columns=frozenset({"trust"}))
    assert make.g0(trust=2.0).into(objective).losses.item() == pytest.approx(2 * math.log1p(math.exp(-0.15)), abs=1e-14)
    assert torch.equal(make.g0(trust=2.0).into(objective).logged["beta"], torch.tensor([0.1], dtype=torch.float64))
