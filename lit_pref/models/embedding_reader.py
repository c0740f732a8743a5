"""Reads an exported preference embedding; a copy of this file lies in the folder, and needs no lit_pref.

from embedding_reader import PreferenceModel
model = PreferenceModel(".")
model.score(prompt_ids, first_ids, second_ids)      # > 0: the first response is preferred
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

SETTINGS = "preference_embedding.json"
GATE = "preference_gate.safetensors"


class PreferenceModel:
    """A preference embedding: s = sum_b lambda_b (v_1[2b] v_2[2b+1] - v_1[2b+1] v_2[2b]).

    Args:
        folder: the exported folder.
        options: further arguments for `from_pretrained`.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
        self.settings = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
        gate = Path(folder) / GATE
        self.gate = load_file(gate)["weight"] if gate.exists() else None

    @torch.no_grad()
    def score(self, prompt: list[int], first: list[int], second: list[int]) -> float:
        """Return s of two responses to a prompt, all as token ids; P(the first is better) = sigmoid(s / tau)."""
        embedded = [self._read(prompt + response) for response in (first, second)]
        vectors = [hidden[-1] @ self.model.score.weight.to(hidden).T for hidden in embedded]
        if self.settings["normalise"]:
            vectors = [torch.nn.functional.normalize(vector, dim=-1) for vector in vectors]
        blocks = vectors[0][0::2] * vectors[1][1::2] - vectors[0][1::2] * vectors[1][0::2]
        if self.gate is not None:
            blocks = blocks * (embedded[0][len(prompt) - 1] @ self.gate.to(embedded[0]).T).softmax(-1)
        return float(blocks.sum())

    def _read(self, ids: list[int]) -> Tensor:
        input_ids = torch.tensor([ids], device=self.model.device)
        return self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[0].float()
