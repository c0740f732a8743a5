"""Checks of single fields of a canonical row, with a sentence for every wrong value."""

import json
from collections.abc import Collection
from typing import Any

from lit_pref.data.formats.conversations import STRINGS
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.unread import is_empty, key_belongs, refuse_unread_keys
from lit_pref.data.sources.values import number, refuse_written_messages
from lit_pref.pairs import TEMPLATE_ARGUMENTS, Message, Text

Spans = list[tuple[int, int, float]]
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
RESERVED = frozenset(
    (
        "tools",
        "conversation",
        "conversations",
        "messages",
        "chat_template",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    )
)
"""Arguments of `apply_chat_template` that are not the template's own."""


def text_of(row: Row, field: str, value: Any) -> str:
    """Return the value if it is a text that is not blank."""
    if value is None:
        raise BadRow(row, field, "is missing or null", "give it a text")
    if not isinstance(value, str):
        raise BadRow(row, field, "is not a text", "give it a string or a message list", f" but {type(value).__name__}")
    if not value.strip():
        raise BadRow(row, field, "is empty", "give it a text")
    return encodable(row, field, value)


def plain_text_of(row: Row, field: str, value: Any) -> str:
    """Return a prompt or response; a message list written as text is refused."""
    text = text_of(row, field, value)
    refuse_written_messages(row, field, text)
    return text


def encodable(row: Row, field: str, text: str) -> str:
    """Return the text if it can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(row, field, "contains half a surrogate pair", "fix the text's encoding") from None
    return text


def messages_of(row: Row, field: str, value: list[Any], ignored: Collection[str] = ()) -> list[Message]:
    """Return the messages, without keys that are empty or `ignored`."""
    remedy = 'give it messages like {"role": "user", "content": "..."}'
    if not value:
        raise BadRow(row, field, "is an empty message list", remedy)
    if all(isinstance(message, str) for message in value):
        raise BadRow(row, field, "is a list of strings", STRINGS)
    for message in value:
        if not isinstance(message, dict) or not message.get("role") or not isinstance(message["role"], str):
            raise BadRow(row, field, "contains a message without a role", remedy)
    return [_message_of(row, field, message, ignored) for message in value]


def _message_of(row: Row, field: str, message: dict[str, Any], ignored: Collection[str]) -> Message:
    further = {
        str(key): json_of(row, f"{field} {key}", part)
        for key, part in message.items()
        if key not in ("role", "content", *ignored) and not is_empty(part)
    }
    content = message.get("content")
    if content in (None, "") and any(key_belongs(*item) for item in further.items()):
        content = ""  # a call of a tool may stand without a text
    elif message["role"] != "system" or content != "":  # empty system turns are common and harmless
        text_of(row, f"{field} content", content)
    return {"role": encodable(row, f"{field} role", message["role"]), "content": content, **further}


def json_of(row: Row, field: str, value: Any) -> Any:
    """Return a value as JSON can hold it; null entries of dictionaries, which Parquet adds, are left out."""
    return json.loads(encodable(row, field, json.dumps(_without_nulls(value), default=str, ensure_ascii=False)))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def template_arguments_of(row: Row, ignored: Collection[str]) -> dict[str, Any]:
    """Return the arguments of the chat template in a row: `tools`, and those in `chat_template_kwargs`."""
    given = {name: row.values.get(name) for name in TEMPLATE_COLUMNS if name not in ignored}
    for name, value in given.items():
        if isinstance(value, str) and value.strip():  # datasets hold both as JSON too
            try:
                given[name] = json.loads(value)
            except ValueError:
                raise BadRow(row, name, "is not JSON", "give it as a list or as JSON") from None
    tools, further = given.get("tools"), given.get("chat_template_kwargs")
    if not is_empty(tools) and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow(row, "tools", "is not a list of functions", "give each as a JSON schema")
    if not is_empty(further) and not isinstance(further, dict):
        raise BadRow(row, "chat_template_kwargs", "is not names with values", "give it as an object")
    arguments = dict(further) if isinstance(further, dict) else {}
    if reserved := sorted(RESERVED & arguments.keys()):
        raise BadRow(row, "chat_template_kwargs", f"sets {reserved[0]!r:.40}", "that is not the row's to set")
    arguments |= {} if is_empty(tools) else {"tools": tools}
    return {name: json_of(row, name, value) for name, value in arguments.items() if value is not None}


def prompt_of(row: Row, ignored: Collection[str] = ()) -> Text:
    """Return the prompt of a row: a text, or messages of which the first holds the arguments of the chat template."""
    prompt = row.values.get("prompt")
    if not isinstance(prompt, list):
        text = plain_text_of(row, "prompt", prompt)
        arguments = template_arguments_of(row, ignored)
        refuse_unread_keys(row, "prompt", arguments, arguments)
        return text
    messages = messages_of(row, "prompt", prompt, ignored)
    if arguments := template_arguments_of(row, ignored):
        messages[0] = {**messages[0], TEMPLATE_ARGUMENTS: arguments}
    if messages[-1]["role"] == "assistant":
        raise BadRow(
            row, "prompt", "ends with a message of the assistant", "end it with the turn that the responses answer"
        )
    return messages


def response_of(row: Row, field: str, prompt: Text, ignored: Collection[str] = ()) -> tuple[str, Message]:
    """Return the text of a response, which may be given as one message of the assistant, and its further keys."""
    value = row.values.get(field)
    if not isinstance(value, list):
        return plain_text_of(row, field, value), {}
    messages = messages_of(row, field, value, ignored)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow(
            row,
            field,
            "is not one message of the assistant",
            "put the preceding conversation into `prompt` as messages",
        )
    if isinstance(prompt, str):
        raise BadRow(row, field, "is a message but prompt is a string", "make both messages, or both strings")
    further = {key: part for key, part in messages[0].items() if key not in ("role", "content")}
    return messages[0]["content"], further


def id_of(row: Row) -> str:
    """Return the id of a row."""
    value = row.values["id"]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRow(
            row, "id", "is neither a string nor an integer", "give it one, or remove the column", f" ({value!r:.40})"
        )
    return encodable(row, "id", str(value))


def name_of(row: Row, field: str, strict: bool = True) -> str | None:
    """Return who wrote a text, or None if the row does not say; only `strict` refuses other values."""
    value = row.values.get(field)
    if value is None or isinstance(value, str):
        return value and encodable(row, field, value)
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
