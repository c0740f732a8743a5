"""The ids over which two models of different vocabulary sizes are compared."""

from typing import Any


def shared_ids(label: str, size: int, policy_size: int, used: int) -> tuple[int | None, str]:
    """Return the number of ids that both models have, or None if the tokenizer uses more, and a sentence about either.

    Args:
        label: the name of the reference.
        size: the ids for which the reference gives logits.
        policy_size: the ids for which the policy does.
        used: the ids that the tokenizer uses.

    >>> shared_ids("runs/sft", 32, 40, 36)
    (None, 'gives logits for 32 ids, the policy for 40, and the tokenizer uses 36')
    """
    shared = min(size, policy_size)
    if used > shared:
        return None, f"gives logits for {size} ids, the policy for {policy_size}, and the tokenizer uses {used}"
    return shared, (
        f"the reference '{label}' has {size} ids and the policy {policy_size}, of which the tokenizer uses {used}: "
        f"next-token distributions are compared over the first {shared}, given that the token is one of them"
    )


def vocabulary_size(model: Any) -> int:
    """Return the number of ids for which a model of transformers gives logits, by its configuration."""
    return model.config.get_text_config().vocab_size
