"""The interface of engines, which generate responses by a model in this process or by a server."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_pref.generating.blocks import ERROR
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt, PromptFile
from lit_pref.models.sampling import Sampling

Task = tuple[Prompt, int]
"""A prompt, and the number of the sample to generate for it."""


@dataclass(frozen=True)
class Answer:
    """A response to one task, or the error in its place.

    Args:
        response: the text.
        finish_reason: `stop` (an end token), `length`, `stop_string`, `error`, or a reason that a server gives.
        logprob: log-prob of the tokens in nats, or None if a server does not give it.
        tokens: number of tokens with the end token, or None if a server does not give it.
        error: why there is no response.
        of_server: whether that is a failure of the server, which may have ended, and not of the model.
    """

    response: str
    finish_reason: str
    logprob: float | None = None
    tokens: int | None = None
    error: str | None = None
    of_server: bool = False

    @classmethod
    def failed(cls, error: str, of_server: bool) -> "Answer":
        """Return the error in place of a response."""
        return cls("", ERROR, error=error, of_server=of_server)

    def row(self, task: Task, seed: int) -> dict[str, Any]:
        """Return the row of the file of responses."""
        prompt, sample = task
        row = {**prompt.record(), "response": self.response, "sample": sample, "seed": seed}
        row |= {"finish_reason": self.finish_reason, "logprob": self.logprob, "tokens": self.tokens}
        error = {} if self.error is None else {"error": self.error}
        return {**row, **prompt.origin(), **error}


class Engine(ABC):
    """Generates responses; `sampling` may be set before prompts are answered."""

    sampling: Sampling

    @abstractmethod
    def usable(self, prompts: Sequence[Prompt], file: PromptFile) -> list[Prompt]:
        """Return the prompts that can be answered; the others are counted in `file`, or refused."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what decides the responses, for the settings of the output folder."""

    @abstractmethod
    def remarks(self) -> dict[str, Any]:
        """Return facts to record with the settings, such as the name of the model."""

    @abstractmethod
    def describe(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the first lines about this engine and what it does with the prompts."""

    @abstractmethod
    def load(self) -> None:
        """Load the model, or ask the server whether it has it."""

    @abstractmethod
    def answers(self, tasks: Sequence[Task], progress: Progress) -> list[Answer]:
        """Return one answer to each task, in their order."""

    def last_lines(self) -> list[str]:
        """Return lines for the end, such as what was tried again."""
        return []


def sample_key(seed: int, prompt_id: str, sample: int) -> int:
    """Return 64 bits that determine all random numbers of one sample of one prompt.

    >>> sample_key(0, "a", 1) == sample_key(0, "a", 1) != sample_key(0, "a", 2)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {sample} {prompt_id}".encode()).digest()[:8])
