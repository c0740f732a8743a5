"""Two trained runs, which all tests of comparisons share."""

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_pairs

from lit_pref.run import build


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A folder with `pairs.jsonl` and two runs of it, `dpo` and `mmpo`, of two steps and with two validations each."""
    folder = tmp_path_factory.mktemp("compared")
    write_pairs(folder / "pairs.jsonl", 40, prompts=20)
    options: dict[str, Any] = {"model.policy.path": str(policy_folder), "data.train": str(folder / "pairs.jsonl")}
    options |= {"data.global_batch": 10, "data.val_fraction": 0.5, "trainer.accelerator": "cpu"}
    options |= {"trainer.log_every_n_steps": 1, "print_summary": False, "model.optimizer.lr": 1e-3}
    options |= {"trainer.enable_progress_bar": False, "trainer.max_steps": 2, "model.objective.beta": 0.1}
    for name in ("dpo", "mmpo"):
        build(ROOT / "configs" / f"{name}.yaml", {**options, "run_dir": str(folder / name)}).fit()
    return folder
