"""Whatever belongs to a prompt or a response reaches the model, or the run stops and names it."""

import json

import pytest

from lit_pref.check.text_findings import dated, unread
from lit_pref.data.prepared.pair_view import PreparedPairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source
from lit_pref.data.sources.unread import column_belongs, key_belongs
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UserError

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FULL = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% if mood %}({{ mood }}){% endif %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
ASKED = [{"role": "user", "content": "q"}]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))


def said(text):
    return [{"role": "assistant", "content": text}]


def row(**more):
    return {"prompt": ASKED, "chosen": said("a"), "rejected": said("b"), "margin": 1.0, **more}


def texts(tokenizer, path, template=FULL, **options):
    """The decoded prompt, chosen and rejected tokens of the first pair, and the report."""
    tokenizer.chat_template = template
    folder = Preparation(**options).prepare(Source(str(path)), Tokenization(tokenizer, 4096))
    pairs = PreparedPairs(folder, "train")
    pair = pairs[0]
    return [tokenizer.decode(ids) for ids in (pair.prompt, pair.chosen, pair.rejected)], pairs


@pytest.mark.parametrize(
    ("more", "written_as"),
    [
        ({"prompt": [*ASKED, {**said("look")[0], "tool_calls": [CALL]}, {"role": "tool", "content": "r"}]}, '"x": 1'),
        ({"prompt": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}, *ASKED]}, '"x": 1'),
        ({"tools": [CALL]}, '"name": "f"'),
        ({"tools": json.dumps([CALL])}, '"name": "f"'),
        ({"chat_template_kwargs": {"mood": "calm"}}, "(calm)"),
        ({"prompt": [*ASKED, {**said("x")[0], "reasoning_content": "since"}, *ASKED]}, "<think>since</think>"),
    ],
)
def test_calls_tools_and_arguments_reach_a_template_that_reads_them_and_stop_a_run_otherwise(
    tokenizer, written, more, written_as
):
    path = written([row(**more)])
    assert written_as in texts(tokenizer, path)[0][0]
    with pytest.raises(
        UserError, match=r"line 1: prompt has `\w+`, which the chat template does not write.*ignore_col"
    ):
        texts(tokenizer, path, PLAIN)
    name = next(iter({"tools": "tools", "chat_template_kwargs": "mood"}.get(k) for k in more)) or (
        "reasoning_content" if "since" in str(more) else "tool_calls"
    )
    if name in ("tools", "reasoning_content"):
        assert written_as not in texts(tokenizer, path, FULL, ignore_columns=(name,))[0][0]


def test_responses_that_differ_only_in_their_calls_are_trained_on_them(tokenizer, written):
    other = {"type": "function", "function": {"name": "g", "arguments": {}}}
    answers = {side: [{**said("")[0], "tool_calls": [c]}] for side, c in (("chosen", CALL), ("rejected", other))}
    path = written([row(**answers)])
    (prompt, chosen, rejected), pairs = texts(tokenizer, path)
    assert '"f"' not in prompt and '"f"' not in rejected and '"g"' not in chosen
    assert prompt.removeprefix("<s>") + chosen.removesuffix("</s>") == "[user]q[assistant]" + json.dumps(
        CALL["function"]
    )
    assert pairs[0].text.further["rejected"] == {"tool_calls": [other]}
    with pytest.raises(UserError, match="chosen has `tool_calls`"):
        texts(tokenizer, path, PLAIN)


def test_reasoning_of_a_dialogue_that_holds_its_prompt_is_trained_on(tokenizer, written):
    sides = {side: [*ASKED, {**said(side)[0], "reasoning_content": side}] for side in ("chosen", "rejected")}
    (_, chosen, rejected), _ = texts(tokenizer, written([sides]))
    assert (chosen, rejected) == ("<think>chosen</think>chosen</s>", "<think>rejected</think>rejected</s>")


