"""What all tokenisations share, on a tokenizer whose ids can be worked out by hand."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_pref.models.encoding import Encoding, boundary, tokenizer_state

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


def test_no_begin_token_is_left_and_special_tokens_are_plain_text_where_that_is_asked():
    ab = encoding().ids("ab")
    assert len(ab) == 2
    assert encoding().ids("<s><s>ab</s>") == [*ab, EOS]
    plain = encoding().ids("<s>ab</s>", plain=True)
    assert len(plain) == 9 and plain[3:5] == ab and not {BOS, EOS} & set(plain)
    assert (encoding().begin, encoding(bos=None).begin) == ([BOS], [])


def test_special_tokens_are_found_in_a_text_and_added_words_are_not_special():
    assert encoding().special("a</s><s>") == "</s>"
    assert encoding().special("a  b") is None


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
    ids = encoding().ids(text)
    assert encoding().ended(ids, text, response) == (ids if ended else [*ids, EOS])


def test_the_boundary_is_the_longest_common_prefix():
    assert boundary([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5]]) == 3
    assert boundary([[1, 2, 3], [1, 2, 4], [1, 5, 3]]) == 1
    assert boundary([[1], [2]]) == 0
    assert boundary([[1, 2], [1]]) == 1


def test_the_state_of_a_tokenizer_is_what_it_reads_by_and_not_how_it_was_used():
    used = encoding().tokenizer
    used.pad_token = "</s>"
    used(["a", "bc"], padding="max_length", max_length=3, truncation=True)
    assert tokenizer_state(used) == tokenizer_state(encoding().tokenizer)
    used.add_tokens(["word"])
    assert tokenizer_state(used) != tokenizer_state(encoding().tokenizer)
