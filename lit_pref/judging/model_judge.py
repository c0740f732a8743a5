"""Scores responses to prompts by a model: a reward model, or a policy by its log-probs or its implicit rewards."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_pref.data.batching.collation import collate
from lit_pref.data.batching.token_budget import TokenBudget
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UserError
from lit_pref.judging.model_texts import bare_pair, in_words_of_judges, lengths_of, refusal, text_pair
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
        max_length: the most tokens of prompt and response; longer ones are cut, and `cut` counts them as prompts and
            responses; the first is at `first_cut`.
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
        self._cut: dict[tuple[int, int | None], str] = {}
        self.lost: dict[str, str] = {}
        """Texts that a chat template leaves out or rewrites, by where they were read."""
        self._models = [(spec, _scorer(spec).to(self.device))]
        if reference is not None:
            self._models.append((reference, _scorer(reference).to(self.device)))

    @property
    def cut(self) -> tuple[int, int]:
        """How many prompts and how many responses were cut."""
        prompts = sum(response is None for _, response in self._cut)
        return prompts, len(self._cut) - prompts

    @property
    def first_cut(self) -> str:
        """File and line of the first text that was cut; empty if no text was cut."""
        return next(iter(self._cut.values()), "")

    @property
    def longest(self) -> int:
        """The most tokens of prompt and response that are read, by `max_length` and by the models' own limits."""
        limits = [spec.max_length() for spec, _ in self._models]
        return min(self.max_length, *(limit for limit in limits if limit is not None), self.max_length)

    def describe(self) -> str:
        """Return in words what the scores are."""
        if self.spec.outputs is not None:
            return f"reward of {self.spec.describe()}"
        ratio = "log-prob" if self.reference is None else f"log-ratio to {self.reference.describe()}"
        return f"{ratio}{' per token' if self.per_token else ''} of {self.spec.describe()}"

    def scores(
        self,
        questions: Sequence[Question],
        progress: Callable[[int, int], None] | None = None,
        rows: Sequence[Sequence[Row]] | None = None,
    ) -> list[list[float]]:
        """Return the scores of all responses of every question.

        Args:
            questions: prompts and responses; a text that is given twice gets one score.
            progress: called with the number of responses that were read, and of all that are to be read: by every
                model, and by a preference embedding once for each comparison.
            rows: where each response was read, for messages; None counts questions.

        Raises:
            UserError: a text cannot be encoded, a response is empty, or a score is not finite.
        """
        pairwise = self.spec.embedding is not None
        jobs = [job for k, question in enumerate(questions) for job in _jobs(k, question[1], pairwise)]
        found: dict[tuple[int, int, int], tuple[float, float]] = {}
        tokenized = [self._tokenized(spec, questions, jobs, rows) for spec, _ in self._models]
        read = _Counted(sum(1 + bool(pair.rejected) for pairs in tokenized for pair in pairs), progress)
        columns = [
            self._scored(spec, scorer, pairs, read)
            for (spec, scorer), pairs in zip(self._models, tokenized, strict=True)
        ]
        for job, own, *reference in zip(jobs, *columns, strict=True):
            found[job] = own if not reference else (own[0] - reference[0][0], own[1] - reference[0][1])
        return [_of_question(k, question[1], found, pairwise) for k, question in enumerate(questions)]

    def _tokenized(
        self,
        spec: ModelSpec,
        questions: Sequence[Question],
        jobs: list[tuple[int, int, int]],
        rows: Sequence[Sequence[Row]] | None,
    ) -> list[PreferencePair]:
        limit = spec.max_length()
        longest = self.max_length if limit is None else min(self.max_length, limit)
        tokenization = Tokenization(spec.load_tokenizer(), longest, max(2, longest // 2))

        def row(k: int, i: int) -> Row:
            return Row("questions", k + 1, {}) if rows is None else replace(rows[k][i], values={})

        pairs: list[PreferencePair] = []
        for start in range(0, len(jobs), TOKENIZED_AT_ONCE):
            part = jobs[start : start + TOKENIZED_AT_ONCE]
            items = [(row(k, i), text_pair(questions[k], i, j)) for k, i, j in part]
            with in_words_of_judges():
                found = list(tokenization.tokenize_all(items))
            for (k, i, j), tokenized in zip(part, found, strict=True):
                if isinstance(tokenized, BadRow):
                    raise refusal(tokenized, row(k, i).place, row(k, j).place) from tokenized
                cuts = ((None, tokenized.prompt_cut), (i, tokenized.chosen_cut), (j, tokenized.rejected_cut))
                for text, was_cut in cuts:
                    if was_cut:
                        self._cut.setdefault((k, text), row(k, i if text is None else text).place)
                if tokenized.lost:
                    self.lost.setdefault(row(k, i).place, " and ".join(tokenized.lost))
                pairs.append(bare_pair(tokenized))
        return pairs

    @torch.no_grad()
    def _scored(
        self,
        spec: ModelSpec,
        scorer: nn.Module,
        pairs: list[PreferencePair],
        read: "_Counted",
    ) -> list[tuple[float, float]]:
        layout: Layout = "padded" if prefix_sharing_obstacle(spec) else "prefix_shared"
        tokenizer = spec.load_tokenizer()
        scores = [(0.0, 0.0)] * len(pairs)
        # Pairs of two responses and single responses cannot be in one batch.
        for two_sided in (True, False):
            members = [k for k, pair in enumerate(pairs) if bool(pair.rejected) == two_sided]
            if not members:
                continue
            lengths = lengths_of([pairs[k] for k in members])
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
                read.add(len(batch) * (1 + two_sided))
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


@dataclass
class _Counted:
    """The number of responses that were read, of all."""

    total: int
    progress: Callable[[int, int], None] | None
    done: int = 0

    def add(self, number: int) -> None:
        self.done += number
        if self.progress is not None:
            self.progress(self.done, self.total)
