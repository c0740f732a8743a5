"""`python -m lit_pref judge`: scores of responses, written beside the texts, and pairs with margins made of them."""

import inspect
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

from lit_pref.commands.judge_model import ModelOptions, NamedJudge, refuse_out_in_use
from lit_pref.commands.server import ASKED, Server, refuse_out_of_others
from lit_pref.errors import UsageError, UserError, printable
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.judging.endpoint_judge import EndpointJudge
    from lit_pref.judging.texts import Answered

JUDGES = ("model", "given", "testbed", "endpoint")
OF_MODEL = ("dtype", "max_length", "max_tokens", "device", "trust_remote_code")
OF_ENDPOINT = (
    *("model_name", "against", "against_column", "template", "reference_text", "temperature", "max_new_tokens"),
    *("concurrency", "timeout", "retries", "max_unreadable"),
)
OF_SCORES = ("pairs", "min_margin", "best", "column")
"""The options that read a score of each response, which a comparison of two does not give."""


def judge(
    texts: str,
    out: Path,
    model: str | None = None,
    reference: str | None = None,
    per_token: bool = False,
    given: str | None = None,
    testbed: bool = False,
    endpoint: str | None = None,
    model_name: str | None = None,
    against: str | None = None,
    against_column: str | None = None,
    template: Path | None = None,
    reference_text: str | None = None,
    pairs: Literal["best_worst", "all", "adjacent"] | None = None,
    min_margin: float = 0.0,
    best: PositiveInt | None = None,
    prompt: str = "prompt",
    response: str = "response",
    column: str = "score",
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    max_length: PositiveInt = 2048,
    max_tokens: PositiveInt = 16384,
    device: str = "auto",
    trust_remote_code: bool = False,
    temperature: float = 0.0,
    max_new_tokens: PositiveInt = 1024,
    concurrency: PositiveInt = 16,
    timeout: float = 120.0,
    retries: int = 5,
    max_unreadable: float = 0.1,
) -> None:
    """Score responses with a judge, and write the scores beside the texts.

    The judge is one of --model, --given, --testbed and --endpoint. OUT/judged.jsonl has every row of the file with its
    score; with --pairs, OUT/pairs.jsonl has pairs with margins, which `fit` reads as they are; with --best N,
    OUT/best.jsonl has for each prompt the response with the highest score among the first N. The testbed's gold reward
    takes every response as ended by eos, unless its `finish_reason` is `length`.

    An --endpoint grades each response from 1 to 10. With --against FILE or --against_column COLUMN, it compares the
    responses with others to the same prompts instead, in both orders: OUT/judged.jsonl then has the preference of each
    pair in [0, 1], OUT/annotations.jsonl the same in AlpacaEval's layout, for `evaluate --protocol win_rate`, and
    OUT/pairs.jsonl the pairs without ties, for `fit`. Answers of the server are kept in OUT/asked, and the same command
    does not ask for them again.

    Args:
        texts: a file with prompts and responses, as `generate` writes it: one response or a list of them in each row.
        out: the folder to write; it must not exist, be empty, or be of the same command with --endpoint.
        model: a folder, a run folder (its hf/ is taken) or a hub name: a reward model, or a policy, whose score is the
            log-prob of the response.
        reference: a policy's reference: the score is then the log-ratio, the implicit reward without beta.
        per_token: divide a policy's score by the number of tokens.
        given: a column that has the scores already.
        testbed: the testbed's gold reward, for responses to its prompts.
        endpoint: address of a server with OpenAI's interface, such as http://localhost:8000/v1; the environment
            variable OPENAI_API_KEY holds its key.
        model_name: the model's name on the server; the only one that it lists by default.
        against: a file of responses to the same prompts to compare with, the k-th of a prompt with the k-th.
        against_column: the column of the responses to compare with, in --against or, without it, in the same file.
        template: a text file with what to ask the server, with the fields {prompt} and {response}, or {prompt},
            {response_a} and {response_b}; by default one that is shipped.
        reference_text: the column of a reference answer, for the field {reference} of the template.
        pairs: which two responses to a prompt make a pair: the best and the worst, all, or neighbours by score.
        min_margin: leave out pairs whose margin is not above this.
        best: write the best of the first N responses to each prompt.
        prompt: column of the prompt.
        response: column of the response or responses.
        column: name of the new column.
        dtype: dtype of the weights.
        max_length: the most tokens of prompt and response; longer ones are cut, and their number is printed.
        max_tokens: the most tokens of a forward pass.
        device: cpu, cuda, or auto.
        trust_remote_code: run code that comes with the model.
        temperature: of the server's verdicts.
        max_new_tokens: the most tokens of a verdict.
        concurrency: requests to the server at the same time.
        timeout: seconds to wait for an answer of the server.
        retries: how often a request is tried again, after waits that double.
        max_unreadable: the share of verdicts that may be unreadable; above it, the command ends without scores.

    Raises:
        UsageError: not exactly one judge is named, or the folder is in use.
        UserError: a text cannot be read or scored.
    """
    refuse(dict(locals()))
    from lit_pref.judging.texts import check_new_column, is_cut, read_answered, take_scores

    server = None
    if endpoint is not None:
        options = Server(endpoint, model_name, max_new_tokens, concurrency, timeout, retries, temperature)
        server = options.judge(out / ASKED, max_unreadable)
    if server is not None and (against is not None or against_column is not None):
        both = (texts, response), (against or texts, against_column or response)
        _compare(out, *both, prompt, server, (template, reference_text))
        return
    every = read_answered(texts, prompt, response)
    check_new_column(every, column)
    number = sum(len(answered.responses) for answered in every)
    say(f"texts       {number} responses to {len(every)} prompts of {texts}")
    if cut := sum(is_cut(row) for answered in every for row in answered.rows):
        say(f"warning     {cut} responses ended at the length limit; they are scored as if they were complete")
    if given is not None:
        take_scores(every, given)
    elif testbed:
        _gold(every)
    elif server is not None:
        from lit_pref.commands.judge_endpoint import grade

        grade(every, server, template, reference_text)
    else:
        of_model = ModelOptions(dtype, max_length, max_tokens, device, trust_remote_code)
        _by_model(every, str(model), reference, per_token, of_model)
    say("\n".join(_written(every, out, pairs, min_margin, best, response, column)))
    say(_next(every, out, pairs, best, column))


