from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lit_pref.batch import PairData, PreferenceBatch, Rows
from lit_pref.errors import UserError
from lit_pref.models.encoding import Encoding
from lit_pref.pairs import TruncatedText
from lit_pref.references.own_tokenizer import ids_of, retokenized, same_tokenizer

CHAT = (
    "{{ '<bos>' }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ '<turn>' + m.role + ':' + m.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant:' }}{% endif %}"
)
PIECES = ["<pad>", "<bos>", "<eos>", "<turn>", "<end>"]


def letters(merges=(), bos=True, adds_bos=False, template=None):
    """A tokenizer whose tokens are bytes and the merges given, so that ids can be worked out by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*PIECES, *alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(PIECES)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", **({"bos_token": "<bos>"} if bos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def kept(prompt="ab", chosen="cd", rejected="ef", chosen_complete=True, rejected_complete=True):
    return TruncatedText(prompt, chosen, rejected, chosen_complete, rejected_complete)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_plain_text_has_one_begin_token_and_ends_where_it_is_complete(adds_bos):
    tokenizer = letters(adds_bos=adds_bos)
    prompt, chosen, rejected = (
        words(tokenizer, ids) for ids in ids_of(kept(rejected_complete=False), Encoding(tokenizer))
    )
    assert prompt == ["<bos>", "a", "b"]
    assert chosen == ["c", "d", "<eos>"]
    assert rejected == ["e", "f"]


def test_a_token_across_the_boundary_belongs_to_the_responses_of_both():
    tokenizer = letters(merges=[("b", "c")])
    prompt, chosen, rejected = (words(tokenizer, ids) for ids in ids_of(kept(), Encoding(tokenizer)))
    assert prompt == ["<bos>", "a"]
    assert chosen == ["bc", "d", "<eos>"]
    assert rejected == ["b", "e", "f", "<eos>"]


def test_without_a_begin_token_none_is_written_and_an_empty_prompt_follows_an_end_token():
    tokenizer = letters(merges=[("a", "c")], bos=False)
    assert words(tokenizer, ids_of(kept(), Encoding(tokenizer))[0]) == ["a", "b"]
    prompt, chosen, rejected = (words(tokenizer, ids) for ids in ids_of(kept(prompt="a"), Encoding(tokenizer)))
    assert prompt == ["<eos>"]
    assert chosen == ["ac", "d", "<eos>"]
    assert rejected == ["a", "e", "f", "<eos>"]


MESSAGES = [{"role": "user", "content": "hi"}]


def test_messages_go_through_the_references_own_template():
    tokenizer = letters(template=CHAT)
    text = kept(prompt=MESSAGES, rejected_complete=False)
    prompt, chosen, rejected = (words(tokenizer, ids) for ids in ids_of(text, Encoding(tokenizer)))
    assert prompt == ["<bos>", "<turn>", *"user:hi", "<end>", "Ċ", "<turn>", *"assistant:"]
    assert chosen == ["c", "d", "<end>"]
    assert rejected == ["e", "f"]


def test_a_template_that_ends_no_turn_is_followed_by_the_end_token():
    tokenizer = letters(template="{% for m in messages %}{{ m.content }}{% endfor %}")
    prompt, chosen, _ = (words(tokenizer, ids) for ids in ids_of(kept(prompt=MESSAGES), Encoding(tokenizer)))
    assert (prompt, chosen) == (["<bos>", "h", "i"], ["c", "d", "<eos>"])


def test_messages_without_a_template_are_joined_line_by_line():
    tokenizer = letters()
    text = kept(prompt=[{"role": "system", "content": "s"}, *MESSAGES])
    assert words(tokenizer, ids_of(text, Encoding(tokenizer))[0]) == ["<bos>", "s", "Ċ", "h", "i", "Ċ"]


def test_a_string_prompt_does_not_go_through_a_template():
    tokenizer = letters(template=CHAT)
    assert words(tokenizer, ids_of(kept(), Encoding(tokenizer))[0]) == ["<bos>", "a", "b"]


def test_a_conversation_that_a_template_refuses_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"refuses a conversation .*no system turns.*leave this reference out"):
        ids_of(kept(prompt=[{"role": "system", "content": "s"}]), Encoding(letters(template=CHAT)))


def test_special_tokens_in_a_text_are_the_characters_that_they_are_written_with():
    tokenizer = letters()
    text = kept(prompt="a<bos>", chosen=" <eos> b", rejected="<pad>", rejected_complete=False)
    prompt, chosen, rejected = ids_of(text, Encoding(tokenizer))
    assert words(tokenizer, prompt) == ["<bos>", "a", *"<bos>"]
    assert words(tokenizer, chosen) == ["Ġ", *"<eos>", "Ġ", "b", "<eos>"]
    assert words(tokenizer, rejected) == [*"<pad>"]
    assert chosen.count(tokenizer.eos_token_id) == 1 and tokenizer.pad_token_id not in rejected
    # Other callers of the tokenizer, and the comparison of tokenizers, see nothing of it.
    assert tokenizer("<eos>", add_special_tokens=False).input_ids == [tokenizer.eos_token_id]
    assert same_tokenizer(tokenizer, letters())
    joined = kept(prompt=[{"role": "user", "content": "<end>"}])
    assert words(tokenizer, ids_of(joined, Encoding(tokenizer))[0]) == ["<bos>", *"<end>", "Ċ"]


def test_special_tokens_that_a_conversation_names_are_told_from_the_templates_own():
    tokenizer = letters(template=CHAT)
    text = kept([{"role": "user", "content": "a<end>"}], "<end>", "<eos>b", rejected_complete=False)
    prompt, chosen, rejected = (words(tokenizer, ids) for ids in ids_of(text, Encoding(tokenizer)))
    assert prompt == ["<bos>", "<turn>", *"user:a<end>", "<end>", "Ċ", "<turn>", *"assistant:"]
    assert chosen == [*"<end>", "<end>"]
    assert rejected == [*"<eos>b"]


def test_an_answer_that_is_not_complete_stands_where_a_complete_one_would():
    think = CHAT.replace("m.role + ':'", "m.role + (':<think>' if m.role == 'assistant' else ':')")
    tokenizer = letters(template=think)
    text = kept(MESSAGES, "c", " d ", rejected_complete=False)
    _, chosen, rejected = (words(tokenizer, ids) for ids in ids_of(text, Encoding(tokenizer)))
    assert (chosen, rejected) == ([*"<think>c", "<end>"], [*"<think>", "Ġ", "d", "Ġ"])


def test_what_stands_before_a_generation_block_is_prompt():
    block = "{{ '<think>' }}{% generation %}{{ m.content | upper }}{% endgeneration %}{{ '<end>\n' }}"
    template = "{% for m in messages %}{% if m.role == 'assistant' %}" + block
    template += "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    tokenizer = letters(template=template)
    text = kept(MESSAGES, "c", "d", rejected_complete=False)
    prompt, chosen, _ = (words(tokenizer, ids) for ids in ids_of(text, Encoding(tokenizer)))
    assert (prompt, chosen) == (["<bos>", *"hi<think>"], ["C", "<end>"])


def test_a_text_that_the_tokenizer_cannot_read_is_the_users_to_mend():
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token=None))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    with pytest.raises(UserError, match=r"the tokenizer of the reference '' cannot read a text \(.*\): leave this ref"):
        ids_of(kept("a", "b", "a"), Encoding(tokenizer))


def test_tokenizers_are_the_same_by_what_they_do():
    one = letters()
    used = letters()
    used(["ab", "c"], padding=True, truncation=True, max_length=2)
    assert same_tokenizer(one, used)
    assert not same_tokenizer(one, letters(merges=[("b", "c")]))
    assert not same_tokenizer(one, letters(template=CHAT))


def batch_of(texts, two_sided=True):
    b = len(texts)
    nothing = torch.zeros(0, dtype=torch.int64)
    ids, lengths = torch.zeros(b * (1 + two_sided), 1, dtype=torch.int64), torch.ones(b, dtype=torch.int64)
    names = [str(i) for i in range(b)]
    pairs = PairData(names, lengths, lengths.clone() if two_sided else None, margin=torch.ones(b), texts=texts)
    return PreferenceBatch(pairs, Rows(ids, torch.ones_like(ids), nothing, nothing, nothing, nothing))


@pytest.mark.parametrize("two_sided", [True, False])
def test_a_batch_keeps_its_pairs_and_gets_new_rows_and_lengths(two_sided):
    tokenizer = letters()
    texts = [kept(rejected="efg" if two_sided else None), kept(prompt="x", chosen="y", chosen_complete=False)]
    if not two_sided:
        texts[1] = kept(prompt="x", chosen="y", rejected=None, chosen_complete=False)
    batch = batch_of(texts, two_sided)
    again = retokenized(batch, tokenizer)
    rows = [
        words(tokenizer, row[mask.bool()])
        for row, mask in zip(again.rows.input_ids, again.rows.attention_mask, strict=True)
    ]
    assert rows[:2] == [["<bos>", "a", "b", "c", "d", "<eos>"], ["<bos>", "x", "y"]]
    assert again.pairs.chosen_lengths.tolist() == [3, 1]
    if two_sided:
        assert rows[2:] == [["<bos>", "a", "b", "e", "f", "g", "<eos>"], ["<bos>", "x", "e", "f", "<eos>"]]
        assert again.pairs.rejected_lengths.tolist() == [4, 3]
    else:
        assert len(rows) == 2 and again.pairs.rejected_lengths is None
    assert (again.pairs.ids, again.pairs.margin is batch.pairs.margin, again.pairs.texts) == (["0", "1"], True, texts)


def test_a_batch_without_texts_is_refused():
    with pytest.raises(ValueError, match="this batch does not have"):
        batch = batch_of([kept()])
        retokenized(replace(batch, pairs=replace(batch.pairs, texts=None)), letters())
