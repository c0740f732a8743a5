"""Checks of single fields of a canonical row, with a sentence for every wrong value."""

from typing import Any

from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.values import number, refuse_written_messages
from lit_pref.pairs import Message, Text

Spans = list[tuple[int, int, float]]


def text_of(row: Row, field: str, value: Any) -> str:
    """Return the value if it is a text that is not blank."""
    if value is None:
        raise BadRow(row, field, "is missing or null", "give it a text")
    if not isinstance(value, str):
        raise BadRow(row, field, "is not a text", "give it a string or a message list", f" but {type(value).__name__}")
    if not value.strip():
        raise BadRow(row, field, "is empty", "give it a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(row, field, "contains half a surrogate pair", "fix the text's encoding") from None
    return value


def plain_text_of(row: Row, field: str, value: Any) -> str:
    """Return a prompt or response; a message list written as text is refused."""
    text = text_of(row, field, value)
    refuse_written_messages(row, field, text)
    return text


def messages_of(row: Row, field: str, value: list[Any]) -> list[Message]:
    """Return the messages, reduced to role and content."""
    remedy = 'give it messages like {"role": "user", "content": "..."}'
    if not value:
        raise BadRow(row, field, "is an empty message list", remedy)
    for message in value:
        if not isinstance(message, dict) or not message.get("role") or not isinstance(message["role"], str):
            raise BadRow(row, field, "contains a message without a role", remedy)
        if message["role"] != "system" or message.get("content") != "":  # empty system turns are common and harmless
            text_of(row, f"{field} content", message.get("content"))
    return [{"role": message["role"], "content": message["content"]} for message in value]


def response_of(row: Row, field: str, prompt: Text) -> str:
    """Return the text of a response, which may be given as one message of the assistant."""
    value = row.values.get(field)
    if not isinstance(value, list):
        return plain_text_of(row, field, value)
    messages = messages_of(row, field, value)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow(
            row,
            field,
            "is not one message of the assistant",
            "put the preceding conversation into `prompt` as messages",
        )
    if isinstance(prompt, str):
        raise BadRow(row, field, "is a message but prompt is a string", "make both messages, or both strings")
    return messages[0]["content"]


def id_of(row: Row) -> str:
    """Return the id of a row."""
    value = row.values["id"]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRow(
            row, "id", "is neither a string nor an integer", "give it one, or remove the column", f" ({value!r:.40})"
        )
    return str(value)


def name_of(row: Row, field: str, strict: bool = True) -> str | None:
    """Return who wrote a text, or None if the row does not say; only `strict` refuses other values."""
    value = row.values.get(field)
    if value is None or isinstance(value, str):
        return value
    if not strict:
        return None
    raise BadRow(row, field, "is not a name", "give it a string, or null", f" ({value!r:.40})")


def spans_of(row: Row, field: str, text: str | None) -> Spans:
    """Return the spans of a response with their values: (start, end, value), in characters."""
    spans = row.values.get(field)
    remedy = "give it a list of [start, end, value], in characters of that response"
    if not isinstance(spans, list):
        raise BadRow(row, field, "is not a list of spans", remedy)
    for span in spans:
        # The numbers of a Parquet list have one type, so a position can be written 3.0.
        if not isinstance(span, list | tuple) or len(span) != 3 or not all(map(_is_whole, span[:2])):
            raise BadRow(row, field, "contains an invalid span", remedy, f" ({span!r:.40})")
        if not 0 <= span[0] < span[1] <= len(text or ""):
            raise BadRow(row, field, "has a span outside its text", remedy, f" ({span!r:.40})")
    return [(int(start), int(end), number(row, field, value)) for start, end, value in spans]


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())
