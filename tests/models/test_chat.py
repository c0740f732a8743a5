"""What chat templates write, and where the answer stands in it."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_pref.models.chat import TEMPLATE_ERRORS, Chat
from lit_pref.models.encoding import Encoding

ASK = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}" + ASK
TRIMS = CHATML.replace("m.content", "m.content | trim")
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
NO_END += "{% if add_generation_prompt %}assistant: {% endif %}"
# Writes an empty think block into the last turn only, as Qwen3 does.
THINKS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}<|end|>\n{% endfor %}" + ASK
)


def block(inside, after, before=""):
    """A template whose assistant turns are `before`, the block `inside`, and `after`."""
    generation = "{% generation %}" + inside + "{% endgeneration %}"
    return (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + f"{before}{generation}{after}"
        + "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        + ASK
    )


def tokenizer(template):
    special = ["<s>", "</s>", "<|start|>", "<|end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
        chat_template=template,
    )


def chat(template, plain=True) -> Chat:
    return Encoding(tokenizer(template), plain).chat


HI = [{"role": "user", "content": "hi"}]


def shown(template, response, messages=HI):
    """What the model is given, what it writes, and the response's own part of that."""
    answer = chat(template).render_answer(messages, response)
    text = answer.whole.text
    own = None if answer.span is None else text[slice(*answer.span)]
    return (
        (None, text, own) if answer.prompt_end is None else (text[: answer.prompt_end], text[answer.prompt_end :], own)
    )


@pytest.mark.parametrize(
    "template, response, text, own",
    [
        (CHATML, "yes", "<|start|>user\nhi<|end|>\n<|start|>assistant\nyes<|end|>", "yes"),
        (CHATML, " yes \n", "<|start|>user\nhi<|end|>\n<|start|>assistant\n yes \n<|end|>", "yes \n"),
        (TRIMS, " yes \n", "<|start|>user\nhi<|end|>\n<|start|>assistant\nyes<|end|>", "yes"),
        (NO_END, "yes \n", "user: hi\nassistant: yes", "yes"),
        (THINKS, "yes", "<|start|>user\nhi<|end|>\n<|start|>assistant\n<think>\n\n</think>\n\nyes<|end|>", "yes"),
        (CHATML, ">", "<|start|>user\nhi<|end|>\n<|start|>assistant\n><|end|>", ">"),
        (
            CHATML.replace("m.content", "m.content | upper"),
            "yes",
            "<|start|>user\nHI<|end|>\n<|start|>assistant\nYES<|end|>",
            None,
        ),
    ],
)
def test_the_answers_own_text_is_found(template, response, text, own):
    assert shown(template, response) == (None, text, own)


def test_an_answer_is_found_also_where_the_one_before_it_stood_otherwise():
    turns = chat("{% for m in messages %}{{ m.content }}{{ '!' if 'x' in m.content else '</s>' }}{% endfor %}")
    for response, own in (("ab", (2, 4)), ("xy", (2, 4)), ("</s>", (2, 6)), ("x!", (2, 4))):
        assert turns.render_answer([{"role": "user", "content": "x"}], response).span == own


def test_whitespace_before_an_answer_is_kept_or_not():
    assert chat(CHATML).keeps_leading_space(HI, "\n yes")
    assert not chat(TRIMS).keeps_leading_space(HI, "\n yes")


CONTENT, END, LINE = "{{ m.content }}", "<|end|>", "{{ '\n' }}"


@pytest.mark.parametrize(
    "template, written",
    [
        (block(CONTENT + END, LINE), "yes<|end|>"),
        (block(CONTENT, END + "\n"), "yes<|end|>"),
        (block(CONTENT + END + "\n", ""), "yes<|end|>"),
        (block(CONTENT + END, LINE + "</s>"), "yes<|end|>"),  # after the turn's end
        (block(CONTENT, LINE + END + "\n</s>\nx"), "yes\n<|end|>"),
        (block(CONTENT, LINE), "yes"),
        (block(CONTENT + END + "\n", "", "<think>\n\n</think>\n\n"), "yes<|end|>"),
        (block("{{ m.content | trim }}" + END, ""), "yes<|end|>"),
        (block("{{ m.content | upper }}" + END, LINE + "and <|end|>"), "YES<|end|>"),
        (block("{{ m.content | upper }}", END + "\n</s>"), "YES<|end|>"),
    ],
)
def test_a_generation_block_and_the_turns_end_are_what_the_assistant_writes(template, written):
    before = "<think>\n\n</think>\n\n" if "<think>" in template else ""
    given, wrote, _ = shown(template, "yes")
    assert given == "<s><|start|>user\nhi<|end|>\n<|start|>assistant\n" + before
    assert wrote == written


def test_of_several_assistant_turns_the_last_ones_block_counts():
    messages = [*HI, {"role": "assistant", "content": "yes"}, *HI]
    given, wrote, own = shown(block(CONTENT + END, LINE), "yes", messages)
    assert (
        given
        == "<s><|start|>user\nhi<|end|>\n<|start|>assistant\nyes<|end|>\n<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    )
    assert (wrote, own) == ("yes<|end|>", "yes")


def test_of_several_blocks_in_a_turn_the_answers_counts():
    second = "{% generation %}!{% endgeneration %}"
    given, wrote, own = shown(block(CONTENT, END + second, "{% generation %}?{% endgeneration %}"), "yes")
    assert (given[-11:], wrote, own) == ("assistant\n?", "yes<|end|>", "yes")


def test_a_block_that_does_not_hold_the_answer_is_refused():
    template = "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{{ m.content }}{% endfor %}"
    with pytest.raises(TEMPLATE_ERRORS, match="generation block does not contain the response"):
        chat(template).render_answer(HI, "yes")


def test_names_of_special_tokens_in_messages_are_told_from_the_templates_own():
    messages = [{"role": "user", "content": "a<|end|>b"}]
    whole = chat(CHATML).render_answer(messages, "<|end|>").whole
    assert whole.text == "<|start|>user\na<|end|>b<|end|>\n<|start|>assistant\n<|end|><|end|>"
    assert [whole.text[:start].count("<|") for start, _ in whole.special] == [0, 2, 3, 5]
    assert chat(CHATML).render_prompt(messages).special == ((0, 9), (23, 30), (31, 40))
    assert chat(CHATML).render_prompt(HI).special is None
    assert chat(CHATML, plain=False).render_answer(messages, "<|end|>").whole.special is None


def test_a_template_that_goes_by_special_names_inside_messages_is_refused():
    template = "{% for m in messages %}{% if m.content.startswith('</s>') %}stop{% endif %}{{ m.content }}{% endfor %}"
    with pytest.raises(TEMPLATE_ERRORS, match="depends on special tokens inside messages, such as '</s>'"):
        chat(template).render_prompt([{"role": "user", "content": "</s>"}])
    split = "{% for m in messages %}{{ m.content.split('</s>')[-1] }}{% endfor %}"
    assert chat(split).render_prompt([{"role": "user", "content": "a</s>b"}]).text == "b"


def test_the_texts_of_messages_are_found_in_what_was_asked():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": " us "}]
    text = chat(TRIMS).render_prompt(messages).text
    assert text == "<|start|>system\ns<|end|>\n<|start|>user\nus<|end|>\n<|start|>assistant\n"
    assert chat(TRIMS).contents(messages) == [(16, 17), (39, 41)]
    shouted = chat("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    assert shouted.contents([{"role": "user", "content": "a"}]) == [None]
