"""Several answers to one prompt: rows grouped into lists, and pairs chosen from each list."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.strength import refuse_outside
from lit_pref.data.sources.row import BadRow, LeftOut, Row
from lit_pref.data.sources.unread import texts_of
from lit_pref.data.sources.values import number
from lit_pref.errors import UserError
from lit_pref.pairs import Message

LONGEST = 1000
"""The most answers to one prompt."""
LONGEST_TEXT = 2**26
"""The most characters of the rows that are held in memory as one list."""


@dataclass(frozen=True)
class PairsFromList:
    """Chooses pairs among the answers to one prompt.

    Args:
        mode: `best_worst` pairs the best with the worst; `all` takes all pairs; `adjacent` pairs neighbours in the
            order of the scores; `random` draws pairs at random (one, or as many as the cap allows).
        max_pairs_per_prompt: a cap; the pairs to keep are drawn at random.
        seed: seed of the random draws, which depend on (seed, prompt) only: not on the file's order or the process.
    """

    mode: Literal["best_worst", "all", "adjacent", "random"] = "best_worst"
    max_pairs_per_prompt: int | None = None
    seed: int = 42

    def pairs(self, scores: Sequence[float], prompt: Any) -> list[tuple[int, int]]:
        """Return pairs (i, j), i < j, of answers with these scores; ranks work too, as only distances matter.

        >>> PairsFromList().pairs([2.0, 5.0, 1.0], "prompt"), PairsFromList("adjacent").pairs([2.0, 5.0, 1.0], "prompt")
        ([(1, 2)], [(0, 1), (0, 2)])
        """
        places = range(len(scores))
        cap = self.max_pairs_per_prompt
        if self.mode == "best_worst":
            best = max(places, key=scores.__getitem__)
            worst = min((k for k in places if k != best), key=scores.__getitem__)
            return [(min(best, worst), max(best, worst))]
        if self.mode == "adjacent":
            order = sorted(places, key=lambda k: -scores[k])
            pairs = [(min(pair), max(pair)) for pair in itertools.pairwise(order)]
        else:
            pairs = list(itertools.combinations(places, 2))
            cap = 1 if self.mode == "random" and cap is None else cap
        if cap is None or len(pairs) <= cap:
            return pairs
        digest = hashlib.sha256(json.dumps([self.seed, prompt], sort_keys=True, default=str).encode())

        def lot(pair: tuple[int, int]) -> bytes:
            drawn = digest.copy()
            drawn.update(json.dumps(pair).encode())
            return drawn.digest()

        return sorted(sorted(pairs, key=lot)[:cap])


@dataclass(frozen=True)
class Tree:
    """Names the columns of rows that are messages of trees.

    The rows of one tree are consecutive, and each but the root names its parent.
    """

    tree: str
    id: str
    parent: str
    role: str


@dataclass
class Answers:
    """The answers to one prompt; each value comes with its name in the source.

    `rows` has the row of each answer, or is None if one row contains all answers.
    """

    row: Row
    prompt: tuple[str, Any]
    system: tuple[str, Any] | None
    texts: list[tuple[str, Any]]
    scores: list[tuple[str, Any]]
    rows: list[Row] | None = None

    def scored(self, limits: list[float] | None = None) -> Iterator[tuple[int, float] | BadRow]:
        """Yield the index and score of each answer that has a score, and a `LeftOut` for each that has none.

        `limits` are the smallest and the largest score.
        """
        for k, (name, score) in enumerate(self.scores):
            row = self.rows[k] if self.rows else self.row
            try:
                if score is None:
                    raise LeftOut(row, name, "is null, so that this answer cannot be ranked", "give it a number")
                refuse_outside(row, name, value := number(row, name, score), limits)
                yield k, value
            except BadRow as bad:
                yield bad


def answers_in_row(row: Row, prompt: tuple[str, Any], system: Any, responses: ValuePath, score: ValuePath) -> Answers:
    """Return the answers that one row contains as a list."""
    texts, scores = responses.of(row.values), score.of(row.values)
    for path, values in ((responses, texts), (score, scores)):
        if not isinstance(values, list):
            raise BadRow(row, path.text, "is not a list", "give one entry for each answer")
    if len(texts) != len(scores) or len(texts) > LONGEST:
        raise BadRow(
            row,
            score.text,
            "does not have one entry per answer, or has more than can be paired",
            f"give one for each answer, {LONGEST} at most",
            f" ({len(scores)} for {len(texts)})",
        )
    named = [(responses.entry(k), text) for k, text in enumerate(texts)]
    return Answers(row, prompt, system, named, [(score.entry(k), value) for k, value in enumerate(scores)])


def groups(rows: Iterable[Row | BadRow], path: ValuePath) -> Iterator[list[Row] | BadRow]:
    """Group consecutive rows with the same value at `path`; yield a `BadRow` for each row without a value.

    Raises:
        UserError: a value returns after another one, or too many rows share one.
    """
    closed: dict[bytes, str] = {}
    members: list[Row] = []
    size, last = 0, ""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        if (shared := path.of(row.values)) is None:
            yield BadRow(row, path.text, "is missing or null", "give the rows of one list the same value")
            continue
        if (value := json.dumps(shared, default=str)) != last:
            if members:
                yield members
            key = hashlib.blake2b(value.encode(), digest_size=8).digest()
            if key in closed:
                raise UserError(
                    f"{row.place}: its `{path.text}` is also that of {closed[key]}, with others in between; sort the "
                    f"rows by `{path.text}`, so that those of one list follow each other."
                )
            closed[key] = row.place
            members, size, last = [], 0, value
        members.append(row)
        size += sum(map(len, texts_of(row.values)))
        if len(members) > LONGEST or size > LONGEST_TEXT:
            most = f"{LONGEST} rows" if size <= LONGEST_TEXT else f"{LONGEST_TEXT // 2**20} Mi characters of rows"
            raise UserError(
                f"{members[0].place}: more than {most} from here on have the same `{path.text}`; make shorter "
                "lists, or fix the column."
            )
    if members:
        yield members


Asked = tuple[tuple[str, Any], tuple[str, Any] | None]
"""Prompt and system text of a row, each with its name in the source."""


def answers_of_group(
    members: list[Row], asked: Callable[[Row], Asked], response: ValuePath, score: ValuePath
) -> Iterator[Answers | BadRow]:
    """Yield the answers of rows that share a prompt, and a `BadRow` for each row whose prompt is not the first one."""
    first = asked(members[0])
    kept = []
    for row in members:
        other = next((one for one, its in zip(asked(row), first, strict=True) if one is not None and one != its), None)
        if other is None:
            kept.append(row)
        else:
            yield BadRow(
                row,
                other[0],
                "differs within a list",
                "give the rows of one list one prompt and system text, or group them by another column",
                f" from that of {members[0].place}",
            )
    yield _answers_of_rows(kept, first, response, score)


def _answers_of_rows(rows: list[Row], asked: Asked, response: ValuePath, score: ValuePath) -> Answers:
    texts, scores = ([(path.text, path.of(row.values)) for row in rows] for path in (response, score))
    return Answers(rows[0], *asked, texts, scores, rows)


def answers_in_tree(members: list[Row], tree: Tree, text: ValuePath, score: ValuePath) -> Iterator[Answers | BadRow]:
    """Yield the answers in a tree: the assistant's replies to each message of a user."""
    ids = {row.values.get(tree.id): row for row in members if isinstance(row.values.get(tree.id), str)}
    children: dict[str, list[Row]] = {}
    for row in members:
        parent = row.values.get(tree.parent)
        if _role(row, tree) == "assistant" and isinstance(parent, str):
            children.setdefault(parent, []).append(row)
    for parent, answers in children.items():
        try:
            prompt = _path_to(answers[0], parent, ids, tree, text)
        except BadRow as bad:
            yield bad
            continue
        yield _answers_of_rows(answers, ((text.text, prompt), None), text, score)


def _path_to(row: Row, parent: str, ids: dict[Any, Row], tree: Tree, text: ValuePath) -> list[Message]:
    messages: list[Message] = []
    seen = set()
    place: Any = parent
    while place is not None:
        if place not in ids or place in seen:
            raise BadRow(
                row, tree.parent, "leads to no root", f"the rows of a tree must follow each other by `{tree.tree}`"
            )
        seen.add(place)
        ancestor = ids[place]
        messages.insert(0, {"role": _role(ancestor, tree), "content": text.of(ancestor.values)})
        place = ancestor.values.get(tree.parent)
    return messages


def _role(row: Row, tree: Tree) -> str:
    role = row.values.get(tree.role)
    return {"prompter": "user"}.get(str(role), str(role))
