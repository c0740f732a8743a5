"""Makes the testbed, once per setting: a warm-started policy, preference files and held-out prompts.

The result is an ordinary HF folder and JSONL files that any configuration can name. The warm start is an ordinary
`python -m lit_pref fit` with the SFT objective.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

import lit_pref
from lit_pref.cache import build_once, cache_folder
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.models.word_tokenizer import save_word_tokenizer
from lit_pref.printing import say
from lit_pref.testbed import samples, world
from lit_pref.testbed.samples import SampledPair, sample_pairs
from lit_pref.testbed.world import Prompt, demonstrate, join_words, random_for, shuffled_prompts

ENVIRONMENT = {
    # With these, glibc keeps the activations' memory from step to step, which is 1.5 times as fast.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(128 * 2**20),
    # Threads do not speed up such a small model; on a busy machine they wait for each other, and they round
    # differently.
    "OMP_NUM_THREADS": "1",
}
"""Environment of the warm start."""

NO_NOISE = 1e-6
"""A scale of the annotator's noise, in points, at which the labels are the order of the true reward."""

# A launcher sets these variables to tell a process its rank; the warm start is not one of its processes.
_PLACE = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "PL_")


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

    def key(self) -> str:
        """Hash of the settings and of the code that uses them."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode())
        for source in (world.__file__, samples.__file__, __file__):
            digest.update(Path(source).read_bytes())
        return digest.hexdigest()[:16]


def run_fit(config: str, run_dir: str, folder: Path) -> None:
    """Run `python -m lit_pref fit` in `folder` on one CPU process, with its progress shown.

    A separate process is used instead of `run.build` in this one, because the memory and thread settings in
    `ENVIRONMENT` are read when a process starts, and because this process may be one of several that a launcher has
    started.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in _PLACE and not name.startswith(_LAUNCHERS)
    }
    package = str(Path(lit_pref.__path__[0]).resolve().parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "lit_pref", "fit", "--config", config, "--run_dir", run_dir]
    ended = subprocess.run(command, cwd=folder, env=environment | ENVIRONMENT)
    if ended.returncode:
        raise UserError(
            f"The testbed's warm start (`{' '.join(command)}` in {folder}) ended with exit code {ended.returncode}, "
            "for the reason printed above; fix it and run your command again."
        )


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


def make(testbed: Testbed, fit: Callable[[str, str, Path], None] = run_fit) -> Path:
    """Return the testbed's folder; if it is not in the cache, one of the processes that ask for it makes it.

    It contains `policy/` (HF folder of the warm start), `train.jsonl` and `val.jsonl` (on-policy pairs oriented by the
    annotator, with `margin`, `score_chosen`, `score_rejected` and the columns `gold_chosen`, `gold_rejected`,
    `p_true`, the true probability that `chosen` is preferred, and `permuted_margin`, the margin of a random other pair,
    for controls), `prompts.jsonl` (for the evaluation), `demos.jsonl`,
    `tokenizer/`, and the warm start's configuration `sft.yaml` and run folder `sft/`. No prompt is in two of the files.

    Args:
        fit: called with the names of the configuration and the run folder, and with the folder that they are in; must
            write `hf/` in the run folder.

    Raises:
        UserError: the settings need more prompts than there are, or the warm start fails.
    """
    return build_once(cache_folder("testbed", testbed.key()), lambda folder: _build(testbed, folder, fit))


def evaluation_prompts(folder: Path) -> list[Prompt]:
    """The held-out prompts of a testbed's folder."""
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    return [Prompt.parse(json.loads(line)["prompt"]) for line in lines]


