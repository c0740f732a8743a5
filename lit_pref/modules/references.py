"""Which references a run takes, and which it refuses."""

from lit_pref.errors import UsageError
from lit_pref.models.policy import Policy
from lit_pref.objectives.base import Objective
from lit_pref.references.live import AdapterOff, InitialPolicy, Reference


def references_of(objective: Objective, references: list[Reference] | None, policy: Policy) -> list[Reference]:
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
