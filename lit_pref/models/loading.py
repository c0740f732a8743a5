"""Builds models with transformers, from files or from a seed, without its progress bars and side effects."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging as transformers_logging

from lit_pref.errors import UsageError, UserError


@contextmanager
def building(seed: int) -> Iterator[None]:
    """Context in which models are built on the CPU, in fp32 by default and from `seed`, whatever a Trainer has set.

    The global random state and the default dtype are restored, and transformers shows no progress bars.
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
    """Context without transformers' progress bar for every file that it reads or writes."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def load_weights(name: str, folder: Path, config: PretrainedConfig, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """Load the causal LM in `folder`; every weight must be there.

    Args:
        name: the user's name for it, for messages.
        folder: a folder with safetensors.
        config: the model's configuration, possibly changed.
        dtype: dtype of the weights.
        form: further arguments of `from_pretrained`.

    Raises:
        UserError: it is not a causal LM that transformers can load, or a weight is missing.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **form
        )
    except SafetensorError as error:
        raise UserError(
            f"the weights of '{name}' are damaged or were not copied to their end ({first_line(error)}): get them again"
        ) from error
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        raise UserError(f"'{name}' cannot be loaded as a causal language model: {first_line(error)}") from error
    model, info = loaded
    if info["missing_keys"]:
        # transformers would fill them with random numbers.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"the weights of '{name}' lack {missing}: it is not a complete causal language model")
    return model


def draw_weights(config: PretrainedConfig, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """Build a causal LM with random weights, drawn in fp32 and then rounded: a seed means the same in every dtype."""
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **form)
    except (ValueError, ImportError) as error:
        raise UserError(f"policy.config is not that of a causal language model: {first_line(error)}") from error
    model.config.dtype = dtype
    return model.to(dtype)


def compile_blocks(model: nn.Module, backend: str) -> None:
    """Compile each transformer block by itself: one graph for all blocks and all lengths.

    Raises:
        UsageError: torch does not know the backend.
    """
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise UsageError(f"policy.compile '{backend}' is not a backend of torch.compile; use null or one of {known}")
    for block in blocks_of(model):
        block.compile(backend=backend, dynamic=True)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks, by the names that the model's class declares (`_no_split_modules`)."""
    names = set().union(*(getattr(module, "_no_split_modules", None) or [] for module in model.modules()))
    return [module for module in model.modules() if type(module).__name__ in names]


def set_dropout(config: PretrainedConfig, probability: float) -> None:
    """Set every dropout probability in a configuration, whatever its field is called; layer dropout is set to 0."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            set_dropout(value, probability)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if "dropout" in name or "pdrop" in name:
                setattr(config, name, float(probability))
            elif "layerdrop" in name:
                setattr(config, name, 0.0)


def first_line(error: Exception) -> str:
    """Return the first line of an error message of another library, to be quoted in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
