"""Reward models by lit_pref and by TRL's own trainer: the same batches, the same losses, the same scores."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl_runs
from conftest import make_policy, write_pairs
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl_runs import ADAMW, Recorder, Row, Run, differences, no_progress_bars, trl_arguments, weights_of

from lit_pref.batch import Rows
from lit_pref.data.batching import collation
from lit_pref.data.batching.sampling import epoch_order
from lit_pref.judging.model_judge import ModelJudge, judge_spec
from lit_pref.models.reward import set_padding
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.reward import RewardModule
from lit_pref.run.run import build
from lit_pref.scoring.reward import RewardScorer

pytestmark = pytest.mark.filterwarnings("ignore")
CLIP = 1.7  # between the norms of the gradients, so that some are clipped
SCORE_LIMIT = 1e-4


@dataclass(frozen=True)
class Loss:
    """One loss, as each side is told it."""

    ours: dict[str, Any]
    columns: tuple[str, ...] = ()
    theirs: dict[str, float] = field(default_factory=dict)


LOSSES = {
    "plain": Loss({}),
    "margin": Loss({"offset": {"class_path": "ColumnOffset", "init_args": {"column": "margin"}}}, ("margin",)),
    "centred": Loss(
        {"terms": [{"class_path": "Center", "init_args": {"coefficient": 0.1}}]},
        theirs={"center_rewards_coefficient": 0.1},
    ),
}


@dataclass
class Trained:
    """A training, and the scores (16,) of both responses of the held-out pairs by its last weights."""

    run: Run
    scores: Tensor


Train = Callable[..., Trained]


@pytest.fixture(scope="module", autouse=True)
def _no_progress_bars() -> Iterator[None]:
    with no_progress_bars():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, held-out pairs, and `reward`: a reward model with a new head, saved for transformers."""
    folder = tmp_path_factory.mktemp("trl")
    write_pairs(folder / "pairs.jsonl", trl_runs.PAIRS)
    write_pairs(folder / "held_out.jsonl", 8, seed=9)
    policy = make_policy(folder / "policy", seed=1)
    spec = ModelSpec(path=str(policy), head="scalar", seed=2)
    model, tokenizer = spec.build(), spec.load_tokenizer()
    set_padding(model, tokenizer, {tokenizer.eos_token_id})
    model.save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def classifier(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)


# TRL's side


class Recording(RewardTrainer):
    """TRL's trainer, which keeps the rows that it was given and the losses that it found."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.losses: list[float] = []
        self.rows: list[list[list[int]]] = []

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        columns = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        self.rows.append([ids[mask == 1].tolist() for ids, mask in columns])
        self.losses.append(loss.item())
        return loss


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Train:
    """TRL over one epoch of a dataset that holds lit_pref's epochs one after the other, once for each loss."""
    found: dict[str, Trained] = {}

    def train(name: str) -> Trained:
        if name not in found:
            found[name] = _by_trl(folder, LOSSES[name])
        return found[name]

    return train


def _by_trl(folder: Path, loss: Loss) -> Trained:
    pairs = read(folder / "pairs.jsonl")
    order = [k for epoch in range(trl_runs.EPOCHS) for k in epoch_order(trl_runs.PAIRS, trl_runs.SEED, epoch)]
    columns = "prompt", "chosen", "rejected", *loss.columns
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    trainer = Recording(
        model=classifier(folder),
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list([{name: pairs[k][name] for name in columns} for k in order]),
        args=RewardConfig(**trl_arguments(folder), max_grad_norm=CLIP, **loss.theirs),
    )
    trainer.train()
    model: Any = trainer.model
    rows: list[list[Row]] = [[(ids, []) for ids in step] for step in trainer.rows]
    run = Run(trainer.losses, rows, [1] * len(rows), weights_of(model))
    held_out = [
        tokenizer(pair["prompt"] + pair[side] + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        for pair in read(folder / "held_out.jsonl")
        for side in ("chosen", "rejected")
    ]
    with torch.no_grad():
        return Trained(run, torch.cat([model.eval()(input_ids=ids).logits[0] for ids in held_out]))


# lit_pref's side


@pytest.fixture
def train(folder: Path, tmp_path: Path) -> Train:
    """A run of lit_pref from its configuration to the export, by which the held-out pairs are judged."""

    def run(name: str = "plain", lr: float = ADAMW["lr"], pairs: Path | None = None, **options: Any) -> Trained:
        settings = {**ADAMW, "lr": lr, "betas": list(ADAMW["betas"])}
        config = {
            "model.policy": {"path": str(folder / "reward"), "head": "scalar"},
            "model.objective": {"class_path": "BradleyTerry", "init_args": LOSSES[name].ours},
            "model.optimizer": {"class_path": "AdamW", "init_args": settings},
            "data": {"train": str(pairs or folder / "pairs.jsonl"), "val_fraction": 0, "seed": trl_runs.SEED},
            "data.global_batch": trl_runs.WINDOW,
            "trainer": {"max_epochs": trl_runs.EPOCHS, "gradient_clip_val": CLIP, "accelerator": "cpu", "devices": 1},
            "trainer.enable_progress_bar": False,
            "trainer.logger": False,
            "run_dir": str(tmp_path / "run"),
            "print_summary": False,
        }
        built = build({}, {**config, **options})
        built.trainer.callbacks.append(recorder := Recorder())
        exported = built.fit()
        assert exported is not None and built.module.scorer is not None
        questions = [(pair["prompt"], [pair["chosen"], pair["rejected"]]) for pair in read(folder / "held_out.jsonl")]
        scores = ModelJudge(judge_spec(exported.folder)).scores(questions)
        return Trained(recorder.run(built.module.scorer.model), torch.tensor(scores).flatten())

    return run


def test_trl_itself_learns_the_pairs(theirs: Train):
    found = {name: theirs(name).run.losses for name in LOSSES}
    assert len(found["plain"]) == trl_runs.STEPS == 20
    assert found["plain"][0] == pytest.approx(math.log(2), rel=0.1)
    assert found["plain"][-1] < 0.6
    assert found["margin"][0] > 1.2 * found["plain"][0]
    assert found["centred"][0] > 1.001 * found["plain"][0]


@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [
        ("plain", {"model.layout": "prefix_shared"}, 1),
        ("plain", {"model.layout": "padded", "data.micro_batch": 5}, 2),
        ("margin", {"model.layout": "prefix_shared", "data.micro_batch": 5}, 2),
        ("centred", {"model.layout": "prefix_shared"}, 1),
    ],
)
def test_a_reward_model_is_trls(
    name: str, options: dict[str, Any], passes: int, folder: Path, train: Train, theirs: Train
):
    ours, other = train(name, **options), theirs(name)
    assert ours.run.passes == [passes] * trl_runs.STEPS
    assert [[ids for ids, _ in step] for step in ours.run.rows] == [[ids for ids, _ in step] for step in other.run.rows]
    loss, update = differences(ours.run, other.run, weights_of(classifier(folder)))
    assert loss <= trl_runs.LOSS_LIMIT
    assert update <= trl_runs.UPDATE_LIMIT
    torch.testing.assert_close(ours.scores, other.scores, atol=SCORE_LIMIT, rtol=SCORE_LIMIT)
    assert other.scores.std() > 0.1


