import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_pref.models.word_tokenizer import save_word_tokenizer
from lit_pref.testbed.world import BOS, EOS, PAD, VOCABULARY


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def write_policy() -> Callable[[Path, dict[str, float]], Path]:
    """Writes the HF folder of a policy without memory: every word comes with its probability, whatever came before."""

    def write(folder: Path, probabilities: dict[str, float]) -> Path:
        config = AutoConfig.for_model(
            "phi",
            vocab_size=len(VOCABULARY),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=64,
            bos_token_id=VOCABULARY.index(BOS),
            eos_token_id=VOCABULARY.index(EOS),
            pad_token_id=VOCABULARY.index(PAD),
        )
        model = AutoModelForCausalLM.from_config(config)  # Phi's output layer has a bias
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.fill_(-math.inf)
            for word, probability in probabilities.items():
                model.lm_head.bias[VOCABULARY.index(word)] = math.log(probability)
        model.save_pretrained(folder)
        return save_word_tokenizer(folder, VOCABULARY, PAD, BOS, EOS)

    return write
