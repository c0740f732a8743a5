"""What one field of a row must hold, and the sentence for a field that does not."""

import ast
import json
import math
import re
from collections.abc import Callable
from typing import Any

from lit_pref.data.sources.row import BadRow as BadRow
from lit_pref.data.sources.row import Row
from lit_pref.pairs import Message, Text

Spans = list[tuple[int, int, float]]
LARGEST = 3.4028234663852886e38  # finite in float32, in which batches are
LIST_START = re.compile(r"\s*\[\s*\{")


class LeftOut(BadRow):
    """Something that belongs to no pair, as an answer without a rank: counted, and no fault of the data."""


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


def plain_text_of(row: Row, field: str, value: Any) -> str:
    """A whole prompt or response; not the spelling of a message list, as tables of texts hold it."""
    text = text_of(row, field, value)
    refuse_written_messages(row, field, text)
    return text


def refuse_written_messages(row: Row, field: str, text: str) -> None:
    if LIST_START.match(text) and _are_messages(text):
        raise BadRow(
            row, field, "is a message list written as text", "give it as a list, as JSONL and Parquet files can hold it"
        )


def _are_messages(text: str) -> bool:
    readers: list[Callable[[str], Any]] = [json.loads]
    readers += [ast.literal_eval] if "'role'" in text else []  # as Python prints it: so data frames are saved
    for read in readers:
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return all(isinstance(entry, dict) and {"role", "content"} <= entry.keys() for entry in found)
    return False


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
        return plain_text_of(row, field, value)
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
    """A number that is finite in float32; with `truth` also true (1) and false (0)."""
    return number(row, field, row.values.get(field), truth)


def number(row: Row, field: str, value: Any, truth: bool = False) -> float:
    """The value as a number that is finite in float32; in a table of texts it may be written out."""
    kinds = (int, float, str) if row.is_table else (int, float)
    if isinstance(value, kinds) and (truth or not isinstance(value, bool)) and "_" not in str(value):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            found = math.nan
        if abs(found) <= LARGEST:
            return found
        if math.isfinite(found):
            raise BadRow(row, field, "is too large for single precision", "give it in another unit", f" ({found:g})")
    shown = "null" if value is None else f"{value!r:.40}"
    raise BadRow(row, field, "is not a finite number", "give it a number", f" ({shown})")


def id_of(row: Row) -> str:
    value = row.values["id"]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRow(
            row, "id", "is neither a word nor an integer", "give it one, or remove the column", f" ({value!r:.40})"
        )
    return str(value)


def name_of(row: Row, field: str, strict: bool = True) -> str | None:
    """Who wrote a text, where the row says so."""
    value = row.values.get(field)
    if value is None or isinstance(value, str):
        return value
    if not strict:
        return None
    raise BadRow(row, field, "is not a name", "give it a word, or null", f" ({value!r:.40})")


def spans_of(row: Row, field: str, text: str | None) -> Spans:
    """Spans of a response with their values: (start, end, value), in characters."""
    spans = row.values.get(field)
    remedy = "give it a list of [start, end, value], in characters of that response"
    if not isinstance(spans, list):
        raise BadRow(row, field, "is no list of spans", remedy)
    for span in spans:
        # A Parquet list holds one kind of number: 3.0 is a place too.
        if not isinstance(span, list | tuple) or len(span) != 3 or not all(map(_is_whole, span[:2])):
            raise BadRow(row, field, "holds what is no span", remedy, f" ({span!r:.40})")
        if not 0 <= span[0] < span[1] <= len(text or ""):
            raise BadRow(row, field, "has a span outside of its text", remedy, f" ({span!r:.40})")
    return [(int(start), int(end), number(row, field, value)) for start, end, value in spans]


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())