def _build(testbed: Testbed, folder: Path, fit: Callable[[str, str, Path], None]) -> None:
    say(
        f"Making the testbed (once, about a minute on an idle core; stored in {folder.with_suffix('')}): "
        f"{testbed.demonstrations:,} demonstrations, a warm start of {testbed.sft_steps:,} steps, "
        f"{testbed.pairs:,} + {testbed.held_out_pairs:,} pairs."
    )
    asked = testbed.eval_prompts + testbed.held_out_pairs + testbed.pairs + testbed.demonstrations
    if asked > world.NUM_PROMPTS:
        raise UserError(
            f"The testbed needs {asked} prompts in all, but its language has only {world.NUM_PROMPTS}; reduce "
            "demonstrations or pairs."
        )
    prompts = shuffled_prompts(testbed.number)
    held_out, learned = islice(prompts, testbed.eval_prompts), islice(prompts, testbed.demonstrations)
    if testbed.references:
        _build_with_references(testbed, folder, fit)
        return
    _write_jsonl(folder / "testbed.json", [asdict(testbed)])
    _write_jsonl(folder / "prompts.jsonl", ({"prompt": prompt.text} for prompt in held_out))
    _write_jsonl(folder / "demos.jsonl", _demonstrations(testbed, learned))
    save_word_tokenizer(folder / "tokenizer", world.VOCABULARY, world.PAD, world.BOS, world.EOS)
    (folder / "sft.yaml").write_text(yaml.safe_dump(sft_configuration(testbed), sort_keys=False))
    fit("sft.yaml", "sft", folder)
    shutil.copytree(folder / "sft" / "hf", folder / "policy")
    policy = ModelSpec(path=str(folder / "policy"))
    model, tokenizer = policy.build(), policy.load_tokenizer()
    for name, number in (("val", testbed.held_out_pairs), ("train", testbed.pairs)):
        rows = _pairs(testbed, name, number, prompts, partial(sample_pairs, model, tokenizer))
        _write_jsonl(folder / f"{name}.jsonl", rows)


def _build_with_references(testbed: Testbed, folder: Path, fit: Callable[[str, str, Path], None]) -> None:
    """Copy the testbed without further references, and train these."""
    alone = make(replace(testbed, references=False), fit)
    shutil.copytree(alone, folder, dirs_exist_ok=True)
    _write_jsonl(folder / "testbed.json", [asdict(testbed)])
    say(f"Training the testbed's references (once; stored in {folder.with_suffix('')}).")
    policy = ModelSpec(path=str(folder / "policy"))
    sample = partial(sample_pairs, policy.build(), policy.load_tokenizer())
    files = [folder / f"{name}.jsonl" for name in ("prompts", "demos", "val", "train")]
    used = {json.loads(line)["prompt"] for file in files for line in file.read_text().splitlines()}
    fresh = (prompt for prompt in shuffled_prompts(testbed.number) if prompt.text not in used)
    rows = _pairs(replace(testbed, tau=NO_NOISE), "stronger", testbed.pairs, fresh, sample)
    _write_jsonl(folder / "stronger.jsonl", rows)
    weaker = sft_configuration(replace(testbed, sft_steps=max(1, testbed.sft_steps // 4)))
    for name, config in (("stronger", stronger_configuration()), ("weaker", weaker)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        fit(f"{name}.yaml", f"{name}-run", folder)
        shutil.copytree(folder / f"{name}-run" / "hf", folder / name)


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


def _demonstrations(testbed: Testbed, prompts: Iterable[Prompt]) -> Iterator[dict[str, str]]:
    for index, prompt in enumerate(prompts):
        response = demonstrate(prompt, testbed.random("demonstration", index))
        yield {"prompt": prompt.text, "chosen": join_words(response)}


def _pairs(
    testbed: Testbed,
    split: str,
    number: int,
    fresh: Iterator[Prompt],
    sample: Callable[[Sequence[Prompt], int], list[SampledPair]],
) -> list[dict[str, str | float]]:
    """Make `number` records; prompts whose two responses cannot form a pair are replaced by new ones."""
    rows: list[dict[str, str | float]] = []
    drawn = 0
    while len(rows) < number:
        prompts = list(islice(fresh, number - len(rows)))
        if not prompts:
            raise UserError(
                f"The testbed's warm start generates too few distinct, complete responses: only {len(rows)} of "
                f"{number} pairs could be made; give it more steps (`sft_steps`)."
            )
        for pair in sample(prompts, testbed.random(f"{split} responses", drawn).getrandbits(32)):
            row = pair.row(testbed.tau, testbed.quantised, testbed.random(f"{split} annotator", drawn))
            rows += [row] if row else []
            drawn += 1
    margins = [row["margin"] for row in rows]
    testbed.random(f"{split} permuted margins").shuffle(margins)
    return [{**row, "permuted_margin": margin} for row, margin in zip(rows, margins, strict=True)]


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
