"""The specification of a model: its source, dtype, attention and adapters."""

import copy
import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lit_pref.cache import file_digest
from lit_pref.errors import UsageError, UserError
from lit_pref.models.adapter_folder import AdapterFolder, adapter_folder, refuse_contradiction
from lit_pref.models.architecture import configuration_of, longest_input, read_configuration
from lit_pref.models.experts import router_weight
from lit_pref.models.folder import has_tokenizer, model_folder, tokenizer_folder
from lit_pref.models.loading import (
    building,
    compile_blocks,
    draw_weights,
    load_weights,
    refuse_other_task,
    set_dropout,
)
from lit_pref.models.lora import Lora, merged, name_base, with_adapters
from lit_pref.models.reward import Embedding, draw_reward_model, load_reward_model
from lit_pref.models.setting_names import (
    DTYPES,
    refuse_head_precision,
    refuse_unknown_attention,
    refuse_unknown_dtype,
    refuse_unknown_head,
)
from lit_pref.models.tokenizer import Corpus, open_tokenizer, train_tokenizer

__all__ = ["Corpus", "Embedding", "Lora", "ModelSpec"]


@dataclass
class ModelSpec:
    """A language model or a reward model, from a folder, from the hub, or with random weights from a configuration.

    Args:
        path: a local folder or a hub name, with weights in safetensors. Give either this or `config`. It may hold a
            LoRA adapter instead of a whole model: training then continues that adapter.
        config: arguments of `AutoConfig.for_model`, `model_type` among them; the vocabulary's size and the special
            tokens come from the tokenizer, the weights from `seed`.
        tokenizer: folder or hub name of a tokenizer other than the one in `path`.
        vocabulary: tokens of the tokenizer that is trained on the data if there is `config` and no `tokenizer`.
        dtype: dtype of the weights: float32, bfloat16, float16 or float64.
        attention: attention implementation of transformers (`sdpa`, `eager`, ...); the model's own by default.
        gradient_checkpointing: recompute the activations of each layer in the backward pass, to save memory.
        compile: backend of `torch.compile` (`inductor`) for each transformer block but its attention, with dynamic
            lengths; off by default: on a CPU it saved 5 % of the time.
        dropout: the probability of every dropout in the model, in [0, 1).
        router_loss: for a mixture of experts: the weight of its load-balancing loss in the training loss; 0 is off,
            null takes `router_aux_loss_coef` of a configuration that sets `output_router_logits`, and else 0.
            An optimizer step takes the mean over its pairs, each with the loss of its micro-batch, which is computed
            over the real tokens of prompts and responses.
        lora: train new adapters instead of the weights.
        base_model: folder or hub name of the model that an adapter in `path` is for; the one it names by default.
        merge_adapter: merge an adapter in `path` into its base model first, and train the merged weights, or with
            `lora` new adapters on them.
        revision: branch, tag or commit on the hub, of `path`.
        trust_remote_code: run code that comes with the model.
        seed: seed of random weights and adapters, apart from the global state; null is `seed_everything`, or else 0.
        head: `lm`, that of a language model, or `scalar`, that of a reward model: one number in fp32. For `scalar`,
            `path` may be a language model, whose head a random one replaces, or a sequence classifier.
        embedding: with `head: scalar`, a preference embedding in place of the one number.
        head_precision: the rounding of operands in the multiplications of a language model's head, whose sums and
            log-softmax are fp32: `bf16`, `split` (an fp32 operand is two bf16 ones), `fp32`, or `auto`, which is bf16
            on a GPU where the model computes in bf16, and else fp32 (docs/lightning.md).
        head_kernels: on a GPU with Triton, read the logits by kernels, where they agree with torch's operations.

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
    router_loss: float | None = None
    lora: Lora | None = None
    base_model: str | None = None
    merge_adapter: bool = False
    revision: str | None = None
    trust_remote_code: bool = False
    seed: int | None = None
    head: str = "lm"
    embedding: Embedding | None = None
    head_precision: str = "auto"
    head_kernels: bool = True

    def __post_init__(self) -> None:
        if (self.path is None) == (self.config is None):
            given = "neither of them is" if self.path is None else "both of them are"
            raise UsageError(f"a model is given either by `path` or by `config`, but {given} set")
        if self.config is not None and "model_type" not in self.config:
            raise UsageError("policy.config has no `model_type`: name the architecture, for example llama")
        refuse_unknown_dtype(self.dtype)
        if self.attention is not None:
            refuse_unknown_attention(self.attention)
        if not 0 <= self.dropout < 1:
            raise UsageError(f"policy.dropout is {self.dropout}: it must be a probability below 1")
        refuse_unknown_head(self.head)
        refuse_head_precision(self.head_precision, self.head)
        if self.embedding is not None and self.head == "lm":
            raise UsageError("policy.embedding is for reward models: set policy.head to scalar as well")
        if self.router_loss is not None and not 0 <= self.router_loss < float("inf"):
            raise UsageError(f"policy.router_loss is {self.router_loss}: it must be 0 or above, or null")
        self.seed = self.seed or 0
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._adapter: list[AdapterFolder | None] = []  # what was found in `path`, once it was looked at

    @property
    def adapter(self) -> AdapterFolder | None:
        """The adapter in `path`, if it holds one instead of a whole model.

        Raises:
            UserError: there is nothing in `path`, or an adapter that cannot be used as these settings say.
        """
        if not self._adapter:
            found = None if self.path is None else adapter_folder(self.path, self.revision)
            refuse_contradiction(found, self)
            self._adapter = [found]
        return self._adapter[0]

    @property
    def adapters(self) -> Lora | None:
        """The adapters that are trained instead of the weights: new ones, or those in `path`."""
        if self.lora is not None or self.merge_adapter or self.adapter is None:
            return self.lora
        return self.adapter.lora()

    @property
    def source(self) -> tuple[str, str | None]:
        """The name and the revision of the weights that are not an adapter's; only with `path`."""
        assert self.path is not None
        return (self.path, self.revision) if self.adapter is None else self.adapter.base(self.base_model)

    def load_tokenizer(self, corpus: Corpus | None = None) -> PreTrainedTokenizerBase:
        """Return the tokenizer of `tokenizer` or else of `path`, or train one on `corpus`; loaded once.

        Raises:
            UserError: there is no tokenizer, or it has no eos token.
        """
        if self._tokenizer is not None:
            return self._tokenizer
        if self.tokenizer is not None:
            folder = tokenizer_folder(self.tokenizer)
        elif self.path is not None:
            model_folder(*self.source)  # refuses a folder that contains no model at all
            own = self.adapter is not None and has_tokenizer(self.adapter.folder)
            folder = self.adapter.folder if own and self.adapter else tokenizer_folder(*self.source)
        elif corpus is not None:
            folder = train_tokenizer(corpus, self.vocabulary)
        else:
            raise UserError(
                "policy.config comes without a tokenizer: set policy.tokenizer, or give data to train one on"
            )
        self._tokenizer = open_tokenizer(folder, self.trust_remote_code)
        return self._tokenizer

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
                form["trust_remote_code"] = self.trust_remote_code
                name, folder, dtype = self.source[0], model_folder(*self.source), DTYPES[self.dtype]
                if self.outputs is None:
                    model = load_weights(name, folder, config, dtype, form)
                else:
                    model = load_reward_model(name, folder, config, self.outputs, dtype, form)
            elif self.outputs is None:
                model = draw_weights(config, DTYPES[self.dtype], form)
            else:
                model = draw_reward_model(config, self.outputs, DTYPES[self.dtype], form)
            if self.gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            if self.adapter is not None:
                model = self.adapter.put_on(model, self.dropout, self.outputs)
                model = merged(model).requires_grad_() if self.merge_adapter else model
            if self.lora is not None:
                model = with_adapters(model, self.lora, self.outputs)
            if self.path is not None and self.adapters is not None:
                name_base(model, *self.source)
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
            if os.path.isdir(os.path.expanduser(self.path)) and self.adapter is not None:
                how = "merged into" if self.merge_adapter else "on"
                source += f" (adapter of rank {self.adapter.lora().r} {how} {self.source[0]})"
        else:
            assert self.config is not None
            source = f"{self.config['model_type']} with random weights (seed {self.seed})"
        adapters = "" if self.lora is None else f", LoRA of rank {self.lora.r}"
        head = "" if self.head == "lm" else ", scalar head" if self.embedding is None else f", {self.embedding!r}"
        rounded = "" if self.head_precision == "auto" else f", head_precision {self.head_precision}"
        return f"{source}, {self.dtype}{adapters}{head}{rounded}"

    def base(self) -> "ModelSpec":
        """Return the spec of the frozen initial model: without new adapters and options that concern training only.

        An adapter in `path` belongs to the initial model.
        """
        base = copy.copy(self)
        base.lora = base.compile = base.router_loss = None
        base.dropout, base.gradient_checkpointing = 0.0, False
        return base

    def without_adapters(self) -> "ModelSpec":
        """Return the spec of the frozen model under the adapters that are trained, new ones or those in `path`."""
        bare = self.base()
        if self.lora is None and not self.merge_adapter and self.adapter is not None:
            tokenizer = self.load_tokenizer()
            bare.path, bare.revision = self.source
            bare.base_model, bare._adapter = None, [None]
            bare.tokenizer = self.tokenizer or str(tokenizer.name_or_path)
        return bare

    def fingerprint(self) -> str:
        """Return the sha256 of the initial weights: of safetensors and config.json, or of configuration and seed.

        That of an adapter in `path` is included, and whether it is merged, which rounds.
        """
        if self.path is not None:
            folder = model_folder(*self.source)
            files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
            # Code that comes with the model affects its numbers as much as its weights do.
            files += sorted(folder.glob("*.py")) if self.trust_remote_code else []
            content: Any = {file.name: file_digest(file) for file in files}
            if self.adapter is not None:
                content["adapter"] = {**self.adapter.content(), "merged": self.merge_adapter}
        else:
            content = {"config": self._arguments(), "seed": self.seed}
        content |= {} if self.outputs is None else {"head": [repr(self.embedding), self.seed]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def max_length(self) -> int | None:
        """Return the longest input, in tokens, that the model was designed for; see `longest_input`."""
        return longest_input(self.configuration())

    def configuration(self) -> PretrainedConfig:
        """Return the configuration of the architecture, with the requested dropout.

        Raises:
            UserError: it cannot be used, or it has no loss for `router_loss` to weigh.
        """
        if self.path is None:
            config = configuration_of(self._arguments())
        else:
            name = self.source[0]
            config = read_configuration(name, model_folder(*self.source), self.trust_remote_code)
            if self.head == "lm":
                refuse_other_task(name, config)
        router_weight(config, self.router_loss)  # refuses a weight that the model has no loss for
        set_dropout(config, self.dropout)
        return config

    def _arguments(self) -> dict[str, Any]:
        tokenizer = self.load_tokenizer()
        assert self.config is not None
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        return {**self.config, "vocab_size": len(tokenizer), **special}
