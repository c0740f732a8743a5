"""Sliding windows in float64: the refusal names the dtype and the window."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_policy, write_pairs
from training_runs import Run, fit

from lit_pref.errors import UserError
from lit_pref.models.attention_window import window_remedy
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.sft import SFT

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("objective", [DPO, SFT])
def test_gemma_2_past_its_window_in_float64_is_refused_with_the_dtype_as_remedy(objective: Any, tmp_path: Path):
    settings = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
    folder = make_policy(tmp_path / "gemma", 0, model_type="gemma2", **settings)
    data = {"train": str(write_pairs(tmp_path / "train.jsonl", 8)), "val_fraction": 0.0, "global_batch": 4}
    words = r"set its dtype to float32 or keep pairs within its window of 4 tokens"
    with pytest.raises(UserError, match=words):
        fit(Run({"path": str(folder), "dtype": "float64"}, data, objective), tmp_path / "wrong")
    ran = fit(Run({"path": str(folder)}, data, objective), tmp_path / "right")
    assert torch.isfinite(torch.tensor(ran.logged.column("train/loss"))).all()


def test_other_models_get_the_usual_remedy():
    def remedy(dtype: torch.dtype = torch.float64, **settings: Any) -> str | None:
        settings = {"sliding_window": 4, "_attn_implementation": "eager", **settings}
        text = SimpleNamespace(**settings)
        return window_remedy(SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text), dtype=dtype))

    assert remedy() is not None and remedy(use_sliding_window=True) is not None
    assert remedy(torch.float32) is None and remedy(sliding_window=None) is None
    assert remedy(use_sliding_window=False) is None and remedy(_attn_implementation="sdpa") is None
