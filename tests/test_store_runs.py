"""Runs that read their references from the store: what is computed again and what never is, and the same losses.

This file is also the program of the processes that fill the store at the same time, or are killed meanwhile.
"""

import gc
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_policy, write_pairs
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from training_runs import Ran, Run, environment, fit
from transformers import AutoTokenizer

from lit_pref.errors import UserError
from lit_pref.models.spec import Lora, ModelSpec
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.dpo import DPO
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.mrpo import MRPO
from lit_pref.objectives.requirements import Requirements
from lit_pref.references.lookup import NeededScores
from lit_pref.references.prepare import ReferencePreparation
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.references.store_admin import kept
from lit_pref.references.store_scorer import LazyScorer
from lit_pref.references.stored import Stored
from lit_pref.run.lost_process import close_group
from lit_pref.scores import TokenLogps
from lit_pref.scoring.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore")
TRAIN, VAL = 40, 6


class Counted:
    """How many pairs references read for the store, and how often one was built for it."""

    def __init__(self) -> None:
        self.pairs: list[str] = []
        self.built = 0

    def during(self, run: Run, folder: Path, **options: Any) -> int:
        """Pairs read while it runs."""
        before = len(self.pairs)
        self.ran = fit(run, folder, **options)
        return len(self.pairs) - before


def counting(patch: pytest.MonkeyPatch, seconds: float = 0.0) -> Counted:
    counted, score = Counted(), LazyScorer.score

    def counted_score(scorer: LazyScorer, batch: Any, device: torch.device) -> Any:
        counted.pairs += batch.pairs.ids
        counted.built += not scorer.is_built
        time.sleep(seconds)
        return score(scorer, batch, device)

    patch.setattr(LazyScorer, "score", counted_score)
    return counted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder with a policy, a model of its family, one with another tokenizer, and pairs."""
    folder = tmp_path_factory.mktemp("store")
    for seed, name in enumerate(("policy", "sister", "stranger")):
        make_policy(folder / name, seed=seed, vocabulary=262 if name == "stranger" else 300)
    write_pairs(folder / "train.jsonl", TRAIN)
    write_pairs(folder / "val.jsonl", VAL, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(made: Path) -> Run:
    data = {"train": str(made / "train.jsonl"), "val": str(made / "val.jsonl"), "global_batch": 8}
    return Run(policy={"path": str(made / "policy")}, data=data, trainer={"max_epochs": 1})


@pytest.fixture(scope="module")
def filled(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache whose store holds the scores of the initial policy for the pairs of `run`."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIT_PREF_CACHE", str(folder / "cache"))
        counted = counting(patch)
        assert counted.during(run, folder / "first") == TRAIN + VAL and counted.built == 1
        assert counted.during(run, folder / "again") == 0
    yield folder / "cache"


@pytest.fixture
def counted(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts in a copy of the filled cache."""
    shutil.copytree(filled, tmp_path / "cache")
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    return counting(monkeypatch)


class TokenDPO(DPO):
    """Reads the log-prob of every token of the reference, too."""

    @property
    def requirements(self):
        return super().requirements | Requirements(reference_statistics=frozenset({TokenLogps()}))

    def forward(self, policy, references, pairs):
        for side in ("chosen", "rejected"):
            scores = getattr(references[0], side)
            logps = scores.statistics[TokenLogps()]
            assert logps.shape == (len(pairs), int(scores.lengths.max()))
            torch.testing.assert_close(logps.sum(1), scores.scores, rtol=1e-5, atol=1e-5)
        return super().forward(policy, references, pairs)


# What is computed again


UNCHANGED: dict[str, dict[str, Any]] = {
    "learning rate": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5)},
    "optimiser": {"optimizer": lambda p: torch.optim.AdamW(p, lr=0.1)},
    "beta": {"objective": lambda: DPO(beta=2.0)},
    "objective": {"objective": MMPO},
    "order and seed": {"seed": 3, "data": {"seed": 7, "global_batch": 4}},
    "adapters": {"policy": {"lora": Lora(r=2)}},
    "rank and seed of adapters": {"policy": {"lora": Lora(r=4, alpha=1.0), "seed": 5}},
    "dropout": {"policy": {"dropout": 0.3, "gradient_checkpointing": True}},
    "layout": {"layout": "padded"},
    "more epochs": {"trainer": {"max_epochs": 2}},
}


