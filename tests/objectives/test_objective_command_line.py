"""Objectives built by jsonargparse, as the command line and a YAML file build them."""

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from lit_pref.objectives import (
    DPO,
    MMPO,
    MRPO,
    SFT,
    Anchor,
    ChosenNLL,
    ColumnOffset,
    EpsilonDPO,
    EpsilonStep,
    Harmonic,
    MarginTarget,
    NoReference,
    Objective,
)


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    return parser


def from_words(parser, words):
    return parser.instantiate(parser.parse_args(words.split())).objective


def from_dict(parser, name, **init_args):
    config = parser.parse_object({"objective": {"class_path": name, "init_args": init_args}})
    return parser.instantiate(config).objective


def part(name, **init_args):
    return {"class_path": name, "init_args": init_args}


COMPOSED = DPO(beta=0.05, reference=Harmonic(eta=0.2), target=MarginTarget(1.5), temperature=EpsilonStep(0.02))


def test_three_parts_of_dpo_from_the_command_line(parser):
    built = from_words(
        parser,
        "--objective DPO --objective.beta 0.05 --objective.reference Harmonic --objective.reference.eta 0.2 "
        "--objective.target MarginTarget --objective.target.gamma 1.5 "
        "--objective.temperature EpsilonStep --objective.temperature.epsilon 0.02",
    )
    assert repr(built) == repr(COMPOSED)


def test_three_parts_of_dpo_from_a_dict_and_from_what_was_saved(parser):
    built = from_dict(
        parser,
        "DPO",
        beta=0.05,
        reference=part("Harmonic", eta=0.2),
        target=part("MarginTarget", gamma=1.5),
        temperature=part("EpsilonStep", epsilon=0.02),
    )
    assert repr(built) == repr(COMPOSED)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("MMPO --objective.gamma 2.2", MMPO(gamma=2.2)),
        ("MMPO --objective.gamma .inf", MMPO(gamma=float("inf"))),
        (
            "MMPO --objective.gamma 2.2 --objective.reference Harmonic --objective.reference.weights [1,2]",
            MMPO(gamma=2.2, reference=Harmonic(weights=[1.0, 2.0])),
        ),
        ("MMPO --objective.beta 1 --objective.reference NoReference", MMPO(beta=1.0, reference=NoReference())),
        (
            "MRPO --objective.eta 0.3 --objective.arwc_swap true --objective.temperature EpsilonStep",
            MRPO(eta=0.3, arwc_swap=True, temperature=EpsilonStep()),
        ),
        ("EpsilonDPO --objective.first_order true", EpsilonDPO(first_order=True)),
        ("DPO --objective.offset ColumnOffset --objective.offset.column harm", DPO(offset=ColumnOffset("harm"))),
        (
            'DPO --objective.terms [{"class_path":"ChosenNLL","init_args":{"coefficient":0.5}},"Anchor"]',
            DPO(terms=[ChosenNLL(0.5), Anchor()]),
        ),
        ("SFT", SFT()),
    ],
)
def test_methods_take_their_own_numbers_and_leave_the_other_parts_open(parser, words, expected):
    built = from_words(parser, f"--objective {words}")
    assert repr(built) == repr(expected)
    # and what is saved of it builds the same thing again
    config = parser.parse_args(f"--objective {words}".split())
    again = parser.parse_string(parser.dump(config))
    assert repr(parser.instantiate(again).objective) == repr(expected)


@pytest.mark.parametrize(
    ("method", "filled"), [("MMPO", "target"), ("MRPO", "reference"), ("EpsilonDPO", "temperature")]
)
def test_the_part_that_a_method_fills_is_closed(parser, method, filled):
    with pytest.raises(ArgumentError, match=filled):
        from_dict(parser, method, **{filled: part("Hard")})


def test_every_argument_of_a_part_has_a_help_text(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--objective.help", "MRPO"])
    text = capsys.readouterr().out
    assert "--objective.eta" in text and "--objective.target" in text and "--objective.reference " not in text
