"""The settings of a testbed, and the configurations of the runs that train its policies."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_pref.errors import UsageError
from lit_pref.testbed.world import random_for

WARM_START = ("seed", "demonstrations", "sft_steps", "eval_prompts", "hidden_size", "layers")
"""Settings that decide the warm start, which testbeds with other pairs share."""


@dataclass(frozen=True)
class Testbed:
    """All settings that determine the content of a testbed folder.

    Args:
        seed: seed of prompts, demonstrations, warm start, sampled responses and annotator; in a configuration, null
            is the run's `seed_everything`, so that every seed of a study has a testbed of its own.
        tau: scale of the annotator's noise in points of gold reward, > 0.
        quantised: the annotator gives grades from 1 to 10 instead of real ratings; pairs with equal grades are dropped.
        demonstrations: responses for the warm start.
        sft_steps: optimizer steps of the warm start, with 64 demonstrations each.
        pairs: on-policy pairs for training.
        held_out_pairs: on-policy pairs for validation, with other prompts.
        eval_prompts: prompts for the evaluation by gold reward, which are not used in training.
        hidden_size, layers: size of the Llama.
        references: also make two further policies for use as references: `stronger/`, the warm start trained by DPO on
            as many new pairs, whose labels are the order of the true reward; and `weaker/`, a warm start of a quarter
            of the steps. A configuration names them `testbed:stronger` and `testbed:weaker` in `model.references`.
    """

    seed: int | None = 0
    tau: float = 1.0
    quantised: bool = False
    demonstrations: int = 30_000
    sft_steps: int = 1200
    pairs: int = 1000
    held_out_pairs: int = 1500
    eval_prompts: int = 512
    hidden_size: int = 64
    layers: int = 2
    references: bool = False

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise UsageError(f"The testbed's tau is the scale of a noise and must be positive; got {self.tau}.")

    def random(self, purpose: str, index: int = 0) -> random.Random:
        """A separate generator for each purpose and index, by the testbed's seed."""
        return random_for(self.number, purpose, index)

    @property
    def number(self) -> int:
        """The seed.

        Raises:
            UsageError: it is None, and there is no run whose seed it could be.
        """
        if self.seed is None:
            raise UsageError("The testbed's seed is null, which a run replaces by its seed_everything: give a number.")
        return self.seed

    def key(self, names: Sequence[str] = ()) -> str:
        """Hash of the settings, or of some of them, and of the code that uses them."""
        settings = {name: value for name, value in asdict(self).items() if name in names or not names}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for source in ("world.py", "samples.py", "settings.py", "make.py"):
            digest.update(Path(__file__).with_name(source).read_bytes())
        return digest.hexdigest()[:16]


def sft_configuration(testbed: Testbed) -> dict[str, Any]:
    """The configuration of the warm start; its paths are relative to the testbed's folder."""
    llama = {
        "model_type": "llama",
        "hidden_size": testbed.hidden_size,
        "intermediate_size": 3 * testbed.hidden_size,
        "num_hidden_layers": testbed.layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    return {
        "model": {
            "policy": {"config": llama, "tokenizer": "tokenizer", "seed": testbed.seed},
            "objective": {"class_path": "SFT"},
            "optimizer": {
                "class_path": "AdamW",
                "init_args": {"lr": 0.004, "betas": [0.9, 0.98], "weight_decay": 0.01},
            },
            "schedule": {"class_path": "Linear", "init_args": {"warmup": 50, "floor": 0.05}},
        },
        "data": {"train": "demos.jsonl", "val_fraction": 0.0, "global_batch": 64, "max_length": 32},
        "print_summary": False,
        "trainer": {
            "log_every_n_steps": 100,
            "max_steps": testbed.sft_steps,
            "gradient_clip_val": 1.0,
            "accelerator": "cpu",
            "devices": 1,
        },
    }


def stronger_configuration() -> dict[str, Any]:
    """The configuration of the stronger reference; its paths are relative to the testbed's folder."""
    return {
        "model": {
            "policy": {"path": "policy"},
            "objective": {"class_path": "DPO", "init_args": {"beta": 0.3}},
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 5e-4, "weight_decay": 0.0}},
            "schedule": {"class_path": "Flat", "init_args": {"warmup": 10}},
        },
        "data": {"train": "stronger.jsonl", "val_fraction": 0.0, "global_batch": 32, "max_length": 64},
        "print_summary": False,
        "trainer": {"max_epochs": 3, "gradient_clip_val": 1.0, "accelerator": "cpu", "devices": 1},
    }
