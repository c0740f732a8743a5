"""Scores responses to prompts by a model: a reward model, or a policy by its log-probs or its implicit rewards."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lit_pref.data.batching.collation import collate
from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.data.checking.text_pair import TextPair
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.tokenizing.tokenization import Tokenization, TokenizedPair
from lit_pref.errors import UserError
from lit_pref.models.embedding_reader import SETTINGS
from lit_pref.models.folder import model_folder
from lit_pref.models.prefix_sharing import enable_prefix_sharing, prefix_sharing_obstacle
from lit_pref.models.reward import Embedding, reward_scorer
from lit_pref.models.spec import ModelSpec
from lit_pref.pairs import PreferencePair, Text
from lit_pref.scoring.layout import Layout
from lit_pref.scoring.scorer import Scorer

Question = tuple[Text, Sequence[Text]]
"""A prompt and the responses to it."""
TOKENIZED_AT_ONCE = 256
"""Questions whose texts are encoded together."""


class ModelJudge:
    """Scores responses by a model, in batches of similar length in which a prompt is read once for two responses.

    The score of a response y to a prompt x is, for a model with

    - a scalar head: its output at the last token of y;
    - a preference embedding: the mean over the responses y' to x, y included, of s(y, y'), which is s / 2 and -s / 2
      for two responses;
    - the head of a language model: log pi(y | x), in nats, or log pi(y | x) - log pi_ref(y | x) with a reference; with
      `per_token` divided by the number of tokens of y.

    Args:
        spec: the model; see `judge_spec`.
        reference: the reference of a policy; None for none.
        per_token: divide log-probs by the number of tokens of the response.
        max_length: the most tokens of prompt and response; longer ones are cut, and `cut` counts them.
        max_tokens: the most tokens of a forward pass.
        device: of the models.

    Raises:
        UserError: a model cannot be loaded, or a reward model is given a reference or `per_token`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        reference: ModelSpec | None = None,
        per_token: bool = False,
        max_length: int = 2048,
        max_tokens: int = 16_384,
        device: torch.device | str = "cpu",
    ) -> None:
        if spec.outputs is not None and (reference is not None or per_token):
            raise UserError(
                f"{spec.describe()} is a reward model, whose scores are compared with no reference and not divided by "
                "lengths: leave out the reference and the division, or name a policy"
            )
        self.spec, self.reference, self.per_token = spec, reference, per_token
        self.max_length, self.max_tokens, self.device = max_length, max_tokens, torch.device(device)
        self.cut = 0
        self._models = [(spec, _scorer(spec).to(self.device))]
        if reference is not None:
            self._models.append((reference, _scorer(reference).to(self.device)))

    def describe(self) -> str:
        """Return in words what the scores are."""
        if self.spec.outputs is not None:
            return f"reward of {self.spec.describe()}"
        ratio = "log-prob" if self.reference is None else f"log-ratio to {self.reference.describe()}"
        return f"{ratio}{' per token' if self.per_token else ''} of {self.spec.describe()}"

    def scores(
        self, questions: Sequence[Question], progress: Callable[[int, int], None] | None = None
    ) -> list[list[float]]:
        """Return the scores of all responses of every question.

        Args:
            questions: prompts and responses; a text that is given twice gets one score.
            progress: called with the number of scored and of all pairs of responses.

        Raises:
            UserError: a text cannot be encoded, a response is empty, or a score is not finite.
        """
        pairwise = self.spec.embedding is not None
        jobs = [job for k, question in enumerate(questions) for job in _jobs(k, question[1], pairwise)]
        found: dict[tuple[int, int, int], tuple[float, float]] = {}
        columns = []
        for spec, scorer in self._models:
            pairs = self._tokenized(spec, questions, jobs)
            columns.append(self._scored(spec, scorer, pairs, progress))
        for job, own, *reference in zip(jobs, *columns, strict=True):
            found[job] = own if not reference else (own[0] - reference[0][0], own[1] - reference[0][1])
        return [_of_question(k, question[1], found, pairwise) for k, question in enumerate(questions)]

    def _tokenized(
        self, spec: ModelSpec, questions: Sequence[Question], jobs: list[tuple[int, int, int]]
    ) -> list[PreferencePair]:
        limit = spec.max_length()
        longest = self.max_length if limit is None else min(self.max_length, limit)
        tokenization = Tokenization(spec.load_tokenizer(), longest, max(2, longest // 2))
        pairs: list[PreferencePair] = []
        for start in range(0, len(jobs), TOKENIZED_AT_ONCE):
            items = []
            for k, i, j in jobs[start : start + TOKENIZED_AT_ONCE]:
                prompt, responses = questions[k]
                row = Row("prompts", k + 1, {})
                items.append((row, _text_pair(prompt, responses[i], None if i == j else responses[j])))
            for tokenized in tokenization.tokenize_all(items):
                if isinstance(tokenized, BadRow):
                    raise tokenized
                self.cut += tokenized.prompt_cut or tokenized.chosen_cut or tokenized.rejected_cut
                pairs.append(_bare_pair(tokenized))
        return pairs

    @torch.no_grad()
    def _scored(
        self,
        spec: ModelSpec,
        scorer: nn.Module,
        pairs: list[PreferencePair],
        progress: Callable[[int, int], None] | None,
    ) -> list[tuple[float, float]]:
        layout: Layout = "padded" if prefix_sharing_obstacle(spec) else "prefix_shared"
        tokenizer = spec.load_tokenizer()
        scores = [(0.0, 0.0)] * len(pairs)
        done = 0
        # Pairs of two responses and single responses cannot be in one batch.
        for two_sided in (True, False):
            members = [k for k, pair in enumerate(pairs) if bool(pair.rejected) == two_sided]
            if not members:
                continue
            lengths = _lengths([pairs[k] for k in members])
            largest = int(TokenBudget(1, lengths, layout).costs.max())
            budget = TokenBudget(max(self.max_tokens, largest), lengths, layout)
            every = list(range(len(members)))
            for batch in budget.cut(every, budget.least(every)):
                chosen = [pairs[members[k]] for k in batch]
                found = scorer(collate(chosen, tokenizer.pad_token_id, layout=layout).to(self.device))
                sides = [found.chosen] if found.rejected is None else [found.chosen, found.rejected]
                values = [side.scores / side.lengths if self.per_token else side.scores for side in sides]
                rows = torch.stack([values[0], values[-1]], 1).double().cpu()
                if not bool(rows.isfinite().all()):
                    raise UserError(f"{self.describe()} gives a score that is not finite: check its weights and dtype")
                for k, (first, second) in zip(batch, rows.tolist(), strict=True):
                    scores[members[k]] = (first, second)
                done += len(batch)
                if progress is not None:
                    progress(done, len(pairs))
        return scores


def judge_spec(path: str | Path, dtype: str = "float32", trust_remote_code: bool = False) -> ModelSpec:
    """Return the spec of a model as a judge: with the head that its folder holds.

    Args:
        path: a folder or a hub name: of a sequence classifier of one output, of an exported preference embedding, or
            of a language model.
        dtype: dtype of the weights.
        trust_remote_code: run code that comes with the model.
    """
    folder = model_folder(str(path), None)
    settings = folder / SETTINGS
    if settings.exists():
        embedding = Embedding(**json.loads(settings.read_text(encoding="utf-8")))
        return ModelSpec(
            str(path), dtype=dtype, head="scalar", embedding=embedding, trust_remote_code=trust_remote_code
        )
    config = folder / "config.json"
    architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.exists() else None
    scalar = any(name.endswith("ForSequenceClassification") for name in architectures or [])
    return ModelSpec(str(path), dtype=dtype, head="scalar" if scalar else "lm", trust_remote_code=trust_remote_code)


def _scorer(spec: ModelSpec) -> Any:
    model = spec.build()
    scorer: Any
    if spec.outputs is None:
        scorer = Scorer(model)
        if prefix_sharing_obstacle(spec) is None:
            enable_prefix_sharing(model)
        scorer.probe()
    else:
        scorer = reward_scorer(model, spec.embedding, spec.path)
        if prefix_sharing_obstacle(spec) is None:
            enable_prefix_sharing(model)
    return scorer.eval().requires_grad_(False)


def _jobs(k: int, responses: Sequence[Text], pairwise: bool) -> list[tuple[int, int, int]]:
    """(question, response, other response); a response that is left over is paired with itself, i.e. alone."""
    first = [i for i, response in enumerate(responses) if list(responses).index(response) == i]
    if pairwise:
        return [(k, i, j) for n, i in enumerate(first) for j in first[n + 1 :]]
    return [(k, first[n], first[n + 1] if n + 1 < len(first) else first[n]) for n in range(0, len(first), 2)]


def _of_question(
    k: int, responses: Sequence[Text], found: dict[tuple[int, int, int], tuple[float, float]], pairwise: bool
) -> list[float]:
    first = [list(responses).index(response) for response in responses]
    if pairwise:
        distinct = sorted(set(first))
        totals = dict.fromkeys(distinct, 0.0)
        for n, i in enumerate(distinct):
            for j in distinct[n + 1 :]:
                chosen, rejected = found[k, i, j]
                totals[i] += chosen - rejected
                totals[j] -= chosen - rejected
        return [totals[i] / len(distinct) for i in first]
    values = {}
    for _, i, j in _jobs(k, responses, pairwise):
        values[i], values[j] = found[k, i, j]
    return [values[i] for i in first]


def _text_pair(prompt: Text, first: Text, second: Text | None) -> TextPair:
    texts, further = [], {}
    for side, text in (("chosen", first), ("rejected", second)):
        if isinstance(text, list):
            message = text[-1]
            further[side] = {name: value for name, value in message.items() if name not in ("role", "content")}
            text = str(message["content"])
        texts.append(text)
    return TextPair(
        prompt, texts[0] or "", texts[1], None, None, {}, None, None, swapped=False, disagrees=False,
        further={side: own for side, own in further.items() if own},
    )  # fmt: skip


def _bare_pair(pair: TokenizedPair) -> PreferencePair:
    return PreferencePair("", pair.prompt, pair.chosen, pair.rejected, None, None, {}, None, pair.text)


def _lengths(pairs: Sequence[PreferencePair]) -> NDArray[Any]:
    """(pairs, 3), tokens of prompt, first and second response."""
    return np.array([(len(p.prompt), len(p.chosen), len(p.rejected or ())) for p in pairs]).reshape(-1, 3)
