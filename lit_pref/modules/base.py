"""The training loop, evaluation and checkpoints of every module that scores pairs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.building import build_scorer
from lit_pref.modules.checkpoint_info import (
    FORMAT,
    KEY,
    SAMPLE,
    check_run,
    check_trained_tensors,
    class_path,
    model_info,
    objective_info,
    read_info,
    without_frozen,
)
from lit_pref.modules.distributed import (
    data_parallel_size,
    gradient_norm,
    refuse_tensors_outside,
    run_context,
    seed_batch,
    sum_over_ranks,
)
from lit_pref.modules.evaluation import Evaluation
from lit_pref.modules.fitting import fit_objective
from lit_pref.modules.layout_choice import check_layout, decide_layout
from lit_pref.modules.nonfinite import NonfiniteGuard
from lit_pref.modules.optimizers import build_optimizer, check_optimizer
from lit_pref.modules.resumption import Resumption
from lit_pref.modules.schedules import Schedule, total_steps
from lit_pref.modules.training_log import TrainingLog
from lit_pref.objectives.base import Objective
from lit_pref.run_context import RunContext
from lit_pref.scores import ObjectiveOutput, PairScores
from lit_pref.scoring.layout import Layout

Scored = tuple[PairScores, list[PairScores], ObjectiveOutput]
"""Scores of the trained model, scores of each reference, and the objective's output."""


