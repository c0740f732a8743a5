"""Properties of every objective, present and future: the classes are found, not listed."""

from functools import partial

import pytest
import torch
from shapeless_device import META, BlockingCopies

from lit_pref.describing import CHECKED, FAMILIES, arguments, docstring, required_arguments, subclasses
from lit_pref.errors import UserError
from lit_pref.objectives import (
    DPO,
    MMPO,
    MODPO,
    SELM,
    SFT,
    BatchAdaptive,
    BetaDPO,
    ColumnsOffset,
    ColumnTemperature,
    ColumnTokens,
    EditWeighted,
    EpsilonStep,
    Geometric,
    Harmonic,
    Hinge,
    ImplicitRewards,
    Link,
    MarginTarget,
    Mean,
    MultiDPO,
    NoReference,
    Objective,
    Offset,
    Pairwise,
    ReferenceMix,
    ReverseKL,
    Score,
    Term,
    TokenSum,
    UnitMargin,
    Weighted,
)


def plain(kind):
    """An objective of the class with its defaults, and an example of every argument without one."""
    return kind(**required_arguments(kind))


KINDS = subclasses(Objective)
BUILDS = {kind.__name__: partial(plain, kind) for kind in KINDS} | {
    "composed": lambda: DPO(target=MarginTarget(2.0), reference=Harmonic(), temperature=EpsilonStep(0.1)),
    "composed, first order": lambda: DPO(reference=Geometric(), temperature=EpsilonStep(0.1, first_order=True)),
    "tokens of the data": lambda: DPO(tokens=ColumnTokens("spans"), target=MarginTarget(UnitMargin(0.9))),
    "columns": lambda: DPO(offset=ColumnsOffset({"other": 0.3}), temperature=ColumnTemperature("trust")),
    "filtered batch": lambda: BetaDPO(filtered=0.4, target=MarginTarget(2.0), reference=Harmonic()),
    "several references apart": lambda: MultiDPO(temperature=EpsilonStep(0.1), link=Hinge()),
    "implicit rewards": lambda: MODPO({"help": 0.3}, length=-0.01, reference=ImplicitRewards([0.3, -0.1])),
    "a sum": lambda: Weighted([MMPO(temperature=EpsilonStep()), SELM(), SFT(), MMPO(gamma=0.1)], [1, 0.5, 0.2, 2]),
    "edited tokens": lambda: DPO(tokens=EditWeighted(1.5), reference=Geometric()),
    "extra_response, composed": lambda: SELM(
        alpha=0.3, target=MarginTarget(2.0), reference=Harmonic(), temperature=EpsilonStep()
    ),
}


@pytest.fixture(params=BUILDS.values(), ids=BUILDS)
def build(request):
    return request.param


def several(objective):
    """K = 3 where the objective takes any number, else as many as it must have."""
    return 3 if objective.requirements.max_references is None else objective.requirements.min_references


def state(objective):
    return {name: value.clone() for name, value in objective.state_dict().items()}


