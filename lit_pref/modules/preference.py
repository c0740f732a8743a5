"""Preference optimisation of a policy: the LightningModule that joins policy, references and objective."""

import random
import zlib
from typing import Any, Literal

import numpy
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from numpy.typing import NDArray
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.selection.selection import Selection
from lit_pref.errors import UsageError
from lit_pref.metrics.accumulator import TrainAccumulator
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.checkpoint_info import check_provenance, provenance
from lit_pref.modules.distributed import (
    data_parallel_size,
    gather_objects,
    gradient_norm,
    refuse_nonfinite,
    shard,
    sum_over_ranks,
)
from lit_pref.modules.evaluation import Evaluation
from lit_pref.modules.fitting import fit_objective
from lit_pref.modules.layouts import decide_layout
from lit_pref.modules.references import open_references, references_of, through_store
from lit_pref.modules.schedules import Schedule
from lit_pref.modules.selecting import chosen_of, say_choice
from lit_pref.modules.throughput import Throughput
from lit_pref.objectives.base import Objective
from lit_pref.references.reference import Reference
from lit_pref.scores import COMPARING_NEEDS, ObjectiveOutput, PairScores
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.scorer import Scorer, score_readout


class PreferenceModule(LightningModule):
    """A policy trained on preference pairs by an objective, against frozen references.

    Args:
        policy: The model to train.
        objective: What is minimised; the mean over the pairs of an optimiser window.
        references: Frozen scorers, the first one is the anchor. Null takes what the objective needs: none, or the
            policy as it was before training (under LoRA: the policy with its adapter switched off).
        optimizer: A callable from parameters to a torch optimiser.
        schedule: The learning rate over optimiser steps; null is constant.
        margin_bins: Validation metrics are split into this many equal-count bins of the margin; 0 is off.
        layout: `prefix_shared` reads a prompt once for both responses and has no padding, `padded` gives each response
            a row; `auto` shares the prefix if the model can and if it is faster.
        reference_store: Scores of references are kept on disk and computed once for all runs, and no reference is in
            memory during training; true: of all references, false: of none, null: of all but those of which the
            objective reads more than scores.

    Raises:
        UsageError: The objective does not take this number of references, or not from the store, or an adapter-off
            reference without LoRA.
    """

    def __init__(
        self,
        policy: ModelSpec,
        objective: Objective,
        references: list[Reference] | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        schedule: Schedule | None = None,
        margin_bins: int = 0,
        layout: Literal["auto", "prefix_shared", "padded"] = "auto",
        reference_store: bool | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.objective = objective
        references = references_of(objective, references, policy)
        self.references = through_store(references, objective, policy, reference_store)
        self.optimizer = optimizer
        self.schedule = schedule
        self.layout = layout
        self.batch_layout: Layout = "padded"  # decided when the data are known
        self.layout_reason = ""
        self.selected: str | None = None  # what was kept of the training pairs, where not all of them are
        self.evaluation = Evaluation(margin_bins)
        self.accumulator = TrainAccumulator()
        self._throughput = Throughput()
        self.fitted: list[str] = []  # what the objective was fitted to the training pairs, in words
        self._window: list[tuple[Tensor, list[str]]] = []  # losses that are not finite, and what their pairs are called
        self._gradient_norm: float | None = None
        self._learning_rate = 0.0
        self.training_numbers: dict[str, float] = {}  # what was logged last, and at which optimiser step
        self.logged_step = 0
        self.scorer: Scorer | None = None
        self.checkpoint_step = 0  # of the weights that are evaluated
        self.stop_at_step: int | None = None
        self.plain_config: dict[str, Any] = {}
        self.seed = 0
        # Adapters only in the checkpoint: the base weights come from the policy's own source.
        self.strict_loading = policy.lora is None

    # What is trained, and where it lives

    def decide_layout(self, lengths: NDArray[Any]) -> None:
        """How batches are laid out: a function of the data's lengths and the model's configuration, nothing else.

        Args:
            lengths: (pairs, 3), tokens of prompt, chosen and rejected response of the training pairs.

        Raises:
            UsageError: Shared rows were asked for, and the model cannot read them.
        """
        self.batch_layout, self.layout_reason = decide_layout(self.layout, self.policy, lengths)

    def select(self, pairs: PairView, selection: Selection) -> NDArray[Any]:
        """The increasing indices of the training pairs that are kept, the same on every rank; says what they are.

        Args:
            pairs: all of the training split.
            selection: what is wanted.

        Raises:
            UserError: the selection and these pairs do not fit.
        """
        pool, choice = chosen_of(self, pairs, selection)
        self.selected = say_choice(pool, choice, selection)
        return choice.indices

    def setup(self, stage: str) -> None:
        self.fitted = fit_objective(self)
        # The data are prepared, and the policy does not exist yet: a reference has the whole device.
        open_references(self, stage)

    def configure_model(self) -> None:
        if self.scorer is not None:
            return
        tokenizer = self.policy.load_tokenizer()
        scorer = Scorer(self.policy.build())
        if self.layout != "padded" and prefix_sharing_obstacle(self.policy) is None:
            # Also where these data are read padded: others, in a later validation, may not be.
            enable_prefix_sharing(scorer.model)
        scorer.probe()
        # Before sharding and before a checkpoint is restored, so that a reference cannot drift when a run resumes.
        for reference in self.references:
            reference.attach(self.policy, scorer, tokenizer)
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(scorer, self.trainer.strategy)
        self.scorer = scorer

    def configure_optimizers(self) -> Any:
        assert self.scorer is not None
        inside = {id(p) for p in self.scorer.parameters()}
        outside = [name for name, p in self.named_parameters() if p.requires_grad and id(p) not in inside]
        if outside:
            # The scorer is what the strategies synchronise: a tensor elsewhere would diverge between ranks.
            raise UsageError(f"trainable tensors outside the scorer: {', '.join(outside)}; move them into it")
        optimizer = self.optimizer([p for p in self.scorer.parameters() if p.requires_grad])
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule.over(optimizer, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, from the data: asking the Trainer would load the loaders too early."""
        windows = self.trainer.datamodule.windows_per_epoch  # type: ignore[attr-defined]
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        limits = [steps] if steps and steps > 0 else []
        limits += [epochs * windows] if epochs and epochs > 0 else []
        return min(limits) if limits else windows

    # Training

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        policy, references, output = self._scores(batch)
        self._window.append((~torch.isfinite(output.losses.detach()) & batch.pairs.is_real, batch.pairs.names))
        self.accumulator.add(output, policy, references, batch.pairs)
        # The mean over the window's pairs, whatever the ranks, micro-batches and ragged ends: Lightning divides by the
        # accumulation and the strategies by the ranks.
        scale = data_parallel_size(self.trainer) * self.trainer.accumulate_grad_batches / batch.pairs.window_pairs
        return (output.losses * batch.pairs.is_real).sum() * scale

    def on_train_batch_start(self, batch: PreferenceBatch, batch_idx: int) -> None:
        # Random state is a function of the step, so that a resumed run draws what the uninterrupted one drew.
        key = zlib.crc32(f"{self.seed}/{self.trainer.fit_loop.epoch_loop.total_batch_idx}/{self.global_rank}".encode())
        # Not torch.manual_seed: for devices that are not there it takes longer than the rest of the loop's step.
        torch.default_generator.manual_seed(key)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(key)
        random.seed(key)
        numpy.random.seed(key)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # After the step and before the checkpoint of this batch's end.
        self.objective.update(self._sum_over_ranks)
        # Lightning counts the step after this hook. Told to stop, it validates first, also where max_steps ends one.
        self._stop_after(self.trainer.global_step + 1)

    def on_train_start(self) -> None:
        if self.trainer.global_step > 0:
            self.evaluation.recall(self.trainer.default_root_dir)
        self._throughput.start(self.trainer.global_step)
        # A run that was killed after its last step has no step left when it goes on.
        self._stop_after(self.trainer.global_step)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        stopping = [callback for callback in callbacks if isinstance(callback, EarlyStopping)]
        if any(callback.wait_count >= max(1, callback.patience) for callback in stopping):
            self.trainer.should_stop = True

    def _stop_after(self, step: int) -> None:
        limits = [limit for limit in (self.stop_at_step, self.trainer.max_steps) if limit is not None and limit > 0]
        if any(step >= limit for limit in limits):
            self.trainer.should_stop = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._refuse_nonfinite()
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if (self.trainer.global_step + 1) % self._log_every == 0:
            self._gradient_norm = gradient_norm(self)

    def on_train_batch_end(self, outputs: Any, batch: PreferenceBatch, batch_idx: int) -> None:
        step = self.trainer.global_step
        if step != self._throughput.step and step % self._log_every == 0:
            self.log_training()

    def on_train_end(self) -> None:
        if self.trainer.global_step != self._throughput.step:
            self.log_training()

    @property
    def _log_every(self) -> int:
        return self.trainer.log_every_n_steps  # type: ignore[attr-defined]

    def log_training(self) -> None:
        """Write the means over the pairs since the last time; one reduction over ranks."""
        numbers = self.accumulator.flush(self._sum_over_ranks)
        numbers |= self._throughput.take(self.trainer.global_step, numbers)
        numbers |= {f"train/state/{name}": value for name, value in self.objective.progress.items()}
        if self._gradient_norm is not None:
            numbers["train/gradient_norm"] = self._gradient_norm
        self._gradient_norm = None
        numbers["train/learning_rate"] = self._learning_rate
        self.training_numbers, self.logged_step = numbers, self.trainer.global_step
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step=self.logged_step)

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        return sum_over_ranks(self.trainer, value)

    def _scores(self, batch: PreferenceBatch) -> tuple[PairScores, list[PairScores], ObjectiveOutput]:
        assert self.scorer is not None
        # References first: one of them may be the policy's own scorer with its adapter off.
        needs, against = self.objective.reference_needs, None
        references: list[PairScores] = []
        if any(isinstance(need, COMPARING_NEEDS) for need in self.objective.needs):
            against = self.references[0].readout(batch)
            references.append(score_readout(against, batch, needs))
            if batch.extra_response is not None:
                references[0].extra_response = self.references[0].score(batch.extra_response).chosen
        references += [reference.score(batch, needs) for reference in self.references[len(references) :]]
        policy = self.scorer(batch, self.objective.needs, against)
        return policy, references, self.objective(policy, references, batch.pairs)

    def _refuse_nonfinite(self) -> None:
        # Once a window and on all ranks, before the weights are touched: a rank that stopped alone would leave the
        # others waiting for its gradients.
        window, self._window = self._window, []
        if self._sum_over_ranks(torch.cat([bad for bad, _ in window]).sum().double()):
            own = [name for bad, names in window for name, is_bad in zip(names, bad.tolist(), strict=True) if is_bad]
            refuse_nonfinite(self.trainer, [name for names in gather_objects(self.trainer, own) for name in names])

    # Validation, test and prediction: one record a pair, metrics from the records

    def on_validation_epoch_start(self) -> None:
        self.evaluation.begin(self.trainer.datamodule.columns)  # type: ignore[attr-defined]

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        policy, references, output = self._scores(batch)
        self.evaluation.add(batch.pairs, policy, references, output)

    test_step = predict_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.evaluation.finish(self, "val")

    def on_test_epoch_end(self) -> None:
        self.evaluation.finish(self, "test")

    def on_predict_epoch_end(self) -> None:
        self.evaluation.finish(self, "predict")

    # References live outside the module: they are moved where the policy is

    def on_fit_start(self) -> None:
        for reference in self.references:
            reference.to(self.device)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self) -> None:
        self._throughput.pause()
        self.on_fit_start()

    def on_validation_end(self) -> None:
        self._throughput.go_on()

    # Checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        state = super().state_dict(*args, **kwargs)
        if self.policy.lora is None:
            return state
        # Tied weights under both of their names.
        everything = self.named_parameters(remove_duplicate=False)
        frozen = {name for name, parameter in everything if not parameter.requires_grad}
        return {name: value for name, value in state.items() if name not in frozen}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lit_pref"] = provenance(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_provenance(self, checkpoint)
        self.fitted = checkpoint["lit_pref"].get("fitted", self.fitted)  # as is its gamma
        self.checkpoint_step = checkpoint["global_step"]
