"""What a mapping does to rows, with its paths made ready."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lit_pref.data.checking.fields import BadRow, LeftOut
from lit_pref.data.checking.row_reader import SOURCES, STRENGTH
from lit_pref.data.formats.conversations import Dialogues
from lit_pref.data.formats.field_path import ValuePath
from lit_pref.data.formats.ranked_lists import Answers, Asked, groups, in_row, of_group, of_tree
from lit_pref.data.formats.strength import PairStrength, PairStrengthValue
from lit_pref.data.sources.row import Row

if TYPE_CHECKING:
    from lit_pref.data.formats.spec import RowMapping

TEXTS = ("prompt", "chosen", "rejected", "extra_response")
SIDES = {"pair": ("chosen", "rejected"), "none": ("chosen", "rejected"), "ab": ("a", "b"), "ab_signed": ("a", "b")}


class Conversion:
    """From the rows of a source to rows in this project's own fields, as `mapping` says."""

    def __init__(self, mapping: "RowMapping") -> None:
        self.mapping = mapping
        self.dialogues = Dialogues(mapping.format, mapping.as_ == "text", mapping.prompt_repeated)
        self.prompt, self.system, self.id = map(_path, (mapping.prompt, mapping.system, mapping.id))
        self.extra_response = ValuePath(mapping.extra_response or "extra_response")
        sides = [getattr(mapping, side) for side in SIDES.get(mapping.kind, ())]
        self.texts = [ValuePath(path) for path in sides if path is not None]
        self.names = dict(zip(("chosen", "rejected"), (path.text for path in self.texts), strict=False))
        self.names |= {"prompt": mapping.prompt} if mapping.prompt else {}
        self.names |= {"extra_response": mapping.extra_response} if mapping.extra_response else {}
        self.judged = mapping.kind != "pair" or mapping.has_strength
        self.strength = PairStrength(mapping.margin, mapping.score, mapping.signed, mapping.probability, mapping.label)
        if self.judged and (said := mapping.strength_column):
            self.names["margin"] = said
        if mapping.probability:
            self.names["probability"] = mapping.probability.column
        self.dropped = frozenset((*TEXTS, "id", *(STRENGTH if self.judged else ())))
        if mapping.kind not in ("pair", "none"):  # where the source calls no text chosen, they are of other texts
            self.dropped |= frozenset(SOURCES[0])
        self.plain, self.sided = self._carried()
        if not self.judged and mapping.margin != type(mapping.margin)(normalise=mapping.margin.normalise):
            raise ValueError("a margin transform needs to know where the strength is: `mapping_of` looks at the rows")
        self.own = not self.judged and self.dialogues == Dialogues() and mapping.is_own

    def native(self, rows: Iterable[Row]) -> Iterator[Row | BadRow]:
        """The rows, in the order of the source."""
        if self.mapping.kind == "list":
            for answers in self._lists(rows):
                yield from [answers] if isinstance(answers, BadRow) else self._pairs_of(answers)
            return
        read: Callable[[Row], Row] = self._as_it_stands if self.own else self._pair
        for row in rows:
            try:
                yield read(row)
            except BadRow as bad:
                yield bad

    def _carried(self) -> tuple[list[tuple[str, ValuePath]], list[tuple[str, ValuePath, ValuePath]]]:
        """The further columns: those of the pair, and those of its two sides."""
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

    def _as_it_stands(self, row: Row) -> Row:
        """A row that already has this project's own fields; only dialogues within it are taken apart."""
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
        if len(texts) < 2 or (texts[1][1] is None and not self.texts[1].within(values)):  # data of one side
            del texts[1:], sides[1:]
        extra_response = self.extra_response.of(values)
        # One that nobody named is read if it is written as the texts beside it are, else left to whoever needs it.
        if self.extra_response.within(values) and (
            self.mapping.extra_response or type(extra_response) is type(texts[0][1])
        ):
            texts.append((self.extra_response.text, extra_response))
            sides.append("extra_response")
        prompt, responses = self.dialogues.read(row, _named(self.prompt, values), texts, _named(self.system, values))
        native = {name: value for name, value in values.items() if name not in self.dropped}
        if self.extra_response.within(values):
            native["extra_response"] = extra_response
        native["prompt"] = prompt
        native.update(zip(sides, responses, strict=True))
        for name, first, second in self.sided:
            side = SOURCES[0] if name == "source" else (f"{name}_chosen", f"{name}_rejected")
            native[side[0]], native[side[1]] = first.of(values), second.of(values)
        for name, path in self.plain:
            native[name] = path.of(values)
        if self.id and self.id.within(values):
            native["id"] = self.id.of(values)
        judged = self.strength.of(row) if self.judged else PairStrengthValue()
        _write(native, judged)
        first_known = True if self.mapping.kind in ("ab", "ab_signed") else None
        return Row(row.file, row.line, native, self.names, judged.clipped, first_known, judged.prefers)

    def _lists(self, rows: Iterable[Row]) -> Iterator[Answers | BadRow]:
        mapping = self.mapping
        response, score = ValuePath(str(mapping.responses)), ValuePath(str(mapping.score and mapping.score.path))
        if together := mapping.tree.tree if mapping.tree else mapping.group:
            for members in groups(rows, ValuePath(together)):
                if isinstance(members, BadRow):
                    yield members
                elif mapping.tree:
                    yield from of_tree(members, mapping.tree, response, score)
                else:
                    yield from of_group(members, self._asked, response, score)
            return
        for row in rows:
            try:
                yield in_row(row, *self._asked(row), response, score)
            except BadRow as bad:
                yield bad

    def _asked(self, row: Row) -> Asked:
        prompt = ValuePath(str(self.mapping.prompt))
        return (prompt.text, prompt.of(row.values)), _named(self.system, row.values)

    def _pairs_of(self, answers: Answers) -> Iterator[Row | BadRow]:
        scored: list[tuple[int, float]] = []
        for found in answers.scored():
            if isinstance(found, BadRow):
                yield found
            else:
                scored.append(found)
        if len(scored) < 2:
            remedy = "a pair needs two"
            yield LeftOut(answers.row, str(self.mapping.responses), "has fewer than two answers with a score", remedy)
            return
        pairs = self.mapping.pairs_from_list.pairs([score for _, score in scored], answers.prompt[1])
        for i, j in pairs:
            try:
                yield self._of_list(answers, scored[i], scored[j])
            except BadRow as bad:
                yield bad

    def _of_list(self, answers: Answers, first: tuple[int, float], second: tuple[int, float]) -> Row:
        (i, w), (j, l) = first, second  # noqa: E741
        row = answers.rows[i] if answers.rows else answers.row
        texts = [answers.texts[i], answers.texts[j]]
        prompt, responses = self.dialogues.read(row, answers.prompt, texts, answers.system)
        names = (answers.scores[i][0], answers.scores[j][0])
        margin = self.mapping.margin
        raw = margin.of_scores(row, names, w, l, self.mapping.ascending)
        judged = PairStrengthValue(*margin.finished(row, names[0], raw), scores=(w, l))
        native = self._beside(answers, i, j)
        native |= {"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}
        _write(native, judged)
        if self.id and (id := self.id.of(row.values)) is not None:
            native["id"] = f"{id}/{i}-{j}" if isinstance(id, str | int) and not isinstance(id, bool) else id
        called = {"prompt": answers.prompt[0], "chosen": texts[0][0], "rejected": texts[1][0], "margin": names[0]}
        return Row(row.file, row.line, native, called, judged.clipped, True)

    def _beside(self, answers: Answers, i: int, j: int) -> dict[str, Any]:
        """The further columns of two answers."""
        one, two = (answers.rows[i].values, answers.rows[j].values) if answers.rows else (answers.row.values,) * 2
        native = {
            name: value
            for name, value in one.items()
            if name not in self.dropped and (one is two or value == two.get(name))
        }
        if one is not two:
            native |= {f"{name}_chosen": value for name, value in one.items() if name not in self.dropped}
            native |= {f"{name}_rejected": value for name, value in two.items() if name not in self.dropped}
        native |= {name: path.of(one) for name, path in self.plain}
        for name, path, _ in self.sided:
            for side, values, k in (("chosen", one, i), ("rejected", two, j)):
                found = path.of(values)
                if path.many:
                    found = found[k] if isinstance(found, list) and k < len(found) else None
                native[f"{side}_source" if name == "source" else f"{name}_{side}"] = found
        return native


def _path(text: str | None) -> ValuePath | None:
    return None if text is None else ValuePath(text)


def _named(path: ValuePath | None, values: dict[str, Any]) -> tuple[str, Any] | None:
    return None if path is None else (path.text, path.of(values))


def _are_texts(messages: list[Any]) -> bool:
    return all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)


def _write(native: dict[str, Any], judged: PairStrengthValue) -> None:
    """Strength, under this project's own names."""
    if judged.margin is not None:
        native["margin"] = judged.margin
    if judged.probability is not None:
        native["probability"] = judged.probability
    if judged.scores is not None:
        native["score_chosen"], native["score_rejected"] = judged.scores
