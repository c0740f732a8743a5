"""The LightningModule for reward models: trains a head and its language model on the scores of pairs."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.base import PairModule, Scored
from lit_pref.modules.schedules import Schedule
from lit_pref.objectives.base import Objective
from lit_pref.scores import TokenRewards


class RewardModule(PairModule):
    """A reward model trained on preference pairs by an objective: the head's output takes the place of a log-ratio.

    Objectives made of parts serve it with `beta: 1` and `reference: NoReference`, which are `BradleyTerry`'s. Logged in
    addition to what the objective logs: `reward_mean`, the mean of both rewards, and `reward_square`, the mean of their
    squares, which show the scale of rewards.

    Args:
        policy: The model to train, with `head: scalar`.
        objective: The loss to minimise; an optimizer step takes the mean over its pairs.
        optimizer: A callable from parameters to a torch optimizer.
        schedule: The learning rate over optimizer steps; null is constant.
        margin_bins: Validation metrics are split into this many equal-count bins of the margin; 0 is off.
        layout: `prefix_shared` reads a prompt once for both responses and has no padding, `padded` gives each response
            a row; `auto` shares the prefix if the model can and if it is faster.

    Raises:
        UsageError: The model has the head of a language model, or the objective needs references or log-probs of
            tokens, which a reward model does not have.
    """

    def __init__(
        self,
        policy: ModelSpec,
        objective: Objective,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        schedule: Schedule | None = None,
        margin_bins: int = 0,
        layout: str = "auto",
    ) -> None:
        super().__init__(policy, objective, optimizer, schedule, margin_bins, layout)
        if policy.outputs is None:
            raise UsageError("a reward model has a scalar head: set model.policy.head to scalar")
        check_objective(objective, policy)

    @property
    def policy(self) -> ModelSpec:
        """The spec of the trained model."""
        return self.spec

    def reference_preparations(self, stage: str) -> list[Any]:
        """Return none: a reward model has no references."""
        return []

    def scores(self, batch: PreferenceBatch) -> Scored:
        assert self.scorer is not None
        scores = self.scorer(batch, self.objective.requirements.statistics)
        output = self.objective(scores, [], batch.pairs)
        rewards = [output.chosen_rewards] + ([] if output.rejected_rewards is None else [output.rejected_rewards])
        output.logged["reward_mean"] = _mean(rewards)
        output.logged["reward_square"] = _mean([reward.square() for reward in rewards])
        return scores, [], output


def check_objective(objective: Objective, spec: ModelSpec) -> None:
    """Refuse an objective that a reward model cannot serve.

    Raises:
        UsageError: It needs references, log-probs, or rewards of tokens that an embedding does not have.
    """
    asked, name = objective.requirements, type(objective).__name__
    if asked.min_references:
        raise UsageError(
            f"{name} compares with a reference, and a reward model (model.policy.head: scalar) has none: add "
            "`reference: NoReference` and `beta: 1` to the objective, or set model.policy.head to lm"
        )
    if readers := objective.log_prob_parts():
        raise UsageError(
            f"{', '.join(readers)} reads log-probs of tokens, which a reward model (model.policy.head: scalar) does "
            "not give: choose another objective or part, or set model.policy.head to lm"
        )
    if "extra_response" in asked.sides:
        raise UsageError(f"{name} reads an extra response, which reward models do not score: choose another objective")
    if spec.embedding is not None and (TokenRewards() in asked.statistics or "rejected" not in asked.sides):
        raise UsageError(
            f"{name} reads rewards of single responses or tokens, and a preference embedding scores pairs: leave out "
            "model.policy.embedding"
        )


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0).detach()
