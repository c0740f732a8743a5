"""Objectives built by jsonargparse, as the command line and a YAML file build them."""

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from lit_pref.objectives import (
    DPO,
    DPOP,
    FDPO,
    MMPO,
    MODPO,
    MRPO,
    SELM,
    SFT,
    AlphaDivergence,
    Anchor,
    BatchAdaptive,
    BetaDPO,
    ChosenNLL,
    ColumnOffset,
    ColumnsOffset,
    ColumnTemperature,
    ColumnTokens,
    EditWeighted,
    EpsilonDPO,
    EpsilonStep,
    Fitted,
    Harmonic,
    ImplicitRewards,
    MarginTarget,
    MinorDPO,
    MultiDPO,
    NoReference,
    Objective,
    SequentialSPO,
    UnitMargin,
    Weighted,
)
from lit_pref.parse_errors import plain_sentence
from lit_pref.parser import Parser


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
            'DPO --objective.offset ColumnsOffset --objective.offset.columns {"help":0.3,"harm":0.2} '
            "--objective.offset.scale 2 --objective.temperature ColumnTemperature "
            "--objective.temperature.column trust",
            DPO(offset=ColumnsOffset({"help": 0.3, "harm": 0.2}, 2.0), temperature=ColumnTemperature("trust")),
        ),
        (
            'DPO --objective.terms [{"class_path":"ChosenNLL","init_args":{"coefficient":0.5}},"Anchor"]',
            DPO(terms=[ChosenNLL(0.5), Anchor()]),
        ),
        ("SFT", SFT()),
        ("MMPO --objective.gamma Fitted", MMPO(gamma=Fitted())),
        ("MMPO --objective.gamma Fitted --objective.gamma.mean_probability 0.8", MMPO(gamma=Fitted(None, 0.8))),
        ("MMPO --objective.gamma UnitMargin --objective.gamma.p 0.9", MMPO(gamma=UnitMargin(0.9))),
        (
            "DPO --objective.target MarginTarget --objective.target.gamma Fitted --objective.target.gamma.labels votes",
            DPO(target=MarginTarget(Fitted("votes"))),
        ),
        ("DPO --objective.tokens ColumnTokens --objective.tokens.column spans", DPO(tokens=ColumnTokens("spans"))),
        (
            "SELM --objective.alpha 0.1 --objective.tokens EditWeighted --objective.tokens.delta 3",
            SELM(alpha=0.1, tokens=EditWeighted(3.0)),
        ),
        (
            "MultiDPO --objective.weights [1,2] --objective.temperature EpsilonStep",
            MultiDPO(weights=[1.0, 2.0], temperature=EpsilonStep()),
        ),
        ("BetaDPO --objective.filtered 0.1 --objective.alpha 0.8", BetaDPO(filtered=0.1, alpha=0.8)),
        (
            "MMPO --objective.temperature BatchAdaptive --objective.temperature.alpha 1",
            MMPO(temperature=BatchAdaptive(alpha=1.0)),
        ),
        ("DPOP --objective.penalty 5", DPOP(penalty=5.0)),
        ("MinorDPO --objective.reference Harmonic", MinorDPO(reference=Harmonic())),
        (
            "FDPO --objective.divergence AlphaDivergence --objective.divergence.alpha 0.3",
            FDPO(divergence=AlphaDivergence(0.3)),
        ),
        (
            'MODPO --objective.rewards {"help":0.4} --objective.length -0.01 --objective.target MarginTarget',
            MODPO({"help": 0.4}, length=-0.01, target=MarginTarget()),
        ),
        (
            "MODPO --objective.rewards {} --objective.w0 0.5 --objective.reference ImplicitRewards "
            "--objective.reference.weights [0.5]",
            MODPO({}, w0=0.5, reference=ImplicitRewards([0.5])),
        ),
        ("SequentialSPO --objective.multipliers [0.5,0.2]", SequentialSPO([0.5, 0.2])),
        ("Weighted", Weighted([DPO(), SFT()])),
        (
            'Weighted --objective.objectives [{"class_path":"MRPO","init_args":{"target":"MarginTarget"}},"SFT"] '
            "--objective.weights [1,0.2]",
            Weighted([MRPO(target=MarginTarget()), SFT()], [1.0, 0.2]),
        ),
        (
            "Weighted --objective.objectives+=MMPO --objective.objectives.gamma=2 --objective.objectives.temperature="
            "EpsilonStep --objective.objectives.temperature.epsilon=0.1 --objective.objectives+=SFT",
            Weighted([MMPO(gamma=2.0, temperature=EpsilonStep(0.1)), SFT()]),
        ),
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
    ("method", "filled"),
    [
        ("MMPO", "target"),
        ("MRPO", "reference"),
        ("EpsilonDPO", "temperature"),
        ("MultiDPO", "reference"),
        ("BetaDPO", "temperature"),
        ("DPOP", "score"),
        ("MODPO", "offset"),
    ],
)
def test_the_part_that_a_method_fills_is_closed(parser, method, filled):
    with pytest.raises(ArgumentError, match=filled):
        from_dict(parser, method, **{filled: part("Hard")})