def test_names_of_special_tokens_within_calls_are_characters(tokenizer, written):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "</s>"}}}
    path = written([row(prompt=[*ASKED, {**said("look")[0], "tool_calls": [call]}, {"role": "tool", "content": "r"}])])
    _, pairs = texts(tokenizer, path)
    assert 1 not in pairs[0].prompt


@pytest.mark.parametrize(
    "more",
    [
        {"history": [["hi", "hello"]]},
        {"context": "Paris is large."},
        {"system": "Answer in French."},
        {"system_prompt": "Be brief."},
        {"initial_reason_steps": "1. add"},
        {"input": "the data"},
        {"userMessage": "more"},
        {"x": "a long text that no mapping reads and whose name does not say what it is " * 2},
        {"pictures": [{"text": "a long text that no mapping reads and whose name does not say what it is " * 2}]},
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_a_column_that_belongs_to_the_prompt_stops_the_run_until_it_is_ignored(tokenizer, written, more, plain):
    base = {"prompt": "q", "chosen": "a", "rejected": "b"} if plain else row()
    path = written([base, {**base, "chosen": "c" if plain else said("c"), **more}])
    name = next(iter(more))
    with pytest.raises(UserError, match=f"line 2: `{name}` may belong to the prompt.*ignore_columns: .{name}"):
        texts(tokenizer, path)
    _, pairs = texts(tokenizer, path, ignore_columns=(name,))
    assert pairs.report.unread == {name: 1}


def test_a_row_with_text_prompts_and_tools_is_refused(tokenizer, written):
    path = written([{"prompt": "q", "chosen": "a", "rejected": "b", "tools": [CALL]}])
    with pytest.raises(UserError, match="`tools`, which the chat template does not write"):
        texts(tokenizer, path)


def test_a_column_or_key_with_a_short_text_is_a_note(tokenizer, written):
    asked = [{"role": "user", "content": "q", "hidden": "a secret", "prefix": True}]
    one = row(prompt=asked, choices=["red", "blue"], source="web")
    one["chosen"] = [{**said("a")[0], "channel": "final"}]
    _, pairs = texts(tokenizer, written([one]))
    (finding,) = unread("train", "pairs", pairs.report)
    assert finding.severity == "note" and set(finding.numbers["of_note"]) == {"channel", "choices", "hidden", "prefix"}
    assert "nothing reads channel, choices, hidden, prefix, source" in finding.says
    assert "look whether channel, choices, hidden, prefix should be a part of the prompt" in finding.says
    _, pairs = texts(tokenizer, written([one]), ignore_columns=("choices",))
    assert set(pairs.report.unread_texts) == {"channel", "hidden", "prefix"}


def test_what_describes_a_row_is_listed_and_does_not_stop(tokenizer, written):
    more = {
        "prompt_id": "q7",
        "source": "web",
        "critique": "The first one is better because it is shorter and friendlier than the other. " * 3,
        "system": "",
        "history": [],
        "turns": 3,
        "messages": [*ASKED, *said("a")],
    }
    one = row(prompt=[{"role": "user", "content": "q", "timestamp": 17}], **more)
    _, pairs = texts(tokenizer, written([one]))
    assert set(pairs.report.unread) == {"prompt_id", "source", "critique", "turns", "messages", "timestamp"}
    (finding,) = unread("train", "pairs", pairs.report)
    assert finding.severity == "ok" and not pairs.report.unread_texts
    assert pairs[0].text.prompt == ASKED


def test_what_belongs_to_a_conversation_is_told_by_name_and_content():
    assert key_belongs("tool_calls", [CALL]) and key_belongs("reasoning_content", "why")
    assert not key_belongs("tool_calls", []) and not key_belongs("weight", 0.5) and not key_belongs("name", "Ann")
    assert column_belongs("context", "x") and not column_belongs("context_id", "x") and not column_belongs("context", 3)


LATE = FULL.replace("{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.index0 > 2 %}")
NAME_ONLY = FULL.replace("call.function | tojson", "call.function.name")
AS_JSON = FULL.replace("call.function | tojson", "call.function.arguments | tojson | upper")


CALLING = {**said("y")[0], "tool_calls": [CALL]}


def thought(text):
    return {**said("x")[0], "reasoning_content": text}


@pytest.mark.parametrize(
    ("template", "more", "named"),
    [
        (LATE, {"prompt": [*ASKED, thought("LOST"), *ASKED, thought("kept"), *ASKED]}, "reasoning_content"),
        (NAME_ONLY, {"prompt": [*ASKED, CALLING, *ASKED]}, "tool_calls.function.arguments.x"),
        (AS_JSON, {"prompt": [*ASKED, CALLING, *ASKED]}, "tool_calls.function.name"),
        (NAME_ONLY, {"chosen": [CALLING]}, "tool_calls.function.arguments.x"),
    ],
)
def test_a_key_that_is_written_only_in_part_stops_the_run_until_it_is_accepted(
    tokenizer, written, template, more, named
):
    path = written([row(**more)])
    where = "chosen response" if "chosen" in more else "assistant message of the prompt"
    with pytest.raises(UserError, match=rf"line 1: the chat template leaves out or rewrites `{named}` of the {where}"):
        texts(tokenizer, path, template)
    _, pairs = texts(tokenizer, path, template, lost_text="accept")
    assert pairs.report.lost == {f"`{named}` of the {where}": 1}
    texts(tokenizer, path, FULL)  # it writes all


def test_values_that_only_steer_a_template_are_read(tokenizer, written):
    steered = FULL.replace(
        "{% if m.reasoning_content %}", "{% if m.refusal %}NO{% endif %}{% if m.reasoning_content %}"
    )
    path = written([row(prompt=[*ASKED, {**thought("why"), "refusal": True}, *ASKED])])
    _, pairs = texts(tokenizer, path, steered)
    assert not pairs.report.lost and "refusal" not in pairs.report.unread


@pytest.mark.parametrize(
    "more", [{"choices": ["yes", "no"]}, {"body": "short"}, {"prompt": [{**ASKED[0], "plan": "p"}]}]
)
def test_short_text_that_nothing_reads_is_a_note_of_check(tokenizer, written, more):
    _, pairs = texts(tokenizer, written([row(**more)]))
    name = "plan" if "prompt" in more else next(iter(more))
    assert pairs.report.unread_texts == {name: 1}
    (finding,) = unread("train", "a", pairs.report)
    assert finding.severity == "note" and f"look whether {name} should be a part of the prompt" in finding.says
    _, pairs = texts(tokenizer, written([row(source="web", prompt_id="q7")], "labels.jsonl"))
    (finding,) = unread("train", "a", pairs.report)
    assert finding.severity == "ok"


def test_half_a_surrogate_in_the_name_of_a_key_can_be_reported(tokenizer, written):
    path = written([row(prompt=[{**ASKED[0], "k\ud800": 3}])])
    _, pairs = texts(tokenizer, path)
    assert list(pairs.report.unread) == ["k\\ud800"]


def test_a_template_that_can_write_the_date_is_a_note_of_check():
    assert dated(FULL) == dated(None) == []
    (finding,) = dated(FULL + "{{ strftime_now('%d %b %Y') }}")
    assert finding.severity == "note" and "today's date" in finding.says and "chat_template_kwargs" in finding.says


def test_responses_that_differ_only_in_a_key_that_is_not_written_are_refused_with_its_name(tokenizer, written):
    sides = {side: [{**said("a")[0], "channel": side}] for side in ("chosen", "rejected")}
    with pytest.raises(UserError, match="differ only in `channel`, which the chat template does not write"):
        texts(tokenizer, written([row(**sides)]))


def test_a_template_that_shows_only_the_last_messages_is_not_called_a_clock(tokenizer, written):
    last = FULL.replace("for m in messages", "for m in messages[-2:]")
    path = written([row(prompt=[*ASKED, *said("x"), {"role": "user", "content": "and now?"}])])
    with pytest.raises(UserError, match="writes the prompt differently once a response follows"):
        texts(tokenizer, path, last, lost_text="accept")
