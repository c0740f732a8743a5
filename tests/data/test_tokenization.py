"""The guarantees of the one tokenisation, on tokenizers small enough to work out the ids by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lit_pref.data.fields import BadRow
from lit_pref.data.reading import Row
from lit_pref.data.rows import RowReader
from lit_pref.data.tokenization import Tokenization
from lit_pref.errors import UsageError, UserError

SPECIAL = ["<s>", "</s>", "<|start|>", "<|end|>"]
BOS, EOS, START, END = range(4)
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(merges=(), bos="<s>", eos="</s>", template=CHAT, adds_specials=False):
    """One token a byte, but for `merges`; the specials come first."""
    merged = ["".join(pair) for pair in merges]
    vocabulary = {token: k for k, token in enumerate([*SPECIAL, *BYTES, *merged])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if adds_specials:
        specials = [("<s>", BOS), ("</s>", EOS)]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, additional_special_tokens=["<|start|>", "<|end|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def tokenized(tokenizer, prompt, chosen, rejected, max_length=1000, max_prompt_length=None, **more):
    row = Row("pairs.jsonl", 7, {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more})
    one_sided = rejected is None
    return Tokenization(tokenizer, max_length, max_prompt_length).tokenize(
        row, RowReader(one_sided=one_sided).read(row), "id"
    )


def ids(text):
    return [len(SPECIAL) + BYTES.index(character) for character in text.replace(" ", "Ġ").replace("\n", "Ċ")]


@pytest.mark.parametrize("adds_specials", [False, True])
def test_strings_get_one_begin_token_and_end_tokens(adds_specials):
    done = tokenized(byte_tokenizer(adds_specials=adds_specials), "ab", "cd", "e")
    assert (done.pair.prompt, done.pair.chosen, done.pair.rejected) == (
        [BOS, *ids("ab")],
        [*ids("cd"), EOS],
        [*ids("e"), EOS],
    )
    assert (done.prompt_cut, done.chosen_cut, done.rejected_cut, done.merged) == (False,) * 4


def test_a_tokenizer_without_a_begin_token_gets_none():
    assert tokenized(byte_tokenizer(bos=None), "ab", "c", "d").pair.prompt == ids("ab")


@pytest.mark.parametrize("template", [CHAT, "<s>" + CHAT, "{{ bos_token }}" + CHAT])
@pytest.mark.parametrize("adds_specials", [False, True])
def test_chats_get_one_begin_token_and_the_templates_turn_end_without_what_follows_it(template, adds_specials):
    tokenizer = byte_tokenizer(template=template, adds_specials=adds_specials)
    pair = tokenized(tokenizer, [{"role": "user", "content": "hi"}], "yes ", "no").pair
    assert pair.prompt == [BOS, START, *ids("user\nhi"), END, *ids("\n"), START, *ids("assistant\n")]
    assert pair.chosen == [*ids("yes "), END]  # the response's own space stays, the line break after the turn goes
    assert pair.rejected == [*ids("no"), END]


def test_a_template_without_a_turn_end_gets_the_end_token():
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    pair = tokenized(byte_tokenizer(template=template), [{"role": "user", "content": "hi"}], "yes", "no").pair
    assert pair.prompt == [BOS, *ids("user: hi\nassistant: ")]
    assert pair.chosen == [*ids("yes"), EOS]


def test_a_response_that_ends_with_an_added_word_is_still_ended():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["stop"])
    assert tokenized(tokenizer, "a", "b stop", "c").pair.chosen[-1] == EOS


def test_the_boundary_is_the_longest_common_prefix_of_all_three():
    # b and c merge: ab|cd is a, bc, d, so that the prompt's b is no token of its own for the chosen response.
    done = tokenized(byte_tokenizer(merges=[("b", "c")]), "ab", "cd", "xd")
    bc = len(SPECIAL) + len(BYTES)
    assert done.pair.prompt == [BOS, *ids("a")]
    assert done.pair.chosen == [bc, *ids("d"), EOS]
    assert done.pair.rejected == [*ids("bxd"), EOS]
    assert done.merged
    assert (done.pair.text.prompt, done.pair.text.chosen, done.pair.text.rejected) == ("ab", "cd", "xd")


def test_prompts_are_cut_from_the_left_equally_and_keep_the_begin_token():
    done = tokenized(byte_tokenizer(), "abcdef", "gh", "i", max_length=20, max_prompt_length=4)
    assert done.pair.prompt == [BOS, *ids("def")]
    assert done.pair.text.prompt == "def"
    assert done.prompt_cut
    assert not done.chosen_cut


def test_responses_are_cut_from_the_right_and_lose_their_end():
    done = tokenized(byte_tokenizer(), "ab", "cdefgh", "ijk", max_length=7)
    # 7 - 3 prompt tokens = 4: "ijk" and its end fit, "cdefgh" does not.
    assert done.pair.chosen == ids("cdef")
    assert done.pair.rejected == [*ids("ijk"), EOS]
    assert (done.chosen_cut, done.rejected_cut) == (True, False)
    kept = done.pair.text
    assert (kept.chosen, kept.chosen_complete, kept.rejected, kept.rejected_complete) == ("cdef", False, "ijk", True)


def test_a_response_that_only_loses_its_end_token_is_not_complete():
    done = tokenized(byte_tokenizer(), "ab", "cdef", "ij", max_length=7)
    assert done.pair.chosen == ids("cdef")
    assert done.pair.text.chosen == "cdef"
    assert not done.pair.text.chosen_complete


def test_kept_text_has_whole_characters_only():
    # "é" is two bytes: three kept bytes of "éé" are one and a half characters.
    done = tokenized(byte_tokenizer(), "ééé", "éé!", "a", max_length=7, max_prompt_length=4)
    assert len(done.pair.prompt) == 4
    assert done.pair.text.prompt == "é"
    assert len(done.pair.chosen) == 3
    assert done.pair.text.chosen == "é"


def test_a_cut_response_after_a_merged_boundary_keeps_only_its_own_text():
    done = tokenized(byte_tokenizer(merges=[("b", "c")]), "ab", "cdef", "x", max_length=5)
    assert len(done.pair.chosen) == 3  # bc, d, e
    assert done.pair.text.chosen == "cde"


def test_cut_chat_prompts_keep_the_right_hand_messages():
    prompt = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    prompt += [{"role": "user", "content": "three"}]
    # The right-hand tokens: hree <|end|> \n <|start|> assistant\n are 4 + 1 + 1 + 1 + 10, and the begin token.
    done = tokenized(byte_tokenizer(), prompt, "yes", "no", max_length=99, max_prompt_length=18)
    assert done.pair.prompt == [BOS, *ids("hree"), END, *ids("\n"), START, *ids("assistant\n")]
    assert done.pair.text.prompt == [{"role": "user", "content": "hree"}]
    # Left of it stand o <|end|> \n <|start|> user\n t, 1 + 1 + 1 + 1 + 5 + 1 tokens more.
    part_of_two = tokenized(byte_tokenizer(), prompt, "yes", "no", max_length=99, max_prompt_length=28)
    assert part_of_two.pair.text.prompt == [{"role": "assistant", "content": "o"}, prompt[-1]]
    uncut = tokenized(byte_tokenizer(), prompt, "yes", "no")
    assert uncut.pair.text.prompt == prompt


def test_cut_chat_responses_keep_their_own_text():
    prompt = [{"role": "user", "content": "hi"}]
    length = len(tokenized(byte_tokenizer(), prompt, "yes", "no").pair.prompt)
    done = tokenized(byte_tokenizer(), prompt, "yes sir", "no", max_length=length + 4)
    assert (done.pair.text.chosen, done.pair.text.chosen_complete) == ("yes ", False)
    assert (done.pair.text.rejected, done.pair.text.rejected_complete) == ("no", True)


STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% if m['content'] == 'secret' %}{{ raise_exception('no secrets') }}{% endif %}{{ m['content'] }}</s>{% endfor %}"
)


@pytest.mark.parametrize(
    "first, texts, sentence",
    [
        ("system", ("yes", "no"), r"prompt is refused by the chat template \(no system turns\); write a conversation"),
        ("user", ("secret", "no"), r"chosen is refused by the chat template \(no secrets\)"),
        ("user", ("yes", "secret"), r"rejected is refused by the chat template \(no secrets\)"),
    ],
)
def test_a_conversation_that_the_template_refuses_is_a_bad_row(first, texts, sentence):
    prompt = [{"role": first, "content": "hi"}, {"role": "user", "content": "there"}]
    with pytest.raises(BadRow, match=f"^pairs.jsonl, line 7: {sentence}") as caught:
        tokenized(byte_tokenizer(template=STRICT), prompt, *texts)
    assert caught.value.kind.endswith("is refused by the chat template")


def test_one_sided_pairs_have_no_rejected_ids():
    done = tokenized(byte_tokenizer(), "ab", "cd", None)
    assert done.pair.rejected is None
    assert done.pair.text.rejected is None
    assert not done.rejected_cut


def test_numbers_of_the_row_travel_along():
    row = Row("pairs.jsonl", 1, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": -2, "w": 3, "kind": "x"})
    text = RowReader(columns=("w",), group_column="kind", on_swap={"w": "keep"}).read(row)
    pair = Tokenization(byte_tokenizer(), 10).tokenize(row, text, "7").pair
    assert (pair.id, pair.margin, pair.columns, pair.group, pair.probability) == ("7", 2.0, {"w": 3.0}, "x", None)
    assert pair.text.chosen == "c"


@pytest.mark.parametrize(
    "fields, options, sentence",
    [
        (("a<|end|>b", "c", "d"), {}, r"prompt holds '<\|end\|>', a special token of the tokenizer; take it out"),
        (("a", "c</s>", "d"), {}, "chosen holds '</s>', a special"),
        (("a", "c", "<s>d"), {}, "rejected holds '<s>', a special"),
        (([{"role": "user", "content": "<s>"}], "c", "d"), {}, "prompt holds '<s>'"),
        (
            ("abcdef", "g", "h"),
            {"max_length": 7},
            r"prompt leaves no room for a response \(7 tokens of data.max_length 7\)",
        ),
        (
            ("ab", "xyzc", "xyzd"),
            {"max_length": 6},
            "chosen and rejected are the same after truncation; raise data.max",
        ),
        (("a", "éb", "cd"), {"max_length": 3}, "prompt leaves no room for a response; raise data.max_length"),
    ],
)
def test_what_would_be_wrong_after_tokenisation_is_refused(fields, options, sentence):
    with pytest.raises(BadRow, match=f"^pairs.jsonl, line 7: {sentence}"):
        tokenized(byte_tokenizer(), *fields, **options)


def test_the_remedy_for_long_prompts_works():
    with pytest.raises(BadRow, match=r"set data\.max_prompt_length to cut prompts from the left"):
        tokenized(byte_tokenizer(), "abcdefgh", "i", "j", max_length=8)
    assert tokenized(byte_tokenizer(), "abcdefgh", "i", "j", max_length=8, max_prompt_length=5).prompt_cut


def test_a_response_that_the_tokenizer_drops_is_refused():
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("…", "")
    with pytest.raises(BadRow, match="chosen has no token of its own; give it a text that the tokenizer can represent"):
        tokenized(tokenizer, "a", "…", "b")


def test_a_prompt_without_a_token_before_the_responses_is_refused():
    with pytest.raises(BadRow, match="prompt has no token before the response"):
        tokenized(byte_tokenizer(bos=None, merges=[("b", "c")]), "b", "c", "d")


def test_chats_need_a_template_and_every_tokenizer_an_end_token():
    with pytest.raises(UserError, match="message lists and the tokenizer has no chat template"):
        tokenized(byte_tokenizer(template=None), [{"role": "user", "content": "a"}], "b", "c")
    with pytest.raises(UserError, match="no end token"):
        Tokenization(byte_tokenizer(eos=None))


@pytest.mark.parametrize("max_length, max_prompt_length", [(1, None), (10, 10), (10, 1), (10, 20)])
def test_lengths_without_room_are_refused(max_length, max_prompt_length):
    with pytest.raises(UsageError, match="leaves no room for a prompt and a response"):
        Tokenization(byte_tokenizer(), max_length, max_prompt_length)


def test_the_fingerprint_follows_what_decides_the_ids_and_nothing_else():
    first = Tokenization(byte_tokenizer(), 10).fingerprint()
    used = byte_tokenizer()
    used.pad_token = used.eos_token
    used(["a", "bcd"], padding="max_length", max_length=3, truncation=True)  # leaves its marks in the backend
    plain = byte_tokenizer()
    plain.pad_token = plain.eos_token
    assert Tokenization(used, 10).fingerprint() == Tokenization(plain, 10).fingerprint()
    others = [
        Tokenization(byte_tokenizer(), 11),
        Tokenization(byte_tokenizer(), 10, 5),
        Tokenization(byte_tokenizer(template=None), 10),
        Tokenization(byte_tokenizer(bos=None), 10),
        Tokenization(byte_tokenizer(merges=[("a", "b")]), 10),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 6
