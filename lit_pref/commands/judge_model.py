"""Models as judges of a command: their folders, their scores, and lines that say how far they are."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_pref.errors import UsageError
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.data.sources.row import Row
    from lit_pref.judging.model_judge import Question
    from lit_pref.models.spec import ModelSpec


@dataclass(frozen=True)
class ModelOptions:
    """How models are loaded and run: the options that every judge of a command shares."""

    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    max_length: int
    max_tokens: int
    device: str
    trust_remote_code: bool


class NamedJudge:
    """A judge as a command names it; nothing but the configuration of its models is read before `scores`.

    Args:
        model: a folder, a run folder or a hub name.
        reference: the reference of a policy.
        per_token: divide a policy's score by the number of tokens.
        beta: factor of a policy's scores.
        options: how models are loaded and run.

    Raises:
        UserError: there is no such model.
        UsageError: the model is a reward model, which has no reference, no beta, and no score per token.
    """

    def __init__(self, model: str, reference: str | None, per_token: bool, beta: float, options: ModelOptions) -> None:
        from lit_pref.judging.model_judge import judge_spec
        from lit_pref.models.folder import folder_of_model

        self.name, self.per_token, self.beta, self.options = model, per_token, beta, options
        self.spec: ModelSpec = judge_spec(folder_of_model(model), options.dtype, options.trust_remote_code)
        if self.spec.outputs is not None:
            given = {"a reference": reference is not None, "--per_token": per_token, "--beta": beta != 1}
            if unread := [name for name, there in given.items() if there]:
                raise UsageError(
                    f"{model} is a reward model, whose scores are compared as they are: leave out "
                    f"{' and '.join(unread)}, or name a policy"
                )
        self.reference: ModelSpec | None = None
        if reference is not None:
            self.reference = judge_spec(folder_of_model(reference), options.dtype, options.trust_remote_code)
            if self.reference.outputs is not None:
                raise UsageError(
                    f"the reference {reference} is a reward model; name the policy that training began with"
                )
        self.described = ""
        self.notes: list[str] = []

    def scores(
        self, questions: "Sequence[Question]", rows: "Sequence[Sequence[Row]] | None" = None
    ) -> list[list[float]]:
        """Load the models, and return the scores of all responses; `described` and `notes` are then known.

        Args:
            questions: prompts and responses.
            rows: where each response was read, for messages.
        """
        from lit_pref.judging.model_judge import ModelJudge

        judge = ModelJudge(
            self.spec,
            self.reference,
            self.per_token,
            self.options.max_length,
            self.options.max_tokens,
            device_named(self.options.device),
        )
        self.described = judge.describe() + (f", times {self.beta:g}" if self.beta != 1 else "")
        say(f"judge       {self.described}")
        embedding = self.spec.embedding is not None
        found = judge.scores(questions, progress("scored", "texts of comparisons" if embedding else "texts"), rows)
        prompts, responses = judge.cut
        if prompts or responses:
            limit = f"--max_length {judge.max_length}; raise it"
            if judge.longest < judge.max_length:
                limit = f"the {judge.longest} tokens that the model reads"
            which = f"{prompts} prompts and {responses} responses"
            self.notes.append(f"{which} were cut (the first: {judge.first_cut}), because they are longer than {limit}")
        if judge.lost:
            place, lost = next(iter(judge.lost.items()))
            self.notes.append(
                f"the chat template leaves out or rewrites texts of {len(judge.lost)} rows, whose scores are of what "
                f"it writes (the first: {lost}, {place}); give the tokenizer a template that writes them"
            )
        return [[self.beta * score for score in own] for own in found]


def device_named(name: str) -> str:
    """Return the device; `auto` is a GPU if there is one."""
    import torch

    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def refuse_out_in_use(out: Path, command: str) -> None:
    """Refuse a folder with files, which a command would overwrite.

    Raises:
        UsageError: the folder is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty, and {command} overwrites nothing: name another --out")


def progress(what: str, of_what: str) -> Callable[[int, int], None]:
    """Return a function that prints the number done, and the time left, to stderr: often only on a terminal."""
    began = time.monotonic()
    shown = [began]

    def show(done: int, of: int) -> None:
        now = time.monotonic()
        if now - shown[0] > (1 if sys.stderr.isatty() else 30) or done == of:
            shown[0] = now
            left = (now - began) / done * (of - done)
            say(f"{what:<11} {done} of {of} {of_what}, {left:.0f} s left", error=True)

    return show
