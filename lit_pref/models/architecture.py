"""The configuration of a model's architecture: read from a folder or made of arguments, and what it says of lengths."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lit_pref.errors import UserError
from lit_pref.models.loading import first_line


def read_configuration(name: str, folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    """Return the configuration in a folder.

    Args:
        name: the user's name for it, for messages.
        folder: the folder of a model.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: it cannot be used.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"the config.json of '{name}' cannot be used: {first_line(error)}") from error


def configuration_of(arguments: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration with these arguments of `AutoConfig.for_model`.

    Raises:
        UserError: they cannot be used.
    """
    try:
        return AutoConfig.for_model(**arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"policy.config cannot be used: {first_line(error)}") from error


def longest_input(configuration: PretrainedConfig) -> int | None:
    """Return the longest input, in tokens, that a model was designed for; None if its config sets no bound.

    There is none without position embeddings or with relative ones (Bloom, ALiBi), and for a scaled rotary embedding,
    because each family stores the length of such an embedding differently.
    """
    config: Any = configuration.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    unbounded = getattr(config, "alibi", False) or kinds & {"linear", "dynamic", "yarn"}
    return None if unbounded or limit is None or limit < 1 else int(limit)
