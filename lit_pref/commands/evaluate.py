"""`python -m lit_pref evaluate`: a judge or a language model against pairs, benchmarks, annotations or tasks."""

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveInt

from lit_pref.commands.judge_model import ModelOptions, refuse_out_in_use
from lit_pref.commands.server import refuse_out_of_others
from lit_pref.errors import UsageError
from lit_pref.printing import say

if TYPE_CHECKING:
    from lit_pref.judging.outcome import Outcome

OF_JUDGE = ("reference", "per_token", "beta", "against_reference", "max_length", "max_tokens")
OF_MODEL = ("model", "dtype", "device", "trust_remote_code")
READ: dict[str, tuple[str, ...]] = {
    "pairs": (*OF_MODEL, *OF_JUDGE, "mapping", "group", "votes", "bad_rows", "ignore_columns", "limit"),
    "reward_bench": (*OF_MODEL, *OF_JUDGE, "prior_sets", "limit"),
    "reward_bench2": (*OF_MODEL, *OF_JUDGE, "limit"),
    "rm_bench": (*OF_MODEL, *OF_JUDGE, "limit"),
    "mt_bench": (
        *(*OF_MODEL, "max_tokens", "endpoint", "model_name", "judge", "judge_name", "template", "references", "limit"),
        *("max_new_tokens", "judge_tokens", "concurrency", "timeout", "retries", "max_unreadable"),
    ),
    "win_rate": ("generator", "length_controlled", "difficulty"),
    "responses": ("column", "length_controlled"),
    "tasks": (*OF_MODEL, "tasks", "task_folder", "few_shot", "chat", "batch_size", "limit"),
}
"""The options that each protocol reads, apart from --out, --protocol, --data and --against."""


