"""Frozen reference models, kept out of checkpoints, the optimizer and gradient synchronisation."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from lit_pref.batch import PreferenceBatch
from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.run_context import RunContext
from lit_pref.scores import Need, PairScores
from lit_pref.scoring.head import Readout
from lit_pref.scoring.scorer import Scorer, evaluating


class Reference(ABC):
    """A frozen scorer: `score(y|x) = Σ_t log π_ref(y_t | x, y_<t)` in nats, without gradient and in eval mode.

    `label` names the reference in tables and in the checkpoint; `note` says how its distributions are compared with the
    policy's, if that is worth a line.
    """

    label: str
    note: str | None = None

    def __init__(self) -> None:
        # A Reference is not an nn.Module, so that a LightningModule does not register the model.
        self.scorer: Scorer | None = None
        self._model: ModelSpec | None = None

    @abstractmethod
    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        """Become ready to score; called once, before the policy is sharded and before a checkpoint is restored.

        Args:
            policy: the spec of the policy.
            scorer: the policy's scorer, with its initial weights.
            tokenizer: the policy's tokenizer.
        """

    @property
    def copies(self) -> list[Scorer]:
        """All models with weights of their own, which are not the policy's."""
        return [self._ready()]

    def place(self, run: RunContext) -> None:
        """Shard its own weights as the run does with the policy's; called once, between `attach` and `to`."""
        for own in self.copies:
            if run.shard is not None:
                run.shard(own)

    def to(self, device: torch.device | str) -> None:
        """Move its own weights."""
        for own in self.copies:
            own.to(device)

    def score(self, batch: PreferenceBatch, needs: frozenset[Need] = frozenset()) -> PairScores:
        """Return the scores of a batch, with the needed statistics."""
        with torch.no_grad(), self._frozen():
            return cast(PairScores, self._ready()(self.as_read(batch), needs))

    def as_read(self, batch: PreferenceBatch) -> PreferenceBatch:
        """Return a batch as the model reads it for its scores: in its own tokens, and in a layout that it supports."""
        return batch

    def readout(self, batch: PreferenceBatch) -> Readout:
        """Return the `against` of the policy's scorer, for needs that compare whole distributions.

        Raises:
            UserError: the vocabulary differs from the policy's.
        """
        with torch.no_grad(), self._frozen():
            return self._ready().readout(batch)

    def max_length(self, tokenizer: Any) -> int | None:
        """Return how many of the policy's tokens it can read; None if it can read as many as the policy.

        Args:
            tokenizer: the policy's tokenizer.
        """
        return None

    def frozen_spec(self, policy: ModelSpec) -> ModelSpec | None:
        """Return the spec of the model if it never changes, so that its scores can be stored; None if it changes.

        Args:
            policy: the spec of the policy.
        """
        return None

    @abstractmethod
    def describe(self) -> str:
        """Describe the model in one line."""

    def fingerprint(self) -> str:
        """The sha256 that identifies its weights."""
        if self._model is None:
            raise RuntimeError(f"the reference {self.label} has not been attached")
        return self._model.fingerprint()

    def _ready(self) -> Scorer:
        if self.scorer is None:
            raise RuntimeError(f"the reference {self.label} has not been attached")
        return self.scorer

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        yield


class InitialPolicy(Reference):
    """A copy of the policy as it was before its first step, made before a checkpoint is restored.

    With LoRA, `AdapterOff` is the same model without a second copy of the weights.

    >>> InitialPolicy().describe()
    'the policy as it is before its first step'
    """

    label = "initial policy"

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        self._model = policy
        self.scorer = copy.deepcopy(scorer).eval().requires_grad_(False)

    def place(self, run: RunContext) -> None:
        """Round its own weights and shard them, as the run does with the policy's."""
        for own in self.copies:
            run.convert(own)
        super().place(run)

    def frozen_spec(self, policy: ModelSpec) -> ModelSpec | None:
        self._model = policy
        return policy.base()

    def describe(self) -> str:
        described = "" if self._model is None else f": {self._model.describe()}"
        return f"the policy as it is before its first step{described}"


class AdapterOff(Reference):
    """The policy with its LoRA adapters switched off: the model it started from, without additional memory.

    Raises:
        UsageError: on `attach`, if the policy has no adapters.

    >>> AdapterOff().describe()
    'the policy with its adapters off'
    """

    label = "adapter off"

    def attach(self, policy: ModelSpec, scorer: Scorer, tokenizer: Any) -> None:
        if not hasattr(scorer.model, "disable_adapter"):
            raise UsageError("AdapterOff needs adapters to switch off: set policy.lora, or use InitialPolicy")
        self._model, self.scorer = policy, scorer

    def frozen_spec(self, policy: ModelSpec) -> ModelSpec | None:
        self._model = policy
        return policy.without_adapters()

    def fingerprint(self) -> str:
        if self._model is None:
            return super().fingerprint()
        return self._model.without_adapters().fingerprint()

    @property
    def copies(self) -> list[Scorer]:
        """An empty list: the weights are the policy's, and are sharded and moved with it."""
        return []

    def describe(self) -> str:
        described = "" if self._model is None else f": {self._model.describe()}"
        return f"the policy with its adapters off{described}"

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        # The model is in eval mode, because dropout of base and adapter would make the reference noisy.
        model: Any = self._ready().model
        with evaluating(self._ready()), model.disable_adapter():
            yield
