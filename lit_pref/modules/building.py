"""Builds the scorer of the trained model, before it is sharded or a checkpoint is restored."""

from typing import Any

from lit_pref.errors import UserError
from lit_pref.models.experts import router_weight
from lit_pref.models.generation import also_stop_at, end_tokens
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.models.reward import reward_scorer
from lit_pref.models.spec import ModelSpec
from lit_pref.scores import Need, PromptValue
from lit_pref.scoring.scorer import Scorer
from lit_pref.scoring.value import ValueHead


def build_scorer(spec: ModelSpec, pairs: Any, layout: str, needs: frozenset[Need] = frozenset()) -> Any:
    """Return the scorer of a model with its initial weights.

    A policy stops generating where the training responses end.

    Args:
        spec: the spec of the model.
        pairs: the training pairs.
        layout: one of `layout_choice.LAYOUTS`.
        needs: the statistics that the objective needs; `PromptValue` adds a value head.

    Raises:
        UserError: the model cannot be built, or cannot have a value head.
    """
    scorer: Any
    if spec.outputs is not None:
        scorer = reward_scorer(spec.build(), spec.embedding, spec.path)
    else:
        tokenizer = spec.load_tokenizer()
        model = also_stop_at(spec.build(), tokenizer, end_tokens(pairs, tokenizer))
        scorer = Scorer(model, spec.head_precision, spec.head_kernels)
        scorer.router_weight = router_weight(spec.configuration(), spec.router_loss)
    if layout != "padded" and prefix_sharing_obstacle(spec) is None:
        # Enabled even if these data are padded, because those of a later validation may be prefix-shared.
        enable_prefix_sharing(scorer.model)
    if spec.outputs is None:
        scorer.probe()
    for need in needs:
        if isinstance(need, PromptValue):
            if scorer.full_logits:
                raise UserError(
                    f"the objective trains a value head on hidden states, and the head of {spec.describe()} cannot be "
                    "separated from them: choose another objective or another model"
                )
            head = scorer.model.get_output_embeddings().weight
            scorer.value = ValueHead(head.shape[1], head.dtype, need.rate)
    return scorer
