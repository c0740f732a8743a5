"""The protocols of `evaluate`: pairs and benchmarks scored by a judge, win rates of annotations, tasks of lm-eval."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lit_pref.commands.judge_model import ModelOptions, NamedJudge, device_named
from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError
from lit_pref.judging.benchmark_items import BenchmarkItem
from lit_pref.judging.comparison import PromptBootstrap, compare, matched, mean_of
from lit_pref.judging.length_controlled import length_controlled_win_rate, read_difficulty
from lit_pref.judging.model_judge import Question, judge_spec
from lit_pref.judging.outcome import Outcome
from lit_pref.judging.pair_evaluation import compare_judges, evaluate_pairs, records_of
from lit_pref.judging.pair_items import PairFile, PairItem, judged, judged_responses, shown
from lit_pref.judging.protocols import BENCHMARKS, Benchmark, difference, prior_sets_of_hub, with_prior_sets
from lit_pref.judging.report import WORST, Example
from lit_pref.judging.tasks import compare_tasks, run_tasks
from lit_pref.judging.texts import read_answered, take_scores
from lit_pref.judging.verdicts import BothOrders, position_bias
from lit_pref.judging.win_rate import Annotations, judged_against, read_annotations, win_rate
from lit_pref.metrics.records import Records
from lit_pref.models.folder import folder_of_model
from lit_pref.printing import say

Judges = list[NamedJudge]
"""The judge, and the one that it is compared with, if there is one."""


def judges_named(
    named: Sequence[tuple[str, str | None]], per_token: bool, beta: float, options: ModelOptions
) -> Judges:
    """Return judges by model and reference.

    Beside a policy, which reads `per_token` and `beta`, a reward model is judged without them.
    """
    of_models = [
        judge_spec(folder_of_model(model), options.dtype, options.trust_remote_code).outputs is not None
        for model, _ in named
    ]
    found = []
    for (model, reference), is_reward_model in zip(named, of_models, strict=True):
        plain = is_reward_model and not all(of_models)
        how = (False, 1.0) if plain else (per_token, beta)
        found.append(NamedJudge(model, reference, *how, options))
    return found


def pairs_outcome(judges: Judges, file: PairFile, votes: float) -> Outcome:
    """Evaluate a judge on pairs."""
    items = file.read()
    say(f"pairs       {len(items)} of {file.path}", error=True)
    notes = [f"Rows left out: {count} ({kind})." for kind, count in file.left_out.most_common()]
    found = [judged(items, scores) for scores in _scores(judges, items, chat=False, notes=notes)]
    records = [records_of(pairs) for pairs in found]
    others = records[1] if len(records) == 2 else None
    return Outcome(
        _title(judges, file.path),
        _settings(judges) | {"votes": votes, "pairs": len(items)},
        records[0],
        pairs=found[0],
        evaluation=evaluate_pairs(found[0], votes),
        comparisons=[] if others is None else compare_judges(records[0], others, names_of(judges)),
        items_against=others,
        notes=notes,
    )


def benchmark_outcome(
    judges: Judges, name: str, source: str | None, prior_sets: dict[str, str] | str | None, limit: int | None
) -> Outcome:
    """Evaluate a judge in a benchmark."""
    benchmark: Benchmark = BENCHMARKS[name]
    if benchmark.single_scores and (found := [judge.name for judge in judges if judge.spec.embedding is not None]):
        raise UsageError(
            f"{found[0]} is a preference embedding, which compares two responses and scores none alone, as "
            f"{benchmark.title} needs: evaluate it by --protocol pairs or reward_bench"
        )
    source = source or benchmark.hub
    sets = prior_sets_of_hub() if isinstance(prior_sets, str) else prior_sets
    items = (with_prior_sets(source, sets) if sets else benchmark.read(source))[:limit]
    say(f"items       {len(items)} of {source}", error=True)
    notes: list[str] = []
    scores = _scores(judges, items, chat=True, notes=notes)
    numbers = [benchmark.evaluate(items, own) for own in scores]
    pairs = [judged_responses(items, own) for own in scores]
    if numbers[0].missing:
        missing = ", ".join(numbers[0].missing)
        notes.append(f"The items lack {missing}, so the score cannot be compared with published ones.")
    names, comparisons = names_of(judges), []
    if len(judges) == 2:
        comparisons.append(difference(numbers[0], numbers[1], benchmark.title, names))
    return Outcome(
        _title(judges, benchmark.title),
        _settings(judges) | {"source": source, "items": len(items), "missing": numbers[0].missing},
        _item_records(items, scores[0]),
        {benchmark.title: numbers[0].numbers},
        pairs[0],
        evaluate_pairs(pairs[0]),
        comparisons,
        _item_records(items, scores[1]) if len(judges) == 2 else None,
        notes,
    )


def win_rate_outcome(
    data: str, generator: str | None, against: str | None, length_controlled: bool, difficulty: Path | None
) -> Outcome:
    """Evaluate annotations in AlpacaEval's layout."""
    table = None if difficulty is None else read_difficulty(difficulty)
    annotations = read_annotations(data, generator)
    name, baseline = (_named(annotations, column) for column in ("generator_2", "generator_1"))
    name = generator or name or "the model"
    found = win_rate(annotations.preference, annotations.prompts)
    numbers = {"win rate": found.rate, "discrete win rate": found.discrete}
    if length_controlled or difficulty is not None:
        numbers["length-controlled win rate"] = length_controlled_win_rate(annotations, table).rate
    counts = {"wins": found.wins, "ties": found.ties, "losses": found.losses, "left_out": found.left_out}
    notes = [f"{found.wins} wins, {found.ties} ties, {found.losses} losses."]
    if found.left_out:
        notes.append(f"{found.left_out} comparisons have no preference and are left out.")
    orders = [orders for orders in map(_orders, annotations.rows) if orders is not None]
    if orders:
        notes.append(position_bias(orders).sentence)
    records, others, comparisons = _annotation_records(annotations), None, []
    if against is not None:
        in_file = Path(against).exists()
        others = _annotation_records(read_annotations(against if in_file else data, None if in_file else against))
        a, b, _ = matched(records, others)
        bootstrap = PromptBootstrap(a["prompt_id"])
        first, second = (mean_of([_nan(value) for value in own["preference"]]) for own in (a, b))
        comparisons.append(compare(first, second, bootstrap, "win rate", (name, against)))
    title = f"{name} against {baseline or 'the baseline'}: {data}"
    return Outcome(
        title, {"data": data, "generator": generator} | counts, records,
        {"Win rate": numbers}, comparisons=comparisons, items_against=others, notes=notes,
        examples=_losses(records, "instruction", "output_2", "output_1"),
    )  # fmt: skip


