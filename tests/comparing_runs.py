"""Run folders to compare, written without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lit_pref.metrics.records import Records, write_parquet

DPO = "DPO(beta=0.1, reference=Single(), temperature=Constant(), target=Hard(), tokens=Sum(), score=Identity())"


def records(n: int = 60, seed: int = 0, skill: float = 0.5, prompts: int = 20) -> Records:
    """Records of n pairs whose z has the mean `skill`; pairs of one seed are equally hard in all records."""
    hard = np.random.default_rng(99).normal(size=n)
    z = skill + hard + 0.5 * np.random.default_rng(seed).normal(size=n)
    logp = -20 + np.random.default_rng(seed + 1).normal(size=n)
    return {
        "id": [f"{k:016x}" for k in range(n)],
        "loss": np.logaddexp(0, -z).tolist(),
        "chosen_reward": (z / 2).tolist(),
        "rejected_reward": (-z / 2).tolist(),
        "z": z.tolist(),
        "chosen_logp": logp.tolist(),
        "chosen_length": [5 + k % 3 for k in range(n)],
        "rejected_logp": (logp - z).tolist(),
        "rejected_length": [4 + k % 3 for k in range(n)],
        "chosen_change": (z / 2).tolist(),
        "beta": [0.1] * n,
        "margin": [float(k % 7) for k in range(n)],
        "prompt": [f"prompt {k % prompts}" for k in range(n)],
    }


def write_run(
    folder: Path,
    of: Records | None,
    config: dict[str, Any] | None = None,
    objective: str = DPO,
    reference: str = "a",
    step: int = 10,
    ended: bool = True,
    **manifest: Any,
) -> Path:
    """A run folder as `fit` leaves it, with these records at its last step."""
    (folder / "hf" if ended else folder).mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or {"seed_everything": 0}))
    references = [{"what": "the policy", "fingerprint": reference}]
    written = {"config": "config.yaml", "objective": objective, "references": references, **manifest}
    (folder / "manifest.json").write_text(json.dumps(written))
    if of is not None:
        write_parquet(of, folder / "records" / f"val-step={step:08d}.parquet")
    return folder
