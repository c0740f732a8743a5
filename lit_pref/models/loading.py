"""Weights from files or from a seed, by transformers, without what it says or does on the side."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging as transformers_logging

from lit_pref.errors import UsageError, UserError


@contextmanager
def building(seed: int) -> Iterator[None]:
    """Built on the CPU, in fp32 where nothing else is said, and from `seed`, whatever a Trainer has set up.

    The global random state and the default dtype are as before afterwards; transformers shows no bar per file.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with without_bars(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            # Only the CPU's generator: torch.manual_seed would change those of the GPUs as well.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' bar for every file that it reads or writes."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def load_weights(name: str, folder: Path, config: PretrainedConfig, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """The causal LM in `folder`, complete or not at all.

    Args:
        name: what the user called it, for messages.
        folder: holds safetensors.
        config: of the model, with what was changed in it.
        dtype: of the weights.
        form: further arguments of `from_pretrained`.

    Raises:
        UserError: where it is not a causal LM that transformers can load, or a weight is missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **form
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise UserError(f"'{name}' cannot be loaded as a causal language model: {first_line(error)}") from error
    model, info = loaded
    if info["missing_keys"]:
        # transformers would fill them with random numbers and go on.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"the weights of '{name}' lack {missing}: it is not a complete causal language model")
    return model


def draw_weights(config: PretrainedConfig, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """A causal LM with random weights, drawn in fp32 and rounded after: a seed means the same in every dtype."""
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **form)
    except (ValueError, ImportError) as error:
        raise UserError(f"policy.config is not that of a causal language model: {first_line(error)}") from error
    model.config.dtype = dtype
    return model.to(dtype)


def compile_blocks(model: nn.Module, backend: str) -> None:
    """Compile each transformer block by itself: one graph for all blocks, and no graph knows a length.

    Raises:
        UsageError: for a backend that torch does not know.
    """
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UsageError(f"policy.compile '{backend}' is no backend of torch.compile; it is null or one of {known}")
    for block in blocks_of(model):
        block.compile(backend=backend, dynamic=True)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, as the model's class names them."""
    names = set().union(*(getattr(module, "_no_split_modules", None) or [] for module in model.modules()))
    return [module for module in model.modules() if type(module).__name__ in names]


def set_dropout(config: PretrainedConfig, probability: float) -> None:
    """In every field that is one, whatever the family calls it; whole layers are never dropped."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            set_dropout(value, probability)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if "dropout" in name or "pdrop" in name:
                setattr(config, name, float(probability))
            elif "layerdrop" in name:
                setattr(config, name, 0.0)


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough for a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
