"""Columns and message keys that nothing reads: which of them belong to prompt or response."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lit_pref.data.sources.row import BadRow, Row
from lit_pref.errors import UserError, printable

LONG = 100
"""Characters of a text that is too long for a name or a category."""
SHORT = 20
"""Characters of a text that may stand in another one by chance."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROMPT_KEYS = _words(
    "tool_calls function_call tool_call tools functions reasoning_content reasoning thinking thoughts thought "
    "template_arguments documents images image audio video refusal"
)
"""Keys of messages that hold a part of what was said."""
PROMPT_WORDS = _words(
    "history context contexts system instruction instructions input inputs query question tool tools function "
    "functions conversation conversations message messages dialogue dialogues dialog dialogs chat prefix "
    "suffix step steps passage passages document documents doc docs persona background premise story evidence "
    "quotes reasoning thinking thought thoughts scratchpad cot demonstrations exemplars image images audio "
    "video template"
)
"""Words in the name of a column that belongs to the prompt or the response."""
LABEL_WORDS = _words(
    "id ids idx index uuid hash sha url uri link path file model models source origin dataset subset split "
    "category type topic domain lang language date time timestamp created author name license version tag tags "
    "label labels count num number length len tokens score scores rating ratings rank status config generator"
)
"""Words in the name of a column that describes a row, unless its text is long."""
JUDGEMENT_WORDS = _words(
    "critique critiques feedback rationale rationales explanation justification verdict judge judgement "
    "judgment annotator annotators annotation annotations evaluation review reviews preference preferences url "
    "uri"
)
"""Words in the name of a column that speaks about the responses, however long its text is."""


def is_empty(value: Any) -> bool:
    """Return whether a value says nothing: null, a blank text, or only such values."""
    if isinstance(value, dict | list):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return value is None or (isinstance(value, str) and not value.strip())


def key_belongs(name: str, value: Any) -> bool:
    """Return whether a message's key, other than role and content, is part of the conversation."""
    return not is_empty(value) and (name in PROMPT_KEYS or column_belongs(name, value))


def column_belongs(name: str, value: Any) -> bool:
    """Return whether a column belongs to the prompt or the response, by the words in its name and by its texts.

    >>> column_belongs("history", [["hi", "hello"]]), column_belongs("question_id", "q7"), column_belongs("turns", 3)
    (True, False, False)
    """
    longest = max(map(len, texts_of(value)), default=0)
    words = _words_of(name)
    if not longest or words & JUDGEMENT_WORDS:
        return False
    return longest >= LONG or bool(words & PROMPT_WORDS and not words & LABEL_WORDS)


def _words_of(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def texts_of(value: Any) -> Iterator[str]:
    """Yield the texts in a value that are not blank, without roles."""
    if isinstance(value, str):
        yield from [value] if value.strip() else []
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from () if key in ("role", "from", "type") else texts_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from texts_of(part)


def said(messages: Any) -> Any:
    """Return messages without the keys that are not part of the conversation, such as a time; a text is unchanged."""
    if isinstance(messages, str):
        return messages
    return [
        {key: part for key, part in message.items() if key in ("role", "content") or key_belongs(key, part)}
        for message in messages
    ]


def may_matter(name: str, value: Any) -> bool:
    """Return whether what nothing reads should be looked at: it has text, or a name as if it belonged to the prompt.

    >>> may_matter("choices", ["yes"]), may_matter("prefix", True), may_matter("source", "gpt"), may_matter("turns", 3)
    (True, True, False, False)
    """
    words = _words_of(name)
    if is_empty(value) or words & (LABEL_WORDS | JUDGEMENT_WORDS):
        return False
    return any(texts_of(value)) or bool(words & PROMPT_WORDS)


class UnreadColumns:
    """Counts the columns of a source that nothing reads, and refuses those that belong to the prompt or the response.

    `rows` counts the rows in which a column is not empty, `of_note` those in which it should be looked at.

    Args:
        read: the columns that are read.
        ignored: columns that may be left unread whatever they hold.
    """

    def __init__(self, read: Collection[str], ignored: Collection[str]) -> None:
        self._read = frozenset(read)
        self._ignored = frozenset(ignored)
        self.rows: Counter[str] = Counter()
        self.of_note: Counter[str] = Counter()

    def watch(self, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        """Yield the rows unchanged.

        Raises:
            UserError: a row has columns that belong to the prompt or the response and are neither read nor ignored.
        """
        for row in rows:
            if not isinstance(row, BadRow) and (unread := row.values.keys() - self._read):
                self.rows.update(printable(name) for name in unread if not is_empty(row.values[name]))
                self._check(row, unread - self._ignored)
            yield row

    def _check(self, row: Row, unread: Collection[str]) -> None:
        values = {name: row.values[name] for name in sorted(unread)}
        noted = {name for name, value in values.items() if may_matter(str(name), value)}
        belonging = {name for name, value in values.items() if column_belongs(str(name), value)}
        if not (noted or belonging):
            return
        read = [text for name in self._read & row.values.keys() for text in texts_of(row.values[name])]
        new = [name for name in values if not all(_within(text, read) for text in texts_of(values[name]))]
        self.of_note.update(printable(name) for name in noted if name in new or not any(texts_of(values[name])))
        if lost := [name for name in new if name in belonging]:
            raise UserError(
                f"{row.place}: {' and '.join(f'`{name}`' for name in lost)} may belong to the prompt or the response, "
                "and nothing reads it: write it into the prompt, or name the column in the mapping (data.mapping: "
                f"{{system: {lost[0]}}} or {{prompt_then: [{lost[0]}]}}); if it is neither, leave it out by "
                f"data.ignore_columns: [{', '.join(map(str, lost))}]."
            )


def refuse_unread_keys(row: Row, field: str, unread: Mapping[str, Any], arguments: Collection[str] = ()) -> None:
    """Refuse unread `arguments` of the template, and unread keys of messages that belong to the conversation.

    Raises:
        UserError: there is such a key.
    """
    if lost := sorted(name for name, value in unread.items() if name in arguments or key_belongs(name, value)):
        raise UserError(
            f"{row.place}: {row.named(field)} has {' and '.join(f'`{name}`' for name in lost)}, which the chat "
            "template does not write; give the tokenizer a template that reads it, or write it into the content; to "
            f"leave it out, name it in data.ignore_columns: [{', '.join(lost)}]."
        )


def _within(text: str, read: list[str]) -> bool:
    """Return whether a text is one of those that are read, or a part of one."""
    text = text.strip()
    return any(text == other.strip() or (len(text) >= SHORT and text in other) for other in read)