# Faults that the comparison must see


def swapped_pair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pairs = read(folder / "pairs.jsonl")
    pairs[7]["chosen"], pairs[7]["rejected"] = pairs[7]["rejected"], pairs[7]["chosen"]
    (folder / "swapped.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return {"pairs": folder / "swapped.jsonl"}


def doubled_rate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"lr": 2 * ADAMW["lr"]}


def doubled_gradient(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    step = RewardModule.training_step
    monkeypatch.setattr(RewardModule, "training_step", lambda self, *inputs: 2 * step(self, *inputs))
    return {}


def token_before_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    _read_at(lambda rows: rows.ends - 1, monkeypatch)
    return {}


def last_position(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    _read_at(lambda rows: torch.arange(1, len(rows.input_ids) + 1) * rows.input_ids.shape[1] - 1, monkeypatch)
    return {"model.layout": "padded"}


def _read_at(ends: Callable[[Rows], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training read the head elsewhere; where the export does so too, it is refused."""
    forward = RewardScorer.forward

    def elsewhere(self: Any, batch: Any, *needs: Any) -> Any:
        rows = replace(batch.rows, ends=ends(batch.rows)) if torch.is_grad_enabled() else batch.rows
        return forward(self, replace(batch, rows=rows), *needs)

    monkeypatch.setattr(RewardScorer, "forward", elsewhere)


def without_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    collate = collation.collate

    def shorter(pairs: Any, *options: Any, **more: Any) -> Any:
        cut = [replace(pair, chosen=pair.chosen[:-1], rejected=pair.rejected[:-1]) for pair in pairs]
        return collate(cut, *options, **more)

    monkeypatch.setattr(collation, "collate", shorter)
    return {}


FAULTS = [swapped_pair, doubled_rate, doubled_gradient, token_before_end, last_position, without_ends]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_comparison_sees_a_fault(
    fault: Any, folder: Path, train: Train, theirs: Train, monkeypatch: pytest.MonkeyPatch
):
    ours = train(**fault(folder, monkeypatch))
    loss, update = differences(ours.run, theirs("plain").run, weights_of(classifier(folder)))
    assert loss > 10 * trl_runs.LOSS_LIMIT
    assert update > 2 * trl_runs.UPDATE_LIMIT
    assert (ours.scores - theirs("plain").scores).abs().max() > 10 * SCORE_LIMIT


@pytest.mark.parametrize("name", ["margin", "centred"])
def test_the_comparison_sees_a_missing_part(name: str, folder: Path, train: Train, theirs: Train):
    loss, update = differences(train("plain").run, theirs(name).run, weights_of(classifier(folder)))
    assert loss > 10 * trl_runs.LOSS_LIMIT
    assert update > 2 * trl_runs.UPDATE_LIMIT


def test_trl_reads_the_token_before_the_end_where_the_padding_token_ends_responses(folder: Path):
    model, tokenizer = classifier(folder), AutoTokenizer.from_pretrained(folder / "reward")
    tokenizer.pad_token = tokenizer.eos_token
    data = datasets.Dataset.from_list(read(folder / "pairs.jsonl")[:1])
    arguments = RewardConfig(**trl_arguments(folder))
    trainer = RewardTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=arguments)
    ids = trainer.train_dataset[0]["chosen_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    with torch.no_grad():
        states = model.eval().model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        scores, read_by_trl = model.score(states).flatten(), model(input_ids=torch.tensor([ids])).logits.flatten()
    torch.testing.assert_close(read_by_trl, scores[-2:-1])
    assert (read_by_trl - scores[-1]).abs() > 1e-3
