"""Dialogues in all the ways they are written: what becomes the prompt, what the responses, and what is refused."""

import pytest

from lit_pref.data.formats.conversations import Dialogues
from lit_pref.data.sources.row import BadRow, Row

ROW = Row("some.jsonl", 3, {})


def turns(*contents, roles=("user", "assistant")):
    return [{"role": roles[k % 2], "content": content} for k, content in enumerate(contents)]


def read(prompt, *responses, system=None, **options):
    names = [f"r{k}" for k in range(len(responses))]
    asked = None if prompt is None else ("q", prompt)
    spoken = None if system is None else ("s", system[0])
    return Dialogues(**options).read(ROW, asked, list(zip(names, responses, strict=True)), spoken)


HI = turns("hi")


@pytest.mark.parametrize(
    "prompt, responses, options, expected",
    [
        ("2+2=", (" 4\n", "5"), {}, ("2+2=", [" 4\n", "5"])),
        ("2+2=", (" 4\n", "5"), {"format": "messages"}, (turns("2+2="), [" 4\n", "5"])),
        (HI, ("yes", turns("hi", "no")[1:]), {}, (HI, ["yes", "no"])),
        ("hi", (turns("hi", " yes")[1:], turns("hi", "no")[1:]), {}, (HI, [" yes", "no"])),
        ("hi", (turns("hi", "yes"), turns("hi", "no")), {}, (HI, ["yes", "no"])),
        (HI, (turns("hi", "yes"), turns("hi", "no")), {}, (HI, ["yes", "no"])),
        (None, (turns("hi", "yes"), turns("hi", "no")), {}, (HI, ["yes", "no"])),
        (None, (turns("a", "b", "c", "d"), turns("a", "b", "c", "e")), {}, (turns("a", "b", "c"), ["d", "e"])),
        ("2+2=", ("2+2= 4", "2+2=5"), {"repeated": True}, ("2+2=", [" 4", "5"])),
        (None, (turns("hi", "same"), turns("hi", "same")), {}, (HI, ["same", "same"])),
    ],
)
def test_prompt_and_responses_are_told_apart_and_a_repeated_prompt_is_never_doubled(
    prompt, responses, options, expected
):
    assert read(prompt, *responses, **options) == expected


def test_a_dialogue_that_repeats_a_prompt_string_may_begin_with_a_system_turn():
    system = {"role": "system", "content": "be kind"}
    dialogues = [[system, *turns("hi", answer)] for answer in ("yes", "no")]
    assert read("hi", *dialogues) == ([system, *HI], ["yes", "no"])


@pytest.mark.parametrize(
    "prompt, system, expected",
    [
        ("hi", "be kind", [{"role": "system", "content": "be kind"}, *HI]),
        (HI, "be kind", [{"role": "system", "content": "be kind"}, *HI]),
        ("hi", "", HI),
        ("hi", None, HI),
    ],
)
def test_a_system_column_makes_messages_and_an_empty_one_makes_no_turn(prompt, system, expected):
    assert read(prompt, "yes", "no", system=[system]) == (expected, ["yes", "no"])


def test_hh_text_becomes_messages_byte_for_byte_after_the_one_blank():
    chosen = "\n\nHuman: hi \n\nAssistant: hm\n\nreally\n\nHuman:why\n\nAssistant:  so\n"
    rejected = chosen.replace("  so\n", " no")
    prompt = turns("hi ", "hm\n\nreally", "why")
    assert read(None, chosen, rejected, format="hh") == (prompt, [" so\n", "no"])
    assert read(None, "Human: hi\n\nAssistant: yes", "\n\nHuman: hi\n\nAssistant: no", format="hh") == (
        HI,
        ["yes", "no"],
    )


def test_hh_text_may_stay_text_with_the_prompt_up_to_the_mark():
    chosen, rejected = (f"\n\nHuman: hi\n\nAssistant: {answer}" for answer in ("yes", "no"))
    prompt, responses = read(None, chosen, rejected, format="hh", as_text=True)
    assert (prompt, responses) == ("\n\nHuman: hi\n\nAssistant:", [" yes", " no"])
    assert prompt + responses[0] == chosen


def test_an_hh_prompt_beside_plain_answers_loses_its_empty_last_turn():
    assert read("\n\nHuman: hi\n\nAssistant:", " yes", "no", format="hh") == (HI, [" yes", "no"])
    text = "\n\nHuman: hi\n\nAssistant:"
    assert read(text, " yes", " no", format="hh", as_text=True) == (text, [" yes", " no"])


