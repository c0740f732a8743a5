"""Sample texts are the policy's greedy responses, and are refused where they cannot be written."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import ModelParallelStrategy

from lit_pref.callbacks.sample_texts import SampleTexts
from lit_pref.errors import UsageError
from lit_pref.models.spec import ModelSpec
from lit_pref.scoring.scorer import Scorer


def test_the_page_holds_the_greedy_response_to_each_prompt(policy_folder):
    import torch

    policy = ModelSpec(path=str(policy_folder))
    tokenizer, model = policy.load_tokenizer(), policy.build().eval()
    prompt = [tokenizer.bos_token_id, *tokenizer("red blue :", add_special_tokens=False).input_ids]
    expected = list(prompt)
    for _ in range(5):  # greedy decoding by hand
        expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    text = tokenizer.decode(expected[len(prompt) :], skip_special_tokens=True)
    module: Any = SimpleNamespace(spec=policy, scorer=Scorer(model))
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(val_pairs=[SimpleNamespace(prompt=prompt)] * 3))
    page = SampleTexts(prompts=2, max_new_tokens=5).page(trainer, module)
    assert page.count(f"**response**\n\n```\n{text}\n```") == 2
    assert page.count("red blue :") == 2


def test_sharded_weights_are_refused():
    trainer: Any = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(UsageError, match="SampleTexts cannot write responses"):
        SampleTexts().setup(trainer, None, "fit")  # type: ignore[arg-type]
