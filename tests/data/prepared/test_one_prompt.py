"""Notations of one prompt are one prompt: no pair is held out whose prompt is trained on."""

import unicodedata

import numpy as np
import pytest

from lit_pref.check import counts
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.splits import open_splits
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.errors import UserError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_PREF_CACHE", str(tmp_path / "cache"))


def user(text):
    return [{"role": "user", "content": text}]


FORMS = {
    "trailing blank": lambda text: text + " ",
    "trailing line end": lambda text: text + "\n",
    "leading blanks": lambda text: "  " + text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "two blanks": lambda text: text.replace(" ", "  "),
    "no-break space": lambda text: text.replace(" ", "\u00a0"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "byte order mark": lambda text: "\ufeff" + text,
    "zero-width space": lambda text: text.replace("number", "num\u200bber"),
    "soft hyphen": lambda text: text.replace("number", "num\u00adber"),
    "full-width letters": lambda text: text.replace("number", "\uff4e\uff55\uff4d\uff42\uff45\uff52"),
    "curly apostrophes": lambda text: text.replace("'", "\u2019"),
    "a long dash": lambda text: text.replace("-", "\u2014"),
    "capital letters": str.upper,
    "one message": user,
    "an empty system turn": lambda text: [{"role": "system", "content": ""}, *user(text + "\n")],
    "a system turn": lambda text: [{"role": "system", "content": "Be brief."}, *user(text)],
    "two turns": lambda text: [*user(text), {"role": "assistant", "content": "yes"}, *user("and?")],
    "ChatML": lambda text: f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n",
    "Llama 3": lambda text: f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
    "Llama 2": lambda text: f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{text} [/INST]",
    "Gemma": lambda text: f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n",
    "Zephyr": lambda text: f"<|system|>\nBe brief.</s>\n<|user|>\n{text}</s>\n<|assistant|>\n",
    "HH text": lambda text: f"\n\nHuman: {text}\n\nAssistant: yes\n\nHuman: and?\n\nAssistant:",
}


def rows(form, number=120, start=0):
    prompts = [form(f"Is café\nnumber {k}'s tea-room open?") for k in range(start, start + number)]

    def answer(prompt, text):
        return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]

    return [{"prompt": p, "chosen": answer(p, f"c{k}"), "rejected": answer(p, f"rr{k}")} for k, p in enumerate(prompts)]


def opened(tokenizer, train, val=None, fraction=0.3):
    tokenizer.chat_template = TEMPLATE
    val = val and [Source(str(val))]
    preparation = Preparation(val_fraction=0.0 if val else fraction)
    return open_splits([Source(str(train))], val, preparation, Tokenization(tokenizer, 512))


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_in_two_forms_is_held_out_or_trained_on_as_one(tokenizer, written, form):
    train, val = opened(tokenizer, written(rows(str) + rows(FORMS[form])))
    assert len(val) > 40 and len(train) > 100
    assert not np.isin(val.column("prompt_group"), train.column("prompt_group")).any()
    assert counts.overlap(train, val).shared == 0
    numbers = [{pair.text.chosen for pair in split} for split in (train, val)]
    assert not numbers[0] & numbers[1]


@pytest.mark.parametrize("form", FORMS)
def test_check_sees_a_shared_prompt_in_another_form(tokenizer, written, form):
    train, val = opened(tokenizer, written(rows(str), "a.jsonl"), written(rows(FORMS[form], 30, 100), "b.jsonl"))
    assert counts.overlap(train, val).shared == 20


def test_validation_that_is_training_is_refused(tokenizer, written):
    train = written(rows(str), "train.jsonl")
    for name, chosen in (("copy", rows(str)), ("reversed", rows(str)[::-1]), ("some", rows(str)[3:9])):
        with pytest.raises(UserError, match=r"data.val: every pair of .* is a training pair"):
            opened(tokenizer, train, written(chosen, f"{name}.jsonl"))
    with pytest.raises(UserError, match=r"data.val: every pair of"):
        opened(tokenizer, train, train)
    other = [{**row, "chosen": "new"} for row in rows(str)]
    assert len(opened(tokenizer, train, written(other, "other.jsonl")).val) == 120


@pytest.mark.parametrize("form", ["trailing blank", "capital letters", "curly apostrophes", "decomposed"])
def test_validation_that_is_training_in_another_form_is_refused_and_stops_check(tokenizer, written, form):
    train, again = written(rows(str), "train.jsonl"), rows(FORMS[form])
    with pytest.raises(UserError, match=r"data.val: every pair of .* is a training pair"):
        opened(tokenizer, train, written(again, "again.jsonl"))
    with pytest.raises(UserError, match=r"data.val: 119 of the 120 pairs of .* are training pairs"):
        opened(tokenizer, train, written([*again[:-1], {**again[-1], "chosen": "new"}], "most.jsonl"))
    fresh = [{**row, "chosen": "new"} for row in again[40:]]
    assert counts.overlap(*opened(tokenizer, train, written(again[:40] + fresh, "few.jsonl"))).same == 40