@pytest.mark.parametrize("change", UNCHANGED)
def test_what_leaves_the_reference_as_it_is_computes_nothing(run: Run, counted: Counted, tmp_path: Path, change: str):
    asked = UNCHANGED[change]
    merged = {
        name: {**getattr(run, name), **value} if isinstance(value, dict) else value for name, value in asked.items()
    }
    assert counted.during(replace(run, **merged), tmp_path / "run") == 0
    assert counted.ran.logged.column("train/loss")


def test_the_same_weights_in_another_folder_and_as_a_named_reference_compute_nothing(
    run: Run, counted: Counted, made: Path, tmp_path: Path
):
    shutil.copytree(made / "policy", tmp_path / "moved")
    assert counted.during(replace(run, policy={"path": str(tmp_path / "moved")}), tmp_path / "run") == 0
    named = replace(run, references=lambda: [Pretrained(str(tmp_path / "moved"))])
    assert counted.during(named, tmp_path / "named") == 0


def test_other_weights_compute_everything_and_under_the_same_path_too(
    run: Run, counted: Counted, made: Path, tmp_path: Path
):
    shutil.copytree(made / "policy", tmp_path / "policy")
    here = replace(run, references=lambda: [Pretrained(str(tmp_path / "policy"))])
    assert counted.during(here, tmp_path / "before") == 0
    shutil.copy(made / "sister" / "model.safetensors", tmp_path / "policy" / "model.safetensors")
    assert counted.during(here, tmp_path / "after") == TRAIN + VAL
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    (tmp_path / "policy" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert counted.during(here, tmp_path / "configured") == TRAIN + VAL


def test_another_dtype_precision_or_aggregation_computes_everything_once(run: Run, counted: Counted, tmp_path: Path):
    for name, change in {
        "fp64": {"policy": {**run.policy, "dtype": "float64"}},
        "rounded": {
            "policy": {**run.policy, "dtype": "bfloat16"},
            "trainer": {**run.trainer, "precision": "64-true"},
        },
        "bf16-mixed": {"trainer": {**run.trainer, "precision": "bf16-mixed"}},
        "tokens": {"objective": TokenDPO},
    }.items():
        assert counted.during(replace(run, **change), tmp_path / name) == TRAIN + VAL
        assert counted.during(replace(run, **change), tmp_path / f"{name}-again") == 0
    stores = {(one.about["numerics"], one.about["aggregation"]) for one in kept()}
    sums = {"fp32", "fp64", "fp64-from-bfloat16", "bf16-mixed/cpu/shared/default"}
    assert stores == {("fp32", "tokens"), *((numerics, "sum") for numerics in sums)}


@pytest.mark.parametrize("limits", [{"max_length": 45}, {"max_prompt_length": 18}], ids=str)
def test_another_truncation_computes_the_pairs_that_it_changes(run: Run, counted: Counted, tmp_path: Path, limits):
    whole = counted.during(replace(run, data={**run.data, "seed": 1}), tmp_path / "whole")
    before = {pair.id: pair for pair in _pairs(counted.ran)}
    read = counted.during(replace(run, data={**run.data, **limits}), tmp_path / "cut")
    after = {pair.id: pair for pair in _pairs(counted.ran)}
    changed = {name for name, pair in after.items() if _ids(pair) != _ids(before[name])}
    assert whole == 0 and read == len(changed) and set(counted.pairs) == changed
    assert 0 < read < TRAIN + VAL


def _pairs(ran: Ran) -> list[Any]:
    data = ran.trainer.datamodule
    return [*data.train_pairs[:], *data.val_pairs[:]]


def _ids(pair: Any) -> Any:
    return pair.prompt, pair.chosen, pair.rejected


def test_a_row_more_computes_that_row_and_another_order_of_rows_none(run: Run, counted: Counted, tmp_path: Path):
    lines = Path(run.data["train"]).read_text().splitlines()
    row = json.dumps({"prompt": "one more :", "chosen": " good", "rejected": " bad", "margin": 1.0})
    (tmp_path / "more.jsonl").write_text("\n".join([*reversed(lines), row]) + "\n")
    more = replace(run, data={**run.data, "train": str(tmp_path / "more.jsonl")})
    assert counted.during(more, tmp_path / "run") == 1


def test_another_chat_template_computes_everything(run: Run, counted: Counted, made: Path, tmp_path: Path):
    rows = [json.loads(line) for line in Path(run.data["train"]).read_text().splitlines()]
    for row in rows:
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "chat.jsonl"), "val_fraction": 0.0, "global_batch": 8}
    for name in ("Q", "Question"):
        shutil.copytree(made / "policy", tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        turn = "{{ m.role[0] + m.content + '<eos>' }}"
        tokenizer.chat_template = "{% for m in messages %}" + name + turn + "{% endfor %}"
        tokenizer.chat_template += "{% if add_generation_prompt %}" + name + "a{% endif %}"
        tokenizer.save_pretrained(tmp_path / name)
        case = replace(run, policy={"path": str(tmp_path / name)}, data=data)
        assert counted.during(case, tmp_path / f"run-{name}") == TRAIN
        assert counted.during(case, tmp_path / f"run-{name}-again") == 0


@pytest.mark.parametrize(
    "limit, train, val",
    [
        ({"max_steps": 2}, 16, VAL),
        ({"limit_train_batches": 3, "max_epochs": 2}, None, VAL),
        ({"max_epochs": 3}, TRAIN, VAL),
        ({"max_steps": 1, "limit_val_batches": 0}, 8, 0),
    ],
    ids=str,
)
def test_only_pairs_that_the_run_sees_are_computed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any], train: int | None, val: int
):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    counted = counting(monkeypatch)
    if train is None:  # the first 24 pairs of two epochs
        orders = [np.random.default_rng((0, epoch)).permutation(TRAIN)[:24].tolist() for epoch in range(2)]
        train = len({pair for order in orders for pair in order})
        assert 24 < train < TRAIN
    read = counted.during(replace(run, trainer=limit), tmp_path / "run")
    given = {name for _, ids in counted.ran.given for name in ids}
    assert len(given) == train and read == train + val
    assert given <= set(counted.pairs)


