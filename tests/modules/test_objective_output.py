"""A module refuses what an objective of a user's own returns by mistake."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives import SFT


class Bare(SFT):
    """Returns its losses alone."""

    def forward(self, policy: Any, references: Any, pairs: Any) -> Any:
        return torch.zeros(2)


def test_a_bare_tensor_in_place_of_an_output_is_named(policy_folder: Path):
    module = PreferenceModule(ModelSpec(path=str(policy_folder)), Bare())
    module.scorer = lambda *_: None  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"Bare\.forward returned a Tensor: an objective returns an ObjectiveOutput"):
        module.scores(SimpleNamespace(pairs=None))  # type: ignore[arg-type]