def _written(
    every: "list[Answered]",
    out: Path,
    pairs: Literal["best_worst", "all", "adjacent"] | None,
    min_margin: float,
    best: int | None,
    response: str,
    column: str,
) -> list[str]:
    """Write the files, and return a line about each of them."""
    from lit_pref.judging.texts import best_of, chosen_among, judged_rows, pairs_of

    out.mkdir(parents=True, exist_ok=True)
    lines = [_write(out / "judged.jsonl", judged_rows(every, column))]
    if pairs is not None:
        made = [pair for answered in every for pair in pairs_of(answered, pairs, min_margin)]
        if not made:
            raise UserError("no two responses to a prompt have different scores, so there are no pairs to write")
        lines.append(_write(out / "pairs.jsonl", made))
    if best is not None:
        for line in chosen_among(every, best):
            say(line)
        chosen = [(answered, best_of(answered, best)) for answered in every]
        rows = [_best(answered, k, response, column) for answered, k in chosen if k is not None]
        lines.append(_write(out / "best.jsonl", rows))
    if unknown := sum(score != score for answered in every for score in answered.scores):
        say(f"warning     {unknown} responses have no score (null), and are in no pair and never the best")
    return lines


def _next(every: "list[Answered]", out: Path, pairs: str | None, best: int | None, column: str) -> str:
    """Return what to run next."""
    if pairs is not None:
        file = shlex.quote(str(out / "pairs.jsonl"))
        return f"Next: train on the pairs\n  python -m lit_pref fit --config FILE --data.train {file}"
    if best is None and any(len(answered.responses) > 1 for answered in every):
        return "Next: make pairs of them with --pairs best_worst, or take the best with --best N"
    judged = shlex.quote(str(out / "judged.jsonl"))
    return (
        "Next: compare with the judged responses of another model to the same prompts\n"
        f"  python -m lit_pref evaluate --protocol responses --data {judged} --against OTHER/judged.jsonl "
        f"--column {shlex.quote(column)} --out OUT"
    )


