"""The LightningDataModule: prepares pairs, slices them over ranks, keeps the position, sets accumulation."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ParallelStrategy

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import UncastBatch, UncastBatches
from lit_pref.data.batching.lightning import align_with_windows, epochs_of_run, settle_epoch_of_checkpoint
from lit_pref.data.batching.loaders import PairLoader, ResumableLoader
from lit_pref.data.batching.sampling import WindowSampler, evaluation_batches
from lit_pref.data.batching.token_budget import TokenBudget, refuse_pairs_above
from lit_pref.data.checking.swapping import OnSwap
from lit_pref.data.checking.text_pair import CheckedPair
from lit_pref.data.formats.spec import RowMapping
from lit_pref.data.prepared.normalisation import Normaliser, constants_for
from lit_pref.data.prepared.pair_view import PairView
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.preparation_report import PreparationReport
from lit_pref.data.prepared.splits import digest_of_split, open_splits, sources_of, training_pairs, training_texts
from lit_pref.data.selection.selection import Selection
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import SpecialText, Tokenization
from lit_pref.errors import UsageError, UserError
from lit_pref.models.spec import Corpus


class PreferenceDataModule(LightningDataModule):
    """Preference pairs from one or more sources, as the policy's tokenizer sees them.

    The order of an epoch is a function of (seed, epoch) alone and ranks slice it, so an optimiser step sees the same
    pairs on any number of devices. `global_batch` decides how many micro-batches are accumulated: leave
    `trainer.accumulate_grad_batches` alone. The position in the data is part of every checkpoint.

    Args:
        train: a file (JSONL, CSV, either with .gz, or Parquet), a folder or a glob of such files, or a split of a hub
            dataset (`owner/name:split`); with more said of it a `Source`; a mixture is a list of them.
        val: the same, of validation pairs; null takes them from `train`, by prompt.
        mapping: where the sources have texts and strength: the name of a shipped mapping, a YAML file or its content;
            null recognises the layout by the columns. With `base`, or without `kind`, it changes parts of one.
        selection: which training pairs are taken; null takes all.
        val_fraction: the share of prompts held out of `train` where `val` is null; 0 trains without validation.
        split_seed: of the split by prompt.
        seed: of the order.
        global_batch: pairs per optimiser step, over all devices.
        micro_batch: the most pairs per device and forward pass; null is global_batch / devices.
        max_tokens: the most tokens per device and forward pass, in place of micro_batch: pairs of like lengths are
            taken together, as many as fit, and steps stay what they are. Counted are prompt, chosen and rejected
            response where a prompt is read once; padded, the rows times the longest; an extra response counts with its
            prompt. Every step takes as many micro-batches as the one that needs most in the whole run, which must have
            an end: `trainer.max_epochs` or `trainer.max_steps`.
        val_batch: the most pairs per device and forward pass in validation; null is micro_batch or max_tokens.
        max_length: the most tokens of prompt and response together; responses are cut from the right.
        max_prompt_length: the most tokens of a prompt, cut from the left; null refuses prompts that leave no room.
        special_text: how the name of a special token inside a text is read: `plain`, as the characters that it is, or
            `token`.
        columns: further columns of numbers to carry along.
        token_columns: columns of values of single tokens: NAME stands for `NAME_chosen` and `NAME_rejected`, lists of
            [start, end, value] in characters of the response.
        on_swap: what a column does in a row whose strength prefers the rejected text, so that the texts change places:
            `keep` its value, `negate` (a difference, chosen minus rejected) or `complement` (a probability p that
            chosen is better: 1 - p). Names that begin with `p_` complement unless this says otherwise, and columns
            named for one side (`reward_chosen`) take the other's value; any other is refused in such a row.
        group_column: the column by which metrics are split.
        ties: keep or drop pairs of equal strength.
        bad_rows: strict stops at the first bad row; lenient counts them and leaves them out.
        max_refused: the share of rows that lenient may leave out.
        workers: processes that lay out batches ahead.

    Raises:
        UsageError: an argument out of its range.

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
        seed: int = 0,
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
        group_column: str | None = None,
        ties: Literal["keep", "drop"] = "keep",
        bad_rows: Literal["strict", "lenient"] = "strict",
        max_refused: float = 0.01,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val = train, val
        self.mapping, self.selection = mapping, selection
        self.val_fraction = 0.0 if val is not None else val_fraction
        self.split_seed, self.seed = split_seed, seed
        self.global_batch, self.micro_batch, self.val_batch = global_batch, micro_batch, val_batch
        self.max_tokens = max_tokens
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.special_text: SpecialText = special_text
        self.columns, self.token_columns = list(columns or []), list(token_columns or [])
        self.group_column = group_column
        self.on_swap = dict(on_swap or {})
        self.ties, self.bad_rows, self.max_refused = ties, bad_rows, max_refused
        self.workers = workers
        self._check_arguments()
        self._opened_for: Any = None
        self._tokenization: Tokenization | None = None
        self._train: PairView | None = None
        self._val: PairView | None = None
        self._budgets: dict[str, TokenBudget] = {}  # of training and validation pairs, where max_tokens is set
        self._epochs = 1
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None

    def _check_arguments(self) -> None:
        at_least = {"global_batch": 1, "micro_batch": 1, "max_tokens": 1, "val_batch": 1, "seed": 0, "workers": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"data.{name} is {value}; it must be at least {least}.")
        if self.micro_batch is not None and self.max_tokens is not None:
            raise UsageError(
                f"data.micro_batch {self.micro_batch} and data.max_tokens {self.max_tokens} are both set, and each "
                "says how a step is cut; leave one of them out."
            )
        choices = {"ties": ("keep", "drop"), "bad_rows": ("strict", "lenient"), "special_text": ("plain", "token")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"data.{name} is {getattr(self, name)!r}; it must be {' or '.join(allowed)}.")
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"data.val_fraction is {self.val_fraction:g}; it must be at least 0 and below 1.")
        if not 0 <= self.max_refused <= 1:
            raise UsageError(f"data.max_refused is {self.max_refused:g}; it must be between 0 and 1.")
        Tokenization.check_lengths(self.max_length, self.max_prompt_length)

    # Preparation

    def prepare_data(self) -> None:
        self._open()

    def setup(self, stage: str) -> None:
        if self._opened_for is not self._module:
            self._open()
        splits = [self.val_pairs, self.train_pairs] if stage == "fit" else [self.val_pairs]
        self._refuse_too_long(splits)
        # Before the module's own setup, which Lightning calls later: choosing pairs and micro-batches depend on it.
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

    def _refuse_too_long(self, splits: list[PairView]) -> None:
        """Refuse pairs that the policy or a reference cannot read whole: most models read on beyond, and badly."""
        assert self._tokenization is not None
        module = self._module
        tokenizer = self._tokenization.tokenizer
        limits = {"the policy": module.policy.max_length()}
        limits |= {f"the reference '{r.label}'": r.max_length(tokenizer) for r in module.references}
        longest = max(pairs.longest for pairs in splits)
        for model, limit in limits.items():
            if limit is not None and longest > limit:
                raise UserError(
                    f"The longest pair has {longest} tokens, and {model} reads at most {limit}; lower data.max_length "
                    f"from {self.max_length} to {limit} or less."
                )

    @property
    def is_open(self) -> bool:
        return self._train is not None

    def open_for_any_objective(self) -> None:
        """Prepare the data as if the objective needed no more than texts: for a report on what is there."""
        self._open(required=frozenset())

    def _open(self, required: frozenset[str] | None = None) -> None:
        """Prepare both splits, or find them in the cache where another rank or run has."""
        module = self._module
        if self.train is None:
            raise UsageError("data.train is not set; name a file, a folder or a hub dataset with preference pairs.")
        train = sources_of(self.train, "data.train")
        val = None if self.val is None else sources_of(self.val, "data.val")
        preparation = self._preparation()
        if required is not None:
            preparation = replace(preparation, required=required)
        texts = partial(training_texts, train, preparation)
        tokenizer = module.policy.load_tokenizer(Corpus(digest_of_split(train, preparation), texts))
        self._tokenization = Tokenization(tokenizer, self.max_length, self.max_prompt_length, self.special_text)
        self.unselected, self._val = open_splits(train, val, preparation, self._tokenization)
        self._train = self.unselected
        self._opened_for = module
        self.columns = list(preparation.all_columns)

    def _preparation(self) -> Preparation:
        objective = self._module.objective
        extra_response = {"extra_response"} if "extra_response" in objective.sides else set()
        return Preparation(
            mapping=self.mapping,
            columns=tuple(self.columns),
            on_swap=self.on_swap,
            token_columns=tuple(sorted({*self.token_columns, *objective.token_columns})),
            group_column=self.group_column,
            required=frozenset(objective.required) | extra_response,
            one_sided="rejected" not in objective.sides,
            ties=self.ties,
            bad_rows=self.bad_rows,
            max_refused=self.max_refused,
            val_fraction=self.val_fraction,
            split_seed=self.split_seed,
        )

    # What was prepared

    @property
    def train_pairs(self) -> PairView:
        assert self._train is not None, "setup() comes first"
        return self._train

    @property
    def val_pairs(self) -> PairView:
        assert self._val is not None, "setup() comes first"
        return self._val

    def read_train(self) -> Iterator[tuple[str, CheckedPair]]:
        """The pairs of the training split as they stand in their sources, uncut, each with its source's name."""
        assert self.train is not None
        return training_pairs(sources_of(self.train, "data.train"), self._preparation())

    @property
    def train_mappings(self) -> list[RowMapping]:
        """How each source of the training split is read."""
        assert self.train is not None
        preparation = self._preparation()
        return [preparation.mapping_of(source) for source in sources_of(self.train, "data.train")]

    @property
    def has_chat_template(self) -> bool:
        assert self._tokenization is not None, "setup() comes first"
        return self._tokenization.tokenizer.chat_template is not None

    def describe(self) -> dict[str, tuple[str, dict[str, PreparationReport]]]:
        """Fingerprint of both splits, and the reports of their sources."""
        splits = {"train": self.train_pairs, "val": self.val_pairs}
        return {name: (pairs.fingerprint, pairs.reports) for name, pairs in splits.items()}

    def sample(self, pairs: int) -> list[tuple[list[int], list[int], list[int] | None]]:
        """(prompt, chosen, rejected) ids of the first pairs of the training split."""
        return [(pair.prompt, pair.chosen, pair.rejected) for pair in self.train_pairs[:pairs]]

    @property
    def windows_per_epoch(self) -> int:
        """Optimiser steps of an epoch, as `trainer.limit_train_batches` leaves them."""
        sampler = self._sampler(self._epochs)
        limit = self._trainer.limit_train_batches
        batches = min(limit, len(sampler)) if isinstance(limit, int) else int(limit * len(sampler))
        return -(-batches // sampler.accumulation)

    # Loaders

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "PreferenceDataModule is used through a Trainer"
        return self.trainer

    @property
    def _module(self) -> Any:
        return self._trainer.lightning_module

    def _rank_and_world(self) -> tuple[int, int]:
        strategy = self._trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            return 0, 1
        data_parallel = strategy.distributed_sampler_kwargs  # knows the data-parallel mesh, where there is one
        return data_parallel["rank"], data_parallel["num_replicas"]

    def _sampler(self, epochs: int) -> WindowSampler:
        rank, world = self._rank_and_world()
        if self.global_batch < world:
            raise UsageError(
                f"data.global_batch {self.global_batch} is less than one pair for each of {world} devices; raise it to "
                f"at least {world}, or use fewer devices."
            )
        pairs = self.train_pairs
        return WindowSampler(
            len(pairs), self.seed, self.global_batch, self._micro_batch(pairs, world), world, rank, epochs
        )

    def _micro_batch(self, pairs: PairView, world: int) -> int | TokenBudget:
        if self.max_tokens is not None:
            return self._budget(pairs)
        return self.micro_batch or -(-self.global_batch // world)

    def _budget(self, pairs: PairView) -> TokenBudget:
        assert self.max_tokens is not None
        split = "train" if pairs is self._train else "val"
        if split not in self._budgets:
            self._budgets[split] = TokenBudget(
                self.max_tokens, pairs.lengths, self._module.batch_layout, pairs.extra_response_lengths
            )
        return self._budgets[split]

    def _source(self, pairs: PairView) -> UncastBatches:
        assert self._tokenization is not None
        tokenizer = self._tokenization.tokenizer
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        objective = self._module.objective
        return UncastBatches(
            pairs, pad_id, self._module.batch_layout, objective.token_functions, "extra_response" in objective.sides
        )

    def train_dataloader(self) -> ResumableLoader:
        loader = ResumableLoader(
            self._source(self.train_pairs), self._sampler(self._epochs), self.train_pairs.fingerprint, self.workers
        )
        if self._position is not None and self._trainer.fit_loop.is_resuming:
            loader.load_state_dict(self._position)
        settle_epoch_of_checkpoint(self._trainer)
        self._loader = loader
        return loader

    def val_dataloader(self) -> PairLoader | list[PairLoader]:
        if not len(self.val_pairs):
            return []  # Lightning then trains without validation
        rank, world = self._rank_and_world()
        batch = self.val_batch or self._micro_batch(self.val_pairs, world)
        cells = evaluation_batches(len(self.val_pairs), rank, world, batch)
        return PairLoader(self._source(self.val_pairs), cells, self.workers)

    def test_dataloader(self) -> PairLoader | list[PairLoader]:
        if not len(self.val_pairs):
            raise UserError("data.train has no validation pairs; give data.val, or raise data.val_fraction above 0.")
        return self.val_dataloader()

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(
        self, batch: UncastBatch, device: torch.device, dataloader_idx: int
    ) -> PreferenceBatch:
        return batch.batch.to(device)

    # The position. Lightning restores a loader's own state only in the middle of an epoch; through the data module it
    # comes back always, so that other data or another order are refused wherever a run was stopped.

    def state_dict(self) -> dict[str, Any]:
        position = {} if self._loader is None else self._loader.state_dict()
        return {**position, "normalisers": {name: vars(n) for name, n in self.train_pairs.normalisers.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = state_dict
        # Those that the policy was trained under, whatever data.train is now.
        fitted = {name: Normaliser(**values) for name, values in state_dict.get("normalisers", {}).items()}
        if fitted:
            sources = [part.source for part in self.val_pairs.parts]
            self._val = self.val_pairs.with_normalisers({name: constants_for(name, fitted) for name in sources})