def test_the_subclasses_are_found():
    assert {kind.__name__ for kind in KINDS} >= {"DPO", "MMPO", "MRPO", "EpsilonDPO", "SFT", "Pairwise"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_class_says_what_it_is_for_and_how_faithful_to_what(kind):
    about = docstring(kind)
    assert kind.faithfulness in CHECKED
    assert about.summary.endswith(".") and about.equation and about.when and about.source
    assert all(argument.meaning for argument in arguments(kind))
    assert kind.family in FAMILIES
    # That of a base class of a family is its own, that of `Pairwise` is nobody else's.
    assert kind is Pairwise or any("family" in vars(base) for base in kind.__mro__ if base not in (Pairwise, Objective))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_losses_rewards_and_logged_values_are_finite_and_one_for_each_pair(make, build, size):
    objective = build()
    output = make.random(objective, size, several(objective)).into(objective)
    values = [output.losses, output.chosen_rewards, *output.logged.values()]
    if "rejected" in objective.requirements.sides:
        values.append(output.rejected_rewards)
    assert all(value.shape == (size,) for value in values)
    assert all(bool(value.isfinite().all()) for value in values)


def test_only_the_losses_carry_a_gradient(make, build):
    objective = build()
    output = make.random(objective, references=several(objective)).into(objective)
    assert output.losses.requires_grad
    for value in (output.chosen_rewards, output.rejected_rewards, *output.logged.values()):
        assert value is None or not value.requires_grad


def test_the_loss_of_a_pair_depends_on_that_pair_or_its_list_alone_unless_the_objective_says_otherwise(make, build):
    objective = build()
    inputs = make.random(objective, references=several(objective))
    losses = inputs.into(objective).losses
    parts = [list(range(len(inputs.pairs)))] if objective.batch_coupled else inputs.parts()
    for part in parts:
        for i in part:
            for side in objective.requirements.sides:
                scores = getattr(inputs.policy, side).scores
                (gradient,) = torch.autograd.grad(losses[i], scores, retain_graph=True)
                assert set(gradient.nonzero().flatten().tolist()) <= set(part)
    alone = torch.cat([inputs.select(part).into(objective).losses for part in parts])
    torch.testing.assert_close(alone, losses, rtol=1e-14, atol=0)


def test_the_order_of_the_pairs_does_not_matter(make, build):
    objective = build()
    inputs = make.random(objective, references=several(objective))
    order = [3, 0, 4, 1, 2]
    straight, turned = inputs.into(objective), inputs.select(order).into(objective)
    atol = 1e-15 if objective.requirements.lists else 0.0  # a list is summed in the order of its records
    torch.testing.assert_close(turned.losses, straight.losses[order], rtol=10 * atol, atol=atol)
    assert torch.equal(turned.chosen_rewards, straight.chosen_rewards[order])
    for name, value in straight.logged.items():
        assert torch.equal(turned.logged[name], value[order])


def test_nothing_is_read_from_a_device(make, build):
    objective = build()
    inputs = make.random(objective, references=several(objective))
    here = inputs.into(objective)
    objective.update(lambda total: total)
    moved = make.inputs(inputs.policy.to(META), [r.to(META) for r in inputs.references], inputs.pairs.to(META))
    objective.to(META)
    if isinstance(temperature := getattr(objective, "temperature", None), BatchAdaptive):
        temperature._known = temperature.steps, temperature.steps._version, 0  # read once, at the start of a run
    with BlockingCopies() as copies:
        there = moved.into(objective)
        objective.update(lambda total: total)
    assert not copies.found
    assert there.losses.shape == here.losses.shape and there.logged.keys() == here.logged.keys()


def test_fillers_leave_no_trace_in_the_state(make, build):
    padded, plain = build(), build()
    inputs = make.random(padded, size=40, references=several(padded))
    inputs.pairs.is_real[15:] = False
    inputs.into(padded)
    inputs.select(list(range(15))).into(plain)
    for objective in (padded, plain):
        objective.update(lambda total: total)
    assert padded.progress == plain.progress
    assert state(padded) == state(plain)


def test_validation_and_an_update_without_pairs_leave_the_state(make, build):
    objective = build()
    before, progress = state(objective), objective.progress
    make.random(objective, references=several(objective)).into(objective.eval())
    objective.update(lambda total: total)
    assert state(objective) == before
    assert objective.progress == progress


def test_state_is_float64_and_stays_so(build):
    objective = build().to(torch.bfloat16)
    assert {value.dtype for value in objective.state_dict().values()} <= {torch.float64}


def test_two_builds_print_the_same_and_show_no_address(build):
    assert repr(build()) == repr(build())
    assert " at 0x" not in repr(build())


def test_one_reference_too_few_or_too_many_is_refused(make, build):
    objective = build()
    lowest, highest = objective.requirements.min_references, objective.requirements.max_references
    wrong = ([lowest - 1] if lowest else []) + ([highest + 1] if highest is not None else [])
    for count in wrong:
        with pytest.raises(ValueError, match=f"references, got {count}"):
            make.random(objective, references=count).into(objective)


def at_extremes(make, objective, dtype, mildest):
    """Pairs with every two of the log-ratios -10^4, 0 and 10^4 nats, lengths of 1, and extreme values of the data."""
    inputs = make.random(objective, 9, several(objective))
    ratios = torch.tensor([-1e4, 0.0, 1e4])
    changes = {"chosen": ratios.repeat(3), "rejected": ratios.repeat_interleave(3), "extra_response": ratios.repeat(3)}
    for side in objective.requirements.sides:
        for k, pair in enumerate([inputs.policy, *inputs.references]):
            scores = getattr(pair, side)
            scores.lengths = torch.ones(9, dtype=torch.long)
            # The policy against the first reference; every further one is another 10^4 nats lower.
            scores.scores = (-2e4 + changes[side] if k == 0 else torch.full((9,), -1e4 - 1e4 * k)).to(dtype)
            scores.statistics = {need: 1e4 * value.sign().to(dtype) for need, value in scores.statistics.items()}
        getattr(inputs.policy, side).scores.requires_grad_()
    inputs.pairs.margin = torch.tensor([mildest, 1e3, 1.0]).repeat(3)
    inputs.pairs.probability = torch.tensor([0.0, 1.0, 0.5]).repeat(3)
    inputs.pairs.columns = {name: torch.tensor([mildest, 1e3, 1.0]).repeat(3) for name in inputs.pairs.columns}
    return inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_infinite_at_extremes(make, build, dtype):
    objective = build()
    inputs = at_extremes(make, objective, dtype, mildest=0.0)
    try:
        output = inputs.into(objective)
    except UserError as error:  # such as a logarithm of the margin
        assert "0.0" in str(error)
        inputs = at_extremes(make, objective, dtype, mildest=1e-3)
        output = inputs.into(objective)
    output.losses.sum().backward()
    gradients = {side: getattr(inputs.policy, side).scores.grad for side in objective.requirements.sides}
    values = {"loss": output.losses, "chosen reward": output.chosen_rewards, **output.logged, **gradients}
    assert not [name for name, value in values.items() if value is not None and not bool(value.isfinite().all())]


# What these operations have as gradient at a bound or a tie is the choice of a version of torch, not of the objective.
UNDECIDED = ("Clamp", "Relu", "Hardtanh", "Maximum", "Minimum", "Max", "Min", "Amax", "Amin", "Abs", "Sort", "Median")


def gradient_operations(losses):
    """The names of the operations through which the gradient of `losses` passes."""
    found, waiting = set(), [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(parent for parent, _ in node.next_functions)
    return {node.name().partition("Backward")[0] for node in found}


def gradient_builds():
    parts = {"link": Link, "score": Score, "tokens": TokenSum, "offset": Offset, "reference": ReferenceMix}
    for name, part in parts.items():
        for kind in subclasses(part):
            others = {"target": MarginTarget(2.0)} if kind is ReverseKL else {}
            if getattr(kind, "means_only", ""):
                others = {"tokens": Mean(), "reference": NoReference()}
            yield pytest.param(partial(composed, name, kind, others), id=kind.__name__)
    for kind in subclasses(Term):
        yield pytest.param(lambda kind=kind: DPO(terms=[kind()]), id=kind.__name__)
    yield from (pytest.param(build, id=name) for name, build in BUILDS.items())


def composed(name, kind, others):
    return DPO(**{name: kind(**required_arguments(kind))}, **others)


@pytest.mark.parametrize("build", list(gradient_builds()))
def test_no_gradient_depends_on_how_torch_decides_at_a_bound(make, build):
    objective = build()
    operations = gradient_operations(make.random(objective, 5, several(objective)).into(objective).losses.sum())
    assert operations
    assert not [name for name in operations if name.rstrip("0123456789").startswith(UNDECIDED)]