class PairModule(LightningModule, ABC):
    """Base class of the modules that train a model on the scores of pairs; a subclass implements `scores`.

    Args:
        spec: The model to train.
        objective: The loss to minimise; an optimizer step takes the mean over its pairs.
        optimizer: A callable from parameters to a torch optimizer; see `build_optimizer`.
        schedule: The learning rate over optimizer steps; None is constant.
        margin_bins: Validation metrics are split into this many equal-count bins of the margin; 0 is off.
        layout: One of `layout_choice.LAYOUTS`.

    Raises:
        UsageError: There is no such layout.
    """

    def __init__(
        self,
        spec: ModelSpec,
        objective: Objective,
        optimizer: OptimizerCallable,
        schedule: Schedule | None = None,
        margin_bins: int = 0,
        layout: str = "auto",
    ) -> None:
        super().__init__()
        check_layout(layout)
        check_optimizer(optimizer)
        self.spec, self.objective = spec, objective
        self.optimizer, self.schedule = optimizer, schedule
        self.layout = layout
        self.batch_layout: Layout = "padded"  # set once the data are known
        self.layout_reason = ""
        self.seed = 0
        self.stop_at_step: int | None = None
        self.plain_config: dict[str, Any] = {}  # the configuration of the run, if it has one
        self.scorer: Any = None
        self.references: Sequence[Any] = ()  # frozen models, in modules that compare with some
        self.fitted: list[str] = []  # lines about parameters of the objective fitted to the training pairs
        self.selected: str | None = None  # a line about the selection of training pairs, if there is one
        self.evaluation = Evaluation(margin_bins)
        self.checkpoint_step = 0  # of the evaluated weights
        self.logged_step, self.training_numbers = 0, dict[str, float]()  # logged last, and at which step
        self.resumption = Resumption()
        self._log, self._guard = TrainingLog(), NonfiniteGuard()

    @abstractmethod
    def scores(self, batch: PreferenceBatch) -> Scored:
        """Score a batch with the trained model and the references, if any, and apply the objective."""

    def select(self, pairs: Any, selection: Any) -> NDArray[Any]:
        """Return the indices of the training pairs that `data.selection` keeps, in modules that can select."""
        raise UsageError(f"{type(self).__name__} cannot select training pairs: leave out data.selection")

    def score_adder(self) -> Callable[[PreferenceBatch], None] | None:
        """Return a function that lets a batch of the host carry stored reference scores, if there are any."""
        return None

    def on_scorer_built(self, scorer: Any) -> None:
        """Hook: the model has its initial weights, is not sharded yet, and no checkpoint has been restored."""

    @property
    def run_context(self) -> RunContext:
        """The context of the current run, for code that does not use Lightning."""
        return run_context(self.trainer, self.batch_layout, self.seed, self.stop_at_step)

    @property
    def data(self) -> Any:
        """The data module of the current run, which the type of Lightning's Trainer does not declare."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # Building the model

    def decide_layout(self, lengths: NDArray[Any]) -> None:
        """Set the layout of batches from the data's lengths and the model's configuration.

        Args:
            lengths: (pairs, 3), tokens of prompt, chosen and rejected response of the training pairs.

        Raises:
            UsageError: The layout is `prefix_shared`, and the model does not support it.
        """
        self.batch_layout, self.layout_reason = decide_layout(self.layout, self.spec, lengths)

    def setup(self, stage: str) -> None:
        self.resumption.check_early(self)
        selected_later = self.data.selection is not None and self.trainer.state.fn != "fit"
        self.fitted = fit_objective(self.objective, self.data.train_pairs, before_selection=selected_later)

    def configure_model(self) -> None:
        if self.scorer is not None:
            return
        # With adapters, checkpoints contain these only: the base weights come from the spec.
        self.strict_loading = self.spec.adapters is None
        scorer = build_scorer(self.spec, self.data.train_pairs, self.layout, self.objective.requirements.statistics)
        self.on_scorer_built(scorer)
        if (shard := self.run_context.shard) is not None:
            shard(scorer)
        self.scorer = scorer

    def configure_optimizers(self) -> Any:
        assert self.scorer is not None
        refuse_tensors_outside(self, self.scorer)
        optimizer = self.resumption.configured(build_optimizer(self))
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.over(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, from the data: asking the Trainer would load the loaders too early."""
        return total_steps(self.data.windows_per_epoch, self.trainer.max_epochs, self.trainer.max_steps)

    # Training

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        policy, references, output = self.scores(batch)
        losses = output.losses
        if policy.router_loss is not None:
            # Each pair has the router loss of its micro-batch, so that a step takes the mean over its pairs.
            losses = losses + self.scorer.router_weight * policy.router_loss
        self._guard.add(losses, batch.pairs)
        self._log.pairs.add(output, policy, references, batch.pairs)
        # Lightning divides by the accumulation, and strategies divide by the ranks; this factor makes the result the
        # mean over the pairs, or lists, of the optimizer step, for any number of ranks and micro-batches of any sizes.
        scale = data_parallel_size(self.trainer) * self.trainer.accumulate_grad_batches / batch.pairs.window_pairs
        return (losses * batch.pairs.weights).sum() * scale

    def on_train_batch_start(self, batch: PreferenceBatch, batch_idx: int) -> None:
        seed_batch(self.seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank, self.device)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # This hook runs after the step and before a checkpoint at the end of this batch.
        with self._guard.holding(self.objective):
            self.objective.update(partial(sum_over_ranks, self.trainer))
        # Lightning counts the step after this hook. If stopped here, it still validates, even at max_steps.
        self._stop_after(self.trainer.global_step + 1)

    def on_train_start(self) -> None:
        if self.trainer.global_step > 0:
            self.evaluation.recall(self.trainer.default_root_dir)
        self._log.throughput.start(self.trainer.global_step)
        # A run that was killed after its last step has no steps left when it is resumed.
        self._stop_after(self.trainer.global_step)
        self.resumption.apply(self)

    def _stop_after(self, step: int) -> None:
        if any(step >= limit > 0 for limit in (self.stop_at_step or 0, self.trainer.max_steps)):
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._guard.check(self.trainer, optimizer)
        self._log.learning_rate = optimizer.param_groups[0]["lr"]
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log.gradient_norm = gradient_norm(self)

    def on_train_batch_end(self, outputs: Any, batch: PreferenceBatch, batch_idx: int) -> None:
        if self._log.is_due(self.trainer.global_step, self.trainer.log_every_n_steps):  # type: ignore[attr-defined]
            self.log_training()

    def on_train_end(self) -> None:
        self.checkpoint_step = self.trainer.global_step
        if self._log.is_due(self.trainer.global_step, every=1):
            self.log_training()

    def log_training(self) -> None:
        """Log the metrics since the last call."""
        self._guard.settle(self.trainer)
        step = self.trainer.global_step
        self.training_numbers = self._log.take(step, partial(sum_over_ranks, self.trainer), self.objective.progress)
        self.logged_step = step
        for logger in self.trainer.loggers:
            logger.log_metrics(self.training_numbers, step=step)

    # Validation, test and prediction: one record per pair, and metrics of the records

    def on_validation_epoch_start(self) -> None:
        self.evaluation.begin(self.data.columns)

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        policy, references, output = self.scores(batch)
        self.evaluation.add(batch.pairs, policy, references, output)

    test_step = predict_step = validation_step

    def on_validation_epoch_end(self) -> None:
        # `log_dict` is for callbacks that watch a metric, such as early stopping; loggers already have the numbers.
        if watched := self.evaluation.finish(self.trainer, self.checkpoint_step):
            self.log_dict(watched, logger=False, rank_zero_only=False, sync_dist=False, batch_size=1)

    on_test_epoch_end = on_predict_epoch_end = on_validation_epoch_end

    def on_validation_start(self) -> None:
        self._guard.settle(self.trainer)
        self._log.throughput.pause()

    def on_validation_end(self) -> None:
        self._log.throughput.resume()

    # Checkpoints

    def checkpoint_info(self) -> dict[str, Any]:
        """Plain data about the run, which `export` needs and `check_checkpoint` compares."""
        assert self.scorer is not None
        return {
            "format": FORMAT,
            "module_class": class_path(self),
            "config": self.plain_config,
            **model_info(self.spec, self.scorer.model),
            **objective_info(self.objective, self.fitted),
            **self.resumption.info(self),
            "layout": self.batch_layout,
            "sample": self.data.sample(SAMPLE),
            "trainable": [name for name, parameter in self.named_parameters() if parameter.requires_grad],
        }

    def check_checkpoint(self, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint that would silently change this run.

        Args:
            saved: the `checkpoint_info` in the checkpoint.

        Raises:
            UserError: The checkpoint has another base model, other adapters or other state of the objective, or
                this run resumes training with another fitting rule or batch layout.
        """
        check_run(saved, self)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        state = super().state_dict(*args, **kwargs)
        return state if self.spec.adapters is None else without_frozen(state, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._guard.settle(self.trainer)
        checkpoint[KEY] = self.checkpoint_info()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = read_info(checkpoint)
        self.check_checkpoint(saved)
        self.resumption.check(self, checkpoint)
        check_trained_tensors(saved, checkpoint.get("state_dict"))
        self.fitted = saved["fitted"]  # the fitted values are part of the state
        self.checkpoint_step = checkpoint["global_step"]
