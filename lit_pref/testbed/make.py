"""Makes the testbed, once per setting: a warm-started policy, preference files and held-out prompts.

The result is an ordinary HF folder and JSONL files that any configuration can name. The warm start is an ordinary
`python -m lit_pref fit` with the SFT objective.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

import lit_pref
from lit_pref.cache import build_once, cache_folder
from lit_pref.errors import UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.models.word_tokenizer import save_word_tokenizer
from lit_pref.printing import say
from lit_pref.testbed import world
from lit_pref.testbed.samples import SampledPair, sample_pairs
from lit_pref.testbed.settings import WARM_START, Testbed, sft_configuration, stronger_configuration
from lit_pref.testbed.world import Prompt, demonstrate, join_words, shuffled_prompts

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
    asked = testbed.eval_prompts + testbed.held_out_pairs + testbed.pairs + testbed.demonstrations
    if asked > world.NUM_PROMPTS:
        raise UserError(
            f"The testbed needs {asked} prompts in all, but its language has only {world.NUM_PROMPTS}; reduce "
            "demonstrations or pairs."
        )
    if testbed.references:
        _build_with_references(testbed, folder, fit)
        return
    say(
        f"Making the testbed (once, about a minute on an idle core; stored in {folder.with_suffix('')}): "
        f"{testbed.demonstrations:,} demonstrations, a warm start of {testbed.sft_steps:,} steps, "
        f"{testbed.pairs:,} + {testbed.held_out_pairs:,} pairs."
    )
    start = build_once(cache_folder("warm_start", testbed.key(WARM_START)), partial(_warm_start, testbed, fit))
    shutil.copytree(start, folder, dirs_exist_ok=True)
    _write_jsonl(folder / "testbed.json", [asdict(testbed)])
    held_out = islice(shuffled_prompts(testbed.number), testbed.eval_prompts)
    _write_jsonl(folder / "prompts.jsonl", ({"prompt": prompt.text} for prompt in held_out))
    prompts = islice(shuffled_prompts(testbed.number), testbed.eval_prompts + testbed.demonstrations, None)
    policy = ModelSpec(path=str(folder / "policy"))
    model, tokenizer = policy.build(), policy.load_tokenizer()
    for name, number in (("val", testbed.held_out_pairs), ("train", testbed.pairs)):
        rows = _pairs(testbed, name, number, prompts, partial(sample_pairs, model, tokenizer))
        _write_jsonl(folder / f"{name}.jsonl", rows)


def _warm_start(testbed: Testbed, fit: Callable[[str, str, Path], None], folder: Path) -> None:
    """Write the demonstrations, and the policy that is trained on them."""
    learned = islice(
        shuffled_prompts(testbed.number), testbed.eval_prompts, testbed.eval_prompts + testbed.demonstrations
    )
    _write_jsonl(folder / "demos.jsonl", _demonstrations(testbed, learned))
    save_word_tokenizer(folder / "tokenizer", world.VOCABULARY, world.PAD, world.BOS, world.EOS)
    (folder / "sft.yaml").write_text(yaml.safe_dump(sft_configuration(testbed), sort_keys=False))
    fit("sft.yaml", "sft", folder)
    shutil.copytree(folder / "sft" / "hf", folder / "policy")


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
