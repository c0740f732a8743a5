"""Builds models with transformers, from files or from a seed, without its progress bars and side effects."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging as transformers_logging

from lit_pref.errors import UsageError, UserError, visible
from lit_pref.models.experts import use_eager_experts_in_float64


@contextmanager
def building(seed: int) -> Iterator[None]:
    """Context in which models are built on the CPU, in fp32 by default and from `seed`, under any Trainer settings.

    The global random state and the default dtype are restored, and transformers shows no progress bars. cuDNN's
    attention stays off in this process.
    """
    turn_off_cudnn_attention()
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with without_bars(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            # Only the CPU's generator is seeded: torch.manual_seed would also change those of the GPUs.
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)


def turn_off_cudnn_attention() -> None:
    """Turn off cuDNN's attention in this process: `scaled_dot_product_attention` chooses among torch's other kernels.

    torch prefers cuDNN's on Hopper and Blackwell GPUs in fp16 and bf16. Its backward pass gives NaN where a mask meets
    logits below -89, which heads of common models have, at lengths 64 above a multiple of 128 (torch 2.11 to 2.13,
    https://github.com/pytorch/pytorch/issues/196678); that ends DPO runs of Qwen2.5 in the padded layout
    (https://github.com/huggingface/trl/issues/7181). For a single query it does so without a mask
    (https://github.com/NVIDIA/cudnn-frontend/issues/1072). The conditions depend on values, which no other setting can
    exclude. `tools/bench_gpu_attention.py` has these and other reported cases.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


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


@contextmanager
def reading_weights(name: str, kind: str) -> Iterator[None]:
    """Context in which errors of `from_pretrained` become one sentence.

    Args:
        name: the user's name for the model.
        kind: the kind of model that is loaded, such as "reward model".

    Raises:
        UserError: the weights are damaged, or transformers cannot load such a model from them.
    """
    try:
        yield
    except SafetensorError as error:
        raise UserError(
            f"the weights of '{name}' are damaged or were not copied to their end ({first_line(error)}): get them again"
        ) from error
    except (TypeError, ValueError, OSError, RuntimeError, ImportError) as error:
        raise UserError(f"'{name}' cannot be loaded as a {kind}: {first_line(error)}") from error


def load_weights(name: str, folder: Path, config: PretrainedConfig, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """Load the causal LM in `folder`; no weight may be missing.

    Args:
        name: the user's name for it, for messages.
        folder: a folder with safetensors.
        config: the model's configuration, possibly changed.
        dtype: dtype of the weights.
        form: further arguments for `from_pretrained`.

    Raises:
        UserError: it is not a causal LM that transformers can load, a weight is missing, or something in the folder
            would be left out: the head of another task, or the quantization that its configuration asks for.
    """
    with reading_weights(name, "causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **form
        )
    model, info = loaded
    if info["missing_keys"]:
        # Without this check, transformers would fill missing weights with random numbers.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"the weights of '{name}' lack {missing}: it is not a complete causal language model")
    refuse_lost_heads(name, info["unexpected_keys"])
    refuse_lost_quantization(f"'{name}'", config, model)
    use_eager_experts_in_float64(model)
    return model


_OTHER_TASKS = re.compile(r"For(\w*Classification|QuestionAnswering|MultipleChoice|RewardModel\w*)$|RewardModel$")
_OTHER_HEADS = re.compile(r"(^|\.)(score|classifier|classification_head|qa_outputs|v_head|value_head|reward_head)\.")


def refuse_other_task(name: str, config: PretrainedConfig) -> None:
    """Refuse a model whose configuration names a class for another task, such as a reward model.

    Raises:
        UserError: it does; transformers would load it without its head.
    """
    for architecture in config.architectures or []:
        if _OTHER_TASKS.search(architecture):
            raise UserError(
                f"'{name}' is a {architecture}, not a causal language model: its head would be lost; give the language "
                "model that it was made from"
            )


def refuse_lost_heads(name: str, unexpected: Iterable[str]) -> None:
    """Refuse weights of a head that a causal LM has no place for; warn of other weights that are left out.

    Raises:
        UserError: there is such a head.
    """
    lost = sorted(unexpected)
    if heads := [key for key in lost if _OTHER_HEADS.search(key)]:
        raise UserError(
            f"the weights of '{name}' hold {heads[0]}, the head of a classifier or reward model, which a causal "
            "language model would lose; give the language model that it was made from"
        )
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        words = f"weights of '{name}' that its causal language model has no place for are left out: "
        warnings.warn(visible(f"{words}{', '.join(lost[:3])}{more}"), stacklevel=2)


def refuse_lost_quantization(name: str, config: PretrainedConfig, model: Any) -> None:
    """Refuse a quantization that the configuration asks for and the model does not have.

    Raises:
        UserError: transformers skipped it, or dequantized the weights.
    """
    asked = getattr(config, "quantization_config", None)
    if asked is None or getattr(model, "is_quantized", False):
        return
    method = asked.get("quant_method") if isinstance(asked, dict) else getattr(asked, "quant_method", None)
    method = getattr(method, "value", method)
    raise UserError(
        f"the configuration of {name} asks for quantization ({method}), which was not applied: the weights are plain, "
        "or this machine cannot read quantized ones; remove `quantization_config` from it, or give a model without one"
    )


def draw_weights(config: PretrainedConfig, dtype: torch.dtype, form: dict[str, Any]) -> Any:
    """Build a causal LM with random weights, drawn in fp32 and then rounded to `dtype`."""
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **form)
    except (ValueError, ImportError) as error:
        raise UserError(f"policy.config is not that of a causal language model: {first_line(error)}") from error
    refuse_lost_quantization("the model", config, model)
    model.config.dtype = dtype
    model = model.to(dtype)
    use_eager_experts_in_float64(model)
    return model


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