def refuse(options: dict[str, Any]) -> None:
    """Refuse options that exclude each other, or that nothing would read.

    Args:
        options: all options of `judge`.

    Raises:
        UsageError: there are some.
    """
    judges = {f"--{name}": options[name] not in (None, False) for name in JUDGES}
    if sum(judges.values()) != 1:
        named = ", ".join(name for name, there in judges.items() if there) or "none"
        name = "; the name of a model on a server is --model_name" if judges["--model"] and judges["--endpoint"] else ""
        raise UsageError(f"judge needs exactly one of {', '.join(judges)}; given: {named}{name}")
    if options["model"] is None and (options["reference"] is not None or options["per_token"]):
        raise UsageError("--reference and --per_token belong to --model FOLDER of a policy")
    compares = options["against"] is not None or options["against_column"] is not None
    groups: list[tuple[tuple[str, ...], bool, str]] = [
        (OF_MODEL, options["model"] is None, "add --model"),
        (OF_ENDPOINT, options["endpoint"] is None, "add --endpoint"),
        (OF_SCORES, options["endpoint"] is not None and compares, "leave out --against and --against_column"),
        (("min_margin",), options["pairs"] is None, "add --pairs"),
    ]
    defaults = {name: parameter.default for name, parameter in inspect.signature(judge).parameters.items()}
    unread: dict[str, str] = {}
    for names, nothing, remedy in groups:
        unread |= {name: remedy for name in names if nothing and options[name] != defaults[name]}
    if unread:
        remedies = " or ".join(dict.fromkeys(unread.values()))
        raise UsageError(
            f"judge: nothing reads {', '.join(f'--{name}' for name in unread)} here; leave it out, or {remedies}"
        )
    if options["endpoint"] is None:
        refuse_out_in_use(options["out"], "judge")
    else:
        refuse_out_of_others(options["out"], "judge")


def _compare(
    out: Path,
    a: tuple[str, str],
    b: tuple[str, str],
    prompt: str,
    server: "EndpointJudge",
    form: tuple[Path | None, str | None],
) -> None:
    from lit_pref.commands.judge_endpoint import compare_in_both_orders

    files = compare_in_both_orders(a, b, prompt, server, form)
    say("\n".join(_write(out / name, rows) for name, rows in files.items()))
    path = out / "annotations.jsonl"
    say(f"Next: the win rate\n  python -m lit_pref evaluate --protocol win_rate --data {path} --out FOLDER")


def _by_model(
    every: "list[Answered]", model: str, reference: str | None, per_token: bool, options: ModelOptions
) -> None:
    judge = NamedJudge(model, reference, per_token, 1.0, options)
    questions = [(answered.prompt, answered.responses) for answered in every]
    plain = sum(isinstance(prompt, str) for prompt, _ in questions)
    if plain and judge.spec.load_tokenizer().chat_template is not None:
        say(
            f"warning     {plain} prompts are plain texts, which the model reads without its chat template; if they "
            'are messages of a user, write each as a list of messages: [{"role": "user", "content": TEXT}]'
        )
    if judge.spec.outputs is None and reference is None and not per_token:
        say("warning     scores are summed log-probs, which favour short responses: give --reference or --per_token")
    found = judge.scores(questions, [answered.rows for answered in every])
    for answered, scores in zip(every, found, strict=True):
        answered.scores = scores
    for note in judge.notes:
        say(f"warning     {note}")


def _gold(every: "list[Answered]") -> None:
    from lit_pref.judging.texts import is_cut
    from lit_pref.testbed.world import EOS, Prompt, gold_reward, split_words

    for answered in every:
        try:
            asked = Prompt.parse(str(answered.prompt))
        except ValueError as error:
            raise UserError(
                f"{answered.rows[0].place}: the gold reward is of the testbed's prompts: {error}"
            ) from error
        answered.scores = [
            gold_reward(asked, [*split_words(str(text)), *([] if is_cut(row) else [EOS])])
            for text, row in zip(answered.responses, answered.rows, strict=True)
        ]


def _best(answered: "Answered", k: int, response: str, column: str) -> dict[str, Any]:
    values = answered.rows[k].values
    if isinstance(values[response], list) and answered.responses[k] != values[response]:
        values = {"prompt": answered.prompt}  # the other columns of a list of responses are lists as well
    return {**values, response: answered.responses[k], column: answered.scores[k]}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    unfinished = path.with_name(path.name + ".unfinished")
    count = 0
    with unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            text = json.dumps(row, ensure_ascii=False)
            # Half a surrogate pair in another column cannot be written but as an escape, as the row had it.
            file.write((text if printable(text) == text else json.dumps(row)) + "\n")
            count += 1
    unfinished.rename(path)
    return f"{path.stem:<11} {path}  ({count} rows)"
