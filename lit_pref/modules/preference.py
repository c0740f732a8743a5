"""The LightningModule for preference optimization: trains a policy against references."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from numpy.typing import NDArray

from lit_pref.batch import PreferenceBatch
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.selection.selection import Choice, Pool, Selection
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.base import PairModule, Scored
from lit_pref.modules.checkpoint_info import check_references, reference_info
from lit_pref.modules.schedules import Schedule
from lit_pref.objectives.base import Objective
from lit_pref.references.moving import MovingReference, drift_objections, drift_warnings
from lit_pref.references.own_tokenizer import same_tokenizer
from lit_pref.references.plan import pairs_read
from lit_pref.references.prepare import ReferencePreparation, prepare_references, references_of, through_store
from lit_pref.references.reference import Reference
from lit_pref.references.selection_scores import SelectionScores, summary
from lit_pref.references.stored import Stored, add_stored_scores
from lit_pref.scores import ObjectiveOutput, PairScores
from lit_pref.scoring.scorer import Scorer, score_readout

MOVED = "lit_pref_references"
"""The key in a checkpoint of the weights of moving references, by their place in the list of references."""


class PreferenceModule(PairModule):
    """A policy trained on preference pairs by an objective, against references.

    Args:
        policy: The model to train.
        objective: The loss to minimise; an optimizer step takes the mean over its pairs.
        references: Frozen models, or a `MovingReference`; the first one is the anchor. Null takes the references that
            the objective needs: none, or the policy as it was before training (under LoRA: the policy with its adapter
            switched off).
        optimizer: A callable from parameters to a torch optimizer. Adam and AdamW are fused where torch supports it,
            unless `fused` is set to false.
        schedule: The learning rate over optimizer steps; null is constant.
        margin_bins: Validation metrics are split into this many equal-count bins of the margin; 0 is off.
        layout: `prefix_shared` reads a prompt once for both responses and has no padding, `padded` gives each response
            a row; `auto` shares the prefix if the model can and if it is faster.
        reference_store: Scores of references are kept on disk and computed once for all runs, and no reference is in
            memory during training; true: for all references; false: for none; null: for all except those of which the
            objective reads more than scores.

    Raises:
        UsageError: The objective does not take this number of references, or not from the store; an adapter-off
            reference is given without LoRA; or there is no such layout.
    """

    def __init__(
        self,
        policy: ModelSpec,
        objective: Objective,
        references: list[Reference] | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0),
        schedule: Schedule | None = None,
        margin_bins: int = 0,
        layout: str = "auto",
        reference_store: bool | None = None,
    ) -> None:
        super().__init__(policy, objective, optimizer, schedule, margin_bins, layout)
        if policy.outputs is not None:
            raise UsageError("a policy has the head of a language model, and this one has a scalar head: RewardModule")
        if of_rewards := objective.reward_objectives():
            are = "is" if len(of_rewards) == 1 else "are"
            raise UsageError(
                f"{' and '.join(of_rewards)} {are} for reward models: set model.policy.head to scalar, or choose an "
                "objective for policies (DPO, or without a reference CPO or SimPO)"
            )
        references = references_of(objective, references, policy)
        self.references: list[Reference] = through_store(references, objective, policy, reference_store)
        for objection in drift_objections(objective, self.moving):
            raise UsageError(objection)
        for warning in drift_warnings(objective, self.moving):
            warnings.warn(warning, stacklevel=2)

    @property
    def policy(self) -> ModelSpec:
        """The spec of the trained model."""
        return self.spec

    @property
    def moving(self) -> dict[int, MovingReference]:
        """The references that follow the policy, by their place in the list."""
        return {k: reference for k, reference in enumerate(self.references) if isinstance(reference, MovingReference)}

    def scores(self, batch: PreferenceBatch) -> Scored:
        assert self.scorer is not None
        # References are scored first: one of them may be the policy's own scorer with its adapter off.
        needs, against = self.objective.requirements.reference_statistics, None
        references: list[PairScores] = []
        if self.objective.requirements.compares:
            against = self.references[0].readout(batch)
            references.append(score_readout(against, batch, needs))
            if batch.extra_response is not None:
                references[0].extra_response = self.references[0].score(batch.extra_response).chosen
        references += [reference.score(batch, needs) for reference in self.references[len(references) :]]
        policy = self.scorer(batch, self.objective.requirements.statistics, against)
        output = self.objective(policy, references, batch.pairs)
        if not isinstance(output, ObjectiveOutput):
            raise UsageError(
                f"{type(self.objective).__name__}.forward returned a {type(output).__name__}: an objective returns an "
                "ObjectiveOutput with losses, chosen_rewards and rejected_rewards, (B,) each (lit_pref.scores)"
            )
        return policy, references, output

    # Selection of training pairs, before the policy exists

    def select(self, pairs: PairView, selection: Selection) -> NDArray[Any]:
        """Return the increasing indices of the selected training pairs, the same on every rank, and print a summary.

        Args:
            pairs: all pairs of the training split.
            selection: the rule.

        Raises:
            UserError: the selection does not suit these pairs.
        """
        self.resumption.check_early(self, selected=False)
        pool, choice = self.pool_and_choice(pairs, selection)
        self.selected = summary(pool, choice, selection)
        run = self.run_context
        run.say(f"selection   {self.selected}")
        for note in selection.notes(pool):
            run.say(f"warning     selection: {note}")
        return choice.indices

    def pool_and_choice(self, pairs: PairView, selection: Selection) -> tuple[Pool, Choice]:
        """Return the scored pool of training pairs and the selection from it; see `SelectionScores`."""
        if pairs.lists is not None:
            raise UsageError(
                f"data.selection chooses pairs, and {type(self.objective).__name__} reads whole lists of responses, "
                "which it would split: leave it out"
            )
        # In bf16 a score depends on the batch's layout, so decide it first.
        self.decide_layout(pairs.lengths)
        scores = SelectionScores(self.policy, self.objective, self.references, self.run_context)
        return scores.pool_and_choice(pairs, selection)

    # References: scores are stored before the policy exists, and live models move to the policy's device

    def reference_preparations(self, stage: str) -> list[ReferencePreparation]:
        """Return the preparation of each stored reference for the pairs that a stage reads.

        Args:
            stage: "fit", "validate", "test" or "predict"; or "all", every pair of both splits.

        Raises:
            UserError: A reference cannot score these pairs.
        """
        self._refuse_own_tokenizers()
        if not any(isinstance(reference, Stored) for reference in self.references):
            return []
        run = self.run_context
        splits = pairs_read(self.data, run, stage)
        return prepare_references(self.references, self.policy, self.objective, splits, run)

    def _refuse_own_tokenizers(self) -> None:
        """Refuse references with tokenizers of their own if the objective makes prompts of the policy's ids."""
        if self.objective.requirements.extra_function is None:
            return
        for reference in self.references:
            spec = reference.spec if isinstance(reference, Stored) else reference.frozen_spec(self.policy)
            if spec is not None and not same_tokenizer(spec.load_tokenizer(), self.policy.load_tokenizer()):
                raise UserError(
                    f"{type(self.objective).__name__} changes prompts as ids of the policy's tokenizer, and the "
                    f"reference '{reference.label}' has a tokenizer of its own: use one with the policy's tokenizer"
                )

    def score_adder(self) -> Callable[[PreferenceBatch], None] | None:
        """See `PairModule.score_adder`."""
        stored = [reference for reference in self.references if isinstance(reference, Stored)]
        return partial(add_stored_scores, stored, self.objective.requirements.reference_statistics) if stored else None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # Scores are computed here because the data are prepared and no policy exists yet: a reference can use the whole
        # device.
        for preparation in self.reference_preparations(stage):
            preparation.open()

    def on_scorer_built(self, scorer: Scorer) -> None:
        # References are attached before a checkpoint is restored, so that they cannot drift when a run resumes.
        for reference in self.references:
            reference.attach(self.policy, scorer, self.policy.load_tokenizer())
        for reference in self.references:
            reference.place(self.run_context)
        if self.objective.requirements.compares and self.references[0].note is not None:
            self.run_context.say(f"note        {self.references[0].note}")

    def on_fit_start(self) -> None:
        for reference in self.references:
            reference.to(self.device)

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.on_fit_start()

    def on_train_start(self) -> None:
        super().on_train_start()
        for k, moving in self.moving.items():
            if moving.every > self.total_steps:
                self.run_context.say(
                    f"warning     reference {k} moves every {moving.every} optimizer steps and the run takes "
                    f"{self.total_steps}: it never moves; lower `every` of {type(moving).__name__}"
                )

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for moving in self.moving.values():
            moving.update(self.trainer.global_step + 1)  # Lightning counts the step after this hook

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.moving:
            checkpoint[MOVED] = {k: moving.state() for k, moving in self.moving.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # A checkpoint of a run without moving references can be evaluated against one at its start.
        for k, state in checkpoint.get(MOVED, {}).items():
            if k in self.moving:
                self.moving[k].restore(state)

    def checkpoint_info(self) -> dict[str, Any]:
        return super().checkpoint_info() | reference_info(self.references)

    def check_checkpoint(self, saved: dict[str, Any]) -> None:
        """See `PairModule.check_checkpoint`.

        Raises:
            UserError: The base class refuses the checkpoint, or training would resume against other references.
        """
        super().check_checkpoint(saved)
        # Live references are known only once they are attached to a model.
        known = self.scorer is not None or all(isinstance(reference, Stored) for reference in self.references)
        if self.trainer.state.fn == "fit" and known:
            check_references(saved, self.references)
