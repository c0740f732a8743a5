"""`python -m lit_pref objectives`: the list of objectives, one of them in detail, or that of a TRL configuration."""

from typing import TYPE_CHECKING, Literal

from lit_pref.errors import UsageError
from lit_pref.hints import advice, did_you_mean
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.objectives.base import Objective

Need = Literal[
    "reference",
    "references",
    "live_reference",
    "margin",
    "probability",
    "column",
    "token_column",
    "extra_response",
    "token_logps",
    "lists",
    "reward_model",
]


def objectives(
    *names: str,
    needs: Need | None = None,
    family: str | None = None,
    reference_free: bool = False,
    trl: bool = False,
    from_trl: str | None = None,
) -> None:
    """List the objectives, explain those that are named, or translate the configuration of a TRL trainer.

    `--from_trl loss_type=ipo,beta=0.1` prints the configuration of a run that trains as DPOConfig with these arguments
    would. `trainer=cpo`, `orpo` or `reward` names another trainer, a call such as 'CPOConfig(loss_type="simpo")' is
    understood as well, and so is a YAML file of arguments.

    Args:
        names: objectives or parts to explain: equation, arguments, the paper's settings, when to use it, YAML to copy.
        needs: list those that need this of the run or its data.
        family: list those of one group.
        reference_free: list those that need no reference.
        trl: list those that TRL has, with its names for them.
        from_trl: arguments of a TRL configuration, as NAME=VALUE,NAME=VALUE.

    Raises:
        UsageError: an unknown objective, family, or argument of TRL; names with filters, or `from_trl` with either.
    """
    filters = {"needs": needs, "family": family, "reference_free": reference_free, "trl": trl}
    given = [f"--{name}" for name, value in filters.items() if value]
    if from_trl is not None:
        if names or given:
            raise UsageError(
                f"--from_trl translates a configuration and nothing else: drop {', '.join([*names, *given])}"
            )
        from lit_pref.porting.configuration import yaml_of

        say(yaml_of(from_trl).rstrip("\n"))
    elif names:
        if given:
            raise UsageError(f"{', '.join(given)} cannot filter what is named: give either names or filters")
        _explain(names)
    else:
        _list(needs, family, reference_free, trl)


def _explain(names: tuple[str, ...]) -> None:
    """Print everything about the objectives, or their parts, of these names."""
    say("\n\n".join(map(_explained, names)))


def _explained(name: str) -> str:
    """Return everything about the objective or the part of this name, whatever its case and hyphens are."""
    from lit_pref import describing
    from lit_pref.commands.objective_texts import explained, explained_part
    from lit_pref.porting.losses import LOSSES

    known = describing.objectives()
    if found := [cls for own, cls in known.items() if _plain(own) == _plain(name)]:
        return explained(found[0])
    parts = {cls.__name__: (cls, kind) for kind, members in describing.part_kinds().items() for cls in members}
    if of_name := [part for own, part in parts.items() if _plain(own) == _plain(name)]:
        return explained_part(*of_name[0])
    words = name.lower().replace("-", "_")
    if instead := advice(words):
        raise UsageError(f"{name} is not an objective of its own{instead}")
    of_trl = [f"{loss.objective} ({loss.trainer.upper()}Trainer)" for loss in LOSSES if loss.name == words]
    guess = did_you_mean(name, [*known, *parts])
    meant = f"; TRL's loss_type {words} is {' or '.join(of_trl)}" if of_trl else guess
    raise UsageError(f"there is no objective {name!r}; `objectives` lists all {len(known)}{meant}")


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _list(needs: str | None, family: str | None, reference_free: bool, in_trl: bool) -> None:
    """Print the list of the objectives that pass every filter."""
    from lit_pref import describing
    from lit_pref.commands.objective_texts import listed

    if family is not None and family not in describing.FAMILIES:
        families = ", ".join(describing.FAMILIES)
        raise UsageError(f"--family {family!r} is none of {families}{did_you_mean(family, describing.FAMILIES)}")
    known = describing.objectives().values()
    chosen = [cls for cls in known if _passes(cls, needs, family, reference_free, in_trl)]
    say(listed(chosen) or "no objective is like that")
    say("\nNext: `objectives NAME` explains one, with YAML to copy; docs/objectives.md has all of them")


def _passes(cls: "type[Objective]", needs: str | None, family: str | None, reference_free: bool, in_trl: bool) -> bool:
    """Whether the class passes every filter that is given."""
    from lit_pref import describing
    from lit_pref.porting.losses import trl_names

    asked = describing.example(cls).requirements
    return (
        (needs is None or needs in describing.needs(cls, asked))
        and family in (None, cls.family)
        and not (reference_free and asked.min_references)
        and not (in_trl and not trl_names(cls.__name__))
    )
