"""Which references a run takes, which of them are read from the store, and opening these before the policy exists."""

from typing import TYPE_CHECKING

from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.opening import to_open
from lit_pref.objectives.base import Objective
from lit_pref.references.reference import AdapterOff, InitialPolicy, Reference
from lit_pref.references.stored import Stored
from lit_pref.scores import COMPARING_NEEDS

if TYPE_CHECKING:
    from lit_pref.modules.preference import PreferenceModule


def references_of(objective: Objective, references: list[Reference] | None, policy: ModelSpec) -> list[Reference]:
    """The references that were named; where none were, what the objective needs.

    That is none, or the policy as it was before training: under LoRA the policy with its adapter switched off.

    Raises:
        UsageError: The objective does not take this number, or there is no adapter to switch off.
    """
    if references is None:
        initial = InitialPolicy() if policy.lora is None else AdapterOff()
        references = [] if objective.min_references == 0 else [initial]
    low, high, given = objective.min_references, objective.max_references, len(references)
    if given < low or (high is not None and given > high):
        takes = f"exactly {low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
        several = "; several are mixed by model.objective.reference Harmonic or Geometric" if given > 1 else ""
        raise UsageError(
            f"{type(objective).__name__} takes {takes} reference(s), model.references has {given}; "
            f"list as many as it takes, or leave model.references out{several}"
        )
    if policy.lora is None and any(isinstance(reference, AdapterOff) for reference in references):
        raise UsageError(
            "references: AdapterOff needs a policy with LoRA (model.policy.lora); use InitialPolicy without it"
        )
    return references


def through_store(
    references: list[Reference], objective: Objective, policy: ModelSpec, reference_store: bool | None
) -> list[Reference]:
    """The references, those whose scores are kept on disk as `Stored`.

    Raises:
        UsageError: All are to be stored, and one of them moves, or the objective reads more of it than scores.
    """
    if reference_store is False:
        return references
    compared = any(isinstance(need, COMPARING_NEEDS) for need in objective.needs)
    result: list[Reference] = []
    for k, reference in enumerate(references):
        live = compared and k == 0
        if reference_store and live:
            raise UsageError(
                f"{type(objective).__name__} compares the policy's whole distributions with those of its first "
                "reference, and the store holds scores only: leave model.reference_store out, and that reference stays "
                "live"
            )
        source = reference.frozen_spec(policy)
        live = live or source is None or source.trust_remote_code
        if reference_store and live:
            why = "moves" if source is None else "runs code of its own, by which no score can be named"
            raise UsageError(f"the reference '{reference.label}' {why}: leave model.reference_store out")
        result.append(reference if live else Stored(reference, policy))
    return result


def open_references(module: "PreferenceModule", stage: str) -> None:
    """Have the store hold what the run will read of each reference, one after the other, and read it.

    Args:
        module: with its Trainer, whose data are prepared.
        stage: "fit", "validate", "test" or "predict"; or "all", every pair of both splits.

    Raises:
        UserError: What is missing cannot be computed.
    """
    for opening in to_open(module, stage):
        wanted = opening.fill()
        opening.reference.open(opening.store.identity, wanted, opening.encoding is not None)
