"""Responses of a server that has OpenAI's interface, such as vLLM, SGLang, `transformers serve` or a hosted model."""

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lit_pref.errors import UsageError, UserError
from lit_pref.generating.engine import Answer, Engine, Task, sample_key
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt, PromptFile
from lit_pref.generating.server_answer import Rejected, Unusable, answer_of_chat, answer_of_completion, failure_of
from lit_pref.hints import did_you_mean
from lit_pref.models.responding import without_stop
from lit_pref.models.sampling import Sampling
from lit_pref.pairs import TEMPLATE_ARGUMENTS

LONGEST_WAIT = 60.0  # seconds between two attempts
AT_ONCE = ("empty", "refusal")  # what the model, and not the server, is to blame for
STOPPED = "the command was stopped"


class Endpoint(Engine):
    """A server with OpenAI's interface: messages are sent to /chat/completions, plain texts to /completions.

    The server applies its own chat template. The key is read from the environment variable OPENAI_API_KEY, as by every
    client of the `openai` package. Every request has a seed of its own, which depends on (seed, prompt, sample).

    Args:
        url: address of the interface, such as http://localhost:8000/v1.
        name: the name of the model on the server; None takes the only one that it lists.
        sampling: the distribution of each token.
        seed: seed of the samples.
        max_new_tokens: the most tokens of a response.
        stop: texts that end a response.
        concurrency: requests at the same time.
        timeout: seconds to wait for an answer.
        retries: how often a request that failed is tried again, after waits that double from `wait` seconds.
        logprobs: ask for log-probs, as the server computes them.
        wait: seconds before the second attempt.
        options: the names of the options for address and model, for messages.

    Raises:
        UserError: the package `openai` is not installed.
        UsageError: a number is out of range.
    """

    def __init__(
        self,
        url: str,
        name: str | None,
        sampling: Sampling,
        seed: int,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 5,
        logprobs: bool = False,
        wait: float = 0.5,
        options: tuple[str, str] = ("--endpoint", "--model_name"),
    ) -> None:
        if not timeout > 0 or retries < 0:
            raise UsageError(f"--timeout {timeout:g} and --retries {retries}: a time above 0, and a number from 0 on")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{options[0]} is {url!r}; give an address such as http://localhost:8000/v1")
        try:
            import openai
        except ImportError as error:
            raise UserError(f"{options[0]} needs the package openai: pip install 'lit_pref[endpoint]'") from error
        self.url, self.name, self.sampling, self.seed = url, name, sampling, seed
        self.max_new_tokens, self.stop, self.logprobs = max_new_tokens, list(stop), logprobs
        self.concurrency, self.retries, self.wait, self.options = concurrency, retries, wait, options
        key = os.environ.get("OPENAI_API_KEY") or "none"  # local servers want none, the client insists on one
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)
        self.failed: Counter[str] = Counter()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._limit = "max_tokens"  # newer models of OpenAI reject this name, older servers know no other

    def usable(self, prompts: Sequence[Prompt], file: PromptFile) -> list[Prompt]:
        if self.name is None:
            self.load()
        return list(prompts)

    def settings(self) -> dict[str, Any]:
        return {"endpoint_model": self.name}

    def remarks(self) -> dict[str, Any]:
        return {"endpoint": self.url}

    def describe(self, prompts: Sequence[Prompt]) -> list[str]:
        lines = [f"endpoint    {self.url}, model {self.name}, {self.concurrency} requests at a time"]
        if texts := sum(isinstance(prompt.text, str) for prompt in prompts):
            lines.append(
                f"note        {texts} prompts are plain texts, which are sent to /completions without a chat template; "
                "a chat model needs --mapping '{format: messages}'"
            )
        return lines

    def load(self) -> None:
        """Find the model on the server.

        Raises:
            UserError: nothing answers at the address, or the key is refused.
            UsageError: the server has no such model, or several and none is named.
        """
        try:
            names = [model.id for model in self.client.models.list()]
        except Exception as error:  # of many types: whatever is no list of models
            failure = failure_of(error)
            if failure.kind in ("connection", "timeout"):
                raise UserError(
                    f"nothing answers at {self.url} ({failure}): start the server, or fix {self.options[0]}"
                ) from error
            if failure.kind == "key":
                raise UserError(_key_refused(failure)) from error
            if failure.kind == "not found" and not self.url.rstrip("/").endswith("/v1"):
                raise UserError(f"{self.url} has no /models: such addresses usually end in /v1") from error
            names = []  # the list of models is an optional part of the interface
        if self.name is None:
            if len(names) != 1:
                raise UsageError(
                    f"{self.options[0]} needs {self.options[1]}, one of: {', '.join(names[:20]) or '(none are listed)'}"
                )
            self.name = names[0]
        elif names and self.name not in names:
            hint = did_you_mean(self.name, names) or f"; it has {', '.join(names[:10])}"
            raise UsageError(f"the server at {self.url} has no model {self.name!r}{hint}")

    def answers(self, tasks: Sequence[Task], progress: Progress) -> list[Answer]:
        def answer(task: Task) -> Answer:
            try:
                found = self._answer(task)
            except BaseException:
                self._stop.set()  # the other threads end, and this error is raised below
                raise
            with self._lock:
                progress.add(found.tokens or 0)
            return found

        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(answer, tasks))
        except BaseException:
            self._stop.set()
            self.client.close()  # so that nothing waits for the answers to other requests
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def last_lines(self) -> list[str]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.failed.most_common())
        return [f"attempts    {self.failed.total()} failed: {kinds}"] if kinds else []

    def _answer(self, task: Task) -> Answer:
        """Return the answer to a task, after as many attempts as are allowed."""
        attempt = 0
        while not self._stop.is_set():
            limit = self._limit
            try:
                return self._cut(self._ask(task, limit))
            except Exception as error:  # a server can break a client in many ways; none may lose the row
                failure = failure_of(error)
            if isinstance(failure, Rejected) and "max_completion_tokens" in str(failure) and limit == "max_tokens":
                self._limit = "max_completion_tokens"
                continue
            with self._lock:
                self.failed[failure.kind] += 1
            self._refuse_hopeless(failure, of_text=isinstance(task[0].text, str))
            if isinstance(failure, Rejected) or attempt == self.retries:
                return Answer.failed(f"{failure.kind}: {failure}", failure.kind not in AT_ONCE)
            if failure.kind not in AT_ONCE:
                doubled = self.wait * 2**attempt * (0.5 + random.random())
                self._stop.wait(min(doubled if failure.wait is None else failure.wait, LONGEST_WAIT))
            attempt += 1
        return Answer.failed(STOPPED, of_server=True)

    def _ask(self, task: Task, limit: str) -> Answer:
        prompt, sample = task
        seed = sample_key(self.seed, prompt.id, sample) % 2**31
        options: dict[str, Any] = {
            "model": self.name,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": seed,
            limit: self.max_new_tokens,
        }
        extra: dict[str, Any] = {"top_k": self.sampling.top_k} if self.sampling.top_k else {}
        options |= {"stop": self.stop} if self.stop else {}
        if isinstance(prompt.text, str):
            options |= {"logprobs": 1} if self.logprobs else {}
            return answer_of_completion(
                self.client.completions.create(prompt=prompt.text, extra_body=extra or None, **options)
            )
        arguments = dict(prompt.text[0].get(TEMPLATE_ARGUMENTS, {}))
        messages = [{key: part for key, part in turn.items() if key != TEMPLATE_ARGUMENTS} for turn in prompt.text]
        options |= {"tools": tools} if (tools := arguments.pop("tools", None)) else {}
        options |= {"logprobs": True} if self.logprobs else {}
        extra |= {"chat_template_kwargs": arguments} if arguments else {}
        create: Callable[..., Any] = self.client.chat.completions.create
        return answer_of_chat(create(messages=messages, extra_body=extra or None, **options))

    def _cut(self, answer: Answer) -> Answer:
        """Return the answer up to a stop string, in case the server has not cut it."""
        text, found = without_stop(answer.response, self.stop)
        return Answer(text, "stop_string", answer.logprob, answer.tokens) if found else answer

    def _refuse_hopeless(self, failure: Unusable, of_text: bool) -> None:
        """Stop at an error that every request would meet.

        Raises:
            UserError: it is one.
        """
        if failure.kind == "key":
            raise UserError(_key_refused(failure))
        if failure.kind == "not found":
            remedy = "; a server for chat models takes messages, which --mapping '{format: messages}' makes of texts"
            raise UserError(
                f"{self.url} does not answer such requests ({failure}): check {' and '.join(self.options)}"
                f"{remedy if of_text else ''}"
            )


def _key_refused(failure: Unusable) -> str:
    return f"the server refuses the key ({failure}): set the environment variable OPENAI_API_KEY"