def test_a_run_that_stops_early_computes_what_it_sees_and_its_continuation_the_rest(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    counted = counting(monkeypatch)
    assert counted.during(run, tmp_path / "run", stop_at_step=2) == 16 + VAL
    assert counted.during(run, tmp_path / "run", ckpt=counted.ran.checkpoint(2)) == TRAIN - 16


def test_validation_reads_what_training_stored_and_nothing_else(run: Run, counted: Counted, tmp_path: Path):
    assert counted.during(run, tmp_path / "run") == 0
    counted.ran.trainer.validate(counted.ran.module, datamodule=counted.ran.trainer.datamodule)
    assert counted.pairs == []


# The same losses


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("objective", [DPO, TokenDPO])
def test_stored_and_live_references_train_alike(
    run: Run, tmp_path: Path, dtype: str, tolerance: float, objective: type[DPO]
):
    case = replace(run, policy={**run.policy, "dtype": dtype}, objective=objective, trainer={"max_epochs": 4})
    stored, live = (fit(replace(case, reference_store=s), tmp_path / str(s)) for s in (None, False))
    losses = [ran.logged.column("train/loss") for ran in (stored, live)]
    assert len(losses[0]) == 20 and losses[0][0] - losses[0][-1] > 0.02
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    assert [type(ran.module.references[0]) for ran in (stored, live)] == [Stored, InitialPolicy]


def test_three_stored_references_one_with_a_tokenizer_of_its_own_are_the_live_ones(
    run: Run, made: Path, tmp_path: Path
):
    def references() -> list[Any]:
        return [InitialPolicy(), *(Pretrained(str(made / name), dtype="float64") for name in ("sister", "stranger"))]

    case = replace(run, policy={**run.policy, "dtype": "float64"}, objective=MRPO, references=references)
    case = replace(case, data={**run.data, "max_length": 60})  # some texts are cut, and kept as they were cut
    stored, live = (fit(replace(case, reference_store=s), tmp_path / str(s)) for s in (True, False))
    for name in ("train/loss", "val/loss", "val/rewards/accuracies@reference2"):
        assert stored.logged.column(name) == pytest.approx(live.logged.column(name), abs=1e-10), name
    assert stored.module.references[2].own_tokenizer and not stored.module.references[1].own_tokenizer
    assert "reads the text with its own tokenizer" in stored.module.references[2].describe()


def test_a_reference_gives_the_scores_dtypes_and_lengths_of_the_live_one(run: Run, made: Path, tmp_path: Path):
    references = [Pretrained(str(made / "stranger")), Pretrained(str(made / "sister"), dtype="float64")]
    ran = fit(replace(run, objective=MRPO, references=lambda: references), tmp_path)
    tokenizer, scorer = ran.module.policy.load_tokenizer(), Scorer(ran.module.policy.build())
    batch = next(iter(ran.trainer.datamodule.val_dataloader())).batch
    for stored in ran.module.references:
        live = stored.reference
        live.attach(ran.module.policy, scorer, tokenizer)
        for side in ("chosen", "rejected"):
            one, other = (getattr(reference.score(batch), side) for reference in (stored, live))
            assert one.scores.dtype == other.scores.dtype and one.lengths.dtype == other.lengths.dtype
            torch.testing.assert_close(one.scores, other.scores, rtol=1e-6, atol=1e-4)
            assert torch.equal(one.lengths, other.lengths)


@pytest.mark.parametrize("objective", [MRPO, TokenDPO], ids=["own tokenizer", "token log-probs"])
def test_a_batch_carries_the_scores_that_a_lookup_in_the_step_would_give(run: Run, made: Path, tmp_path, objective):
    others = [Pretrained(str(made / "stranger"), dtype="float64"), Pretrained(str(made / "sister"))]
    references = others if objective is MRPO else others[1:]
    ran = fit(replace(run, objective=objective, references=lambda: references), tmp_path)
    batch = next(iter(ran.trainer.datamodule.train_dataloader())).batch
    needs = ran.module.objective.requirements.reference_statistics
    assert len(batch.stored) == len(references)
    unopened = Stored(InitialPolicy(), ran.module.policy)
    unopened.add_scores(batch, needs)
    assert len(batch.stored) == len(references)
    for stored in ran.module.references:
        carried, found = (stored.score(one, needs) for one in (batch, replace(batch, stored={})))
        assert carried is batch.stored[stored.key] and found is not carried
        for side in ("chosen", "rejected"):
            one, other = getattr(carried, side), getattr(found, side)
            assert torch.equal(one.scores, other.scores) and torch.equal(one.lengths, other.lengths)
            assert one.scores.dtype == other.scores.dtype and one.statistics.keys() == other.statistics.keys() == needs
            assert all(torch.equal(values, other.statistics[need]) for need, values in one.statistics.items())


def test_workers_look_up_the_scores_and_change_no_number(run: Run, tmp_path: Path, monkeypatch):
    case = replace(run, data={**run.data, "val_fraction": 0.0, "val": None}, objective=MMPO)
    alone = fit(case, tmp_path / "alone")
    rows, lookups = NeededScores.rows, []
    monkeypatch.setattr(NeededScores, "rows", lambda *given: (lookups.append(os.getpid()), rows(*given))[1])
    ahead = fit(replace(case, data={**case.data, "workers": 1}), tmp_path / "ahead")
    assert not lookups  # this process had none: they were the worker's
    assert ahead.logged.column("train/loss") == alone.logged.column("train/loss")
    assert ahead.given == alone.given


# Where no reference is


def test_with_a_full_store_no_reference_is_built(run: Run, counted: Counted, tmp_path: Path, monkeypatch):
    build, built = ModelSpec.build, []
    monkeypatch.setattr(ModelSpec, "build", lambda policy: built.append(policy) or build(policy))
    assert counted.during(run, tmp_path / "run") == 0
    assert built == [counted.ran.module.policy]


def test_a_reference_is_freed_when_its_scores_are_there(run: Run, made: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    alive: list[int] = []
    fill = ReferencePreparation.fill

    def counting_fill(preparation: ReferencePreparation) -> Any:
        gc.collect()
        before = sum(isinstance(thing, Scorer) for thing in gc.get_objects())
        result = fill(preparation)
        alive.append(sum(isinstance(thing, Scorer) for thing in gc.get_objects()) - before)
        return result

    monkeypatch.setattr(ReferencePreparation, "fill", counting_fill)
    references = [Pretrained(str(made / "sister")), Pretrained(str(made / "stranger"))]
    fit(replace(run, objective=MRPO, references=lambda: references), tmp_path / "run")
    assert alive == [0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_score_that_is_not_there_is_a_sentence(run: Run, counted: Counted, tmp_path: Path, workers: int):
    ran = fit(replace(run, trainer={"max_steps": 1, "limit_val_batches": 0}), tmp_path)
    ran.trainer.datamodule.workers = workers
    batch = next(iter(ran.trainer.datamodule.val_dataloader())).batch
    assert not batch.stored  # a worker says nothing: the run does, where it asks for the scores
    with pytest.raises(
        UserError,
        match=rf"no score of the reference 'initial policy' for {re.escape(batch.pairs.places[0])}: compute it",
    ):
        ran.module.references[0].score(batch)


def test_token_log_probs_of_another_tokenizer_are_refused_before_training(run: Run, made: Path, tmp_path: Path):
    stranger = replace(run, objective=TokenDPO, references=lambda: [Pretrained(str(made / "stranger"))])
    with pytest.raises(UserError, match=r"compares single tokens with those of the reference '.*stranger'"):
        fit(stranger, tmp_path)


def test_a_text_longer_than_its_reference_can_read_is_refused_before_training(run: Run, tmp_path: Path):
    make_policy(tmp_path / "short", seed=1, vocabulary=262, max_position_embeddings=40)
    short = replace(run, references=lambda: [Pretrained(str(tmp_path / "short"))])
    with pytest.raises(
        UserError, match=r"train.jsonl, line \d+ has \d\d tokens for the reference '.*short', which reads at most 40"
    ):
        fit(short, tmp_path / "run")


# Several processes, and one that is killed


def stored_scores(cache: Path) -> dict[bytes, float]:
    """Everything in the store of a cache, by key."""
    before = os.environ["LIT_PREF_CACHE"]
    os.environ["LIT_PREF_CACHE"] = str(cache)
    try:
        from lit_pref.references.store import ReferenceStore, StoreIdentity

        found: dict[bytes, float] = {}
        for one in kept():
            store = ReferenceStore(StoreIdentity(**one.about))
            for name in store.parts():
                part = store.read(name)
                assert part is not None
                for key, score in zip(part.keys.tolist(), part.scores.tolist(), strict=True):
                    found.setdefault(key, score)
        return found
    finally:
        os.environ["LIT_PREF_CACHE"] = before


MANY = 260  # in blocks of 64


def program(*arguments: str | Path, cache: Path, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *map(str, arguments)]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **variables, "LIT_PREF_CACHE": str(cache)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def many(folder: Path) -> Run:
    data = {"train": str(folder / "many.jsonl"), "val_fraction": 0.0, "global_batch": 8}
    return Run(policy={"path": str(folder / "policy")}, data=data, trainer={"max_epochs": 1})


def only_fill(case: Run, folder: Path, seconds: float = 0.0, **options: Any) -> Counted:
    """A run that ends where the store is full."""
    with pytest.MonkeyPatch.context() as patch:
        counted = counting(patch, seconds)
        patch.setattr(PreferenceModule, "setup", _fill_and_leave)
        fit(case, folder, **options)
    return counted


def _fill_and_leave(module: PreferenceModule, stage: str) -> None:
    from lightning.pytorch.utilities.exceptions import _TunerExitException

    preparations = module.reference_preparations("all")
    _wait_for_company(Path(os.environ["LIT_PREF_CACHE"]), int(os.environ.get("COMPANY", "1")))
    for preparation in preparations:
        preparation.fill()
    raise _TunerExitException


def _wait_for_company(folder: Path, number: int) -> None:
    """Until so many processes have come here: one alone could be done before the next has started."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"here-{os.getpid()}").touch()
    while len(list(folder.glob("here-*"))) < number:
        time.sleep(0.01)


def exact(case: Run) -> Run:
    return replace(case, policy={**case.policy, "dtype": "float64"})


def main(what: str, folder: Path) -> None:
    """Fill slowly, alone or as one of two ranks, and say how many pairs were read here."""
    run_folder, cache = folder / f"run-{os.getpid()}", os.environ["LIT_PREF_CACHE"]
    if what == "alone":
        print(f"read {len(only_fill(many(folder), run_folder, seconds=0.05).pairs)}", flush=True)
        return
    for name, strategy in {"ddp": DDPStrategy(), "fsdp": ModelParallelStrategy(2, 1)}.items():
        os.environ["LIT_PREF_CACHE"] = f"{cache}/{name}"
        options: dict[str, Any] = {"seconds": 0.05, "strategy": strategy, "devices": 2}
        print(f"read {len(only_fill(exact(many(folder)), run_folder, **options).pairs)}", flush=True)
    close_group()  # as `Run` does at exit


@pytest.fixture(scope="module")
def crowd(made: Path) -> Path:
    write_pairs(made / "many.jsonl", MANY)
    return made


def read_by(processes: list[subprocess.Popen[str]]) -> list[list[int]]:
    """What each process says it read, fill by fill."""
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return [[int(line[5:]) for line in output.splitlines() if line.startswith("read ")] for output in outputs]


def test_a_process_killed_while_filling_loses_a_block_at_most_and_the_rest_is_the_same_to_the_last_bit(
    crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    process = program("alone", crowd, cache=tmp_path / "cache")
    try:
        while process.poll() is None and len(list((tmp_path / "cache").glob("references/*/*.arrow"))) < 2:
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    before = stored_scores(tmp_path / "cache")
    assert 2 * 128 <= len(before) < 2 * MANY
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))
    assert len(only_fill(many(crowd), tmp_path / "rest").pairs) == MANY - len(before) // 2
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "whole"))
    assert len(only_fill(many(crowd), tmp_path / "run").pairs) == MANY
    assert stored_scores(tmp_path / "cache") == stored_scores(tmp_path / "whole")
    assert before.items() <= stored_scores(tmp_path / "whole").items()


def test_two_runs_at_once_share_the_work(crowd: Path, tmp_path: Path):
    (first,), (second,) = read_by([program("alone", crowd, cache=tmp_path / "cache", COMPANY="2") for _ in range(2)])
    assert first + second == MANY and min(first, second) > 0
    assert len(stored_scores(tmp_path / "cache")) == 2 * MANY


def test_two_ranks_share_the_work_and_store_what_one_process_stores(
    crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = read_by([program("ranks", crowd, cache=tmp_path / "cache", **environment(k, port)) for k in range(2)])
    ddp, fsdp = zip(*ranks, strict=True)
    assert min(ddp) > 0 and sum(ddp) == MANY
    # The lockstep of a sharded reference reads a batch twice where the last round of a block has none for a rank.
    assert min(fsdp) > 0 and MANY <= sum(fsdp) < 2 * MANY
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "whole"))
    only_fill(exact(many(crowd)), tmp_path / "run")
    whole = stored_scores(tmp_path / "whole")
    for name in ("ddp", "fsdp"):
        shared = stored_scores(tmp_path / "cache" / name)
        assert whole.keys() == shared.keys() and len(whole) == 2 * MANY
        np.testing.assert_allclose([shared[a] for a in whole], list(whole.values()), rtol=0, atol=1e-11)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
