"""What all tokenisations share, on a tokenizer whose ids can be worked out by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_pref.models.encoding import Encoding, Unreadable, common_prefix_length, tokenizer_state
from lit_pref.models.special_text import EncodableText

BOS, EOS, SPACES = 0, 1, 2


def encoding(bos="<s>"):
    """One token a byte after `<s>`, `</s>` and an added word of two spaces, as in the tokenizers of NeoX and Phi."""
    tokens = ["<s>", "</s>", "  ", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token="</s>")
    tokenizer.add_tokens(["  "])
    return Encoding(tokenizer)


def ids(encoding, text, special=None):
    return encoding.ids(EncodableText(text, special))


def test_no_begin_token_is_left_and_special_tokens_are_plain_text_where_that_is_asked():
    ab = ids(encoding(), "ab")
    assert len(ab) == 2
    assert ids(encoding(), "<s><s>ab</s>") == [*ab, EOS]
    plain = ids(encoding(), "<s>ab</s>", ())
    assert len(plain) == 9 and plain[3:5] == ab and not {BOS, EOS} & set(plain)
    assert (encoding().bos, encoding(bos=None).bos, encoding().eos) == ([BOS], [], EOS)


def test_special_tokens_are_those_that_stand_where_they_are_said_to():
    text = "<s>a</s>  b</s>"
    characters = ids(encoding(), "</s>", ())
    a, b = ids(encoding(), "ab")
    assert ids(encoding(), text, ((0, 3), (11, 15))) == [a, *characters, SPACES, b, EOS]
    assert ids(encoding(), text, ((0, 3), (4, 8))) == [a, EOS, SPACES, b, *characters]
    # The private characters that stand for tokens are other ones where a text holds them.
    used = encoding()
    assert ids(used, text, ((0, 3), (4, 8))) == [a, EOS, SPACES, b, *characters]
    private = ids(used, "\U000f0001", ())
    assert ids(used, "\U000f0001</s>a</s>", ((1, 5),)) == [*private, EOS, a, *characters]


def test_places_are_those_in_the_text_as_it_was_given():
    read, told, plain = encoding().encode(
        [EncodableText("<s>a</s>é"), EncodableText("<s>a</s>é", ((0, 3),)), EncodableText("a", ())], True
    )
    assert read.spans == [(3, 4), (4, 8), (8, 9), (8, 9)]
    assert told.spans == [(3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (8, 9)]
    assert plain.spans == [(0, 1)]
    assert encoding().encode([EncodableText("a")])[0].spans is None


def test_more_text_holds_no_special_token():
    assert encoding().extended(EncodableText("<s>"), "a") == EncodableText("<s>a")
    assert encoding().extended(EncodableText("<s>"), "</s>") == EncodableText("<s></s>", ((0, 3),))
    assert encoding().extended(EncodableText("a", ()), "</s>") == EncodableText("a</s>", ())
    assert (encoding().encodable("a").special, Encoding(encoding().tokenizer, plain=False).encodable("a").special) == (
        (),
        None,
    )


def test_a_vocabulary_that_reads_a_special_name_as_a_word_cannot_be_told_otherwise():
    backend = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = Encoding(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert ids(words, "a a </s>", ((4, 8),)) == [1, 1, 0]
    for special in ((), ((2, 6),)):
        with pytest.raises(Unreadable, match="it encodes '</s>' as a special token in every text"):
            ids(words, "a </s> a </s>", special)
    with pytest.raises(Unreadable, match=r"Missing \[UNK\] token"):
        ids(words, "b")


@pytest.mark.parametrize(
    "text, response, ended",
    [
        ("x: ab", "ab", False),
        ("x: ab</s>", "ab", True),
        ("x: ab  ", "ab  ", False),  # the last token is an added one, and the response's own
        ("x: ab  ", "ab", False),
    ],
)
def test_an_end_is_written_unless_the_template_has_written_one(text, response, ended):
    read = ids(encoding(), text)
    assert encoding().with_end(read, text, response) == (read if ended else [*read, EOS])


def test_an_answer_that_ends_like_the_template_is_told_from_it_by_its_place():
    read = ids(encoding(), "x: </s></s>")
    assert encoding().with_end(read, "x: </s></s>", "</s>", (3, 7)) == read
    assert encoding().with_end(read, "x: </s></s>", "</s></s>", (3, 11)) == [*read, EOS]


def test_the_boundary_is_the_longest_common_prefix():
    assert common_prefix_length([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]]) == 3
    assert common_prefix_length([[1, 2, 3], [1, 2, 4], [1, 5, 3]]) == 1
    assert common_prefix_length([[1], [2]]) == 0
    assert common_prefix_length([[1, 2], [1]]) == 1
    long = list(range(100))
    for k in range(100):
        assert common_prefix_length([long, [*long[:k], -1, *long[k + 1 :]], long[: max(k, 60)]]) == min(k, max(k, 60))


def test_the_state_of_a_tokenizer_is_what_it_reads_by_and_not_how_it_was_used():
    used = encoding().tokenizer
    used.pad_token = "</s>"
    used(["a", "bc"], padding="max_length", max_length=3, truncation=True)
    assert tokenizer_state(used) == tokenizer_state(encoding().tokenizer)
    used.add_tokens(["word"])
    assert tokenizer_state(used) != tokenizer_state(encoding().tokenizer)