def test_an_empty_hh_response_stays_empty_and_does_not_cost_the_turn_before():
    dialogues = "\n\nHuman: hi\n\nAssistant: ", "\n\nHuman: hi\n\nAssistant: yes"
    assert read(None, *dialogues, format="hh") == (HI, ["", "yes"])


@pytest.mark.parametrize("key, value", [("role", "content"), ("from", "value")])
def test_messages_may_come_in_parts_of_text_and_in_sharegpt_words(key, value):
    asked = [
        {
            key: "user" if key == "role" else "human",
            value: [{"type": "text", "text": "2"}, {"type": "text", "value": "+2="}],
        }
    ]
    answers = [{key: "assistant" if key == "role" else "gpt", value: text} for text in (" 4", "5")]
    assert read(asked, *answers) == (turns("2+2="), [" 4", "5"])


@pytest.mark.parametrize(
    "prompt, responses, options, sentence",
    [
        (None, (turns("a", "b"), turns("c", "b")), {}, "r0 and the other dialogue differ before the last turn; a pair"),
        (None, (turns("a", "b"), turns("a", "b", "c", "d")), {}, "r0 and the other dialogue differ before the last"),
        (None, (turns("a", "b"), turns("a")), {}, "r1 does not end with the assistant's turn"),
        (None, (turns("a", "b")[1:], turns("a", "c")[1:]), {}, "r0 contains no prompt"),
        (None, ("text", "other"), {}, "r0 is not a dialogue; without a prompt column"),
        (None, (None, turns("a", "b")), {}, "r0 is missing or null"),
        (None, ([], turns("a", "b")), {}, "r0 is an empty message list"),
        ("other", (turns("hi", "yes"), turns("hi", "no")), {}, "r0 repeats another prompt; its turns before the last"),
        (turns("other"), ("yes", turns("hi", "no")), {}, "r1 repeats another prompt; .* must be those of q"),
        ("2+2=", ("2+2= 4", "5"), {"repeated": True}, "r1 does not begin with the prompt; set the mapping's prompt_re"),
        (HI, ("yes", "no"), {"format": "text"}, "q is a message list; the mapping's format says text"),
        (None, ("hello", "you"), {"format": "hh"}, "r0 is not HH text; it must begin with"),
        (None, ("\n\nAssistant: hi", "\n\nAssistant: ho"), {"format": "hh"}, "r0 is not HH text"),
        (None, ("hello", "you"), {"format": "hh", "as_text": True}, "r0 is not HH text; it must contain"),
        (
            None,
            ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: x"),
            {"format": "hh", "as_text": True},
            "r0 and the other dialogue differ",
        ),
        (
            [{"from": "observation", "value": "x"}],
            ("a", "b"),
            {},
            r"q has a turn of another kind \('observation'\); only",
        ),
        ([{"from": "function_call", "value": "x"}], ("a", "b"), {}, r"q has a turn of another kind"),
        ([{"value": "x"}], ("a", "b"), {}, "q contains a message without a role; give messages like"),
        (["hi"], ("a", "b"), {}, "q is a list of strings; write one string, or messages like"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            ("a", "b"),
            {},
            r"q contains a part that is not text \('image_url'\); leave out rows with images or tools",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": None}]}],
            ("a", "b"),
            {},
            "q contains a part that is not",
        ),
        (HI, ("a", "b"), {"system": [5]}, "s is not a text; give a system text"),
    ],
)
def test_what_is_no_pair_of_answers_to_one_prompt_is_refused_by_its_own_name(prompt, responses, options, sentence):
    with pytest.raises(BadRow, match=f"^some.jsonl, line 3: {sentence}"):
        read(prompt, *responses, **options)


@pytest.mark.parametrize("options", [{}, {"format": "messages"}, {"system": ["be brief"]}])
def test_a_message_list_written_as_text_never_becomes_the_text_of_a_message(options):
    written = '[{"role": "user", "content": "hi"}]'
    with pytest.raises(BadRow, match="q is a message list written as text; give it as a list"):
        read(written, "4", "5", **options)


@pytest.mark.parametrize("value", [None, 5, True])
def test_what_is_neither_text_nor_messages_never_becomes_text(value):
    assert read("hi", value, "no") == ("hi", [value, "no"])
    asked = Dialogues("messages").read(ROW, ("q", value), [("a", "yes"), ("b", "no")])
    assert asked == (value, ["yes", "no"])
