"""The stored text is the trained text: a chat template that loses, rewrites or moves it stops the run."""

import itertools
import json

import pytest

from lit_pref.data.prepared.pair_view import PreparedPairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UserError

ASKS = "{% if add_generation_prompt %}[assistant]{% endif %}"
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content.strip() }} </s>{% endif %}{% endfor %}"
)
QWEN_2_5 = (
    "{% for m in messages %}{% if m.role in ['user', 'system', 'assistant'] %}[{{ m.role }}]{{ m.content }}\n"
    "{% endif %}{% endfor %}" + ASKS
)
QWEN_3 = (
    "{% for m in messages %}{% set content = m.content %}{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip() %}{% endif %}[{{ m.role }}]{{ content }}\n{% endfor %}"
    + ASKS
)
ALL = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}\n{% endfor %}" + ASKS
MERGING = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n' %}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}[{{ m.role }}]{% if loop.index == 1 %}{{ first }}{% endif %}"
    "{{ m.content | trim }}\n{% endfor %}" + ASKS
)
LONG = "Answer every question in French, please."


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))


def row(*turns, chosen="a", rejected="b"):
    prompt = [{"role": role, "content": content} for role, content in turns]
    sides = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt, **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()}}


def reports(tokenizer, path, template, **options):
    tokenizer.chat_template = template
    folder = Preparation(**options).prepare(Source(str(path)), Tokenization(tokenizer, 4096))
    return PreparedPairs(folder, "train").report


@pytest.mark.parametrize(
    ("template", "one", "lost"),
    [
        (LLAMA_2, row(("system", LONG), ("user", LONG)), "the system message of the prompt"),
        (LLAMA_2, row(("system", "user"), ("user", "hello")), "the system message of the prompt"),
        (QWEN_2_5, row(("user", "q"), ("tool", "r"), ("user", "s")), "the tool message of the prompt"),
        (QWEN_2_5, row(("developer", "be brief"), ("user", "q")), "the developer message of the prompt"),
        (QWEN_3, row(("user", "q"), chosen="It is `</think>` and\ncloses."), "the chosen response"),
        (QWEN_3, row(("user", "q"), rejected="<think>a</think>x<think>b</think>Red"), "the rejected response"),
        (QWEN_3, row(("user", "q"), ("assistant", "<think>a</think>x"), ("user", "r")), "the assistant message"),
    ],
)
def test_a_template_that_loses_or_rewrites_a_text_stops_the_run_unless_that_is_accepted(
    tokenizer, written, template, one, lost
):
    path = written([row(("user", "hello"), chosen="c"), one])
    for _ in range(2):  # also when the pairs are found in the cache
        with pytest.raises(UserError, match=f"line 2: the chat template leaves out or rewrites {lost}.*data.lost_text"):
            reports(tokenizer, path, template)
        report = reports(tokenizer, path, template, lost_text="accept")
    assert list(report.lost.values()) == [1] and next(iter(report.lost)).startswith(lost)


@pytest.mark.parametrize("template", [ALL, QWEN_2_5, QWEN_3, MERGING])
def test_what_a_template_strips_merges_or_leaves_empty_is_not_lost(tokenizer, written, template):
    rows = [
        row(("system", "Be brief. "), ("user", " q\n"), chosen=" a "),
        row(("system", ""), ("user", "hi"), ("assistant", "a"), ("user", "hi")),
        row(("system", LONG), ("user", LONG + " Now."), ("assistant", LONG), ("user", "q"), chosen=LONG),
    ]
    assert not reports(tokenizer, written(rows), template).lost


def test_the_output_of_a_tool_may_be_written_as_json(tokenizer, written):
    template = ALL.replace("m.content | trim", "m.content | tojson if m.role == 'tool' else m.content")
    one = row(("user", "q"), ("tool", json.dumps({"degrees": 20})), ("user", "s"))
    assert not reports(tokenizer, written([one]), template).lost


@pytest.mark.parametrize("header", ["{{ range(99999) | random }}", "{{ tick() }}"])
def test_a_template_that_writes_another_prompt_at_each_call_is_refused(tokenizer, written, header, monkeypatch):
    import transformers.utils.chat_template_utils as templates

    ticks = itertools.count()
    build = templates._cached_compile_jinja_template
    monkeypatch.setattr(templates, "_cached_compile_jinja_template", lambda text: with_clock(build(text), ticks))
    path = written([row(("user", "q"))])
    for options in ({}, {"bad_rows": "lenient", "max_refused": 1.0, "lost_text": "accept"}):
        with pytest.raises(UserError, match="line 1: the chat template writes another prompt each time"):
            reports(tokenizer, path, header + ALL, **options)


def with_clock(template, ticks):
    template.globals["tick"] = lambda: next(ticks)
    return template
