"""`python -m lit_pref generate`: responses of a model or a server to prompts, as JSONL."""

import inspect
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

from lit_pref.errors import UsageError, UserError
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.generating.engine import Engine
    from lit_pref.generating.generate import Outcome
    from lit_pref.generating.prompts import PromptFile


def generate(
    prompts: str,
    out: Path,
    model: str | None = None,
    endpoint: str | None = None,
    model_name: str | None = None,
    mapping: str | dict[str, Any] | None = None,
    samples: PositiveInt = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: PositiveInt = 512,
    stop: str = "",
    seed: int = 0,
    limit: PositiveInt | None = None,
    unique: bool | None = None,
    bad_rows: Literal["strict", "lenient"] = "strict",
    ignore_columns: list[str] = [],  # noqa: B006  it is read, never changed
    lost_text: Literal["refuse", "accept"] = "refuse",
    special_text: Literal["plain", "token"] = "plain",
    tokenizer: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    device: str = "auto",
    batch_tokens: PositiveInt = 32768,
    block: PositiveInt = 64,
    concurrency: PositiveInt = 16,
    timeout: float = 120.0,
    retries: int = 5,
    endpoint_logprobs: bool = False,
) -> None:
    """Write responses of a model, or of a server, to prompts as JSONL.

    OUT/responses.jsonl has one row per response, in the order of the prompts: prompt, response, sample, seed,
    finish_reason (stop, length, stop_string, error, or the server's own word), logprob, tokens, prompt_id, file, line.
    A response depends on the model, the settings, and (seed, prompt, sample), but in fp32 not on batches, the order of
    prompts or the number of processes. Decoding is greedy unless --temperature is given.

    Work is done in blocks. Any number of processes with the same command share the folder, a killed one loses at most
    a block, and the same command resumes.

    Args:
        prompts: a file, folder, glob or owner/name:split on the hub, in any format that training reads, or with a
            column of prompts alone (prompt, messages, conversations, question, instruction or query).
        out: the folder to write; other settings need another one.
        model: a Hugging Face folder of a model or adapter, a hub name, or the folder of a run, whose hf/ is taken.
        endpoint: address of a server with OpenAI's interface, such as http://localhost:8000/v1, in place of a model;
            the environment variable OPENAI_API_KEY holds its key.
        model_name: the model's name on the server; the only one that it lists by default.
        mapping: where the prompt is: a mapping's name, a YAML file, or its content, such as '{prompt: COLUMN}';
            '{format: messages}' makes a message of each text, for chat models.
        samples: responses to each prompt; several need a temperature.
        temperature: of the distribution of tokens; 0 is greedy decoding.
        top_p: restricts sampling to the most likely tokens that have this probability together; 1 does not.
        top_k: restricts sampling to this many tokens; 0 does not.
        max_new_tokens: the most tokens of a response, its end token included.
        stop: a text before which a response ends, or a JSON list of several.
        seed: seed of the samples.
        limit: the most prompts to answer, from the first on.
        unique: answer equal prompts once; by default, if the rows have responses.
        bad_rows: stop at a faulty row (strict), or count faulty rows and leave them out (lenient).
        ignore_columns: columns and keys of messages that may be left unread although they may belong to the prompt.
        lost_text: refuse or accept prompts of which the chat template leaves out a text.
        special_text: read the name of a special token in a text as characters (plain) or as the token.
        tokenizer: folder or hub name of a tokenizer other than the model's.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the model.
        dtype: dtype of the weights.
        device: auto, cpu, or a GPU such as cuda:0.
        batch_tokens: the most tokens of a batch, with padding and the longest possible responses.
        block: prompts in a block; on a fast GPU more fill its batches better.
        concurrency: requests to the server at the same time.
        timeout: seconds to wait for an answer of the server.
        retries: how often a request is tried again, after waits that double.
        endpoint_logprobs: ask the server for log-probs.

    Raises:
        UserError: a prompt or the model cannot be read, or some requests failed.
        UsageError: options that exclude each other, or a folder with other settings.
    """
    refuse(dict(locals()))
    stops = stop_strings(stop)
    from lit_pref.generating.endpoint import Endpoint
    from lit_pref.generating.local_model import LocalModel
    from lit_pref.generating.prompts import PromptFile
    from lit_pref.models.folder import folder_of_model
    from lit_pref.models.sampling import Sampling
    from lit_pref.models.spec import ModelSpec

    sampling = Sampling(temperature, top_p, top_k)
    file = PromptFile(prompts, mapping, unique, bad_rows, tuple(ignore_columns), limit)
    common = (sampling, seed, max_new_tokens, stops)
    engine: Engine
    if model is not None:
        spec = ModelSpec(
            path=folder_of_model(model),
            tokenizer=tokenizer,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        engine = LocalModel(spec, *common, device, batch_tokens, special_text, lost_text)
    else:
        assert endpoint is not None
        engine = Endpoint(endpoint, model_name, *common, concurrency, timeout, retries, endpoint_logprobs)
    settings = {"samples": samples, "seed": seed, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    settings |= {"max_new_tokens": max_new_tokens, "stop": list(stops), "block": block}
    write(engine, file, out, settings)


OF_MODEL = (
    "tokenizer",
    "revision",
    "trust_remote_code",
    "dtype",
    "device",
    "batch_tokens",
    "lost_text",
    "special_text",
)
OF_ENDPOINT = ("model_name", "concurrency", "timeout", "retries", "endpoint_logprobs")


def refuse(options: dict[str, Any]) -> None:
    """Refuse options that exclude each other, or that nothing would read.

    Args:
        options: all options of `generate`.

    Raises:
        UsageError: there are some.
    """
    model, endpoint, samples = (options[name] for name in ("model", "endpoint", "samples"))
    if (model is None) == (endpoint is None):
        given = "neither is" if model is None else "both are"
        raise UsageError(f"generate: give either --model FOLDER or --endpoint URL; {given} given")
    defaults = {name: parameter.default for name, parameter in inspect.signature(generate).parameters.items()}
    given_with, unread = ("--model", OF_ENDPOINT) if endpoint is None else ("--endpoint", OF_MODEL)
    if found := [f"--{name}" for name in unread if options[name] != defaults[name]]:
        raise UsageError(f"generate: {', '.join(found)} takes no effect with {given_with}; leave it out")
    if options["temperature"] == 0:
        if samples > 1:
            raise UsageError(
                f"generate: {samples} samples of greedy decoding are the same text; give a --temperature, such as 1.0"
            )
        if found := [f"--{name}" for name in ("top_p", "top_k") if options[name] != defaults[name]]:
            raise UsageError(f"generate: {', '.join(found)} restricts sampling; give a --temperature, such as 1.0")


def stop_strings(stop: str) -> tuple[str, ...]:
    """Return the texts that end a response.

    Raises:
        UsageError: one of them is empty.

    >>> stop_strings("###"), stop_strings('["Q:", "A:"]'), stop_strings("")
    (('###',), ('Q:', 'A:'), ())
    """
    strings = [stop] if stop else []
    if stop.startswith("["):
        try:
            strings = json.loads(stop)
        except ValueError:
            strings = [stop]  # a text that begins with a bracket
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise UsageError(f"--stop is {stop!r}; give a text, or a JSON list of texts that are not empty")
    return tuple(strings)


def write(engine: "Engine", file: "PromptFile", out: Path, settings: dict[str, Any]) -> None:
    """Generate all responses, and print how the prompts were read, the progress, and the paths of the results.

    Raises:
        UserError: a prompt cannot be read, the folder cannot be written, or some requests failed.
        UsageError: the folder has other settings.
    """
    from lit_pref.generating.generate import finish, generate_into

    prompts = engine.usable(file.read(), file)
    for line in (*file.describe(len(prompts)), *engine.describe(prompts)):
        say(line)
    blocks = generate_into(out, engine, prompts, settings, {"source": file.path})
    outcome = finish(blocks)
    for line in (*engine.last_lines(), *last_lines(outcome, settings["samples"], out)):
        say(line)
    if outcome.failed:
        raise UserError(
            f"{outcome.failed} of {outcome.rows} responses are missing: their rows have the finish_reason error and "
            "say why; the same command asks for these alone again"
        )


def last_lines(outcome: "Outcome", samples: int, out: Path) -> list[str]:
    """Return what was written and where, and the next command."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in outcome.finished.most_common())
    tokens = "" if outcome.tokens is None else f"; {outcome.tokens:.0f} tokens on average"
    lines = [f"finished    {outcome.rows} responses: {reasons}{tokens}"]
    if outcome.finished["length"] > outcome.rows / 5:
        lines.append(
            "note        many responses were cut at --max_new_tokens or at the model's limit; other settings need "
            "another --out"
        )
    if outcome.same:
        lines.append(
            f"note        all {samples} samples of every prompt are the same text: the temperature is too low, or the "
            "server takes no notice of it or of seeds"
        )
    responses, judged = shlex.quote(str(outcome.path)), shlex.quote(f"{out}-judged")
    return [
        *lines,
        f"responses   {outcome.path}  (read some: head -n 3 {responses})",
        f"Next: judge them\n  python -m lit_pref judge --texts {responses} --model FOLDER --out {judged}",
    ]
