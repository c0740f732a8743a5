"""Which references a module takes when none are named, and which it refuses."""

import pytest

from lit_pref.errors import UsageError
from lit_pref.models.policy import Lora, Policy
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.sft import SFT
from lit_pref.references.live import AdapterOff, InitialPolicy, Pretrained

PLAIN, ADAPTED = Policy(path="policy"), Policy(path="policy", lora=Lora())


def test_left_out_references_are_what_the_objective_needs():
    assert [type(r) for r in PreferenceModule(PLAIN, DPO()).references] == [InitialPolicy]
    assert [type(r) for r in PreferenceModule(ADAPTED, DPO()).references] == [AdapterOff]
    assert PreferenceModule(PLAIN, SFT()).references == []


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