def evaluate(
    out: Path,
    protocol: Literal["pairs", "reward_bench", "reward_bench2", "rm_bench", "mt_bench", "win_rate", "responses"]
    | None = None,
    data: str | None = None,
    model: str | None = None,
    reference: str | None = None,
    per_token: bool = False,
    beta: float = 1.0,
    against: str | None = None,
    against_reference: str | None = None,
    mapping: str | dict[str, Any] | None = None,
    group: str | None = None,
    votes: float = 1.0,
    bad_rows: Literal["strict", "lenient"] = "strict",
    ignore_columns: list[str] = [],  # noqa: B006  it is read, never changed
    limit: PositiveInt | None = None,
    prior_sets: Literal["hub"] | dict[str, str] | None = None,
    generator: str | None = None,
    length_controlled: bool = False,
    difficulty: Path | None = None,
    column: str = "score",
    judge: str | None = None,
    judge_name: str | None = None,
    endpoint: str | None = None,
    model_name: str | None = None,
    references: str | None = None,
    template: Path | None = None,
    max_new_tokens: PositiveInt = 1024,
    judge_tokens: PositiveInt = 2048,
    max_unreadable: float = 0.1,
    concurrency: PositiveInt = 16,
    timeout: float = 120.0,
    retries: int = 5,
    tasks: str | None = None,
    task_folder: Path | None = None,
    few_shot: int | None = None,
    chat: bool = False,
    batch_size: PositiveInt = 8,
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
    max_length: PositiveInt = 2048,
    max_tokens: PositiveInt = 16384,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Evaluate a reward model or a policy, with 95 % intervals, and compare it with a second one.

    One --protocol: `pairs` (accuracy, calibration, and accuracies by margin, source and length of any pairs that
    training reads), `reward_bench`, `reward_bench2`, `rm_bench`; `mt_bench` (answers of a language model in two turns,
    graded by a server, --judge); or, without a model, `win_rate` (AlpacaEval's annotations, or those of `judge`) or
    `responses` (two files of `judge`, one as --against). Or --tasks of lm-eval. OUT gets report.html to look at,
    report.json, items.parquet with a record for each item, and TensorBoard scalars.

    Args:
        out: the folder to write; it must not exist, be empty, or be of the same command with mt_bench, which keeps
            all answers and asks for none again.
        protocol: what to evaluate on.
        data: a file, folder, glob or owner/name:split on the hub; benchmarks are taken from the hub by default.
        model: a folder, a run folder (its hf/ is taken) or a hub name: a reward model, or a policy, whose score is the
            log-prob of the response; with mt_bench a language model, or a file of its answers in FastChat's layout.
        reference: a policy's reference: the score is then the log-ratio, the implicit reward without beta.
        per_token: divide a policy's score by the number of tokens.
        beta: factor of a policy's scores: with the beta of its training, the implicit reward.
        against: a second model; with win_rate, another file of annotations, or another generator in the same file;
            with responses, the judged responses of the baseline.
        against_reference: the reference of the second model.
        mapping: columns of the pairs: a mapping's name, a YAML file, or its content.
        group: a column by whose value accuracies of pairs are shown, instead of by file.
        votes: the number of votes behind a label of the pairs: .inf for known probabilities.
        bad_rows: stop at a faulty row of the pairs (strict), or count faulty rows and leave them out (lenient).
        ignore_columns: columns and keys of messages that may be left unread although they may belong to a text.
        limit: the most pairs, items, or items of each task, from the first on.
        prior_sets: RewardBench's preference test sets: `hub`, or {NAME: SOURCE}, such as '{shp: shp.jsonl}'.
        generator: the model whose annotations to read, in a file of several.
        length_controlled: the length-controlled win rate too.
        difficulty: AlpacaEval's df_gamed.csv, for the published form of the length-controlled win rate.
        column: the column of the scores of `responses`.
        judge: address of a server with OpenAI's interface that grades answers, such as http://localhost:8000/v1; the
            environment variable OPENAI_API_KEY holds its key.
        judge_name: the model's name on that server; the only one that it lists by default.
        endpoint: address of a server that answers, in place of --model.
        model_name: the model's name on that server; the only one that it lists by default.
        references: MT-bench's reference answers, in FastChat's layout.
        template: the judge's prompts, in FastChat's layout of judge_prompts.jsonl; by default those that are shipped.
        max_new_tokens: the most tokens of an answer.
        judge_tokens: the most tokens of a judgment.
        max_unreadable: the share of judgments that may be unreadable; above it, the command ends without numbers.
        concurrency: requests to a server at the same time.
        timeout: seconds to wait for an answer of a server.
        retries: how often a request is tried again, after waits that double.
        tasks: tasks of lm-eval, such as gsm8k,truthfulqa_mc2; the package is an extra.
        task_folder: a folder with YAML files of further tasks.
        few_shot: examples in the prompt of a task, instead of the task's own number.
        chat: put prompts of tasks into the chat template.
        batch_size: of tasks.
        dtype: dtype of the weights.
        max_length: the most tokens of prompt and response; longer ones are cut, and their number is printed.
        max_tokens: the most tokens of a forward pass.
        device: cpu, cuda, or auto.
        trust_remote_code: run code that comes with the model.

    Raises:
        UsageError: no protocol or no model is named, options exclude each other, or the folder is in use.
        UserError: the data or a model cannot be read.
    """
    given = dict(locals())
    refuse(given)
    outcome = _outcome(given)
    outcome.settings["options"] = _changed(given)
    from lit_pref.judging.outcome import write

    files = write(outcome, out)
    say(f"{outcome.title}\n{outcome.verdict()}\n\n{outcome.table()}\n")
    for line in [
        *(found.sentence for found in outcome.comparisons),
        *(f"note        {note}" for note in outcome.notes),
    ]:
        say(line)
    say("\n".join(f"{what:<11} {path}" for what, path in files.items()))
    say(_next(given))


def refuse(options: dict[str, Any]) -> None:
    """Refuse options that exclude each other, or that nothing would read.

    Args:
        options: all options of `evaluate`.

    Raises:
        UsageError: there are some.
    """
    protocol, tasks = options["protocol"], options["tasks"]
    if (protocol is None) == (tasks is None):
        named = "both are given" if tasks else "none is given"
        known = ", ".join(name for name in READ if name != "tasks")
        raise UsageError(f"evaluate needs --protocol (one of {known}) or --tasks; {named}")
    kind = "tasks" if protocol is None else str(protocol)
    (refuse_out_of_others if kind == "mt_bench" else refuse_out_in_use)(options["out"], "evaluate")
    read = {*READ[kind], "out", "protocol", "data", "against"}
    if unread := [name for name in _changed(options) if name not in read]:
        where = ", ".join(name for name, names in READ.items() if unread[0] in names)
        raise UsageError(f"--{unread[0]} belongs to {where}, and {kind} does not read it: leave it out")
    if kind == "mt_bench":
        _refuse_mt_bench(options)
    elif "model" in read and options["model"] is None:
        raise UsageError(f"{kind} needs --model: a reward model or a policy, by folder, run folder or hub name")
    if options["against_reference"] is not None and options["against"] is None:
        raise UsageError("--against_reference is the reference of --against, which is not given")
    if kind == "responses" and options["against"] is None:
        raise UsageError("responses needs --against: judged responses of the baseline to the same prompts")
    if kind in ("pairs", "win_rate", "responses") and options["data"] is None:
        raise UsageError(f"{kind} needs --data: a file, folder, glob or owner/name:split on the hub")
    if kind == "tasks" and options["data"] is not None:
        raise UsageError("tasks bring their own data: leave out --data, or name a folder of tasks by --task_folder")
    if not options["votes"] > 0:
        raise UsageError(f"--votes is {options['votes']:g}; the number of votes behind a label is above 0")
    if kind == "tasks" and find_spec("lm_eval") is None:
        raise UsageError("--tasks needs the package lm-eval, which is not installed: pip install 'lit_pref[lm-eval]'")
    from lit_pref.data.sources.source import Source, check_source

    sets = options["prior_sets"]
    others = [options["against"]] if kind == "responses" else []
    for source in (options["data"], *others, *(sets.values() if isinstance(sets, dict) else ())):
        if source is not None:
            check_source(Source(source))


def _refuse_mt_bench(options: dict[str, Any]) -> None:
    """Refuse a command without a judge, or without exactly one model.

    Raises:
        UsageError: it is one.
    """
    model, endpoint = options["model"], options["endpoint"]
    if options["judge"] is None:
        raise UsageError("mt_bench needs --judge URL: the address of a server with OpenAI's interface that grades")
    if (model is None) == (endpoint is None):
        given = "neither is" if model is None else "both are"
        raise UsageError(f"mt_bench needs --model FOLDER, a file of its answers, or --endpoint URL; {given} given")
    if options["model_name"] is not None and endpoint is None:
        raise UsageError("--model_name is the model's name at --endpoint, which is not given")
    local = {"dtype", "device", "trust_remote_code", "max_tokens"} & set(_changed(options))
    if local and endpoint is not None and options["against"] is None:
        raise UsageError(f"mt_bench: --{sorted(local)[0]} takes no effect with --endpoint; leave it out")


def _changed(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that differ from their defaults, with paths as texts."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
    changed = {name: value for name, value in options.items() if value != defaults[name]}
    return {name: str(value) if isinstance(value, Path) else value for name, value in changed.items()}


def _outcome(options: dict[str, Any]) -> "Outcome":
    from lit_pref.commands import evaluation

    def chosen(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    protocol = options["protocol"]
    if protocol is None:
        names = [name for name in map(str.strip, options["tasks"].split(",")) if name]
        of_tasks = chosen("task_folder", "limit", "few_shot", "chat", "batch_size", "device", "dtype")
        of_tasks["trust_remote_code"] = options["trust_remote_code"]
        return evaluation.tasks_outcome(options["model"], options["against"], names, of_tasks)
    if protocol == "mt_bench":
        from lit_pref.commands.mt_bench import mt_bench_outcome

        return mt_bench_outcome(options)
    if protocol == "win_rate":
        asked = chosen("data", "generator", "against", "length_controlled", "difficulty")
        return evaluation.win_rate_outcome(**asked)
    if protocol == "responses":
        return evaluation.responses_outcome(**chosen("data", "against", "column", "length_controlled"))
    models = ModelOptions(**chosen("dtype", "max_length", "max_tokens", "device", "trust_remote_code"))
    named = [(options["model"], options["reference"])]
    if options["against"] is not None:
        named.append((options["against"], options["against_reference"]))
    judges = evaluation.judges_named(named, options["per_token"], options["beta"], models)
    if protocol == "pairs":
        from lit_pref.judging.pair_items import PairFile

        columns = tuple(options["ignore_columns"])
        asked = chosen("mapping", "group", "bad_rows", "limit") | {"ignore_columns": columns}
        return evaluation.pairs_outcome(judges, PairFile(options["data"], **asked), options["votes"])
    return evaluation.benchmark_outcome(judges, protocol, options["data"], options["prior_sets"], options["limit"])


def _next(options: dict[str, Any]) -> str:
    """Return the line that says what to do next."""
    look = f"Next: look at {options['out'] / 'report.html'}"
    if options["protocol"] == "responses":
        return look
    if options["against"] is None:
        return f"{look}, or compare with a second one by --against"
    return f"{look}, and at the items on which the two differ: {options['out'] / 'items_against.parquet'}"
