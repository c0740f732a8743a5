"""Splits dialogues, in any notation, into a prompt and the text of each response.

The rules:

- A plain string stays plain text, exactly as in the file, unless the mapping sets `format: messages`, has a `system`
  column, or its responses are messages: a prompt then becomes one user message.
- Message lists consist of role and content; further keys of a message are passed to the chat template. If a
  content has several parts, they must all be text and are joined.
  ShareGPT's `from` and `value`, and a single message without a list around it, are read the same way.
- HH text ("\\n\\nHuman: ...\\n\\nAssistant: ...") becomes messages, because its speaker names belong to one
  model family; with `as: text` it stays text, and the prompt ends in "\\n\\nAssistant:".
- A response may be a whole dialogue. The messages before its last one must be the prompt, which is never included
  twice; without a separate prompt, both responses must be the same up to the last message.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.sources.unread import is_empty, said
from lit_pref.data.sources.values import refuse_written_messages
from lit_pref.pairs import Message

TextFormat = Literal["auto", "messages", "text", "hh", "sharegpt"]
Named = tuple[str, Any]
"""A value and its name in the source."""

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_START = re.compile(r"\s*Human:")
STRINGS = 'write one string, or messages like {"role": "user", "content": "..."}; several responses need kind: list'
MESSAGES = 'give messages like {"role": "user", "content": "..."}'


@dataclass(frozen=True)
class Dialogues:
    """Splits the texts of a row into prompt and responses, following the notation that a mapping names.

    Args:
        format: notation of prompt and responses; `auto` distinguishes messages from text by their type.
        as_text: keep HH text as text.
        repeated: the response strings begin with the prompt, which is removed.
    """

    format: TextFormat = "auto"
    as_text: bool = False
    repeated: bool = False

    def read(
        self, row: Row, prompt: Named | None, responses: Sequence[Named], system: Named | None = None
    ) -> tuple[Any, list[Any]]:
        """Return the prompt and the responses of a row.

        A prompt is a string or a message list, a response is a string. Any other value (null, a number) is returned
        unchanged and refused when the row is checked.

        Raises:
            BadRow: the texts have another notation, or the responses do not answer one prompt.
        """
        if self.format == "hh" and self.as_text and prompt is None:
            return _implicit_text(row, responses)
        asked = None if prompt is None else self._turns(row, *prompt)
        if self.format == "hh" and isinstance(asked, list) and asked[-1] == {"role": "assistant", "content": ""}:
            del asked[-1]  # an HH prompt ends with the speaker's name of the next turn
        answers = [(name, self._turns(row, name, value, alone=prompt is not None)) for name, value in responses]
        if prompt is None:
            asked, texts = _implicit(row, answers)
        else:
            asked, texts = _explicit(row, (prompt[0], asked), answers)
        if self.repeated and prompt is not None and isinstance(asked, str):
            texts = [_without(row, name, asked, text) for (name, _), text in zip(answers, texts, strict=True)]
        if isinstance(asked, str) and (self.format in ("messages", "sharegpt") or system is not None):
            asked = [{"role": "user", "content": asked}]
        if system is not None and system[1] not in (None, "") and isinstance(asked, list):
            if not isinstance(system[1], str):
                raise BadRow(row, system[0], "is not a text", "give a system text, or leave it empty")
            asked = [{"role": "system", "content": system[1]}, *asked]
        return asked, texts

    def _turns(self, row: Row, name: str, value: Any, alone: bool = False) -> Any:
        """Return a string or messages, and any other value unchanged; `alone` allows HH text without turns."""
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list):
            if self.format in ("text", "hh"):
                raise BadRow(row, name, "is a message list", "the mapping's format says text; set it to auto")
            if alone and value and all(isinstance(entry, str) for entry in value):
                remedy = f"write `{name}[]` in the mapping to pair every chosen with every rejected text"
                raise BadRow(row, name, "is a list of texts, not of messages", remedy)
            return messages_in(row, name, value)
        if isinstance(value, str):
            refuse_written_messages(row, name, value)
        if self.format == "hh" and isinstance(value, str) and not self.as_text:
            return value if alone and not HH_START.match(value) else hh_messages(row, name, value)
        return value


def messages_in(row: Row, name: str, value: list[Any]) -> list[Message]:
    """Return messages of role, content and further keys, from any notation of messages."""
    if not value:
        raise BadRow(row, name, "is an empty message list", MESSAGES)
    return [_message(row, name, entry) for entry in value]


def hh_messages(row: Row, name: str, text: str) -> list[Message]:
    r"""Return the turns of HH text, without the one blank after each colon.

    >>> hh_messages(Row("hh.jsonl", 1, {}), "chosen", "\n\nHuman: hi\n\nAssistant: hello\n\nyou")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello\n\nyou'}]
    """
    before, *parts = HH_TURN.split(f"\n\n{text}" if text.startswith("Human:") else text)
    if before.strip() or not parts or parts[0] != "Human":
        raise BadRow(row, name, "is not HH text", r'it must begin with "\n\nHuman:", or give another format')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": ROLES.get(who.lower(), "assistant"), "content": text.removeprefix(" ")} for who, text in turns]


def _message(row: Row, name: str, entry: Any) -> Message:
    role = content = None
    if isinstance(entry, dict):
        if "role" in entry:
            role, content = entry["role"], entry.get("content")
        elif "from" in entry:
            speaker, content = entry["from"], entry.get("value")
            role = ROLES.get(speaker) if isinstance(speaker, str) else None
            if isinstance(speaker, str) and role is None:
                remedy = "only human, gpt, system, user and assistant are accepted; leave the row out"
                raise BadRow(row, name, "has a turn of another kind", remedy, f" ({speaker!r:.40})")
    if isinstance(entry, str):
        raise BadRow(row, name, "is a list of strings", STRINGS)
    if not isinstance(role, str) or not role:
        raise BadRow(row, name, "contains a message without a role", MESSAGES)
    text: Any = _joined(row, name, content) if isinstance(content, list) else content
    further = {
        str(key): value
        for key, value in entry.items()
        if key not in ("role", "content", *(() if "role" in entry else ("from", "value"))) and not is_empty(value)
    }
    return {"role": role, "content": text, **further}


def _response(last: Message) -> Any:
    """Return a message's text, or the message itself if it has more than a role and a text."""
    return last["content"] if len(last) == 2 else [last]


