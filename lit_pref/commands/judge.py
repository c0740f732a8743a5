"""`python -m lit_pref judge`: scores of responses, written beside the texts, and pairs with margins made of them."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

from lit_pref.commands.judge_model import ModelOptions, NamedJudge, refuse_out_in_use
from lit_pref.errors import UsageError, UserError, printable
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.judging.texts import Answered


def judge(
    texts: str,
    out: Path,
    model: str | None = None,
    reference: str | None = None,
    per_token: bool = False,
    given: str | None = None,
    testbed: bool = False,
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
) -> None:
    """Score responses with a judge, and write the scores beside the texts.

    The judge is one of --model, --given and --testbed. OUT/judged.jsonl has every row of the file with its score;
    with --pairs, OUT/pairs.jsonl has pairs with margins, which `fit` reads as they are; with --best N,
    OUT/best.jsonl has for each prompt the response with the highest score among the first N. The testbed's gold reward
    takes every response as ended by eos, unless its `finish_reason` is `length`.

    Args:
        texts: a file with prompts and responses, as `generate` writes it: one response or a list of them in each row.
        out: the folder to write; it must not exist, or be empty.
        model: a folder, a run folder (its hf/ is taken) or a hub name: a reward model, or a policy, whose score is the
            log-prob of the response.
        reference: a policy's reference: the score is then the log-ratio, the implicit reward without beta.
        per_token: divide a policy's score by the number of tokens.
        given: a column that has the scores already.
        testbed: the testbed's gold reward, for responses to its prompts.
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

    Raises:
        UsageError: not exactly one judge is named, or the folder is in use.
        UserError: a text cannot be read or scored.
    """
    judges = {"--model": model is not None, "--given": given is not None, "--testbed": testbed}
    if sum(judges.values()) != 1:
        named = ", ".join(name for name, there in judges.items() if there) or "none"
        raise UsageError(f"judge needs exactly one of {', '.join(judges)}; given: {named}")
    if model is None and (reference is not None or per_token):
        raise UsageError("--reference and --per_token belong to --model FOLDER of a policy")
    defaults = {
        "dtype": "float32",
        "max_length": 2048,
        "max_tokens": 16384,
        "device": "auto",
        "trust_remote_code": False,
    }
    asked = {"dtype": dtype, "max_length": max_length, "max_tokens": max_tokens, "device": device}
    asked |= {"trust_remote_code": trust_remote_code}
    unread = [f"--{name}" for name, value in asked.items() if model is None and value != defaults[name]]
    unread += ["--min_margin"] if min_margin and pairs is None else []
    if unread:
        raise UsageError(f"judge: nothing reads {', '.join(unread)} here; leave it out, or add --model or --pairs")
    refuse_out_in_use(out, "judge")
    from lit_pref.judging.texts import best_of, is_cut, judged_rows, pairs_of, read_answered, refuse_column, take_scores

    every = read_answered(texts, prompt, response)
    refuse_column(every, column)
    number = sum(len(answered.responses) for answered in every)
    say(f"texts       {number} responses to {len(every)} prompts of {texts}")
    if cut := sum(is_cut(row) for answered in every for row in answered.rows):
        say(f"warning     {cut} responses ended at the length limit; they are scored as if they were complete")
    if given is not None:
        take_scores(every, given)
    elif testbed:
        _gold(every)
    else:
        options = ModelOptions(dtype, max_length, max_tokens, device, trust_remote_code)
        _by_model(every, str(model), reference, per_token, options)
    out.mkdir(parents=True, exist_ok=True)
    written = [_write(out / "judged.jsonl", judged_rows(every, column))]
    if pairs is not None:
        made = [pair for answered in every for pair in pairs_of(answered, pairs, min_margin)]
        if not made:
            raise UserError("no two responses to a prompt have different scores, so there are no pairs to write")
        written.append(_write(out / "pairs.jsonl", made))
    if best is not None:
        chosen = (_best(answered, best_of(answered, best), response, column) for answered in every)
        written.append(_write(out / "best.jsonl", chosen))
    say("\n".join(written))
    judged = shlex.quote(str(out / "judged.jsonl"))
    if pairs is not None:
        say(f"Next: train on the pairs\n  python -m lit_pref fit --config FILE --data.train {out / 'pairs.jsonl'}")
    elif best is None and any(len(answered.responses) > 1 for answered in every):
        say("Next: make pairs of them with --pairs best_worst, or take the best with --best N")
    else:
        say(
            "Next: compare with the judged responses of another model to the same prompts\n"
            f"  python -m lit_pref evaluate --protocol responses --data {judged} --against OTHER/judged.jsonl "
            f"--column {shlex.quote(column)} --out OUT"
        )


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
