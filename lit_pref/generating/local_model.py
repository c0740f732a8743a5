"""Responses of a model in this process, by transformers' `generate` in batches of similar lengths."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lit_pref.data.sources.row import BadRow
from lit_pref.data.tokenizing.rendering import render_prompt
from lit_pref.errors import UsageError, UserError
from lit_pref.generating.engine import Answer, Engine, Task, sample_key
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt, PromptFile, option_names
from lit_pref.models.encoding import Encoding, Unreadable, tokenizer_state
from lit_pref.models.generation import end_ids
from lit_pref.models.responding import Request, Response, respond
from lit_pref.models.sampling import Sampling
from lit_pref.models.spec import ModelSpec
from lit_pref.printing import say

SHOWN = 200  # characters of the first prompt that are printed, from its end
LOGITS = 2**26  # numbers in the logits of one step of a batch: 256 MiB in fp32, of which several copies exist


class LocalModel(Engine):
    """A causal LM on one device.

    Args:
        spec: the model.
        sampling: the distribution of each token.
        seed: seed of the samples.
        max_new_tokens: the most tokens of a response, end token included.
        stop: texts that end a response.
        device: `auto` (a GPU if there is one), or a device of torch.
        batch_tokens: the most tokens of a batch, padding and the longest possible responses included.
        special_text: encode names of special tokens in texts as their characters (`plain`), or as tokens (`token`).
        lost_text: "refuse" or "accept" prompts of which the chat template leaves out or rewrites a text.

    Raises:
        UserError: there is no such model.
        UsageError: there is no such device.
    """

    def __init__(
        self,
        spec: ModelSpec,
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        device: str = "auto",
        batch_tokens: int = 32768,
        special_text: Literal["plain", "token"] = "plain",
        lost_text: Literal["refuse", "accept"] = "refuse",
    ) -> None:
        self.spec, self.sampling, self.seed, self.max_new_tokens = spec, sampling, seed, max_new_tokens
        self.stop, self.batch_tokens = tuple(stop), batch_tokens
        self.special_text, self.lost_text = special_text, lost_text
        self.device = device_of(device)
        self.tokenizer = spec.load_tokenizer()
        self.encoding = Encoding(self.tokenizer, plain=special_text == "plain")
        self.longest = spec.max_length()
        self.vocabulary = spec.configuration().get_text_config().vocab_size
        self.ids: dict[str, NDArray[np.int32]] = {}
        self.model: Any = None
        self.ends: list[int] = []

    def settings(self) -> dict[str, Any]:
        state = [tokenizer_state(self.tokenizer), self.tokenizer.chat_template, self.tokenizer.special_tokens_map]
        digest = hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
        return {
            "model": self.spec.fingerprint()[:16],
            "tokenizer": digest[:16],
            "dtype": self.spec.dtype,
            "special_text": self.special_text,
        }

    def remarks(self) -> dict[str, Any]:
        return {"model": self.spec.describe()}

    def describe(self, prompts: Sequence[Prompt]) -> list[str]:
        lines = [f"model       {self.spec.describe()}, on {self.device}"]
        lines.append(f"first       {self.tokenizer.decode(self.ids[prompts[0].id].tolist())[-SHOWN:]!r}")
        if shortened := self._shortened(prompts):
            lines.append(shortened)
        texts = sum(isinstance(prompt.text, str) for prompt in prompts)
        if texts and self.tokenizer.chat_template is not None:
            lines.append(
                f"warning     {texts} prompts are plain texts, which the model reads without its chat template; a chat "
                "model needs --mapping '{format: messages}', unless it was trained on plain texts"
            )
        return lines

    def _shortened(self, prompts: Sequence[Prompt]) -> str | None:
        """Say how many prompts leave the model less room than `max_new_tokens`; None if all leave enough."""
        if self.longest is None:
            return None
        rooms = {prompt.row.place: self.longest - len(self.ids[prompt.id]) for prompt in prompts}
        short = {place: room for place, room in rooms.items() if room < self.max_new_tokens}
        if not short:
            return None
        place, least = min(short.items(), key=lambda item: item[1])
        return (
            f"note        the model reads {self.longest} tokens: {len(short)} of {len(prompts)} prompts leave fewer "
            f"than --max_new_tokens {self.max_new_tokens} for a response, the least {least} ({place}); their responses "
            "end there, with the finish_reason length"
        )

    def usable(self, prompts: Sequence[Prompt], file: PromptFile) -> list[Prompt]:
        """Encode the prompts, and return those that leave room for a response.

        Raises:
            BadRow: a prompt cannot be encoded or is too long, and faulty rows are refused.
            UserError: the chat template does not write a part of a prompt.
        """
        kept = []
        with option_names():
            for prompt in prompts:
                try:
                    self.ids[prompt.id] = self._ids(prompt)
                except BadRow as bad:
                    file.leave_out(bad)
                else:
                    kept.append(prompt)
        if not kept:
            raise UserError(
                f"{file.path} contains no prompt that the model can read (the first: {file.first_left_out})"
            )
        return kept

    def load(self) -> None:
        if self.model is not None:
            return
        self.model = self.spec.build().eval().to(self.device)
        # Training ends a turn as the chat template does, even if the model's generation settings do not say so.
        self.ends = list(dict.fromkeys([*end_ids(self.model, self.tokenizer), self.encoding.turn_end()]))
        names = ", ".join(self.tokenizer.convert_ids_to_tokens(self.ends))
        say(f"ends        responses end at {names}")

    def answers(self, tasks: Sequence[Task], progress: Progress) -> list[Answer]:
        requests = [self._request(*task) for task in tasks]
        order = sorted(range(len(tasks)), key=lambda k: -len(requests[k].prompt))
        answers: dict[int, Answer] = {}
        while order:
            rows = self._rows(requests, order)
            try:
                responses = respond(
                    self.model,
                    self.tokenizer,
                    [requests[k] for k in order[:rows]],
                    self.sampling,
                    self.ends,
                    self.stop,
                    progress.add,
                )
            except torch.OutOfMemoryError as error:
                self._halve(rows, error, progress)
                continue
            answers |= dict(zip(order[:rows], map(_answer, responses), strict=True))
            order = order[rows:]
        return [answers[k] for k in range(len(tasks))]

    def _rows(self, requests: Sequence[Request], order: Sequence[int]) -> int:
        """Return how many of the rows, longest prompt first, fit into one batch."""
        first = requests[order[0]]
        width = len(first.prompt) + max(requests[k].most for k in order)
        return max(1, min(len(order), self.batch_tokens // width, LOGITS // self.vocabulary))

    def _halve(self, rows: int, error: Exception, progress: Progress) -> None:
        if rows == 1:
            raise UserError(
                "the memory of the device does not hold one response: give a smaller --max_new_tokens, another "
                "--dtype, or a smaller model"
            ) from error
        self.batch_tokens = max(1, self.batch_tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        progress.say(
            f"note        out of memory with {rows} rows: batches have {self.batch_tokens} tokens from here on"
        )

    def _request(self, prompt: Prompt, sample: int) -> Request:
        ids = self.ids[prompt.id].tolist()
        most = self.max_new_tokens if self.longest is None else min(self.max_new_tokens, self.longest - len(ids))
        return Request(ids, sample_key(self.seed, prompt.id, sample), most)

    def _ids(self, prompt: Prompt) -> NDArray[np.int32]:
        rendered = render_prompt(self.encoding, prompt.row, prompt.text)
        if rendered.lost and self.lost_text == "refuse":
            raise UserError(
                f"{prompt.row.place}: the chat template leaves out or rewrites {' and '.join(rendered.lost)}; give the "
                "tokenizer a template that writes it, write a system text into the user's message, or accept it by "
                "data.lost_text accept."
            )
        try:
            ids = [*self.encoding.bos, *self.encoding.ids(rendered.written)]
        except Unreadable as error:
            remedy = "give it a text that the tokenizer can represent"
            raise BadRow(prompt.row, "prompt", "cannot be read by the tokenizer", remedy, f" ({error})") from error
        if not ids:
            raise BadRow(prompt.row, "prompt", "has no token", "give it a text of its own")
        if self.longest is not None and len(ids) >= self.longest:
            numbers = f" ({len(ids)} tokens, and the model reads {self.longest})"
            raise BadRow(prompt.row, "prompt", "leaves no room for a response", "shorten it", numbers)
        return np.array(ids, np.int32)


def _answer(response: Response) -> Answer:
    return Answer(response.text, response.finish, response.logprob, len(response.ids))


def device_of(name: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU if there is one.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here ({reason}); give auto, cpu, or cuda:0") from error
    return device
