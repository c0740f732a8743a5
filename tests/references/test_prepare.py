"""The default references of a module, and those it refuses."""

import pytest

from lit_pref.errors import UsageError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.base import Objective
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.reference import Harmonic
from lit_pref.objectives.parts.temperature import EpsilonStep
from lit_pref.objectives.sft import SFT
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import AdapterOff, InitialPolicy
from lit_pref.references.stored import Stored

PLAIN, ADAPTED = ModelSpec(path="policy"), ModelSpec(path="policy", lora=Lora())


def kinds(policy: ModelSpec, objective: Objective, **store: bool) -> list[type]:
    return [type(reference) for reference in PreferenceModule(policy, objective, **store).references]


def test_left_out_references_are_what_the_objective_needs():
    assert kinds(PLAIN, DPO(), reference_store=False) == [InitialPolicy]
    assert kinds(ADAPTED, DPO(), reference_store=False) == [AdapterOff]
    assert kinds(PLAIN, SFT()) == []


def test_references_are_stored_unless_they_are_to_be_live_or_the_objective_reads_more_of_them():
    assert kinds(PLAIN, DPO()) == kinds(ADAPTED, DPO()) == kinds(PLAIN, DPO(), reference_store=True) == [Stored]
    stored = PreferenceModule(ADAPTED, DPO()).references[0]
    assert isinstance(stored, Stored) and type(stored.reference) is AdapterOff
    assert stored.describe() == "the policy with its adapters off: policy, float32, LoRA of rank 16"
    assert kinds(PLAIN, EpsilonDPO()) == [InitialPolicy]
    mixed = Pairwise(reference=Harmonic(), temperature=EpsilonStep(0.1))
    references = [InitialPolicy(), Pretrained("other")]
    assert [type(r) for r in PreferenceModule(PLAIN, mixed, references).references] == [InitialPolicy, Stored]
    with pytest.raises(UsageError, match=r"EpsilonDPO compares .* leave model.reference_store out"):
        PreferenceModule(PLAIN, EpsilonDPO(), reference_store=True)


def test_a_reference_that_moves_stays_live():
    class Moving(InitialPolicy):
        def frozen_spec(self, policy: ModelSpec) -> None:
            return None

    assert type(PreferenceModule(PLAIN, DPO(), [Moving()]).references[0]) is Moving
    with pytest.raises(UsageError, match="the reference 'initial policy' moves"):
        PreferenceModule(PLAIN, DPO(), [Moving()], reference_store=True)


def test_a_number_that_the_objective_does_not_take_is_refused():
    with pytest.raises(UsageError, match=r"DPO takes exactly 1 reference\(s\), model.references has 2"):
        PreferenceModule(PLAIN, DPO(), [InitialPolicy(), Pretrained("other")])
    with pytest.raises(UsageError, match=r"MRPO takes at least 1 reference\(s\), model.references has 0"):
        PreferenceModule(PLAIN, MRPO(), [])
    with pytest.raises(UsageError, match=r"SFT takes exactly 0 reference\(s\), model.references has 1"):
        PreferenceModule(PLAIN, SFT(), [InitialPolicy()])
    assert len(PreferenceModule(PLAIN, MRPO(), [InitialPolicy(), Pretrained("a"), Pretrained("b")]).references) == 3


def test_the_adapter_switched_off_needs_an_adapter():
    with pytest.raises(UsageError, match="AdapterOff needs a policy with LoRA"):
        PreferenceModule(PLAIN, DPO(), [AdapterOff()])
