"""The specification of a model: its source, dtype, attention and adapters."""

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from lit_pref.cache import file_digest
from lit_pref.errors import UsageError, UserError
from lit_pref.models.folder import model_folder, tokenizer_folder
from lit_pref.models.loading import (
    building,
    compile_blocks,
    draw_weights,
    first_line,
    load_weights,
    refuse_other_task,
    set_dropout,
)
from lit_pref.models.reward import Embedding, draw_reward_model, load_reward_model
from lit_pref.models.tokenizer import Corpus, train_tokenizer

__all__ = ["Corpus", "Embedding", "Lora", "ModelSpec"]

HEADS = ("lm", "scalar")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


@dataclass
class Lora:
    """Low-rank adapters: `W + (alpha / r) B A` with A (r, in), B (out, r) trained, B zero at the start, W frozen.

    **Source** Hu et al., LoRA, arXiv 2106.09685, equation 3; by `peft`.

    Args:
        r: rank, >= 1.
        alpha: scale of the adapter, > 0.
        dropout: dropout probability of the adapter's input, in [0, 1).
        target_modules: names of the linear layers that get an adapter; `all-linear` is all but the output head.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"


@dataclass
class ModelSpec:
    """A language model or a reward model, from a folder, from the hub, or with random weights from a configuration.

    Args:
        path: a local folder or a hub name, with weights in safetensors. Give either this or `config`.
        config: arguments of `AutoConfig.for_model`, including `model_type`; the size of the vocabulary and the special
            tokens come from the tokenizer, the weights from `seed`.
        tokenizer: folder or hub name of a tokenizer other than the one in `path`.
        vocabulary: tokens of the tokenizer that is trained on the data if there is `config` and no `tokenizer`.
        dtype: dtype of the weights: float32, bfloat16, float16 or float64.
        attention: attention implementation of transformers (`sdpa`, `eager`, ...); the model's own by default.
        gradient_checkpointing: recompute the activations of each layer in the backward pass, to save memory.
        compile: backend of `torch.compile` (`inductor`) for each transformer block, with dynamic lengths; attention is
            not compiled. Off by default: on a CPU it saved 5 % of the time, after seconds of compiling.
        dropout: the probability of every dropout in the model, in [0, 1).
        lora: train adapters instead of the weights.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the model.
        seed: seed of random weights and adapters; null is `seed_everything` in a run, else 0. The global random state
            is neither read nor changed.
        head: `lm`, the output head of a language model, or `scalar`, the head of a reward model: one number in fp32.
            For `scalar`, `path` may be a language model, whose head is replaced by a random one, or a sequence
            classifier, whose head is kept.
        embedding: with `head: scalar`, a preference embedding in place of the one number.

    Raises:
        UsageError: an argument is out of range, or `path` and `config` are both given or both missing.

    >>> ModelSpec(config={"model_type": "llama", "hidden_size": 64}, seed=3).describe()
    'llama with random weights (seed 3), float32'
    """

    path: str | None = None
    config: dict[str, Any] | None = None
    tokenizer: str | None = None
    vocabulary: int = 8192
    dtype: str = "float32"
    attention: str | None = None
    gradient_checkpointing: bool = False
    compile: str | None = None
    dropout: float = 0.0
    lora: Lora | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    seed: int | None = None
    head: str = "lm"
    embedding: Embedding | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.config is None):
            given = "neither of them is" if self.path is None else "both of them are"
            raise UsageError(f"a model is given either by `path` or by `config`, but {given} set")
        if self.config is not None and "model_type" not in self.config:
            raise UsageError("policy.config has no `model_type`: name the architecture, for example llama")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype '{self.dtype}' is unknown: use one of {', '.join(DTYPES)}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"policy.dropout is {self.dropout}: it must be a probability below 1")
        if self.head not in HEADS:
            raise UsageError(f"policy.head is {self.head!r}: it must be one of {', '.join(HEADS)}")
        if self.embedding is not None and self.head == "lm":
            raise UsageError("policy.embedding belongs to a reward model: set policy.head to scalar as well")
        self.seed = self.seed or 0
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def load_tokenizer(self, corpus: Corpus | None = None) -> PreTrainedTokenizerBase:
        """Return the tokenizer of `tokenizer` or else of `path`, or train one on `corpus`; loaded once.

        A tokenizer without a padding token gets its eos token as one: padding is masked out and never predicted, so
        neither a new token nor a new row of the embeddings is needed.

        Raises:
            UserError: there is no tokenizer, or it has no eos token.
        """
        if self._tokenizer is not None:
            return self._tokenizer
        if self.tokenizer is not None:
            folder = tokenizer_folder(self.tokenizer)
        elif self.path is not None:
            model_folder(self.path, self.revision)  # refuses a folder that contains no model at all
            folder = tokenizer_folder(self.path, self.revision)
        elif corpus is not None:
            folder = train_tokenizer(corpus, self.vocabulary)
        else:
            raise UserError(
                "policy.config comes without a tokenizer: set policy.tokenizer, or give data to train one on"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # the tokenizers library raises bare ones for a damaged file
            raise UserError(f"the tokenizer in '{folder}' cannot be loaded: {first_line(error)}") from error
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer in '{folder}' has no end token (eos_token): set it in its configuration")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer = tokenizer
        return tokenizer

    def build(self) -> nn.Module:
        """Build the model on the CPU, in train mode; with LoRA, it is a PeftModel.

        Raises:
            UserError: it cannot be loaded, or its vocabulary is smaller than the tokenizer's.
        """
        config = self.configuration()
        tokens = len(self.load_tokenizer())
        size = config.get_text_config().vocab_size
        if tokens > size:
            raise UserError(
                f"the tokenizer has {tokens} tokens and the model ({self.describe()}) has room for {size}: "
                "give the tokenizer that the model was trained with"
            )
        form: dict[str, Any] = {} if self.attention is None else {"attn_implementation": self.attention}
        with building(self.seed or 0):
            if self.path is not None:
                folder = model_folder(self.path, self.revision)
                form["trust_remote_code"] = self.trust_remote_code
                if self.outputs is None:
                    model = load_weights(self.path, folder, config, DTYPES[self.dtype], form)
                else:
                    model = load_reward_model(self.path, folder, config, self.outputs, DTYPES[self.dtype], form)
            elif self.outputs is None:
                model = draw_weights(config, DTYPES[self.dtype], form)
            else:
                model = draw_reward_model(config, self.outputs, DTYPES[self.dtype], form)
            if self.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            if self.lora is not None:
                model = self._with_adapters(model, self.lora, self.outputs)
        if self.compile is not None:
            compile_blocks(model, self.compile)
        return model.train()

    @property
    def outputs(self) -> int | None:
        """The number of outputs of a reward model's head; None for a language model."""
        if self.head == "lm":
            return None
        return 1 if self.embedding is None else self.embedding.dimensions

    def describe(self) -> str:
        """Return a one-line description: source, dtype, adapters, head."""
        if self.path is not None:
            source = self.path if self.revision is None else f"{self.path} at {self.revision}"
        else:
            assert self.config is not None
            source = f"{self.config['model_type']} with random weights (seed {self.seed})"
        adapters = "" if self.lora is None else f", LoRA of rank {self.lora.r}"
        head = "" if self.head == "lm" else ", scalar head" if self.embedding is None else f", {self.embedding!r}"
        return f"{source}, {self.dtype}{adapters}{head}"

    def base(self) -> "ModelSpec":
        """Return the spec of the frozen initial model: without adapters and options that concern training only."""
        base = copy.copy(self)
        base.lora, base.dropout, base.gradient_checkpointing, base.compile = None, 0.0, False, None
        return base

    def fingerprint(self) -> str:
        """Return the sha256 of the initial weights: of safetensors and config.json, or of configuration and seed."""
        if self.path is not None:
            folder = model_folder(self.path, self.revision)
            files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
            # Code that comes with the model affects its numbers as much as its weights do.
            files += sorted(folder.glob("*.py")) if self.trust_remote_code else []
            content: Any = {file.name: file_digest(file) for file in files}
        else:
            content = {"config": self._arguments(), "seed": self.seed}
        if self.outputs is not None:
            content = {**content, "head": [repr(self.embedding), self.seed]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def max_length(self) -> int | None:
        """Return the longest input, in tokens, that the model was designed for; None if its config sets no bound.

        There is none without position embeddings or with relative ones (Bloom, ALiBi), and for a scaled rotary
        embedding, because each family stores the length of such an embedding differently.
        """
        config: Any = self.configuration().get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        rope = getattr(config, "rope_parameters", None) or {}
        kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
        unbounded = getattr(config, "alibi", False) or kinds & {"linear", "dynamic", "yarn"}
        return None if unbounded or limit is None or limit < 1 else int(limit)

    def configuration(self) -> PretrainedConfig:
        """Return the configuration of the architecture, with the requested dropout."""
        if self.path is not None:
            folder = model_folder(self.path, self.revision)
            try:
                config = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
            except (ValueError, KeyError, OSError) as error:
                raise UserError(f"the config.json of '{self.path}' cannot be used: {first_line(error)}") from error
            if self.head == "lm":
                refuse_other_task(self.path, config)
        else:
            try:
                config = AutoConfig.for_model(**self._arguments())
            except (ValueError, TypeError) as error:
                raise UserError(f"policy.config cannot be used: {first_line(error)}") from error
        set_dropout(config, self.dropout)
        return config

    def _arguments(self) -> dict[str, Any]:
        tokenizer = self.load_tokenizer()
        assert self.config is not None
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return {**self.config, "vocab_size": len(tokenizer), **special}

    @staticmethod
    def _with_adapters(model: Any, lora: Lora, outputs: int | None) -> Any:
        import peft  # imported here because it is slow to import, and most runs have no adapters

        settings = peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            # For a sequence classifier, peft trains and saves the head as well.
            task_type="CAUSAL_LM" if outputs is None else "SEQ_CLS",
        )
        try:
            return peft.get_peft_model(model, settings)
        except ValueError as error:
            raise UserError(f"policy.lora cannot be applied: {first_line(error)}") from error
