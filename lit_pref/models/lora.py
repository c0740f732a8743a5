"""Settings of low-rank adapters, and adapters put on a model or merged into it, by `peft`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lit_pref.errors import UserError
from lit_pref.models.loading import first_line

LANGUAGE, REWARD = "CAUSAL_LM", "SEQ_CLS"
"""peft's names of the tasks of language models and reward models."""


@dataclass
class Lora:
    """Low-rank adapters: `W + (alpha / r) B A` with A (r, in), B (out, r) trained, B zero at the start, W frozen.

    **Source** Hu et al., LoRA, arXiv 2106.09685, equation 3; by `peft`.

    Args:
        r: rank, >= 1.
        alpha: scale of the adapter, > 0.
        dropout: dropout probability of the adapter's input, in [0, 1).
        target_modules: names of the linear layers that get an adapter; `all-linear` is all but the output head.
        modules_to_save: names of modules that are trained whole and stored with the adapter, such as `lm_head` or
            `embed_tokens`; their original weights are kept beside them.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None


def with_adapters(model: Any, lora: Lora, outputs: int | None = None) -> Any:
    """Return the model with new adapters, a PeftModel.

    Args:
        model: a language model or a reward model.
        lora: the settings.
        outputs: the number of outputs of a reward model's head, which is trained whole; None for a language model.

    Raises:
        UserError: peft refuses the settings, or no module has one of the names.
    """
    import peft  # imported here because it is slow to import, and most runs have no adapters

    known = {part for name, _ in model.named_modules() for part in (name, name.rpartition(".")[2])}
    if unknown := [name for name in lora.modules_to_save or [] if name not in known]:
        named = "embeddings and head are called " + " and ".join(
            name for name, module in model.named_modules() if module in (_embeddings_and_head(model))
        )
        raise UserError(f"policy.lora.modules_to_save names {unknown[0]}, which the model does not have; its {named}")
    settings = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
        # For a sequence classifier, peft trains and saves the head as well.
        task_type=LANGUAGE if outputs is None else REWARD,
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(f"policy.lora cannot be applied: {first_line(error)}") from error


def name_base(model: Any, name: str, revision: str | None) -> None:
    """Write down in the adapter's settings which model it is for, so that an exported adapter finds it.

    Args:
        model: a PeftModel.
        name: the folder or hub name of its base model.
        revision: that on the hub.
    """
    path = Path(os.path.expanduser(name))
    settings = model.peft_config["default"]
    settings.base_model_name_or_path, settings.revision = str(path.resolve()) if path.is_dir() else name, revision


def adapted_weights(model: Any) -> set[str]:
    """Return the names that the weights with an adapter have in the merged model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = (name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {f"{name.removeprefix('base_model.model.')}.weight" for name in names}


def merged(model: Any) -> Any:
    """Return the plain model with the adapters of a PeftModel merged into its weights, which are changed."""
    _untie(model.get_base_model())
    return model.merge_and_unload()


def _untie(model: Any) -> None:
    """Give the head weights of its own if an adapter on it or on the embeddings would be merged into both."""
    parts = _embeddings_and_head(model)
    plain: list[Any] = [_frozen_part(part) for part in parts]
    if plain[1] is None or plain[0].weight is not plain[1].weight or plain == parts:
        return
    plain[1].weight = nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def _embeddings_and_head(model: Any) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _frozen_part(part: Any) -> Any:
    """The module under an adapter, or the original of one that is trained whole."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(part, BaseTunerLayer):
        return part.get_base_layer()
    return part.original_module if isinstance(part, ModulesToSaveWrapper) else part