def test_every_argument_of_a_part_has_a_help_text(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--objective.help", "MRPO"])
    text = capsys.readouterr().out
    assert "--objective.eta" in text and "--objective.target" in text and "--objective.reference " not in text


def test_a_mistyped_objective_within_a_sum_is_answered_with_the_nearest_one():
    parser = Parser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    with pytest.raises(ArgumentError) as caught:
        from_words(parser, '--objective Weighted --objective.objectives ["MMPPO","SFT"]')
    sentence = plain_sentence(str(caught.value))
    assert sentence.startswith("objective.objectives: unknown class 'MMPPO'") and "did you mean MMPO" in sentence


@pytest.mark.parametrize(
    ("words", "gamma"),
    [
        ("MMPO --objective.gamma 2.2 --objective.gamma Fitted", Fitted()),
        ("MMPO --objective.gamma Fitted --objective.gamma.labels votes --objective.gamma 1.5", 1.5),
        ("MMPO --objective.gamma UnitMargin --objective.gamma.p 0.9 --objective.gamma Fitted", Fitted()),
        ("MMPO --objective.gamma Fitted --objective.gamma.mean_probability 0.9 --objective MMPO", Fitted(None, 0.9)),
        ("MMPO --objective.gamma Fitted --objective DPO --objective.target MarginTarget", 1.0),
    ],
)
def test_a_number_and_the_ways_to_find_one_replace_each_other(words, gamma):
    parser = Parser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    assert repr(from_words(parser, f"--objective {words}").target) == repr(MarginTarget(gamma))


def test_a_later_file_replaces_a_fitted_gamma_by_a_number(tmp_path):
    parser = Parser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--objective", type=Objective)
    (tmp_path / "one.yaml").write_text("objective: {class_path: MMPO, init_args: {gamma: {class_path: Fitted}}}")
    (tmp_path / "two.yaml").write_text("objective: {class_path: MMPO, init_args: {gamma: 1.1}}")
    built = from_words(parser, f"--config {tmp_path}/one.yaml --config {tmp_path}/two.yaml")
    assert repr(built) == repr(MMPO(gamma=1.1))
    built = from_words(parser, f"--config {tmp_path}/two.yaml --config {tmp_path}/one.yaml")
    assert repr(built) == repr(MMPO(gamma=Fitted()))


def test_a_mistyped_gamma_is_answered_with_what_it_can_be():
    parser = Parser(exit_on_error=False)
    parser.add_argument("--objective", type=Objective)
    with pytest.raises(ArgumentError) as caught:
        from_words(parser, "--objective MMPO --objective.gamma Fited")
    assert plain_sentence(str(caught.value)) == (
        "objective.gamma: expected a number or Fitted, UnitMargin, got 'Fited'; did you mean Fitted?"
    )