def _joined(row: Row, name: str, parts: list[Any]) -> str:
    """Return the text of a content that is given in parts."""
    texts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        text = (part.get("text") if "text" in part else part.get("value")) if kind == "text" else None
        if not isinstance(text, str):
            raise BadRow(
                row, name, "contains a part that is not text", "leave out rows with images or tools", f" ({kind!r:.40})"
            )
        texts.append(text)
    return "".join(texts)


def _implicit(row: Row, answers: Sequence[Named]) -> tuple[Any, list[Any]]:
    """Return the prompt that all dialogues begin with, and their last messages."""
    for name, dialogue in answers:
        if not isinstance(dialogue, list):
            if dialogue is None:
                raise BadRow(row, name, "is missing or null", "give it a dialogue")
            raise BadRow(row, name, "is not a dialogue", "without a prompt column it must contain the prompt too")
        if dialogue[-1]["role"] != "assistant":
            raise BadRow(row, name, "does not end with the assistant's turn", "end it with the response")
    first, prompt = answers[0][0], answers[0][1][:-1]
    if any(said(dialogue[:-1]) != said(prompt) for _, dialogue in answers[1:]):
        raise BadRow(row, first, "and the other dialogue differ before the last turn", "a pair answers one prompt")
    if not prompt:
        raise BadRow(row, first, "contains no prompt", "put the conversation before the response, or give `prompt`")
    return prompt, [_response(dialogue[-1]) for _, dialogue in answers]


def _implicit_text(row: Row, responses: Sequence[Named]) -> tuple[str, list[str]]:
    """Return the prompt and the responses of HH text that stays text."""
    mark = "\n\nAssistant:"
    cut = []
    for name, text in responses:
        if not isinstance(text, str) or mark not in text:
            raise BadRow(row, name, "is not HH text", r'it must contain "\n\nAssistant:", or give another format')
        prompt, _, response = text.rpartition(mark)
        cut.append((prompt + mark, response))
    if any(prompt != cut[0][0] for prompt, _ in cut):
        raise BadRow(
            row, responses[0][0], "and the other dialogue differ before the last turn", "a pair answers one prompt"
        )
    return cut[0][0], [response for _, response in cut]


def _explicit(row: Row, prompt: Named, answers: Sequence[Named]) -> tuple[Any, list[Any]]:
    """Return the prompt and the last messages; a prompt string becomes the messages of dialogues that repeat it."""
    asked = prompt[1]
    texts = []
    for name, dialogue in answers:
        if not isinstance(dialogue, list):
            texts.append(dialogue)
            continue
        *before, last = dialogue
        if last["role"] != "assistant":
            raise BadRow(row, name, "does not end with the assistant's turn", "end it with the response")
        if isinstance(asked, str):
            asked = _in_dialogue(asked, before)
        if before and (not isinstance(asked, list) or said(before) != said(asked)):
            raise BadRow(row, name, "repeats another prompt", f"its turns before the last must be those of {prompt[0]}")
        texts.append(_response(last))
    return asked, texts


def _in_dialogue(prompt: str, before: list[Message]) -> list[Message]:
    """Return a prompt string as messages: those of the dialogue if its first or last user message is the prompt."""
    asked = [message["content"] for message in before if message["role"] == "user"]
    return before if asked and prompt in (asked[0], asked[-1]) else [{"role": "user", "content": prompt}]


def _without(row: Row, name: str, prompt: str, text: Any) -> Any:
    if not isinstance(text, str):
        return text
    if not text.startswith(prompt):
        raise BadRow(row, name, "does not begin with the prompt", "set the mapping's prompt_repeated to false")
    return text[len(prompt) :]
