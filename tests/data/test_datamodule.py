"""The data module under a real Trainer: order, windows, resume, and what it refuses."""

import logging
import math
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ParallelStrategy

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.sampling import epoch_order
from lit_pref.data.datamodule import PreferenceDataModule
from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.requirements import Requirements

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
PAIRS, GLOBAL, MICRO = 10, 4, 2  # windows of 4, 4, 2 pairs: 2, 2, 1 micro-batches an epoch


class Recorder(LightningModule):
    """Remembers the pairs of every training batch; its weight depends on their order."""

    def __init__(
        self,
        tokenizer,
        sides=("chosen", "rejected"),
        required=frozenset(),
        max_length=None,
        references=(),
        layout="padded",
    ):
        super().__init__()
        self.layout = layout
        self.corpora = []
        self.spec = SimpleNamespace(
            load_tokenizer=lambda corpus: (self.corpora.append(corpus), tokenizer)[1], max_length=lambda: max_length
        )
        self.references = references
        self.objective = SimpleNamespace(requirements=Requirements(sides=sides, columns=required))
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen, self.evaluated, self.steps, self.batches = [], [], [], []

    def decide_layout(self, lengths):
        self.batch_layout = self.layout

    def score_adder(self):
        return None

    def training_step(self, batch, batch_idx):
        assert isinstance(batch, PreferenceBatch)
        self.batches.append(batch)
        ids = [id for id, real in zip(batch.pairs.ids, batch.pairs.is_real.tolist(), strict=True) if real]
        self.seen.append((self.current_epoch, ids))
        losses = self.weight * batch.pairs.margin.double() + self.weight**2 * 0.1
        return (losses * batch.pairs.is_real).sum() * self.trainer.accumulate_grad_batches / batch.pairs.window_pairs

    def validation_step(self, batch, batch_idx):
        self.evaluated += [id for id, real in zip(batch.pairs.ids, batch.pairs.is_real.tolist(), strict=True) if real]

    test_step = predict_step = validation_step

    def on_before_optimizer_step(self, optimizer):
        self.steps.append(len(self.seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Save(Callback):
    """Writes a checkpoint at every place of one kind."""

    def __init__(self, where, folder):
        self.where, self.folder, self.points = where, folder, []

    def save(self, where, trainer, module):
        if where == self.where and not trainer.sanity_checking:
            path = self.folder / f"{len(self.points)}.ckpt"
            trainer.save_checkpoint(path)
            self.points.append((path, len(module.seen)))

    def on_train_batch_end(self, trainer, module, *_):
        if not trainer.fit_loop._should_accumulate():
            self.save("step", trainer, module)

    def on_validation_end(self, trainer, module):
        self.save("validation", trainer, module)

    def on_train_epoch_end(self, trainer, module):
        self.save("epoch", trainer, module)


@pytest.fixture
def source(written):
    rows = [
        {"prompt": f"p{k}", "chosen": f"c{k}", "rejected": "r", "margin": k + 0.28, "id": str(k)} for k in range(PAIRS)
    ]
    return str(written(rows))


@pytest.fixture
def held_out(written):
    rows = [{"prompt": f"v{k}", "chosen": "c", "rejected": "r", "margin": 1, "id": f"v{k}"} for k in range(5)]
    return str(written(rows, "val.jsonl"))


def trainer(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    options = {"max_epochs": 3, **options}
    return Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **quiet, **options)


def data(source, held_out=None, **options):
    return PreferenceDataModule(
        source, held_out, **{"val_fraction": 0.0, "global_batch": GLOBAL, "micro_batch": MICRO, "seed": 3, **options}
    )


def fit(tokenizer, datamodule, *callbacks, ckpt=None, **options):
    module = Recorder(tokenizer)
    trainer(*callbacks, **options).fit(module, datamodule=datamodule, ckpt_path=ckpt)
    return module


def test_an_epoch_is_the_order_of_seed_and_epoch_and_steps_are_windows(tokenizer, source):
    module = fit(tokenizer, data(source))
    for epoch in range(3):
        ids = [id for at, batch in module.seen if at == epoch for id in batch]
        assert ids == [str(k) for k in epoch_order(PAIRS, 3, epoch)]
    assert module.steps == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    assert [batch.pairs.window_pairs for batch in module.batches[:5]] == [4, 4, 4, 4, 2]
    assert module.trainer.accumulate_grad_batches == 2


def test_micro_batching_changes_no_step(tokenizer, source):
    modules = [fit(tokenizer, data(source, micro_batch=size)) for size in (None, 1, 2, 3)]
    assert [len(module.seen) for module in modules] == [9, 30, 15, 15]
    assert [len(module.steps) for module in modules] == [9] * 4
    assert [module.weight.item() for module in modules] == pytest.approx([modules[0].weight.item()] * 4, rel=1e-12)


@pytest.mark.parametrize(
    "where, validates, options, points",
    [
        ("step", False, {}, 9),
        ("step", True, {"max_epochs": None, "max_steps": 8}, 8),
        ("epoch", True, {}, 3),
        ("epoch", False, {"max_epochs": None, "max_steps": 8}, 2),
        ("epoch", True, {"max_steps": 9}, 3),
        ("validation", True, {"val_check_interval": 0.4}, 6),
        ("validation", True, {"max_steps": 9}, 3),
    ],
)
def test_resuming_from_every_point_gives_exactly_the_rest(
    tokenizer, source, held_out, tmp_path, where, validates, options, points
):
    held_out = held_out if validates else None
    save = Save(where, tmp_path)
    whole = fit(tokenizer, data(source, held_out), save, **options)
    assert len(save.points) >= points
    for path, given in save.points:
        resumed = fit(tokenizer, data(source, held_out), ckpt=path, **options)
        assert resumed.seen == whole.seen[given:]
        assert resumed.weight.item() == whole.weight.item()


class Stop(Callback):
    """Asks for the end at an optimizer step, as early stopping does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.parametrize("options", [{}, {"max_steps": 9}])
def test_a_run_that_was_stopped_within_an_epoch_goes_on_with_the_rest_of_it(tokenizer, source, tmp_path, options):
    whole = fit(tokenizer, data(source), **options)
    for step in (1, 2, 3, 5):
        (tmp_path / str(step)).mkdir()
        save = Save("epoch", tmp_path / str(step))
        fit(tokenizer, data(source), Stop(step), save, **options)
        path, given = save.points[-1]
        resumed = fit(tokenizer, data(source), ckpt=path, **options)
        assert [ids for _, ids in resumed.seen] == [ids for _, ids in whole.seen[given:]]
        assert resumed.weight.item() == whole.weight.item()


def test_resuming_with_workers_counts_what_was_given_and_not_what_was_fetched(tokenizer, source, tmp_path):
    save = Save("step", tmp_path)
    whole = fit(tokenizer, data(source, workers=1), save, max_epochs=2)
    for path, given in save.points[1:4]:
        assert fit(tokenizer, data(source, workers=1), ckpt=path, max_epochs=2).seen == whole.seen[given:]


@pytest.mark.parametrize("point", [0, 2])  # within the first epoch, and at its end
@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"seed": 4}, "data.seed 3, this run has 4"),
        ({"global_batch": 8}, "data.global_batch 4, this run has 8"),
        ({"micro_batch": 1}, "micro-batches per optimizer step of 2, this run has 4"),
        ({"max_length": 5}, "prepared training data"),
        ({"val_fraction": 0.4}, "number of training pairs of 10, this run has"),
    ],
)
def test_resuming_with_another_order_is_refused_wherever_the_run_stopped(
    tokenizer, source, tmp_path, point, change, sentence
):
    save = Save("step" if point == 0 else "epoch", tmp_path)
    fit(tokenizer, data(source), save, max_epochs=1)
    with pytest.raises(UserError, match=sentence):
        fit(tokenizer, data(source, **change), ckpt=save.points[0][0])


def test_a_checkpoint_within_an_optimiser_step_is_refused(tokenizer, source, tmp_path):
    class Early(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.fit_loop._should_accumulate():
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    fit(tokenizer, data(source), Early(), max_epochs=1)
    with pytest.raises(UserError, match="within an optimizer step of 4 pairs whose gradients it does not contain"):
        fit(tokenizer, data(source), ckpt=tmp_path / "early.ckpt")


def test_a_position_that_was_loaded_for_validation_does_not_move_a_later_fit(tokenizer, source, held_out, tmp_path):
    save = Save("step", tmp_path)
    whole = fit(tokenizer, data(source, held_out), save, max_epochs=1)
    again, module = data(source, held_out), Recorder(tokenizer)
    trainer().validate(module, datamodule=again, ckpt_path=save.points[0][0], verbose=False)
    trainer(max_epochs=1).fit(module, datamodule=again)
    assert module.seen == whole.seen


def test_each_validation_pair_is_evaluated_once_in_fit_validate_test_and_predict(tokenizer, source, held_out):
    module, datamodule = Recorder(tokenizer), data(source, held_out)
    run = trainer(max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, datamodule=datamodule)
    for evaluate in (run.validate, run.test, run.predict):
        evaluate(module, datamodule=datamodule)
    assert module.evaluated == ["v0", "v1", "v2", "v3", "v4"] * 4


def test_without_validation_pairs_fit_works_and_test_says_what_to_do(tokenizer, source):
    module, datamodule = Recorder(tokenizer), data(source)
    trainer(max_epochs=1).fit(module, datamodule=datamodule)
    assert not module.evaluated
    with pytest.raises(UserError, match=r"has no validation pairs; give data\.val, or raise data\.val_fraction"):
        trainer().test(module, datamodule=datamodule)


def test_ranks_slice_the_same_windows(tokenizer, source):
    module = fit(tokenizer, data(source, micro_batch=1), max_epochs=1)
    one, seen = module.trainer.datamodule, []
    for rank in range(2):
        strategy = Mock(spec=ParallelStrategy, distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
        one.trainer = Mock(
            strategy=strategy, fit_loop=Mock(restarting=False, is_resuming=False), lightning_module=module
        )
        seen.append([id for sealed in one.train_dataloader() for id in sealed.batch.pairs.ids])
    order = [str(k) for k in epoch_order(PAIRS, 3, 0)]
    assert seen == [order[0::2], order[1::2]]
    one.global_batch = 1
    with pytest.raises(UsageError, match="global_batch 1 is less than one pair for each of 2 devices"):
        one.train_dataloader()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precision_plugins_round_no_number_and_meet_no_text(tokenizer, source, precision):
    module = fit(tokenizer, data(source), precision=precision, max_epochs=1)
    margins = sorted(float(m) for batch in module.batches for m in batch.pairs.margin)
    assert margins == pytest.approx([k + 0.28 for k in range(PAIRS)], rel=1e-7)
    assert {batch.pairs.margin.dtype for batch in module.batches} == {torch.float32}


def test_the_objective_decides_sides_and_columns(tokenizer, written):
    rows = [{"prompt": f"p{k}", "chosen": "c", "margin": 1, "rejected": "r", "p_true": 0.7} for k in range(4)]
    module = Recorder(tokenizer, sides=("chosen",), required=frozenset({"margin", "p_true"}))
    datamodule = data(str(written(rows)))
    trainer(max_epochs=1).fit(module, datamodule=datamodule)
    assert module.batches[0].pairs.rejected_lengths is None
    assert module.batches[0].pairs.columns["p_true"].tolist() == pytest.approx([0.7] * 2)
    assert datamodule.columns == ["p_true"]


def test_the_tokenizer_corpus_is_the_training_split_alone(tokenizer, source):
    module, datamodule = Recorder(tokenizer), data(source, val_fraction=0.4)
    trainer(max_epochs=1).fit(module, datamodule=datamodule)
    kept = {pair.text.prompt for pair in datamodule.train_pairs}
    assert 0 < len(kept) < PAIRS
    texts = list(module.corpora[0].texts())
    assert {text for text in texts if text.startswith("p")} == kept
    assert len(texts) == 3 * len(kept)


def test_what_other_parts_ask_for(tokenizer, source, held_out):
    datamodule = fit(tokenizer, data(source, held_out), max_epochs=1).trainer.datamodule
    assert datamodule.windows_per_epoch == 3
    assert (len(datamodule.train_pairs), len(datamodule.val_pairs)) == (10, 5)
    first = datamodule.train_pairs[0]
    assert datamodule.sample(1) == [(first.prompt, first.chosen, first.rejected)]
    described = datamodule.describe()
    pairs = {name: [report.pairs for report in reports.values()] for name, (_, reports) in described.items()}
    assert pairs == {"train": [10], "val": [5]}
    assert described["train"] == (datamodule.train_pairs.fingerprint, datamodule.train_pairs.reports)


# The longest pair of the training split: begin token, p, k, c, k and the end token.
LONGEST = 6


def test_pairs_longer_than_the_policy_or_a_reference_reads_are_refused_before_training(tokenizer, source):
    asked = []

    def reference(max_length):
        return SimpleNamespace(label="old", max_length=lambda tokenizer: (asked.append(tokenizer), max_length)[1])

    for max_length, references in ((LONGEST, ()), (None, ()), (None, (reference(LONGEST), reference(None)))):
        trainer(max_epochs=1).fit(Recorder(tokenizer, max_length=max_length, references=references), data(source))
    assert asked == [tokenizer] * 2
    for module, name in (
        (Recorder(tokenizer, max_length=LONGEST - 1), "the policy"),
        (Recorder(tokenizer, max_length=LONGEST, references=(reference(LONGEST - 1),)), "the reference 'old'"),
    ):
        with pytest.raises(
            UserError,
            match=f"longest pair has 6 tokens, and {name} reads at most 5; lower data.max_length from 1024 to 5",
        ):
            trainer(max_epochs=1).fit(module, datamodule=data(source))
        assert not module.seen
        # With the remedy of the sentence it runs.
        trainer(max_epochs=1).fit(module, datamodule=data(source, max_length=5))
        assert len(module.seen) == 5


def test_only_the_pairs_that_are_read_need_room(tokenizer, source, held_out):
    module = Recorder(tokenizer, max_length=5)  # validation pairs have 5 tokens: "v0", "c" and begin and end
    trainer().validate(module, datamodule=data(source, held_out), verbose=False)
    assert len(module.evaluated) == 5
    module = Recorder(tokenizer, max_length=4)
    with pytest.raises(UserError, match="longest pair has 5 tokens"):
        trainer().validate(module, datamodule=data(source, held_out), verbose=False)


def test_what_a_column_does_on_a_swap_is_the_users_to_say(tokenizer, written):
    rows = [{"prompt": f"p{k}", "chosen": "c", "rejected": "r", "margin": -1, "gap": 2, "p_true": 0.25} for k in "ab"]
    datamodule = data(str(written(rows)), columns=["gap", "p_true"], on_swap={"gap": "negate"})
    fit(tokenizer, datamodule, max_epochs=1)
    assert [dict(pair.columns) for pair in datamodule.train_pairs] == [{"gap": -2.0, "p_true": 0.75}] * 2
    with pytest.raises(UserError, match=r"line 1: the texts are swapped.* set data\.on_swap\.gap to keep"):
        fit(tokenizer, data(str(written(rows)), columns=["gap"], bad_rows="lenient", max_refused=1.0))


@pytest.mark.parametrize(
    "limit, batches, steps",
    [(2, 2, 1), (4, 4, 2), (100, 5, 3), (1.0, 5, 3), (0.5, 2, 1), (0.9, 4, 2), (0.2, 2, 1)],
)
def test_a_limited_epoch_ends_with_a_window(tokenizer, source, limit, batches, steps):
    module = fit(tokenizer, data(source), limit_train_batches=limit, max_epochs=2)
    assert len(module.seen) == 2 * batches
    assert len(module.steps) == 2 * steps
    assert module.trainer.datamodule.windows_per_epoch == steps
    assert [id for at, batch in module.seen if at == 1 for id in batch] == [
        str(k) for k in epoch_order(PAIRS, 3, 1)[: min(PAIRS, batches * MICRO)]
    ]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"accumulate_grad_batches": 3},
            "accumulate_grad_batches is set, but accumulation follows from data.global_batch 4",
        ),
        ({"limit_train_batches": 3}, "limit_train_batches 3 is within an optimizer step, .* multiple of 2, such as 4"),
        ({"val_check_interval": 4}, "val_check_interval 4 is more than the 3 optimizer steps of an epoch"),
        ({"val_check_interval": "00:00:01:00"}, "val_check_interval is a duration"),
        ({"overfit_batches": 2}, "overfit_batches would use different pairs in each epoch"),
    ],
)
def test_trainer_settings_that_would_cut_windows_are_refused(tokenizer, source, held_out, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        fit(tokenizer, data(source, held_out), **options)


# By tokens. Prompts "p" and a digit, begin token before: 3 tokens; chosen "c0" and end token: 3; rejected "r", 2. In
# the rows of `uneven` pair k has 2 k letters more.


@pytest.fixture
def uneven(written):
    rows = [
        {"prompt": f"p{k}", "chosen": f"c{k}" + "x" * 2 * k, "rejected": "r", "margin": k + 0.28, "id": str(k)}
        for k in range(PAIRS)
    ]
    return str(written(rows, "uneven.jsonl"))


def tokens_of(pair, layout):
    return 8 + 2 * int(pair) if layout == "prefix_shared" else 2 * (6 + 2 * int(pair))


def budgeted(source, held_out=None, tokens=64, **options):
    return data(source, held_out, micro_batch=None, max_tokens=tokens, **options)


def fit_within(tokenizer, datamodule, *callbacks, layout="padded", ckpt=None, **options):
    module = Recorder(tokenizer, layout=layout)
    trainer(*callbacks, **options).fit(module, datamodule=datamodule, ckpt_path=ckpt)
    return module


@pytest.mark.parametrize("layout", ["prefix_shared", "padded"])
def test_within_a_budget_steps_are_those_of_one_batch_and_no_forward_is_above_it(tokenizer, uneven, layout):
    one = fit(tokenizer, data(uneven, micro_batch=None))
    module = fit_within(tokenizer, budgeted(uneven), layout=layout)
    assert module.weight.item() == pytest.approx(one.weight.item(), rel=1e-12)
    windows = [sorted(id for _, ids in module.seen[a:b] for id in ids) for a, b in pairwise([0, *module.steps])]
    assert windows == [sorted(ids) for _, ids in one.seen]
    for batch in module.batches:
        costs = [tokens_of(pair, layout) for pair in batch.pairs.ids]
        assert (sum(costs) if layout == "prefix_shared" else len(costs) * max(costs)) <= 64
        assert (batch.rows.segments is not None) == (layout == "prefix_shared")
    # The least that works: with fewer, 3 epochs would have a window above 64.
    every = module.trainer.accumulate_grad_batches
    assert len(module.steps) == 9 and every > 1
    assert max(sum(tokens_of(pair, layout) for pair in window) for window in windows) > 64 * (every - 1)


@pytest.mark.parametrize(
    "where, validates, options, points",
    [
        ("step", False, {}, 9),
        ("epoch", True, {"max_epochs": None, "max_steps": 8}, 3),
        ("validation", True, {"val_check_interval": 0.4}, 6),
    ],
)
def test_resuming_within_a_budget_gives_exactly_the_rest(
    tokenizer, uneven, held_out, tmp_path, where, validates, options, points
):
    held_out = held_out if validates else None
    save = Save(where, tmp_path)
    whole = fit_within(tokenizer, budgeted(uneven, held_out), save, layout="prefix_shared", **options)
    assert len(save.points) >= points
    for path, given in save.points:
        resumed = fit_within(tokenizer, budgeted(uneven, held_out), layout="prefix_shared", ckpt=path, **options)
        assert resumed.seen == whole.seen[given:]
        assert resumed.weight.item() == whole.weight.item()


def test_resuming_within_another_budget_is_refused(tokenizer, uneven, tmp_path):
    save = Save("step", tmp_path)
    fit_within(tokenizer, budgeted(uneven), save)
    with pytest.raises(UserError, match=r"data\.max_tokens with the same trainer\.max_epochs and max_steps, or start"):
        fit_within(tokenizer, budgeted(uneven, tokens=100), ckpt=save.points[0][0])


def test_the_epochs_of_a_run_follow_from_its_steps_and_its_limits(tokenizer, uneven):
    # Three windows an epoch; a share of 0.5 leaves one.
    for options, epochs in (
        ({"max_epochs": 2}, 2),
        ({"max_epochs": None, "max_steps": 7}, 3),
        ({"max_epochs": 2, "max_steps": 7}, 2),
        ({"max_epochs": 5, "max_steps": 2}, 1),
        ({"max_epochs": None, "max_steps": 4, "limit_train_batches": 0.5}, 4),
        ({"max_epochs": 0}, 1),
    ):
        datamodule = budgeted(uneven)
        fit_within(tokenizer, datamodule, **options)
        assert datamodule._epochs == epochs, options
        assert datamodule.trainer.current_epoch <= epochs


def test_a_run_without_an_end_is_refused_with_a_budget(tokenizer, uneven):
    with pytest.raises(UsageError, match=r"max_tokens needs the length of the run.* set trainer\.max_epochs or"):
        fit_within(tokenizer, budgeted(uneven), max_epochs=-1)


def test_a_pair_above_the_budget_is_refused_before_training(tokenizer, uneven, held_out):
    for layout, tokens in (("prefix_shared", 26), ("padded", 48)):
        module = Recorder(tokenizer, layout=layout)
        sentence = (
            f"line 10: the texts .* take {tokens} tokens .*{layout} rows.*max_tokens 25.*; raise that to {tokens} "
        )
        with pytest.raises(UserError, match=sentence):
            trainer().fit(module, datamodule=budgeted(uneven, tokens=25))
        # With the remedy of the sentence it runs.
        fit_within(tokenizer, budgeted(uneven, tokens=tokens), layout=layout, max_epochs=1)
    # Validation pairs have 2 * 5 tokens: begin, "v", a digit, "c", end.
    with pytest.raises(UserError, match=r"line 1: the texts .* take 10 tokens .*max_tokens 9"):
        trainer().validate(Recorder(tokenizer), datamodule=budgeted(uneven, held_out, tokens=9), verbose=False)
    evaluated = Recorder(tokenizer)
    trainer().validate(evaluated, datamodule=budgeted(uneven, held_out, tokens=9, val_batch=2), verbose=False)
    assert evaluated.evaluated == ["v0", "v1", "v2", "v3", "v4"]


def test_validation_is_cut_by_the_budget_or_by_its_own_batch(tokenizer, uneven, held_out):
    seen = []

    class Batches(Callback):
        def on_validation_batch_start(self, trainer, module, batch, *_):
            seen.append(len(batch))

    module = Recorder(tokenizer)
    trainer(Batches()).validate(module, datamodule=budgeted(uneven, held_out, tokens=30), verbose=False)
    assert sorted(seen) == [2, 3] and sorted(module.evaluated) == ["v0", "v1", "v2", "v3", "v4"]
    seen.clear()
    datamodule = budgeted(uneven, held_out, tokens=30, val_batch=5)
    trainer(Batches()).validate(Recorder(tokenizer), datamodule=datamodule, verbose=False)
    assert seen == [5]


def test_the_budget_is_counted_in_the_rows_of_the_module_that_runs(tokenizer, uneven):
    datamodule = budgeted(uneven)
    every = {}
    for layout in ("padded", "prefix_shared", "padded"):
        module = Recorder(tokenizer, layout=layout)
        trainer(max_epochs=1).fit(module, datamodule=datamodule)
        every.setdefault(layout, set()).add(module.trainer.accumulate_grad_batches)
        alone = fit_within(tokenizer, budgeted(uneven), layout=layout, max_epochs=1)
        assert [batch.pairs.ids for batch in module.batches] == [batch.pairs.ids for batch in alone.batches]
    # Padded rows take more: 6 + 2k tokens twice, and not 8 + 2k.
    assert max(every["prefix_shared"]) < min(every["padded"])


def test_ranks_within_a_budget_share_the_same_windows(tokenizer, uneven):
    module = fit_within(tokenizer, budgeted(uneven), max_epochs=1)
    one, seen = module.trainer.datamodule, []
    for rank in range(2):
        strategy = Mock(spec=ParallelStrategy, distributed_sampler_kwargs={"num_replicas": 2, "rank": rank})
        one.trainer = Mock(
            strategy=strategy, fit_loop=Mock(restarting=False, is_resuming=False), lightning_module=module
        )
        loader = one.train_dataloader()
        batches = [sealed.batch for sealed in loader]
        assert len(batches) == len(loader)
        seen.append(
            [id for b in batches for id, real in zip(b.pairs.ids, b.pairs.is_real.tolist(), strict=True) if real]
        )
    assert sorted(seen[0] + seen[1]) == [str(k) for k in range(PAIRS)]
    assert abs(len(seen[0]) - len(seen[1])) < PAIRS // 2


def test_an_accumulation_schedule_is_refused_and_the_right_accumulation_is_not(tokenizer, source):
    with pytest.raises(UsageError, match="accumulate_grad_batches is set"):
        fit(tokenizer, data(source), GradientAccumulationScheduler({0: 2}))
    assert len(fit(tokenizer, data(source), accumulate_grad_batches=2, max_epochs=1).steps) == 3


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"global_batch": 0}, "data.global_batch is 0; it must be at least 1"),
        ({"micro_batch": 0}, "data.micro_batch is 0"),
        ({"val_batch": -1}, "data.val_batch is -1"),
        ({"max_tokens": 0}, "data.max_tokens is 0; it must be at least 1"),
        (
            {"micro_batch": 2, "max_tokens": 64},
            "micro_batch 2 and data.max_tokens 64 are both set.*leave one of them out",
        ),
        ({"workers": -1}, "data.workers is -1"),
        ({"seed": -1}, "data.seed is -1"),
        ({"val_fraction": 1.0}, "data.val_fraction is 1; it must be at least 0 and below 1"),
        ({"val_fraction": math.nan}, "data.val_fraction is nan"),
        ({"max_refused": 2}, "data.max_refused is 2"),
        ({"ties": "maybe"}, "data.ties is 'maybe'; it must be keep or drop"),
        ({"bad_rows": "any"}, "data.bad_rows is 'any'; it must be strict or lenient"),
        ({"max_length": 1}, "leaves no room"),
    ],
)
def test_nonsense_is_refused_at_construction(wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        PreferenceDataModule("pairs.jsonl", **wrong)


def test_a_split_that_leaves_nothing_to_train_on_is_refused(tokenizer, written):
    one = str(written([{"prompt": "p5", "chosen": "c", "rejected": "r"}]))
    with pytest.raises(UserError, match=r"all pairs went to validation; lower data\.val_fraction"):
        fit(tokenizer, data(one, val_fraction=0.999))


def test_validation_under_a_checkpoint_takes_its_constants(tokenizer, source, held_out, written):
    normalised = {"mapping": {"margin": {"normalise": "minmax"}}}
    first = fit(tokenizer, data(source, held_out, **normalised), max_epochs=1).trainer.datamodule
    other = [{"prompt": f"o{k}", "chosen": "c", "rejected": "r", "margin": 1000} for k in range(8)]
    second = fit(tokenizer, data(str(written(other, "other.jsonl")), held_out, **normalised), max_epochs=1)
    module = second.trainer.datamodule
    assert module.val_pairs.column("margin").max() < first.val_pairs.column("margin").max() / 10
    module.load_state_dict(first.state_dict())
    assert module.val_pairs.column("margin").tolist() == first.val_pairs.column("margin").tolist()