def responses_outcome(data: str, against: str, column: str, length_controlled: bool) -> Outcome:
    """Evaluate judged responses against others to the same prompts."""
    both = [read_answered(path) for path in (data, against)]
    for every in both:
        take_scores(every, column, null=True)
    annotations, own, baseline = judged_against(both[0], both[1])
    found = win_rate(annotations.preference, [str(answered.prompt) for answered in own])
    numbers = {"win rate": found.rate}
    if length_controlled:
        numbers["length-controlled win rate"] = length_controlled_win_rate(annotations).rate
    notes = [f"{found.wins} wins, {found.ties} ties, {found.losses} losses of {data} against {against}."]
    if unknown := sum(score != score for every in (own, baseline) for answered in every for score in answered.scores):
        notes.append(f"{unknown} responses have no score, and {found.left_out} prompts therefore no preference.")
    if alone := sum(map(len, both)) - 2 * len(own):
        notes.append(f"{alone} prompts are answered in one file only, and are left out.")
    records = _annotation_records(annotations) | {"prompt": [str(answered.prompt) for answered in own]}
    for name, side in (("", own), ("baseline_", baseline)):
        records[f"{name}responses"] = [list(map(shown, answered.responses)) for answered in side]
        records[f"{name}scores"] = [[_null(score) for score in answered.scores] for answered in side]
    kept = {name: values for name, values in records.items() if name not in ("instruction", "output_1", "output_2")}
    settings = {"data": data, "against": against, "prompts": len(own)}
    first = {name: [own[0] for own in kept[name]] for name in ("responses", "baseline_responses")}
    examples = _losses(kept | first, "prompt", "responses", "baseline_responses")
    return Outcome(f"{data} against {against}", settings, kept, {"Win rate": numbers}, notes=notes, examples=examples)


def tasks_outcome(model: str, against: str | None, tasks: Sequence[str], options: dict[str, Any]) -> Outcome:
    """Run tasks of lm-eval on a language model, and on the one that it is compared with."""
    named = [model, *([] if against is None else [against])]
    for name in named:
        if judge_spec(folder_of_model(name), trust_remote_code=options["trust_remote_code"]).outputs is not None:
            raise UsageError(f"{name} is a reward model, and --tasks are for language models: name a --protocol")
    options = options | {"device": device_named(options["device"])}
    folder = options["task_folder"]
    found = [run_tasks(folder_of_model(name), tasks, **options) for name in named]
    comparisons = compare_tasks(found[0], found[1], (model, str(against))) if against is not None else []
    return Outcome(
        f"{model}: {', '.join(tasks)}", {"model": model, "against": against, "tasks": list(tasks), **options}
        | {"task_folder": None if folder is None else str(folder)},
        found[0].records, found[0].numbers, comparisons=comparisons,
        items_against=found[1].records if against is not None else None,
    )  # fmt: skip


