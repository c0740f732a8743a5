"""The guarantees of the one tokenisation, on tokenizers small enough to work out the ids by hand."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.sources.row import BadRow, Row
from lit_pref.data.tokenizing.tokenization import Tokenization
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


def tokenized(tokenizer, prompt, chosen, rejected, max_length=1000, max_prompt_length=None, special="plain", **more):
    row = Row("pairs.jsonl", 7, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    text = replace(RowReader(one_sided=rejected is None).read(row), **more)
    return Tokenization(tokenizer, max_length, max_prompt_length, special).tokenize(row, text)


def ids(text):
    return [len(SPECIAL) + BYTES.index(character) for character in text.replace(" ", "Ġ").replace("\n", "Ċ")]


@pytest.mark.parametrize("adds_specials", [False, True])
def test_strings_get_one_begin_token_and_end_tokens(adds_specials):
    done = tokenized(byte_tokenizer(adds_specials=adds_specials), "ab", "cd", "e")
    assert (done.prompt, done.chosen, done.rejected) == (
        [BOS, *ids("ab")],
        [*ids("cd"), EOS],
        [*ids("e"), EOS],
    )
    assert (done.prompt_cut, done.chosen_cut, done.rejected_cut, done.merged) == (False,) * 4


def test_a_tokenizer_without_a_begin_token_gets_none():
    assert tokenized(byte_tokenizer(bos=None), "ab", "c", "d").prompt == ids("ab")


@pytest.mark.parametrize("template", [CHAT, "<s>" + CHAT, "{{ bos_token }}" + CHAT])
@pytest.mark.parametrize("adds_specials", [False, True])
def test_chats_get_one_begin_token_and_the_templates_turn_end_without_what_follows_it(template, adds_specials):
    tokenizer = byte_tokenizer(template=template, adds_specials=adds_specials)
    pair = tokenized(tokenizer, [{"role": "user", "content": "hi"}], "yes ", "no")
    assert pair.prompt == [BOS, START, *ids("user\nhi"), END, *ids("\n"), START, *ids("assistant\n")]
    assert pair.chosen == [*ids("yes "), END]  # the response's own space stays, the line break after the turn goes
    assert pair.rejected == [*ids("no"), END]


def test_a_template_without_a_turn_end_gets_the_end_token():
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    pair = tokenized(byte_tokenizer(template=template), [{"role": "user", "content": "hi"}], "yes", "no")
    assert pair.prompt == [BOS, *ids("user: hi\nassistant: ")]
    assert pair.chosen == [*ids("yes"), EOS]


def test_a_response_that_ends_with_an_added_word_is_still_ended():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["stop"])
    assert tokenized(tokenizer, "a", "b stop", "c").chosen[-1] == EOS


def test_the_boundary_is_the_longest_common_prefix_of_all_three():
    # b and c merge: ab|cd is a, bc, d, so that the prompt's b is no token of its own for the chosen response.
    done = tokenized(byte_tokenizer(merges=[("b", "c")]), "ab", "cd", "xd")
    bc = len(SPECIAL) + len(BYTES)
    assert done.prompt == [BOS, *ids("a")]
    assert done.chosen == [bc, *ids("d"), EOS]
    assert done.rejected == [*ids("bxd"), EOS]
    assert done.merged
    assert (done.text.prompt, done.text.chosen, done.text.rejected) == ("ab", "cd", "xd")


def test_prompts_are_cut_from_the_left_equally_and_keep_the_begin_token():
    done = tokenized(byte_tokenizer(), "abcdef", "gh", "i", max_length=20, max_prompt_length=4)
    assert done.prompt == [BOS, *ids("def")]
    assert done.text.prompt == "def"
    assert done.prompt_cut
    assert not done.chosen_cut


def test_responses_are_cut_from_the_right_and_lose_their_end():
    done = tokenized(byte_tokenizer(), "ab", "cdefgh", "ijk", max_length=7)
    # 7 - 3 prompt tokens = 4: "ijk" and its end fit, "cdefgh" does not.
    assert done.chosen == ids("cdef")
    assert done.rejected == [*ids("ijk"), EOS]
    assert (done.chosen_cut, done.rejected_cut) == (True, False)
    kept = done.text
    assert (kept.chosen, kept.chosen_complete, kept.rejected, kept.rejected_complete) == ("cdef", False, "ijk", True)


def test_a_response_that_only_loses_its_end_token_is_not_complete():
    done = tokenized(byte_tokenizer(), "ab", "cdef", "ij", max_length=7)
    assert done.chosen == ids("cdef")
    assert done.text.chosen == "cdef"
    assert not done.text.chosen_complete


def test_kept_text_has_whole_characters_only():
    # "é" is two bytes: three kept bytes of "éé" are one and a half characters.
    done = tokenized(byte_tokenizer(), "ééé", "éé!", "a", max_length=7, max_prompt_length=4)
    assert len(done.prompt) == 4
    assert done.text.prompt == "é"
    assert len(done.chosen) == 3
    assert done.text.chosen == "é"


def test_a_cut_response_after_a_merged_boundary_keeps_only_its_own_text():
    done = tokenized(byte_tokenizer(merges=[("b", "c")]), "ab", "cdef", "x", max_length=5)
    assert len(done.chosen) == 3  # bc, d, e
    assert done.text.chosen == "cde"


def test_cut_chat_prompts_keep_the_right_hand_messages():
    prompt = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    prompt += [{"role": "user", "content": "three"}]
    # The right-hand tokens: hree <|end|> \n <|start|> assistant\n are 4 + 1 + 1 + 1 + 10, and the begin token.
    done = tokenized(byte_tokenizer(), prompt, "yes", "no", max_length=99, max_prompt_length=18)
    assert done.prompt == [BOS, *ids("hree"), END, *ids("\n"), START, *ids("assistant\n")]
    assert done.text.prompt == [{"role": "user", "content": "hree"}]
    # Left of it stand o <|end|> \n <|start|> user\n t, 1 + 1 + 1 + 1 + 5 + 1 tokens more.
    part_of_two = tokenized(byte_tokenizer(), prompt, "yes", "no", max_length=99, max_prompt_length=28)
    assert part_of_two.text.prompt == [{"role": "assistant", "content": "o"}, prompt[-1]]
    uncut = tokenized(byte_tokenizer(), prompt, "yes", "no")
    assert uncut.text.prompt == prompt


def test_cut_chat_responses_keep_their_own_text():
    prompt = [{"role": "user", "content": "hi"}]
    length = len(tokenized(byte_tokenizer(), prompt, "yes", "no").prompt)
    done = tokenized(byte_tokenizer(), prompt, "yes sir", "no", max_length=length + 4)
    assert (done.text.chosen, done.text.chosen_complete) == ("yes ", False)
    assert (done.text.rejected, done.text.rejected_complete) == ("no", True)


def test_what_a_template_writes_behind_an_answer_is_not_its_kept_text():
    prompt = [{"role": "user", "content": "hi"}]
    tokenizer = byte_tokenizer(template=CHAT.replace("<|end|>", " .<|end|>"))
    length = len(tokenized(tokenizer, prompt, "yes", "n").prompt)
    done = tokenized(tokenizer, prompt, "yes", "n", max_length=length + 5)
    assert done.chosen == ids("yes .")
    assert (done.text.chosen, done.text.chosen_complete) == ("yes", False)


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
    assert done.rejected is None
    assert done.text.rejected is None
    assert not done.rejected_cut


def test_the_name_of_a_special_token_in_a_text_is_the_characters_that_it_is():
    done = tokenized(byte_tokenizer(), "<s>a<|end|>", "c</s>", "d")
    assert done.prompt == [BOS, *ids("<s>a<|end|>")]
    assert done.chosen == [*ids("c</s>"), EOS]
    assert done.special_texts == 3
    assert tokenized(byte_tokenizer(), "a", "c", "d").special_texts == 0
    assert tokenized(byte_tokenizer(), "a", "c", "d", extra_response="</s></s>").special_texts == 2


def test_special_tokens_in_a_text_are_read_as_tokens_where_that_is_asked():
    done = tokenized(byte_tokenizer(), "<s>a<|end|>", "c</s>", "d", special="token")
    assert done.prompt == [BOS, *ids("a"), END]
    assert done.chosen == [*ids("c"), EOS, EOS]
    assert done.special_texts == 3


def test_only_the_templates_own_special_tokens_are_tokens():
    prompt = [{"role": "user", "content": "a<|end|>"}]
    done = tokenized(byte_tokenizer(), prompt, "<|end|>", "<|start|>b")
    assert done.prompt == [BOS, START, *ids("user\na<|end|>"), END, *ids("\n"), START, *ids("assistant\n")]
    assert done.chosen == [*ids("<|end|>"), END]
    assert done.rejected == [*ids("<|start|>b"), END]
    assert done.special_texts == 3
    assert done.text.chosen == "<|end|>"
    asked = tokenized(byte_tokenizer(), prompt, "<|end|>", "<|start|>b", special="token")
    assert asked.prompt == [BOS, START, *ids("user\na"), END, END, *ids("\n"), START, *ids("assistant\n")]
    assert (asked.chosen, asked.rejected) == ([END, END], [START, *ids("b"), END])


def test_a_cut_text_keeps_its_special_names():
    done = tokenized(byte_tokenizer(), "<s>abc", "<s>yes", "n", max_length=9, max_prompt_length=4)
    assert (done.text.prompt, done.text.chosen) == ("abc", "<s>ye")
    # The first words of the prompt's text are the name of the token that no sequence of ids has.
    assert tokenized(byte_tokenizer(), "<s>a", "yes", "n", max_length=7).text.chosen == "ye"


def test_a_chat_that_is_cut_beside_a_special_name_keeps_the_messages_that_are_left():
    prompt = [
        {"role": "user", "content": "t</s>"},
        {"role": "assistant", "content": "t"},
        {"role": "user", "content": "t"},
    ]
    # Right-hand tokens: t <|end|> \n <|start|> assistant\n are 1 + 1 + 1 + 1 + 10; every text is a letter of a role.
    done = tokenized(byte_tokenizer(), prompt, "yes", "no", max_length=99, max_prompt_length=15)
    assert done.text.prompt == prompt[-1:]
    # <|end|> \n <|start|> user\n, and t <|end|> \n <|start|> assistant\n before it.
    done = tokenized(byte_tokenizer(), prompt, "yes", "no", max_length=99, max_prompt_length=15 + 8 + 1)
    assert done.text.prompt == prompt[-2:]


GENERATES = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}{{ '\n' }}{% if m.role == 'assistant' %}"
    "<think></think>{% generation %}{{ m.content | trim }}{% endgeneration %}<|end|>\n</s>"
    "{% else %}{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_what_stands_before_a_generation_block_is_prompt_and_what_stands_after_the_turns_end_is_nothing():
    pair = tokenized(byte_tokenizer(template=GENERATES), [{"role": "user", "content": "hi"}], " yes", "no")
    head = [BOS, START, *ids("user\nhi"), END, *ids("\n"), START, *ids("assistant\n<think></think>")]
    assert (pair.prompt, pair.chosen, pair.rejected) == (head, [*ids("yes"), END], [*ids("no"), END])


def test_a_generation_block_without_a_turns_end_gets_the_end_token():
    template = GENERATES.replace("<|end|>\n</s>", "{{ '\n' }}")
    pair = tokenized(byte_tokenizer(template=template), [{"role": "user", "content": "hi"}], "yes", "no")
    assert pair.chosen == [*ids("yes"), EOS]


def test_a_cut_answer_in_a_generation_block_keeps_its_own_text():
    prompt = [{"role": "user", "content": "hi"}]
    tokenizer = byte_tokenizer(template=GENERATES)
    length = len(tokenized(tokenizer, prompt, "yes", "no").prompt)
    done = tokenized(tokenizer, prompt, " yes sir", "no", max_length=length + 4)
    assert (done.text.chosen, done.text.rejected) == ("yes ", "no")


def test_a_think_block_that_only_the_last_turn_has_is_not_the_responses_text():
    template = CHAT.replace(
        "{{ m['content'] }}", "{% if loop.last and m.role != 'user' %}<think>\n{% endif %}{{ m.content }}"
    )
    prompt = [{"role": "user", "content": "hi"}]
    done = tokenized(byte_tokenizer(template=template), prompt, "yes sir", "no")
    assert done.chosen == [*ids("<think>\nyes sir"), END]  # without a block nothing says that it is prompt
    length = len(done.prompt) + len("<think>\nyes")
    assert tokenized(byte_tokenizer(template=template), prompt, "yes sir", "no", max_length=length).text.chosen == "yes"


def test_a_third_response_has_the_same_prompt_and_is_cut_like_the_others():
    done = tokenized(byte_tokenizer(merges=[("b", "d")]), "ab", "ce", "fg", extra_response="dhi", max_length=5)
    # The prompt's b merges with the extra response's first letter: it is prompt for none of the three.
    bd = len(SPECIAL) + len(BYTES)
    assert done.prompt == [BOS, *ids("a")]
    assert (done.chosen, done.rejected) == ([*ids("bce")], [*ids("bfg")])
    assert done.extra_response == [bd, *ids("hi")]
    assert (done.text.extra_response, done.text.extra_response_complete, done.extra_response_cut) == (
        "dhi",
        False,
        True,
    )
    whole = tokenized(byte_tokenizer(), "ab", "ce", "fg", extra_response="d")
    assert (whole.extra_response, whole.extra_response_cut, whole.text.extra_response_complete) == (
        [*ids("d"), EOS],
        False,
        True,
    )
    assert tokenized(byte_tokenizer(), "ab", "ce", "fg").extra_response is None
    alone = tokenized(byte_tokenizer(), "ab", "ce", None, extra_response="d")
    assert (alone.rejected, alone.extra_response) == (None, [*ids("d"), EOS])
    with pytest.raises(BadRow, match="extra_response is refused by the chat template"):
        tokenized(
            byte_tokenizer(template=STRICT), [{"role": "user", "content": "hi"}], "a", "b", extra_response="secret"
        )


def test_character_spans_become_values_of_tokens():
    spans = {"edit": ([(0, 2, 0.5), (2, 3, 2)], [(1, 2, 1.0)]), "w": ([], [(0, 9, 3.0)])}
    tokenizer = byte_tokenizer(merges=[("b", "c"), ("d", "e")])
    pair = tokenized(tokenizer, "ab", "cde", "xy", spans=spans)
    # chosen: bc, de, end: of bc only the c is the response's, and de is half of one span and half of the next.
    assert pair.token_columns["edit"] == ([0.5, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0])
    assert pair.token_columns["w"] == ([0.0, 0.0, 0.0], [0.0, 3.0, 3.0, 0.0])
    assert tokenized(tokenizer, "ab", "cde", "xy").token_columns == {}
    assert tokenized(tokenizer, "ab", "cde", None, spans=spans).token_columns["w"] == ([0.0] * 3, None)


def test_values_of_tokens_are_cut_with_them():
    spans = {"edit": ([(0, 1, 1), (1, 2, 2), (2, 3, 3)], [(0, 1, 4)])}
    pair = tokenized(byte_tokenizer(), "abcd", "xyz", "q", max_length=5, max_prompt_length=3, spans=spans)
    assert (pair.prompt, pair.chosen) == ([BOS, *ids("cd")], ids("xy"))
    assert pair.token_columns["edit"] == ([1.0, 2.0], [4.0, 0.0])


@pytest.mark.parametrize("template", [CHAT, CHAT.replace("m['content']", "m['content'] | trim"), GENERATES])
def test_spans_are_found_in_what_a_template_wrote(template):
    # Several tokens a character, a letter and its accent, and whitespace that templates may take away.
    response = " 👍e\u0301x"
    spans = {"edit": ([(0, 1, 9), (1, 2, 1), (2, 4, 2), (4, 5, 3)], [(0, 1, 5)])}
    prompt = [{"role": "user", "content": "👍e"}]
    pair = tokenized(byte_tokenizer(template=template), prompt, response, "e", spans=spans)
    space = [9.0] if template == CHAT else []
    assert pair.token_columns["edit"][0] == [*space, *[1.0] * 4, *[2.0] * 3, 3.0, 0.0]
    assert pair.token_columns["edit"][1] == [5.0, 0.0]


def test_spans_beside_special_names_are_found():
    spans = {"edit": ([(4, 5, 1)], [(0, 1, 5)])}
    prompt = [{"role": "user", "content": "</s>"}]
    pair = tokenized(byte_tokenizer(), prompt, "</s>x", "y", spans=spans)
    assert pair.token_columns["edit"] == ([0.0] * 4 + [1.0, 0.0], [5.0, 0.0])


def test_spans_that_cannot_be_found_are_refused():
    spans = {"edit": ([(0, 1, 1)], [])}
    shouts = byte_tokenizer(template=CHAT.replace("m['content']", "m['content'] | upper"))
    with pytest.raises(
        BadRow, match="line 7: chosen is rewritten by the chat template, so that its spans cannot be found"
    ):
        tokenized(shouts, [{"role": "user", "content": "hi"}], "yes", "no", spans=spans)
    with pytest.raises(UserError, match="cannot map its tokens to characters; use one that comes with a"):
        tokenized(ByT5Tokenizer(), "a", "b", "c", spans=spans)


def test_a_text_that_the_tokenizer_cannot_read_is_a_bad_row_and_its_neighbours_are_not():
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2}, unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenization = Tokenization(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), 9)
    rows = [Row("pairs.jsonl", k, {"prompt": "a", "chosen": c, "rejected": r}) for k, (c, r) in enumerate(["ba", "bx"])]
    good, bad = tokenization.tokenize_all([(row, RowReader().read(row)) for row in rows])
    assert good.chosen == [2, 0]
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("pairs.jsonl, line 1: rejected cannot be read by the tokenizer (WordLevel error: ")
    assert tokenization.tokenize_all([]) == []


def test_a_prompt_is_read_once_however_many_pairs_it_has():
    tokenizer = byte_tokenizer()
    rows = [Row("pairs.jsonl", k, {"prompt": "ab", "chosen": f"c{k}", "rejected": "d"}) for k in range(3)]
    items = [(row, RowReader().read(row)) for row in rows]
    tokenization = Tokenization(tokenizer)
    texts = []
    encode = tokenization._encoding.encode

    def counted(written, spans=False):
        texts.extend(one.text for one in written)
        return encode(written, spans)

    tokenization._encoding.encode = counted
    tokenization.tokenize_all(items[:2])
    tokenization.tokenize_all(items[2:])
    assert sorted(texts) == ["ab", "abc0", "abc1", "abc2", "abd", "abd", "abd"]


@pytest.mark.parametrize(
    "fields, options, sentence",
    [
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
    with pytest.raises(UserError, match="read as messages, but the tokenizer has no chat template; use a tokenizer"):
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
    padded = byte_tokenizer()
    padded.pad_token = "<|end|>"  # a template can write it
    others = [
        Tokenization(byte_tokenizer(), 11),
        Tokenization(byte_tokenizer(), 10, 5),
        Tokenization(byte_tokenizer(template=None), 10),
        Tokenization(byte_tokenizer(bos=None), 10),
        Tokenization(byte_tokenizer(merges=[("a", "b")]), 10),
        Tokenization(byte_tokenizer(), 10, special_text="token"),
        Tokenization(padded, 10),
    ]
    assert len({first, *(other.fingerprint() for other in others)}) == 8
