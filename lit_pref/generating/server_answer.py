"""Reads the answers of a server with OpenAI's interface, and classifies failed requests."""

import math
from contextlib import suppress
from typing import Any

from lit_pref.generating.engine import Answer

BUSY = (408, 409, 425, 429)
"""Status codes of requests that can be answered later."""


class Unusable(Exception):
    """A failed request; another attempt may succeed.

    Args:
        kind: by which it is counted: timeout, connection, busy, server error, malformed, empty, refusal, key, ...
        reason: one line.
        wait: seconds after which the server wants to be asked again, if it says so.
    """

    def __init__(self, kind: str, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.kind, self.wait = kind, wait


class Rejected(Unusable):
    """A request that the server will reject every time."""


def failure_of(error: Exception) -> Unusable:
    """Return what an error of the client says about the request."""
    import openai

    if isinstance(error, Unusable):
        return error
    reason = _short(error)
    if isinstance(error, openai.APITimeoutError):
        return Unusable("timeout", "no answer in time")
    if isinstance(error, openai.APIConnectionError):
        return Unusable("connection", _short(error.__cause__ or error))
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        if status in (401, 403):
            return Rejected("key", reason)
        if status in (404, 405):
            return Rejected("not found", reason)
        if status in BUSY:
            return Unusable("busy", reason, _retry_after(error.response))
        return Unusable("server error", reason) if status >= 500 else Rejected("rejected", reason)
    return Unusable("malformed", reason)


def answer_of_chat(found: Any) -> Answer:
    """Return the answer in a chat completion.

    Raises:
        Unusable: there is none.
    """
    choice = _choice(found)
    message = choice.message
    if refusal := getattr(message, "refusal", None):
        raise Unusable("refusal", f"the model refuses: {_line(refusal)}")
    if getattr(message, "tool_calls", None) and not message.content:
        raise Unusable("malformed", "a call of a tool in place of a text")
    logprobs = getattr(getattr(choice, "logprobs", None), "content", None)
    numbers = None if not logprobs else [token.logprob for token in logprobs]
    return _answer(found, choice, message.content, numbers)


def answer_of_completion(found: Any) -> Answer:
    """Return the answer in a completion of plain text.

    Raises:
        Unusable: there is none.
    """
    choice = _choice(found)
    numbers = getattr(getattr(choice, "logprobs", None), "token_logprobs", None)
    return _answer(found, choice, choice.text, numbers)


def _choice(found: Any) -> Any:
    choices = getattr(found, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise Unusable("malformed", f"no choices in the answer: {_line(str(found))}")
    return choices[0]


def _answer(found: Any, choice: Any, text: Any, logprobs: Any) -> Answer:
    if choice.finish_reason == "content_filter":
        raise Unusable("refusal", "a content filter removed the answer")
    if text is not None and not isinstance(text, str):
        raise Unusable("malformed", f"a text that is {type(text).__name__}")
    if not text:
        raise Unusable("empty", "an empty answer")
    text.encode()  # half a surrogate pair, which no file can hold, is malformed
    finish = choice.finish_reason or "unknown"
    if isinstance(getattr(choice, "stop_reason", None), str):  # vLLM names the stop string
        finish = "stop_string"
    tokens = getattr(getattr(found, "usage", None), "completion_tokens", None)
    logprob = None
    if isinstance(logprobs, list) and logprobs and all(isinstance(number, int | float) for number in logprobs):
        total = math.fsum(logprobs)
        logprob = total if math.isfinite(total) else None
    return Answer(text, str(finish), logprob, tokens if isinstance(tokens, int) else None)


def _retry_after(response: Any) -> float | None:
    with suppress(AttributeError, TypeError, ValueError):
        seconds = float(response.headers["retry-after"])
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None


def _short(error: BaseException) -> str:
    return _line(str(error) or type(error).__name__)


def _line(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:196]} ..."