def names_of(judges: Judges) -> tuple[str, str]:
    """Return the names of two judges in sentences: the models', with the references' if two have the same model."""
    first, second = judges[0], judges[-1]
    if first.name != second.name:
        return first.name, second.name
    described = [f"{judge.name} ({judge.reference.path if judge.reference else 'no reference'})" for judge in judges]
    return (described[0], described[-1]) if described[0] != described[-1] else ("A", "B")


def _scores(
    judges: Judges, items: Sequence[PairItem] | Sequence[BenchmarkItem], chat: bool, notes: list[str]
) -> list[list[list[float]]]:
    questions: list[Question] = [(item.prompt, item.responses) for item in items]
    found = []
    for judge in judges:
        templated = judge.spec.load_tokenizer().chat_template is not None
        plain = sum(isinstance(prompt, str) for prompt, _ in questions)
        if templated and plain and not chat:
            notes.append(
                f"{judge.name} has a chat template, and {plain} prompts are plain texts outside of it; if they are "
                "messages of a user: --mapping '{format: messages}'."
            )
            say(f"warning     {notes[-1]}")  # before the scores, which it may make worthless
        asked = [(_message(prompt), responses) for prompt, responses in questions] if templated and chat else questions
        found.append(judge.scores(asked, [[item.row] * len(item.responses) for item in items]))
        notes += [f"{note[0].upper()}{note[1:]}." for note in judge.notes]
    return found


def _message(prompt: Any) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _settings(judges: Judges) -> dict[str, Any]:
    keys = ("judge", "against")
    return {key: judge.described for key, judge in zip(keys, judges, strict=False)}


def _title(judges: Judges, data: str) -> str:
    return f"{judges[0].name}: {data}"


def _item_records(items: Sequence[BenchmarkItem], scores: list[list[float]]) -> Records:
    of: dict[str, Callable[[BenchmarkItem], Any]] = {
        "id": lambda item: item.id,
        "file": lambda item: item.file,
        "line": lambda item: item.line,
        "subset": lambda item: item.subset,
        "prompt": lambda item: str(item.prompt),
        "responses": lambda item: [str(text) for text in item.responses],
        "correct": lambda item: item.correct,
    }
    return {name: [read(item) for item in items] for name, read in of.items()} | {"scores": scores}


def _annotation_records(annotations: Annotations) -> Records:
    records: Records = {
        "id": [str(item) for item in annotations.item],
        "prompt_id": list(annotations.prompts),
        "file": [row.file for row in annotations.rows],
        "line": [row.line for row in annotations.rows],
        "preference": [_null(value) for value in annotations.preference.tolist()],
        "model_length": annotations.model_length.tolist(),
        "baseline_length": annotations.baseline_length.tolist(),
    }
    for name in ("instruction", "output_1", "output_2"):
        records[name] = [row.values.get(name) for row in annotations.rows]
    return records


def _named(annotations: Annotations, column: str) -> str | None:
    """Return the name that all rows have in a column, if there is one."""
    names = {row.values.get(column) for row in annotations.rows}
    name = names.pop() if len(names) == 1 else None
    return name if isinstance(name, str) else None


def _losses(records: Records, prompt: str, own: str, baseline: str) -> tuple[str, list[Example]]:
    """Return the losses with the lowest preferences as texts, if there are texts."""
    lost = [k for k, value in enumerate(records["preference"]) if value is not None and value < 0.5]
    shown = [
        Example(
            f"{records['file'][k]}, line {records['line'][k]}",
            f"preference {records['preference'][k]:.3g}",
            {name: str(records[column][k]) for name, column in
             (("prompt", prompt), ("model", own), ("baseline", baseline))},
        )
        for k in sorted(lost, key=lambda k: records["preference"][k])[:WORST]
        if records[own][k] is not None
    ]  # fmt: skip
    return f"The {len(shown)} clearest losses", shown


def _orders(row: Row) -> BothOrders | None:
    """Return the preferences in both orders that `judge --endpoint` has written beside a comparison."""
    both = [row.values.get(name, "") for name in ("when_first", "when_second")]
    return None if any(isinstance(value, str) for value in both) else BothOrders(*both)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _null(value: float) -> float | None:
    return None if value != value else value
