"""The LightningDataModule: loaders of prepared pairs, sliced over ranks, with accumulation and a resumable position."""

from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ParallelStrategy

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import UncastBatch, UncastBatches
from lit_pref.data.batching.lightning import (
    align_with_windows,
    epochs_of_run,
    settle_epoch_of_checkpoint,
    steps_per_epoch,
)
from lit_pref.data.batching.loaders import PairLoader, ResumableLoader, identity_of
from lit_pref.data.batching.options import check_batch_options, worker_processes
from lit_pref.data.batching.sampling import WindowSampler, evaluation_batches
from lit_pref.data.batching.token_budget import TokenBudget, refuse_pairs_above
from lit_pref.data.checking.swapping import OnSwap
from lit_pref.data.prepared.lists import number_of_units
from lit_pref.data.prepared.normalisation import Normaliser, constants_for
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.run_data import RunData
from lit_pref.data.selection.selection import Selection
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import SpecialText
from lit_pref.errors import UsageError, UserError


class PreferenceDataModule(RunData, LightningDataModule):
    """Preference pairs from one or more sources, tokenized by the policy's tokenizer.

    The order of an epoch depends on (seed, epoch) alone and ranks slice it, so an optimizer step sees the same pairs on
    any number of devices. `global_batch` decides how many micro-batches are accumulated: do not set
    `trainer.accumulate_grad_batches`. The position in the data is part of every checkpoint.

    Args:
        train: a file (JSONL, CSV, either with .gz, or Parquet), a folder or a glob of such files, or a split of a hub
            dataset (`owner/name:split`); a `Source` for further options of it; a list of them for a mixture.
        val: the same for validation pairs; null takes them from `train`, by prompt.
        mapping: the columns of texts and strength: the name of a shipped mapping, a YAML file or its content; null
            recognises the format by the columns. With `base`, or without `kind`, it changes parts of a mapping.
        selection: chooses the training pairs; null takes all.
        val_fraction: the share of prompts held out of `train` if `val` is null; 0 trains without validation.
        split_seed: seed of the split by prompt.
        seed: seed of the order; null is `seed_everything` in a run, else 0.
        global_batch: pairs per optimizer step, over all devices. For an objective over lists of responses this and the
            next ones count lists, of which none is split.
        micro_batch: the most pairs per device and forward pass; null is global_batch / devices.
        max_tokens: the most tokens per device and forward pass, in place of micro_batch: pairs of similar lengths are
            combined, as many as fit, and steps keep their pairs. Counted are prompt, chosen and rejected response in
            the prefix-shared layout, and the rows times the longest one in the padded layout; an extra response counts
            with its prompt. Every step takes as many micro-batches as the one that needs most in the whole run, which
            must have an end: `trainer.max_epochs` or `trainer.max_steps`.
        val_batch: the most pairs per device and forward pass in validation; null is micro_batch or max_tokens.
        max_length: the most tokens of prompt and response together; responses are cut from the right.
        max_prompt_length: the most tokens of a prompt, cut from the left; null refuses prompts that leave no room.
        special_text: how the name of a special token inside a text is encoded: as its characters (`plain`), or as that
            `token`.
        columns: further columns of numbers to keep with the pairs.
        token_columns: per-token columns: NAME means the columns `NAME_chosen` and `NAME_rejected`, lists of
            [start, end, value] in characters of the response.
        on_swap: rule for a column in a row whose strength prefers the rejected text, so that the texts are swapped:
            `keep` its value, `negate` (a difference, chosen minus rejected) or `complement` (a probability p that
            chosen is better: 1 - p). Without a rule, names that begin with `p_` complement, and columns named for one
            side (`reward_chosen`) take the other's value; any other column is refused in such a row.
        lost_text: refuse or accept pairs of which the chat template leaves out or rewrites a text, such as a system
            message.
        ignore_columns: columns and keys of messages that are left out although their name or content says that they
            may belong to the prompt or the response; others like them stop the run.
        group_column: the column by which metrics are split.
        ties: keep or drop pairs of equal strength.
        bad_rows: strict stops at the first faulty row; lenient counts them and leaves them out.
        max_refused: the share of rows that lenient may leave out.
        workers: processes that prepare batches ahead, for each device: so many for training and as many for validation,
            of which one kind is idle while the other's batches are read; null is 0 on a CPU, and for a GPU one less
            than its share of this machine's cores, at most 4. Batches and their order do not depend on it.

    Raises:
        UsageError: an argument is out of range.

    >>> PreferenceDataModule(train="pairs.jsonl", global_batch=64).global_batch
    64
    """

    def __init__(
        self,
        train: str | Source | list[str | Source] | None = None,
        val: str | Source | list[str | Source] | None = None,
        mapping: str | dict[str, Any] | None = None,
        selection: Selection | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int | None = None,
        global_batch: int = 32,
        micro_batch: int | None = None,
        max_tokens: int | None = None,
        val_batch: int | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        special_text: SpecialText = "plain",
        columns: list[str] | None = None,
        token_columns: list[str] | None = None,
        on_swap: dict[str, OnSwap] | None = None,
        lost_text: Literal["refuse", "accept"] = "refuse",
        ignore_columns: list[str] | None = None,
        group_column: str | None = None,
        ties: Literal["keep", "drop"] = "keep",
        bad_rows: Literal["strict", "lenient"] = "strict",
        max_refused: float = 0.01,
        workers: int | None = None,
    ) -> None:
        self.val_fraction = 0.0 if val is not None else val_fraction
        preparation = Preparation(
            mapping=mapping,
            columns=tuple(columns or ()),
            on_swap=dict(on_swap or {}),
            token_columns=tuple(token_columns or ()),
            lost_text=lost_text,
            ignore_columns=tuple(ignore_columns or ()),
            group_column=group_column,
            ties=ties,
            bad_rows=bad_rows,
            max_refused=max_refused,
            val_fraction=self.val_fraction,
            split_seed=split_seed,
        )
        super().__init__(train, val, preparation, max_length, max_prompt_length, special_text)
        self.selection, self.group_column, self.seed, self.workers = selection, group_column, seed or 0, workers
        self.global_batch, self.micro_batch, self.max_tokens = global_batch, micro_batch, max_tokens
        self.val_batch, self._epochs, self._opened_for = val_batch, 1, cast(Any, None)
        check_batch_options(self)
        self._budgets: dict[str, TokenBudget] = {}  # of training and validation pairs, if max_tokens is set
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    # Preparation

    def prepare_data(self) -> None:
        self._open()

    def setup(self, stage: str) -> None:
        if self._opened_for is not self._module:
            self._open()
        splits = [self.val_pairs, self.train_pairs] if stage == "fit" else [self.val_pairs]
        tokenizer = self.tokenization.tokenizer
        limits = {"the policy": self._module.spec.max_length()}
        limits |= {f"the reference '{r.label}'": r.max_length(tokenizer) for r in self._module.references}
        self.refuse_longer(splits, limits)
        # The layout is chosen before Lightning calls the module's setup, because selection and micro-batches depend on
        # it.
        self._module.decide_layout(self.train_pairs.lengths)
        if stage == "fit" and self.selection is not None:
            self._train = self.unselected.subset(self._module.select(self.unselected, self.selection))
            self._module.decide_layout(self.train_pairs.lengths)
            splits = [self.val_pairs, self.train_pairs]
        self._budgets = {}
        if self.max_tokens is not None:
            cut = [pairs for pairs in splits if pairs is self._train or self.val_batch is None]
            refuse_pairs_above([(self._budget(pairs), pairs) for pairs in cut])
        if stage == "fit":
            self._epochs = 1 if self.max_tokens is None else epochs_of_run(self._trainer, self._sampler)
            callbacks: list[Any] = self._trainer.callbacks  # type: ignore[attr-defined]
            scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks)
            align_with_windows(self._trainer, self._sampler(self._epochs), scheduled)

    def _open(self) -> None:
        self.open(self._module.objective, self._module.spec)
        self._opened_for = self._module

    def open_for_any_objective(self) -> None:
        """Prepare the data as if the objective needed texts only, for a report on the data."""
        self.open(self._module.objective, self._module.spec, required=frozenset())
        self._opened_for = self._module

    # Loaders

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "PreferenceDataModule is used through a Trainer"
        return self.trainer

    @property
    def _module(self) -> Any:
        return self._trainer.lightning_module

    @property
    def windows_per_epoch(self) -> int:
        """Optimizer steps per epoch, limited by `trainer.limit_train_batches`."""
        return steps_per_epoch(self._trainer, self._sampler(self._epochs))

    def rank_and_world(self) -> tuple[int, int]:
        """Return this process's rank and the number of ranks, counting only ranks with different data."""
        strategy = self._trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            return 0, 1
        data_parallel = strategy.distributed_sampler_kwargs  # follows the data-parallel mesh, if there is one
        return data_parallel["rank"], data_parallel["num_replicas"]

    def micro_batch_of(self, pairs: PairView, world: int) -> int | TokenBudget:
        """Return the limit of one micro-batch of these pairs: a number of pairs, or a token budget."""
        if self.max_tokens is not None:
            return self._budget(pairs)
        return self.micro_batch or -(-self.global_batch // world)

    def _budget(self, pairs: PairView) -> TokenBudget:
        assert self.max_tokens is not None
        split = "train" if pairs is self._train else "val"
        if split not in self._budgets:
            self._budgets[split] = TokenBudget(
                self.max_tokens, pairs.lengths, self._module.batch_layout, pairs.extra_response_lengths, pairs.lists
            )
        return self._budgets[split]

    def _sampler(self, epochs: int) -> WindowSampler:
        rank, world = self.rank_and_world()
        if self.global_batch < world:
            raise UsageError(
                f"data.global_batch {self.global_batch} is less than one pair for each of {world} devices; raise it to "
                f"at least {world}, or use fewer devices."
            )
        pairs = self.train_pairs
        micro_batch = self.micro_batch_of(pairs, world)
        return WindowSampler(number_of_units(pairs), self.seed, self.global_batch, micro_batch, world, rank, epochs)

    def _batches(self, pairs: PairView) -> UncastBatches:
        tokenizer = self.tokenization.tokenizer
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        objective = self._module.objective
        return UncastBatches(
            pairs,
            pad_id,
            self._module.batch_layout,
            objective.requirements.token_functions,
            "extra_response" in objective.requirements.sides,
            pairs.lists,
            self._module.score_adder(),
        )

    @property
    def loading(self) -> dict[str, Any]:
        """How batches are loaded: the number of worker processes, and whether in page-locked memory for a GPU."""
        device = self._trainer.strategy.root_device
        return {
            "workers": worker_processes(self.workers, device, self._trainer.num_devices),
            "pin_memory": device.type == "cuda",
        }

    def train_dataloader(self) -> ResumableLoader:
        pairs = self.train_pairs
        loader = ResumableLoader(self._batches(pairs), self._sampler(self._epochs), pairs.fingerprint, **self.loading)
        if self._position is not None and self._trainer.fit_loop.is_resuming:
            loader.load_state_dict(self._position)
        settle_epoch_of_checkpoint(self._trainer)
        self._loader = loader
        return loader

    def identity(self) -> dict[str, Any]:
        """Return what identifies the training pairs and their order; see `identity_of`."""
        return identity_of(self._sampler(self._epochs), self.train_pairs.fingerprint)

    def val_dataloader(self) -> PairLoader | list[PairLoader]:
        if not len(self.val_pairs):
            return []  # makes Lightning train without validation
        rank, world = self.rank_and_world()
        batch = self.val_batch or self.micro_batch_of(self.val_pairs, world)
        micro_batches = evaluation_batches(number_of_units(self.val_pairs), rank, world, batch)
        return PairLoader(self._batches(self.val_pairs), micro_batches, **self.loading)

    def test_dataloader(self) -> PairLoader | list[PairLoader]:
        if not len(self.val_pairs):
            raise UserError("data.train has no validation pairs; give data.val, or raise data.val_fraction above 0.")
        return self.val_dataloader()

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(
        self, batch: UncastBatch, device: torch.device, dataloader_idx: int
    ) -> PreferenceBatch:
        return batch.batch.to(device)

    # The position is saved here because Lightning restores a loader's own state only in the middle of an epoch, but the
    # data module's state always: other data or another order are refused wherever a run was stopped.
    def state_dict(self) -> dict[str, Any]:
        position = {} if self._loader is None else self._loader.state_dict()
        return {**position, "normalisers": {name: vars(n) for name, n in self.train_pairs.normalisers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict
        # Use the normalisers with which the policy was trained, even if data.train has changed.
        fitted = {name: Normaliser(**values) for name, values in state_dict.get("normalisers", {}).items()}
        if fitted:
            sources = [part.source for part in self.val_pairs.parts]
            self._val = self.val_pairs.with_normalisers({name: constants_for(name, fitted) for name in sources})
