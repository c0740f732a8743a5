"""What one field of a row must hold, and the sentence for a field that does not."""

import math
from typing import Any

from lit_pref.data.reading import Row
from lit_pref.errors import UserError
from lit_pref.types import Message, Text


class BadRow(UserError):
    """One row that cannot be a pair; `kind` is the reason without the row's own numbers, to count by."""

    def __init__(self, row: Row, field: str, reason: str, remedy: str, detail: str = "") -> None:
        self.kind = f"{field} {reason}"
        super().__init__(
            f"{row.place}: {self.kind}{detail}; {remedy}, or leave such rows out with data.bad_rows: lenient."
        )


def text_of(row: Row, field: str, value: Any) -> str:
    if value is None:
        raise BadRow(row, field, "is missing or null", "give it a text")
    if not isinstance(value, str):
        raise BadRow(row, field, "is not a text", "give it a string or a message list", f" but {type(value).__name__}")
    if not value.strip():
        raise BadRow(row, field, "is empty", "give it a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(row, field, "holds half a surrogate pair", "mend the text's encoding") from None
    return value


def messages_of(row: Row, field: str, value: list[Any]) -> list[Message]:
    remedy = 'give it messages like {"role": "user", "content": "..."}'
    if not value:
        raise BadRow(row, field, "is an empty message list", remedy)
    for message in value:
        if not isinstance(message, dict) or not message.get("role") or not isinstance(message["role"], str):
            raise BadRow(row, field, "holds a message without a role", remedy)
        if message["role"] != "system" or message.get("content") != "":  # an empty system turn is common and harmless
            text_of(row, f"{field} content", message.get("content"))
    return [{"role": message["role"], "content": message["content"]} for message in value]


def response_of(row: Row, field: str, prompt: Text) -> str:
    value = row.values.get(field)
    if not isinstance(value, list):
        return text_of(row, field, value)
    messages = messages_of(row, field, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow(
            row,
            field,
            "is not one message of the assistant",
            "put the conversation before it into `prompt` as messages",
        )
    if isinstance(prompt, str):
        raise BadRow(row, field, "is a message but prompt is a string", "make both messages, or both strings")
    return messages[0]["content"]


def number_of(row: Row, field: str, truth: bool = False) -> float:
    """A finite number; with `truth` also true (1) and false (0)."""
    value = row.values.get(field)
    if (isinstance(value, bool) and not truth) or not isinstance(value, int | float) or not math.isfinite(value):
        shown = "null" if value is None else f"{value!r:.40}"
        raise BadRow(row, field, "is not a finite number", "give it a number", f" ({shown})")
    return float(value)


def id_of(row: Row) -> str:
    value = row.values["id"]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRow(
            row, "id", "is neither a word nor an integer", "give it one, or remove the column", f" ({value!r})"
        )
    return str(value)
