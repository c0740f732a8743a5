"""Conversion of the rows of a source to canonical rows, following a mapping."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lit_pref.data.formats.combinations import Combinations
from lit_pref.data.formats.conversations import Dialogues
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.ranked_lists import Answers, Asked, answers_in_row, answers_in_tree, answers_of_group, groups
from lit_pref.data.formats.several import listed
from lit_pref.data.formats.spec import SIDES, SOURCES, STRENGTH, RowMapping
from lit_pref.data.formats.strength import PairStrength, PairStrengthValue
from lit_pref.data.formats.whole_lists import WholeLists
from lit_pref.data.sources.row import BadRow, LeftOut, Row

TEXTS = ("prompt", "chosen", "rejected", "extra_response")


class Conversion:
    """Converts the rows of a source to canonical rows, whose columns have this project's names.

    Of a mapping of kind list it makes pairs; with `whole_lists`, each answer is a row of its own (see `WholeLists`).

    >>> from lit_pref.data.formats.strength import Score
    >>> mapping = RowMapping("mine", kind="ab", prompt="q", a="x", b="y", score=Score(a="sx", b="sy"))
    >>> row = Row("mine.jsonl", 1, {"q": "2+2=", "x": "5", "y": "4", "sx": 1, "sy": 3})
    >>> canonical = next(Conversion(mapping).canonical_rows([row])).values
    >>> [canonical[name] for name in ("prompt", "chosen", "rejected", "margin")]
    ['2+2=', '5', '4', -2.0]
    """

    def __init__(self, mapping: RowMapping, whole_lists: bool = False) -> None:
        self.mapping = mapping
        self.dialogues = Dialogues(mapping.format, mapping.as_ == "text", mapping.prompt_repeated)
        self.prompt, self.system, self.id = map(_path, (mapping.prompt, mapping.system, mapping.id))
        self.then = [ValuePath(path) for path in mapping.prompt_then]
        self.extra_response = ValuePath(mapping.extra_response or "extra_response")
        sides = [getattr(mapping, side) for side in SIDES.get(mapping.kind, ())]
        self.texts = [ValuePath(path) for path in sides if path is not None]
        self.names = dict(zip(("chosen", "rejected"), (path.text for path in self.texts), strict=False))
        self.names |= {"prompt": mapping.prompt} if mapping.prompt else {}
        self.names |= {"extra_response": mapping.extra_response} if mapping.extra_response else {}
        self.reads_strength = mapping.kind != "pair" or mapping.has_strength
        self.strength = PairStrength(mapping.margin, mapping.score, mapping.signed, mapping.probability, mapping.label)
        if self.reads_strength and (column := mapping.strength_column):
            self.names["margin"] = column
        if mapping.probability:
            self.names["probability"] = " and ".join(listed(mapping.probability.column))
        self.dropped = frozenset((*TEXTS, "id", *(STRENGTH if self.reads_strength else ())))
        if mapping.kind not in ("pair", "none"):
            # These columns then refer to other texts, because no column of texts is called chosen.
            self.dropped |= frozenset(SOURCES[0])
        self.plain, self.sided = self._further_columns()
        if not self.reads_strength and mapping.margin != type(mapping.margin)(normalise=mapping.margin.normalise):
            raise ValueError("a margin transform needs a column of strength; `mapping_of` looks for one in the rows")
        self.combinations = Combinations(mapping, lambda one: Conversion(one)._pair) if mapping.combines else None
        parts = (self.dialogues, self.id, self.dropped, self.plain, self.sided)
        self.whole_lists = WholeLists(mapping, *parts) if whole_lists else None
        self.is_canonical = not self.reads_strength and self.dialogues == Dialogues() and mapping.is_canonical

    def canonical_rows(self, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        """Yield the canonical rows in the order of the source, and a `BadRow` for each row that cannot be a pair.

        A `LeftOut` is not an error in the data: an answer without a rank, or a prompt with one answer. A `BadRow` among
        `rows` is passed on.

        Raises:
            UserError: rows of one list are not consecutive.
        """
        if self.mapping.kind == "list":
            for number, answers in enumerate(self._lists(rows)):
                yield from [answers] if isinstance(answers, BadRow) else self._rows_of(answers, number)
            return
        convert: Callable[[Row], Row] = self._unchanged if self.is_canonical else self._pair
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                if self.combinations:
                    yield from self.combinations.pairs(row)
                else:
                    yield convert(row)
            except BadRow as bad:
                yield bad

    def _further_columns(self) -> tuple[list[tuple[str, ValuePath]], list[tuple[str, ValuePath, ValuePath]]]:
        """Return the further columns of the pair, and those of its two sides."""
        mapping = self.mapping
        plain, sided = [], []
        for name, where in (*mapping.columns.items(), *mapping.spans.items()):
            if isinstance(where, str):
                path = ValuePath(where)
                if path.many or mapping.group or mapping.tree:
                    sided.append((name, path, path))
                else:
                    plain.append((name, path))
            else:
                first, second = self._of_sides(where)
                sided.append((name, ValuePath(first), ValuePath(second)))
        if mapping.source:
            first, second = self._of_sides(mapping.source)
            sided.append(("source", ValuePath(first), ValuePath(second)))
        return plain, sided

    def _of_sides(self, where: dict[str, str]) -> tuple[str, str]:
        first, second = SIDES.get(self.mapping.kind, ("path", "path"))
        return where[first], where[second]

    def _unchanged(self, row: Row) -> Row:
        """Return a row that is already canonical; only dialogues in it are split into prompt and response."""
        prompt, chosen, rejected = (row.values.get(name) for name in ("prompt", "chosen", "rejected"))
        if isinstance(chosen, list) or isinstance(rejected, list):
            alone = all(not isinstance(text, list) or len(text) == 1 for text in (chosen, rejected))
            if not (alone and isinstance(prompt, list) and _are_texts(prompt)):
                return self._pair(row)
        elif isinstance(prompt, list) and not _are_texts(prompt):
            return self._pair(row)
        return row

    def _pair(self, row: Row) -> Row:
        values = row.values
        texts = [(path.text, path.of(values)) for path in self.texts]
        sides = ["chosen", "rejected"]
        if len(texts) < 2 or (texts[1][1] is None and not self.texts[1].within(values)):  # one-sided data
            del texts[1:], sides[1:]
        extra_response = self.extra_response.of(values)
        # An unnamed extra response is converted only if it is written like the other texts, else it is not changed.
        if self.extra_response.within(values) and (
            self.mapping.extra_response or type(extra_response) is type(texts[0][1])
        ):
            texts.append((self.extra_response.text, extra_response))
            sides.append("extra_response")
        prompt, responses = self.dialogues.read(row, self._prompt(row), texts, _named(self.system, values))
        canonical = {name: value for name, value in values.items() if name not in self.dropped}
        if self.extra_response.within(values):
            canonical["extra_response"] = extra_response
        canonical["prompt"] = prompt
        canonical.update(zip(sides, responses, strict=True))
        for name, first, second in self.sided:
            side = SOURCES[0] if name == "source" else (f"{name}_chosen", f"{name}_rejected")
            canonical[side[0]], canonical[side[1]] = first.of(values), second.of(values)
        for name, path in self.plain:
            canonical[name] = path.of(values)
        if self.id and self.id.within(values):
            canonical["id"] = self.id.of(values)
        strength = self.strength.of(row) if self.reads_strength else PairStrengthValue()
        _write(canonical, strength)
        first_known = True if self.mapping.kind in ("ab", "ab_signed") else None
        return Row(row.file, row.line, canonical, self.names, strength.clipped, first_known, strength.prefers)

    def _lists(self, rows: Iterable[Row | BadRow]) -> Iterator[Answers | BadRow]:
        mapping = self.mapping
        response, score = ValuePath(str(mapping.responses)), ValuePath(str(mapping.score and mapping.score.path))
        if together := mapping.tree.tree if mapping.tree else mapping.group:
            for members in groups(rows, ValuePath(together)):
                if isinstance(members, BadRow):
                    yield members
                elif mapping.tree:
                    yield from answers_in_tree(members, mapping.tree, response, score)
                else:
                    yield from answers_of_group(members, self._asked, response, score)
            return
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                yield answers_in_row(row, *self._asked(row), response, score)
            except BadRow as bad:
                yield bad

    def _asked(self, row: Row) -> Asked:
        prompt = self._prompt(row)
        assert prompt is not None
        return prompt, _named(self.system, row.values)

    def _prompt(self, row: Row) -> tuple[str, Any] | None:
        """Return the name and the value of the prompt, joined with the texts that follow it."""
        prompt = _named(self.prompt, row.values)
        if prompt is None or not self.then:
            return prompt
        name, value = prompt
        if not isinstance(value, str):
            raise BadRow(row, name, "is not a text", "only texts can be joined by the mapping's prompt_then")
        parts = [value]
        for path in self.then:
            more = path.of(row.values)
            more = None if more != more else more  # data frames write NaN for a missing text
            if more is not None and not isinstance(more, str):
                raise BadRow(row, path.text, "is not a text", "give it a text, or leave it empty")
            parts += [more] if more and more.strip() else []
        return name, "\n\n".join(parts)

    def _rows_of(self, answers: Answers, number: int) -> Iterator[Row | BadRow]:
        scored: list[tuple[int, float]] = []
        score = self.mapping.score
        for answer in answers.scored(score.range if score else None):
            if isinstance(answer, BadRow):
                yield answer
            else:
                scored.append(answer)
        if len(scored) < 2:
            remedy = "a list needs two" if self.whole_lists else "a pair needs two"
            yield LeftOut(answers.row, str(self.mapping.responses), "has fewer than two answers with a score", remedy)
            return
        if self.whole_lists:
            yield from self.whole_lists.rows(answers, scored, number)
            return
        pairs = self.mapping.pairs_from_list.pairs([value for _, value in scored], answers.prompt[1])
        for i, j in pairs:
            try:
                yield self._pair_of(answers, scored[i], scored[j])
            except BadRow as bad:
                yield bad

    def _pair_of(self, answers: Answers, first: tuple[int, float], second: tuple[int, float]) -> Row:
        (i, w), (j, l) = first, second  # noqa: E741
        row = answers.rows[i] if answers.rows else answers.row
        texts = [answers.texts[i], answers.texts[j]]
        prompt, responses = self.dialogues.read(row, answers.prompt, texts, answers.system)
        names = (answers.scores[i][0], answers.scores[j][0])
        margin = self.mapping.margin
        raw = margin.of_scores(row, names, w, l, self.mapping.ascending)
        strength = PairStrengthValue(*margin.finished(row, names[0], raw), scores=(w, l))
        canonical = self._columns_of(answers, i, j)
        canonical |= {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
        _write(canonical, strength)
        if self.id and (id := self.id.of(row.values)) is not None:
            canonical["id"] = f"{id}/{i}-{j}" if isinstance(id, str | int) and not isinstance(id, bool) else id
        source_names = {
            "prompt": answers.prompt[0],
            "chosen": texts[0][0],
            "rejected": texts[1][0],
            "margin": names[0],
        }
        return Row(row.file, row.line, canonical, source_names, strength.clipped, True)

    def _columns_of(self, answers: Answers, i: int, j: int) -> dict[str, Any]:
        """Return the further columns of two answers."""
        one, two = (answers.rows[i].values, answers.rows[j].values) if answers.rows else (answers.row.values,) * 2
        columns = {
            name: value
            for name, value in one.items()
            if name not in self.dropped and (one is two or value == two.get(name))
        }
        if one is not two:
            columns |= {f"{name}_chosen": value for name, value in one.items() if name not in self.dropped}
            columns |= {f"{name}_rejected": value for name, value in two.items() if name not in self.dropped}
        columns |= {name: path.of(one) for name, path in self.plain}
        for name, path, _ in self.sided:
            for side, values, k in (("chosen", one, i), ("rejected", two, j)):
                value = path.of(values)
                if path.many:
                    value = value[k] if isinstance(value, list) and k < len(value) else None
                columns[f"{side}_source" if name == "source" else f"{name}_{side}"] = value
        return columns


def _path(text: str | None) -> ValuePath | None:
    return None if text is None else ValuePath(text)


def _named(path: ValuePath | None, values: dict[str, Any]) -> tuple[str, Any] | None:
    return None if path is None else (path.text, path.of(values))


def _are_texts(messages: list[Any]) -> bool:
    return all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)


def _write(canonical: dict[str, Any], strength: PairStrengthValue) -> None:
    """Write strength into the canonical columns."""
    if strength.margin is not None:
        canonical["margin"] = strength.margin
    if strength.probability is not None:
        canonical["probability"] = strength.probability
    if strength.scores is not None:
        canonical["score_chosen"], canonical["score_rejected"] = strength.scores
