from typing import Any

from lit_pref.callbacks.checkpointing import AtomicCheckpointIO as AtomicCheckpointIO
from lit_pref.callbacks.checkpointing import Checkpoints as Checkpoints
from lit_pref.data.datamodule import PreferenceDataModule as PreferenceDataModule
from lit_pref.data.sources.source import Source as Source
from lit_pref.models.spec import Lora as Lora
from lit_pref.models.spec import ModelSpec as ModelSpec
from lit_pref.modules.preference import PreferenceModule as PreferenceModule
from lit_pref.modules.schedules import Cosine as Cosine
from lit_pref.modules.schedules import Flat as Flat
from lit_pref.modules.schedules import Linear as Linear
from lit_pref.objectives.base import Objective as Objective
from lit_pref.objectives.dpo import DPO as DPO
from lit_pref.objectives.epsilon_dpo import EpsilonDPO as EpsilonDPO
from lit_pref.objectives.mmpo import MMPO as MMPO
from lit_pref.objectives.mrpo import MRPO as MRPO
from lit_pref.objectives.pairwise import Pairwise as Pairwise
from lit_pref.objectives.selm import SELM as SELM
from lit_pref.objectives.sft import SFT as SFT
from lit_pref.references.reference import AdapterOff as AdapterOff
from lit_pref.references.reference import InitialPolicy as InitialPolicy
from lit_pref.references.reference import Pretrained as Pretrained
from lit_pref.references.reference import Reference as Reference
from lit_pref.run.export import export as export
from lit_pref.run.run import Run as Run
from lit_pref.run.run import build as build

# Every other objective, part and criterion is found when it is imported.
def __getattr__(name: str) -> Any: ...
